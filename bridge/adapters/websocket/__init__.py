"""WebSocket: handshakes and sockets. The only package that knows websockets."""
