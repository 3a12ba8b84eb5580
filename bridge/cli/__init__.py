"""The command line: the parsers, and a file for what each command does. May import everything.

The program begins at `main`.
"""

from bridge.cli.entry import main

__all__ = ["main"]
