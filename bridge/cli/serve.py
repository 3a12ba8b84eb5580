"""`bridge serve`: run the bridge."""

from __future__ import annotations

import logging
import os

from bridge.config import Settings, misspelt_variables

log = logging.getLogger("bridge")


async def serve(settings: Settings) -> int:
    """Run the bridge until it is told to stop; returns the exit code of `app.serve`."""
    from bridge.adapters import logs
    from bridge.app import build as app

    logs.setup(settings.log_level, settings.log_format)
    for name, meant in misspelt_variables(os.environ).items():
        log.warning("%s is not a setting; did you mean %s?", name, meant)
    return await app.serve(settings)
