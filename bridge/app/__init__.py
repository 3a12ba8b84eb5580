"""Puts the parts together, runs them, and stops them. May import everything but the command line."""
