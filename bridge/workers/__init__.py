"""Several processes on one WebSocket port, and what supervises them. May import everything but the command line.

A worker is a whole bridge, a node of its own; the supervisor takes no pushes and has no sessions. It starts the
workers, starts a dead one again, and answers for all of them on the ops port.
"""
