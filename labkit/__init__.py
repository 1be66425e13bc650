"""Tools to profile, cache and watch a FastAPI application from a notebook."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.asgi import Reply
    from labkit.lab import Lab
    from labkit.load import zipf
    from labkit.profiling.calls import profile_endpoint

# Where each name lives; imported when it is first asked for, so that `import labkit` costs next to nothing.
_HOMES = {
    "Lab": "labkit.lab",
    "Reply": "labkit.asgi",
    "profile_endpoint": "labkit.profiling.calls",
    "zipf": "labkit.load",
}

__all__ = ["Lab", "Reply", "profile_endpoint", "zipf"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
