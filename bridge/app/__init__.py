"""Puts the parts together and runs them. May import everything but the command line."""
