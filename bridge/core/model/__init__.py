"""The words of the bridge as types: outcomes, pushes, rows, sessions.

May import `bridge.core.errors`. Must not know of anything else.
"""
