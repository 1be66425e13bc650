"""Whether a service can do its work: checks of what it depends on, asked side by side and never waited for long.

Every check runs in a thread of its own, with an event loop of its own if it is asynchronous. So it answers while the
application's pools of threads and connections are exhausted, and one that hangs takes nothing along.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pandas as pd
from fastapi import APIRouter

from labkit._html import Safe, card, table
from labkit._text import duration, say
from labkit.errors import MonitoringError
from labkit.monitoring import routes
from labkit.monitoring.ids import request_id

Status = Literal["healthy", "degraded", "unhealthy"]
Probe = Callable[[], Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None]

MOST = 0.9  # seconds that a check may be given: probers wait for 1 s
_STATUSES = ("healthy", "degraded", "unhealthy")
_LOOKS = {"healthy": ("#009E73", "●"), "degraded": ("#E69F00", "▲"), "unhealthy": ("#D55E00", "✗")}
_log = logging.getLogger("labkit.health")


@dataclass(frozen=True)
class Check:
    """A question that tells whether one part works.

    Args:
        name: its key in the answer.
        probe: a function, asynchronous or not, that raises if the part does not work. What it returns becomes
            part of the answer, which anybody may read; ``"status": "degraded"`` in it is a verdict of its own.
            It runs in a thread and loop of its own, so it opens its own connections.
        critical: whether the service is unhealthy without this part, or only degraded.
        limit: seconds after which it counts as failed.
        target: gives what it asks, for the log alone; without a password.

    Raises:
        MonitoringError: if the name is empty, the probe is no function or the limit not within (0, 0.9].
    """

    name: str
    probe: Probe
    critical: bool = True
    limit: float = 0.5
    target: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise MonitoringError(say("health.name", value=repr(self.name)))
        if not callable(self.probe):
            raise MonitoringError(say("health.probe", name=repr(self.name), value=repr(self.probe)))
        if not _number(self.limit) or not 0 < self.limit <= MOST:
            raise MonitoringError(say("health.limit", name=repr(self.name), value=repr(self.limit), most=MOST))


@dataclass(frozen=True)
class Result:
    """What a check found.

    Attributes:
        seconds: it took, or was waited for.
        error: ``timeout``, ``unavailable``, or ``invalid`` if it returned what cannot be sent as JSON.
        details: what it returned.
    """

    name: str
    critical: bool
    status: Status
    seconds: float
    error: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


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
        rows = [
            [one.name, one.status, one.critical, one.seconds * 1e3, one.error, dict(one.details)]
            for one in self.results
        ]
        return pd.DataFrame(rows, columns=["name", "status", "critical", "ms", "error", "details"])

    def __repr__(self) -> str:
        lines = [f"  {one.name}: {one.status} {one.error}".rstrip() for one in self.results]
        return "\n".join([f"HealthReport: {self.status}", *lines])

    def _repr_html_(self) -> Safe:
        rows = []
        for one in self.results:
            _, symbol = _LOOKS[one.status]
            detail = one.error or ", ".join(f"{key}: {value}" for key, value in one.details.items())
            weight = say("health.critical" if one.critical else "health.optional")
            rows.append([one.name, f"{symbol} {say(f'health.{one.status}')}", weight, duration(one.seconds), detail])
        header = [say(f"health.head_{name}") for name in ("name", "status", "critical", "time", "error")]
        colour, symbol = _LOOKS[self.status]
        title = say("health.title", status=say(f"health.{self.status}"))
        return card(title, table(header, rows, numeric=(3,)), colour=colour, symbol=symbol)


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
        if not _number(keep) or keep < 0:
            raise MonitoringError(say("health.keep", value=repr(keep)))
        self.keep = keep
        self._clock = clock
        self._runners = [_Runner(check) for check in self.checks]
        self._lock = threading.Lock()
        self._round: _Round | None = None

    async def run(self) -> HealthReport:
        """What the checks find, at the latest when the longest limit is over. Never raises because of a check."""
        current = self._current()
        waiting = [asyncio.wrap_future(turn.future) for turn in current.turns if not turn.future.done()]
        try:
            if waiting:
                await asyncio.wait(waiting, timeout=max(0.0, current.end - time.monotonic()))
        finally:
            for one in waiting:
                one.cancel()  # only the waiting: a turn is under way and lets nobody cancel it
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
        for turn, (result, error) in zip(current.turns, found, strict=True):
            if result.status != "healthy":
                _tell(turn, result, error)
        return report


class _Round:
    """One asking of all checks."""

    def __init__(self, turns: list[_Turn], request_id: str) -> None:
        self.turns, self.request_id = turns, request_id
        self.end = max((turn.end for turn in turns), default=0.0)
        self.report: HealthReport | None = None
        self.ended = 0.0


class _Turn:
    """One asking of one check."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.end = time.monotonic() + check.limit
        self.future: Future[tuple[Result, BaseException | None]] = Future()
        self.future.set_running_or_notify_cancel()
        self.request_id = request_id.get()
        self.thread = 0

    def result(self) -> tuple[Result, BaseException | None]:
        """What was found in time."""
        if self.future.done():
            result, error = self.future.result()
            if result.seconds <= self.check.limit or error is not None:
                return result, error
        return Result(self.check.name, self.check.critical, "unhealthy", self.check.limit, "timeout"), None

    def run(self) -> None:
        """Ask, in this thread. Raises nothing."""
        check, begun = self.check, time.monotonic()
        self.thread = threading.get_ident()
        try:
            found = check.probe()
            if inspect.isawaitable(found):
                found = asyncio.run(_within(check.limit, found))
        except BaseException as error:  # whatever a probe does, a check has an answer
            self.end_with("timeout" if isinstance(error, TimeoutError) else "unavailable", error, begun)
            return
        try:
            details = _details(found)
        except Exception as error:
            self.end_with("invalid", error, begun)
            return
        status = details.pop("status", "healthy")
        seconds = time.monotonic() - begun
        self.future.set_result((Result(check.name, check.critical, status, seconds, "", details), None))

    def end_with(self, word: str, error: BaseException, begun: float | None = None) -> None:
        """It failed. What comes too late for the answer still goes to the log."""
        check, now = self.check, time.monotonic()
        seconds = now - begun if begun is not None else 0.0
        self.future.set_result((Result(check.name, check.critical, "unhealthy", seconds, word), error))
        if now > self.end:
            _log.warning("check %s ended %.1f s late", check.name, now - self.end, exc_info=error)


