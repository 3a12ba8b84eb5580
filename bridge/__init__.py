"""bridge: push requests from RabbitMQ to a person's WebSockets, with proof."""

__version__ = "0.2.0"
