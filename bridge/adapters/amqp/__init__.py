"""RabbitMQ: taking, publishing, the topology, and the turn at the queue. The only package that knows aio-pika."""
