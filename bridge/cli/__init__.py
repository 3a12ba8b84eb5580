"""The command line: one parser, and what each command does. May import everything.

`main` is where the program begins.
"""

from bridge.cli.parser import main

__all__ = ["main"]
