"""What happens to a push with a ttl that came to nothing for now: kept, sent again, recalled.

May import the settlement and what is below it. Must not know how a message is taken.
"""
