"""On real RabbitMQ, Postgres and sockets."""
