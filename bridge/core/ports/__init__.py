"""The protocols between the core and the outside, in both directions, and their values.

May import the model. Must not know who fills a port.
"""
