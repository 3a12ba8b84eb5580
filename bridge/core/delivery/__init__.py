"""The way of one push, from the queue to its outcome. A file for each verb: read `intake` first, it says how to go on.

May import the mailbox and what is below it. Must not know what a message looks like at the broker, or a row in the
database.
"""
