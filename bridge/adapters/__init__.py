"""Fill the ports of the core with real things. Each translates the errors of its library once, at the border.

May import the core. Must not know of settings, of the command line or of one another's insides.
"""
