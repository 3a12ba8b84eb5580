"""One open connection of a user, all of them together, and who may open one.

May import what is in flight and what is below it. Must not know how rows are written.
"""
