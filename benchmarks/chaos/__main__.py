"""`python -m benchmarks.chaos`, which `make chaos` calls."""

from __future__ import annotations

import sys

from benchmarks.chaos.run import main

if __name__ == "__main__":
    sys.exit(main())
