"""What an operator asks of log and queues: why, audit, dead letters, replay. May import adapters and the core."""
