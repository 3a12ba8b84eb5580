"""Tell whether the core is compiled or interpreted, as `/status`, the metrics and the log show it."""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from typing import Final, Literal

_CORE: Final = "bridge.core."


def core_form() -> Literal["compiled", "interpreted"]:
    """`compiled` where modules of the core that are imported are extensions; some modules of it never are."""
    specs = [module.__spec__ for name, module in list(sys.modules.items()) if name.startswith(_CORE)]
    compiled = any(spec is not None and isinstance(spec.loader, ExtensionFileLoader) for spec in specs)
    return "compiled" if compiled else "interpreted"
