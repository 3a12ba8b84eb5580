"""Plug-ins that a setting names as `module:factory`: delivery logs, an error handler, hooks.

A factory is called once at the start, without arguments, and returns the plug-in. A plug-in that is also an
asynchronous context manager is entered before the service starts and left after it has drained. If a setting
names something unusable, the start is refused with SettingsError. A plug-in that fails later never stops the
service: its error goes to the error handler.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar, cast

from bridge.core.errors import (
    BridgeError,
    BrokerUnavailable,
    SettingsError,
    StatementFailed,
    StoreUnavailable,
)
from bridge.core.model.rows import Row
from bridge.core.ports.plugins import DeliveryLog, ErrorHandler, Hooks, SessionInfo
from bridge.core.redaction import clean_error

T = TypeVar("T")

HOOKS: Final = ("on_open", "on_close", "on_outcome", "on_error")
"""The methods of a Hooks plug-in; it may have any of them."""
OUTAGE_EVERY: Final = 30.0
"""Seconds between two log lines about one outage: every try meets it again."""
OUTAGES_MAX: Final = 100
"""Outages that are remembered, by their words."""
_OUTAGES: Final = (BrokerUnavailable, StoreUnavailable)


# --- Loading ---------------------------------------------------------------------------------------------


TRACES: Final = "bridge.adapters.traces:make"
"""A plug-in of our own, since its libraries are an extra."""


def load_delivery_log(spec: str, setting: str = "BRIDGE_DELIVERY_LOG") -> DeliveryLog:
    """Make the delivery log that `spec` (`module:factory`, or `traces`) names."""
    made = _make(TRACES if spec == "traces" else spec, setting)
    if not inspect.iscoroutinefunction(getattr(made, "record", None)):
        raise SettingsError(setting, f"what {spec} returns needs a method: async def record(self, rows)")
    return cast(DeliveryLog, made)


def load_error_handler(spec: str, setting: str = "BRIDGE_ERROR_HANDLER") -> ErrorHandler:
    """Make the error handler that `spec` names: `log`, or `module:factory` guarded by the log."""
    logged = LoggingErrorHandler()
    if spec == "log":
        return logged
    made = _make(spec, setting)
    _need_plain_method(made, "handle", spec, setting, "def handle(self, error, where, facts)")
    return GuardedErrorHandler(cast(ErrorHandler, made), logged)


def load_hooks(spec: str, setting: str = "BRIDGE_HOOKS") -> object:
    """Make the hooks that `spec` (`module:factory`) names: an object with one or more methods of HOOKS."""
    made = _make(spec, setting)
    found = [name for name in HOOKS if hasattr(made, name)]
    if not found:
        raise SettingsError(setting, f"what {spec} returns needs one or more of {', '.join(HOOKS)}")
    for name in found:
        _need_plain_method(made, name, spec, setting, f"def {name}(self, ...)")
    return made


async def enter(
    stack: AsyncExitStack, plugin: T, spec: str, setting: str, errors: ErrorHandler | None = None
) -> T:
    """Enter a plug-in if it is an asynchronous context manager, and leave it with the stack; returns the plug-in.

    What its `__aenter__` returns is ignored. If that raises, so does this: SettingsError. An error when it is left goes
    to `errors` (by default to the log) and harms nothing, since everything is done by then.
    """
    inner: Any = plugin.inner if isinstance(plugin, GuardedErrorHandler) else plugin
    kind = type(inner)
    if not (hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__")):
        return plugin
    try:
        await kind.__aenter__(inner)
    except SettingsError:
        raise
    except Exception as error:  # other people's code may raise anything
        words = " ".join(_words(error).split())
        raise SettingsError(setting, f"{spec}: entering it (__aenter__) failed: {words}") from error

    async def leave(*reason: Any) -> None:
        try:
            await kind.__aexit__(inner, *reason)
        except Exception as error:  # so may leaving it
            (errors or LoggingErrorHandler()).handle(error, "plug-in.leave", {"plug_in": spec})

    stack.push_async_exit(leave)
    return plugin


def _make(spec: str, setting: str) -> object:
    module_name, _, factory_name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = "; is its directory on PYTHONPATH?" if error.name == module_name.split(".")[0] else ""
        if spec == TRACES:
            hint = "; pip install 'bridge[traces]'"
        raise SettingsError(setting, f"{spec}: there is no module {error.name}{hint}") from error
    except Exception as error:  # a module may raise anything while it is imported
        raise SettingsError(setting, f"{spec}: importing it failed: {_words(error)}") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        problem = "has no" if factory is None else "cannot call its"
        raise SettingsError(setting, f"{spec}: module {module_name} {problem} {factory_name}")
    try:
        return cast(Callable[[], object], factory)()
    except BridgeError:
        raise
    except Exception as error:  # so may a factory
        raise SettingsError(setting, f"{spec}: the factory failed: {_words(error)}") from error


def _need_plain_method(made: object, name: str, spec: str, setting: str, shape: str) -> None:
    method = getattr(made, name, None)
    # An async method would return a coroutine that nobody awaits, and its error would be lost.
    if not callable(method) or inspect.iscoroutinefunction(method):
        raise SettingsError(setting, f"what {spec} returns needs a method (not async): {shape}")


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# --- Errors ----------------------------------------------------------------------------------------------


class LoggingErrorHandler:
    """The default ErrorHandler: one log record for each error, with a traceback only for defects.

    An error that the bridge raises on purpose says everything in its sentence; any other is a defect. Every try meets
    an outage again, so it is logged at once, and then every `OUTAGE_EVERY` seconds with the number of times since.
    """

    def __init__(
        self, logger: logging.Logger | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = logger or logging.getLogger("bridge.errors")
        self._monotonic = monotonic
        self._outages: dict[str, tuple[float, int]] = {}
        """By its words: when it was logged last, and how often it was met since."""

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        """Log it at WARNING (expected) or ERROR (a defect), with the facts as fields."""
        expected = isinstance(error, BridgeError)
        words = _words(error)
        extra: dict[str, object] = {"where": where, "facts": dict(facts)}
        if isinstance(error, _OUTAGES) and not isinstance(error, StatementFailed):
            # Without `where`: both links to the broker are lost at once.
            repeated = self._met(words)
            if repeated is None:
                return
            if repeated:
                extra["repeated"] = repeated
        self._log.log(
            logging.WARNING if expected else logging.ERROR,
            "%s: %s",
            where,
            words,
            exc_info=None if expected else error,
            extra=extra,
        )

    def _met(self, outage: str) -> int | None:
        """How often it was met since it was logged last; None if it need not be logged yet."""
        now = self._monotonic()
        told, met = self._outages.get(outage, (-math.inf, 0))
        if now - told < OUTAGE_EVERY:
            self._outages[outage] = told, met + 1
            return None
        self._outages.pop(outage, None)
        self._outages[outage] = now, 0
        if len(self._outages) > OUTAGES_MAX:
            del self._outages[next(iter(self._outages))]
        return met


class GuardedErrorHandler:
    """A plugged-in ErrorHandler. If it raises, its own error and the one it was given go to the log."""

    def __init__(self, inner: ErrorHandler, fallback: ErrorHandler) -> None:
        self.inner = inner
        self._fallback = fallback

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        """Hand it on without secrets, since it may go to another service."""
        clean_error(error)
        try:
            self.inner.handle(error, where, facts)
        except Exception as failure:  # other people's code may raise anything
            self._fallback.handle(error, where, facts)
            self._fallback.handle(failure, "error_handler", {"while": where})


class ReportedErrors:
    """The ErrorHandler of every part of the bridge: calls the configured one, then the hooks' `on_error`."""

    def __init__(self, handler: ErrorHandler, hooks: Hooks) -> None:
        self._handler = handler
        self._hooks = hooks

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        """Hand it to both without secrets."""
        clean_error(error)
        self._handler.handle(error, where, facts)
        self._hooks.on_error(error, where)


