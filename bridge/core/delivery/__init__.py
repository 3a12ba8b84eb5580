"""The way of one push, from the queue to its end. Read `delivery` first: it tells of all others.

May import everything of the core but `gateway` and `control`, which use it.
"""
