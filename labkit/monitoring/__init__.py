"""Watch an application: metrics, middleware, health checks, logs, a first panel and a basic alert."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.monitoring import checks, logs
    from labkit.monitoring.alert import Alert
    from labkit.monitoring.health import Check, Health, HealthReport
    from labkit.monitoring.lag import LoopWatch
    from labkit.monitoring.logs import Journal
    from labkit.monitoring.metrics import BUCKETS, Metrics
    from labkit.monitoring.middleware import MetricsMiddleware
    from labkit.monitoring.panel import Panel
    from labkit.monitoring.samples import History, Snapshot, histogram_quantile, increase, rate
    from labkit.monitoring.setup import monitor
    from labkit.monitoring.system import SystemView, overview

logging.getLogger("labkit").addHandler(logging.NullHandler())  # whoever configures no logging is not written to

_HOMES = {  # a name and the module it lives in, imported when it is first asked for
    "Alert": "alert",
    "BUCKETS": "metrics",
    "Check": "health",
    "Health": "health",
    "HealthReport": "health",
    "histogram_quantile": "samples",
    "History": "samples",
    "increase": "samples",
    "Journal": "logs",
    "LoopWatch": "lag",
    "Metrics": "metrics",
    "MetricsMiddleware": "middleware",
    "monitor": "setup",
    "overview": "system",
    "Panel": "panel",
    "rate": "samples",
    "Snapshot": "samples",
    "SystemView": "system",
}

__all__ = [
    "BUCKETS",
    "Alert",
    "Check",
    "Health",
    "HealthReport",
    "History",
    "Journal",
    "LoopWatch",
    "Metrics",
    "MetricsMiddleware",
    "Panel",
    "Snapshot",
    "SystemView",
    "checks",
    "histogram_quantile",
    "increase",
    "logs",
    "monitor",
    "overview",
    "rate",
]


def __getattr__(name: str) -> Any:
    if name in ("checks", "logs"):
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
