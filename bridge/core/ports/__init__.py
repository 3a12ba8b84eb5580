"""What the core asks of the outside, and what the outside tells the core: protocols and their values.

May import the model. Must not know who fills a port.
"""
