"""What an operator asks of log and queues: why, audit, dead letters, replay. May import adapters and the core.

It knows nothing of the command line and of HTTP, which show its answers.
"""
