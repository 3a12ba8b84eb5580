"""A push on its way to a user: its state, its indexes and its deadlines.

May import the contract and what is below it. Must not know of sessions, rows in a database or the broker.
"""
