"""Pushes to sessions at other nodes, and from other nodes to sessions here.

Read `neighbours`, `unheard`, `post`, `forwards`, `guests`, `hosting`, `ringing` in this order. May import the mailbox
and what is below it. Must not know how a message is taken, or what carries a letter.
"""
