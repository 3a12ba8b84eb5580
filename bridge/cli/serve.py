"""`bridge serve`: run the bridge."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from bridge.config import Settings, misspelt_variables

log = logging.getLogger("bridge")


async def serve(settings: Settings, given: Mapping[str, object]) -> int:
    """Run the bridge, or several workers, until it is told to stop; returns the exit code of `app.serve`.

    `given`: the settings of the command line.
    """
    from bridge.adapters import logs

    several = settings.workers > 1
    logs.setup(settings.log_level, settings.log_format, node=settings.node if several else "")
    for name, meant in misspelt_variables(os.environ).items():
        log.warning("%s is not a setting; did you mean %s?", name, meant)
    if several:
        from bridge.workers.supervisor import supervise

        return await supervise(settings, given)
    from bridge.app import build as app

    return await app.serve(settings)
