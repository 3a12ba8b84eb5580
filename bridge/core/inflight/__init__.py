"""A push in flight to one user: its state, its indexes, its deadlines, and the one owner of all these.

Read `transitions` first, then `flight`, then `inflight`. May import the contract and what is below it. Must not know of
sessions, of rows in a database, or of the broker.
"""
