"""What happens to a push with a ttl that no peer has proven for now: kept, read for its user, resent, ended, recalled.

Read `pages`, `offering`, `resuming`, `resends`, `sweep`, `recalls` in this order. May import the settlement and what is
below it. Must not know how a message is taken.
"""