async def _within(limit: float, found: Awaitable[Any]) -> Any:
    async with asyncio.timeout(limit):
        return await found


def _details(found: Any) -> dict[str, Any]:
    """A copy of what a probe returned. Raises if it cannot be sent."""
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise TypeError(f"a probe returns a mapping or None, not {type(found).__name__}")
    details: dict[str, Any] = json.loads(json.dumps(dict(found), allow_nan=False))
    if details.get("status", "healthy") not in _STATUSES:
        raise ValueError(f"a status is one of {', '.join(_STATUSES)}, not {details['status']!r}")
    return details


class _Runner:
    """The thread of one check, which lives while there is something to ask; there is never a second one."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._next: _Turn | None = None
        self._busy = False

    def ask(self) -> _Turn:
        """Ask now, or as soon as the probe before this one has come back."""
        turn = _Turn(self._check)
        with self._lock:
            self._next, start = turn, not self._busy
            self._busy = True
        if start:
            try:
                threading.Thread(target=self._work, name=f"labkit health {self._check.name}", daemon=True).start()
            except RuntimeError as error:  # there is no thread to be had
                self._busy = False
                turn.end_with("unavailable", error)
        return turn

    def _work(self) -> None:
        while True:
            with self._lock:
                turn, self._next = self._next, None
                if turn is None:
                    self._busy = False
                    return
            if time.monotonic() < turn.end:
                _under(turn.request_id, turn.run)


def _tell(turn: _Turn, result: Result, error: BaseException | None) -> None:
    """All of it, for the log."""
    level = logging.ERROR if result.critical and result.status == "unhealthy" else logging.WARNING
    frame = sys._current_frames().get(turn.thread) if error is None and result.error == "timeout" else None
    target = _target(turn.check)
    fields = {"check": result.name, "status": result.status, "seconds": result.seconds, "target": target}
    if frame is not None:
        fields["stack"] = "".join(traceback.format_stack(frame))
    words = " ".join(filter(None, (result.status, result.error, target)))
    log = partial(_log.log, level, "check %s: %s", result.name, words, exc_info=error, extra=fields)
    _under(turn.request_id, log)


def _under(wanted: str, work: Callable[[], object]) -> None:
    """Do something that belongs to no request, but whose logs are found under this one."""
    context = Context()
    context.run(request_id.set, wanted)
    context.run(work)


def _target(check: Check) -> str:
    try:
        return str(check.target()) if check.target else ""
    except Exception as error:
        return repr(error)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
