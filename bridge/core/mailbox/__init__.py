"""Pushes with a ttl that no peer has proven yet: they are kept, read for their user, resent, ended, or recalled.

Read `pages`, `offering`, `resuming`, `others`, `rounds`, `resends`, `sweep`, `recalls`, `heard_recalls` in this order.
May import the settlement and what is below it. Must not know how a message is taken.
"""
