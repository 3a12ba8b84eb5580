"""`python -m bridge.cli.worker NODE`: one worker of `bridge serve --workers N`, started by the supervisor only.

What it is to do comes over standard input, see `bridge.workers.link`; the word is there for whoever lists processes.
"""

from __future__ import annotations

import sys
import traceback

from bridge.adapters import logs
from bridge.cli.entry import exit_code
from bridge.cli.loop import run_loop
from bridge.cli.parser import FAILED
from bridge.config import Settings
from bridge.core.errors import BridgeError
from bridge.core.redaction import redact
from bridge.workers.link import Link, Refused
from bridge.workers.worker import work


def main() -> int:
    """Serve; returns the exit code."""
    link = Link.of_stdin()
    try:
        orders = link.orders()
        settings = Settings.load(orders.settings)
        logs.setup(settings.log_level, settings.log_format, node=settings.node)
        return run_loop(work(settings, link, orders.ops_path), uvloop=settings.uvloop)
    except EOFError:
        return FAILED
    except BridgeError as error:
        # The supervisor tells it, once for all workers.
        code = exit_code(error)
        link.tell(Refused(redact(str(error)), code))
        return code
    except Exception:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
