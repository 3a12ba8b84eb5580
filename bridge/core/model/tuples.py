"""Make a named tuple without the constructor that the library writes in Python: that costs five times as much.

For what is made once or more for every push. The type checker does not see the fields: give all of them, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

new_tuple: Final[Callable[..., Any]] = tuple.__new__
"""`new_tuple(RowKey, (tenant, push_id, user))` is `RowKey(tenant, push_id, user)`."""
