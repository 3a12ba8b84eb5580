"""The ops port: health, status, metrics, outcomes, publishing over HTTP. May import adapters, operator and the core."""