# --- Hooks -----------------------------------------------------------------------------------------------


class FanOutHooks:
    """Fills the Hooks port: calls every plug-in in turn. If one raises, that is reported and the others are called.

    `handler` gets what a hook raised. It must be the configured handler, not ReportedErrors: otherwise a failing
    `on_error` would call itself.
    """

    def __init__(self, hooks: Sequence[object], handler: ErrorHandler) -> None:
        self._handler = handler
        self._on_open = _methods(hooks, "on_open")
        self._on_close = _methods(hooks, "on_close")
        self._on_outcome = _methods(hooks, "on_outcome")
        self._on_error = _methods(hooks, "on_error")

    def on_open(self, session: SessionInfo) -> None:
        """A session opened."""
        self._call("on_open", self._on_open, session)

    def on_close(self, session: SessionInfo, code: int, reason: str) -> None:
        """A session ended."""
        self._call("on_close", self._on_close, session, code, reason)

    def on_outcome(self, row: Row) -> None:
        """A row was committed."""
        # As `_call`, for what is called for every push.
        for method in self._on_outcome:
            try:
                method(row)
            except Exception as error:  # other people's code may raise anything
                self._handler.handle(error, "hooks.on_outcome", {"hook": _owner(method)})

    def on_error(self, error: BaseException, where: str) -> None:
        """Something failed that the service survived."""
        self._call("on_error", self._on_error, error, where)

    def _call(self, name: str, methods: tuple[Callable[..., object], ...], *args: object) -> None:
        for method in methods:
            try:
                method(*args)
            except Exception as error:  # other people's code may raise anything
                self._handler.handle(error, f"hooks.{name}", {"hook": _owner(method)})


def _methods(hooks: Sequence[object], name: str) -> tuple[Callable[..., object], ...]:
    return tuple(getattr(hook, name) for hook in hooks if hasattr(hook, name))


def _owner(method: Callable[..., object]) -> str:
    return type(getattr(method, "__self__", method)).__qualname__
