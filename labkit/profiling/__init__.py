"""Looks into a running application: its SQL, its functions, its lines, its memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.profiling.calls import profile_endpoint
    from labkit.profiling.plans import activity, explain, top_statements
    from labkit.profiling.queries import record
    from labkit.profiling.sampling import sample

__all__ = ["activity", "explain", "profile_endpoint", "record", "sample", "top_statements"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: who records SQL need not wait for every profiler."""
    for home in ("plans", "queries", "calls", "sampling") if name in __all__ else ():
        if found := getattr(import_module(f"{__name__}.{home}"), name, None):
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
