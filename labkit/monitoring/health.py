"""Whether a service can do its work: checks of what it depends on, asked side by side and never waited for long.

Every check runs in a thread of its own, with an event loop of its own if it is asynchronous. So it answers while the
application's pools of threads and connections are exhausted, and one that hangs takes nothing along.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from labkit._html import Safe, card, table
from labkit._text import duration, say
from labkit.errors import MonitoringError
from labkit.monitoring import routes
from labkit.monitoring._turns import Check, Result, Runner, Status, Turn, is_number, tell
from labkit.monitoring.ids import request_id

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Check", "Health", "HealthReport", "Result", "Status"]

_LOOKS = {"healthy": ("GREEN", "●"), "degraded": ("ORANGE", "▲"), "unhealthy": ("VERMILION", "✗")}  # of `plots`


@dataclass(frozen=True)
class HealthReport:
    """What all checks found in one round.

    Attributes:
        timestamp: when, in seconds since 1970.
        request_id: of the request that had them asked; the log has the whole errors under it.
    """

    results: tuple[Result, ...]
    timestamp: float
    request_id: str = ""

    @property
    def status(self) -> Status:
        """``unhealthy`` if a critical check failed, ``degraded`` if anything is amiss, else ``healthy``."""
        if any(one.critical and one.status == "unhealthy" for one in self.results):
            return "unhealthy"
        return "healthy" if all(one.status == "healthy" for one in self.results) else "degraded"

    @property
    def body(self) -> dict[str, Any]:
        """The answer as the course has it; ``system`` gathers what checks say of memory, disk and processor."""
        checks: dict[str, Any] = {}
        system: dict[str, Any] = {}
        for one in self.results:
            checks[one.name] = {**one.details, "status": one.status, "response_time": f"{one.seconds:.4f}s"}
            if one.error:
                checks[one.name]["error"] = one.error
            system |= {key: value for key, value in one.details.items() if key.endswith("_usage")}
        if system:
            checks.setdefault("system", {}).update(system)
        return {"status": self.status, "timestamp": self.timestamp, "checks": checks}

    @property
    def df(self) -> pd.DataFrame:
        """One row a check."""
        import pandas as pd

        rows = [
            [one.name, one.status, one.critical, one.seconds * 1e3, one.error, dict(one.details)]
            for one in self.results
        ]
        return pd.DataFrame(rows, columns=["name", "status", "critical", "ms", "error", "details"])

    def __repr__(self) -> str:
        lines = [f"  {one.name}: {one.status} {one.error}".rstrip() for one in self.results]
        return "\n".join([f"HealthReport: {self.status}", *lines])

    def _repr_html_(self) -> Safe:
        from labkit import plots  # here: a server that is only asked for its health never draws

        rows = []
        for one in self.results:
            _, symbol = _LOOKS[one.status]
            detail = one.error or ", ".join(f"{key}: {value}" for key, value in one.details.items())
            weight = say("health.critical" if one.critical else "health.optional")
            rows.append([one.name, f"{symbol} {say(f'health.{one.status}')}", weight, duration(one.seconds), detail])
        header = [say(f"health.head_{name}") for name in ("name", "status", "critical", "time", "error")]
        colour, symbol = _LOOKS[self.status]
        title = say("health.title", status=say(f"health.{self.status}"))
        return card(title, table(header, rows, numeric=(3,)), colour=getattr(plots, colour), symbol=symbol)


class Health:
    """Asks the checks when somebody wants to know, however many want to at once.

    Those who come while the checks are asked share the answer, and for ``keep`` seconds it is given again. A check
    that hangs is not asked a second time before it comes back.

    Args:
        checks: what to ask.
        keep: seconds that a result is good for.
        clock: seconds that never go back; a test passes its own.

    Raises:
        MonitoringError: if two checks have the same name, or ``keep`` is negative.
    """

    def __init__(
        self, checks: Iterable[Check] = (), *, keep: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.checks = tuple(checks)
        names = [check.name for check in self.checks]
        for name in names:
            if names.count(name) > 1:
                raise MonitoringError(say("health.twice", name=repr(name)))
        if not is_number(keep) or keep < 0:
            raise MonitoringError(say("health.keep", value=repr(keep)))
        self.keep = keep
        self._clock = clock
        self._runners = [Runner(check) for check in self.checks]
        self._lock = threading.Lock()
        self._round: _Round | None = None

    async def run(self) -> HealthReport:
        """What the checks find, at the latest when the longest limit is over. Never raises because of a check."""
        current = self._current()
        if current.report is None:
            await asyncio.gather(*(turn.wait() for turn in current.turns))
        return self._conclude(current)

    def router(self, metrics: routes.Renders | None = None) -> APIRouter:
        """The endpoints: ``/health/``, ``/health``, ``/health/live``, ``/health/ready``, ``/health/detailed``.

        Args:
            metrics: adds ``/metrics`` and ``/health/metrics``.
        """
        return routes.make_router(self, metrics)

    def _current(self) -> _Round:
        """The round to wait for: the last one, as long as it is good, or a new one."""
        with self._lock:
            last = self._round
            if last is not None:
                asked = last.report is None and time.monotonic() < last.end
                kept = last.report is not None and self._clock() - last.ended < self.keep
                if asked or kept:
                    return last
            self._round = _Round([runner.ask() for runner in self._runners], request_id.get())
            return self._round

    def _conclude(self, current: _Round) -> HealthReport:
        with self._lock:
            if current.report is not None:
                return current.report
            found = [turn.result() for turn in current.turns]
            report = HealthReport(tuple(result for result, _ in found), time.time(), current.request_id)
            current.report, current.ended = report, self._clock()
        for turn, runner, (result, error) in zip(current.turns, self._runners, found, strict=True):
            if result.status != "healthy":
                tell(turn, runner, result, error)
        return report


class _Round:
    """One asking of all checks."""

    def __init__(self, turns: list[Turn], request_id: str) -> None:
        self.turns, self.request_id = turns, request_id
        self.end = max((turn.end for turn in turns), default=0.0)
        self.report: HealthReport | None = None
        self.ended = 0.0
