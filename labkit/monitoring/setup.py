"""Everything in one call: metrics, middleware, health checks and their endpoints on an application."""

from __future__ import annotations

from typing import Any


def monitor(app: Any, **options: Any) -> Any:
    """To come."""
    raise NotImplementedError
