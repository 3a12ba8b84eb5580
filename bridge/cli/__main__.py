"""`python -m bridge.cli`: the program without its script."""

import sys

from bridge.cli import main

sys.exit(main())
