"""Who is told what happens: error handler, hooks, the feed of outcomes, the auditor, metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from bridge.adapters import plugins
from bridge.adapters.metrics import PrometheusMetrics, audit_families
from bridge.app.limits import ServiceLimits
from bridge.app.rows import audit_look_of
from bridge.config import Settings
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.operator.auditor import Auditor
from bridge.ops.outcome_feed import OutcomeFeed


@dataclass(frozen=True)
class Reports:
    """Those that the parts of the bridge report to. None of them does I/O of its own."""

    handler: ErrorHandler
    """The configured one, for errors of plug-ins: a failing hook must not be told of its own failure."""
    errors: ErrorHandler
    """For all other errors: the handler, then the hooks."""
    hooks: plugins.FanOutHooks
    auditor: Auditor
    feed: OutcomeFeed
    metrics: PrometheusMetrics


@asynccontextmanager
async def reporting(
    settings: Settings, clock: Clock, limits: ServiceLimits, boot: str
) -> AsyncIterator[Reports]:
    """Make them, with the plug-ins that the settings name entered for the length of the block."""
    async with AsyncExitStack() as stack:
        handler = plugins.load_error_handler(settings.error_handler)
        await plugins.enter(stack, handler, settings.error_handler, "BRIDGE_ERROR_HANDLER")
        plugged = [
            await plugins.enter(stack, plugins.load_hooks(spec), spec, "BRIDGE_HOOKS", handler)
            for spec in settings.hooks
        ]
        feed = OutcomeFeed()
        auditor = Auditor(boot, clock, audit_look_of(settings, boot, limits.look_up_seconds))
        hooks = plugins.FanOutHooks([feed, auditor, *plugged], handler)
        metrics = PrometheusMetrics()
        metrics.add_source(lambda: audit_families(auditor.drift, auditor.audited_at))
        yield Reports(handler, plugins.ReportedErrors(handler, hooks), hooks, auditor, feed, metrics)
