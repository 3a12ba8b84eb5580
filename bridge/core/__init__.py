"""Decides how every push ends. No I/O: it speaks to the outside through `bridge.core.ports`.

May import msgspec and the standard library. Must not know of any library for brokers, databases, sockets, HTTP, JWT or
metrics.
"""
