"""One check, asked in a thread of its own, and never twice at a time."""

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
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from labkit._text import say
from labkit.errors import MonitoringError
from labkit.monitoring.ids import request_id

Status = Literal["healthy", "degraded", "unhealthy"]
Probe = Callable[[], Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None]

MOST = 0.8  # seconds that a check may be given: probers wait for 1 s
_GRACE = 0.05  # seconds more that are waited, so that a check that ends itself can say why
_STATUSES = ("healthy", "degraded", "unhealthy")
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
        MonitoringError: if the name is empty, the probe is no function or the limit not within (0, 0.8].
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
        if not is_number(self.limit) or not 0 < self.limit <= MOST:
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


class Turn:
    """One asking of one check."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.end = time.monotonic() + check.limit + _GRACE
        self.future: Future[tuple[Result, BaseException | None]] = Future()
        self.future.set_running_or_notify_cancel()  # so that nobody who waits can cancel it
        self.request_id = request_id.get()

    async def wait(self) -> None:
        """Until it is over, or has had its time."""
        waiting = asyncio.wrap_future(self.future)
        try:
            await asyncio.wait([waiting], timeout=max(0.0, self.end - time.monotonic()))
        finally:
            waiting.cancel()

    def result(self) -> tuple[Result, BaseException | None]:
        """What was found in time, and what was raised."""
        if self.future.done():
            result, error = self.future.result()
            if result.seconds <= self.check.limit or error is not None:
                return result, error
        return Result(self.check.name, self.check.critical, "unhealthy", self.check.limit, "timeout"), None

    def run(self) -> None:
        """Ask, in this thread."""
        check, begun, word = self.check, time.monotonic(), ""
        try:
            found = check.probe()
            if inspect.isawaitable(found):
                found = asyncio.run(_within(check.limit, found))
            word = "invalid"
            details = _details(found)
        except BaseException as error:  # whatever a probe does, a check has an answer
            self.fail(error, word, time.monotonic() - begun)
        else:
            status, seconds = details.pop("status", "healthy"), time.monotonic() - begun
            self.future.set_result((Result(check.name, check.critical, status, seconds, "", details), None))

    def fail(self, error: BaseException, word: str = "", seconds: float = 0.0) -> None:
        """It failed. What comes too late for the answer still goes to the log."""
        late = isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower()
        word = word or ("timeout" if late else "unavailable")
        self.future.set_result((Result(self.check.name, self.check.critical, "unhealthy", seconds, word), error))
        if (behind := time.monotonic() - self.end) > 0:
            _log.warning("check %s ended %.1f s late", self.check.name, behind, exc_info=error)


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


class Runner:
    """The thread of one check, which lives while there is something to ask; there is never a second one."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._next: Turn | None = None
        self._busy = False
        self._thread = 0

    def ask(self) -> Turn:
        """Ask now, or as soon as the probe before this one has come back."""
        turn = Turn(self._check)
        with self._lock:
            self._next, start = turn, not self._busy
            self._busy = True
        if start:
            try:
                threading.Thread(target=self._work, name=f"labkit health {self._check.name}", daemon=True).start()
            except RuntimeError as error:  # there is no thread to be had
                self._busy = False
                turn.fail(error)
        return turn

    @property
    def stack(self) -> str:
        """Where its thread stands, if it is at work."""
        frame = sys._current_frames().get(self._thread) if self._busy else None
        return "".join(traceback.format_stack(frame)) if frame else ""

    def _work(self) -> None:
        self._thread = threading.get_ident()
        while True:
            with self._lock:
                turn, self._next = self._next, None
                if turn is None:
                    self._busy = False
                    return
            if time.monotonic() < turn.end:
                _under(turn.request_id, turn.run)


def tell(turn: Turn, runner: Runner, result: Result, error: BaseException | None) -> None:
    """All of it, for the log."""
    level = logging.ERROR if result.critical and result.status == "unhealthy" else logging.WARNING
    target = _target(turn.check)
    fields = {"check": result.name, "status": result.status, "seconds": result.seconds, "target": target}
    if result.error == "timeout" and error is None:
        fields["stack"] = runner.stack
    words = " ".join(filter(None, (result.status, result.error, target)))
    log = partial(_log.log, level, "check %s: %s", result.name, words, exc_info=error, extra=fields)
    _under(turn.request_id, log)


def _under(wanted: str, work: Callable[[], object]) -> None:
    """Do something that belongs to no request, but whose logs are found under this one."""
    context = Context()
    context.run(request_id.set, wanted)
    with suppress(Exception):  # of somebody's log handler: the answer does not depend on it
        context.run(work)


def _target(check: Check) -> str:
    try:
        return str(check.target()) if check.target else ""
    except Exception as error:
        return repr(error)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
