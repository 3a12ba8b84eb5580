"""The open connections of users: each by itself, all of them together, and who may open one.

May import what is in flight and what is below it. Must not know how rows are written.
"""
