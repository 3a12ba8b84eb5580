"""From an outcome to the ack: row, receipts, dead letters, and only then the ack.

May import sessions and what is below them. Must not know how a push is routed.
"""
