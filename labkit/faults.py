"""The way from a Lab's requests to the database, made worse on purpose: by a round trip a statement, or cut off.

A database in the same process answers in microseconds, so that a thousand statements cost next to nothing;
over a network each pays a round trip. The listeners below stand on SQLAlchemy's ``Engine`` class, work for
every engine, sync and async, and act only inside a Lab's request. They also count its statements, and hold
them to its time limit. A file that is cut off, which no file can be in earnest, is so for the whole process.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from labkit._frames import user_site
from labkit._home import Flight, current
from labkit._text import number, say
from labkit.errors import MeasurementError, RequestTimeout

SQLITE_MS = 0.5  # a round trip within a data centre
_OWNER = "labkit_flight"
_gone: list[Path] = []  # SQLite files that are cut off, once for each time
_TIMER = 0.00025  # seconds that a timer may be late; what is more was spent waiting for the processor


class RoundTrip:
    """How long the way to the database and back takes.

    Attributes:
        chosen: milliseconds that were asked for; None for the default (0.5 for SQLite, else nothing added).
        seen: names of the databases that were asked under it.
    """

    def __init__(self, ms: float | None = None) -> None:
        self.chosen = ms
        self.seen: set[str] = set()

    def added(self, database: str) -> float:
        """Milliseconds added to each statement on a database of this name (``sqlite``)."""
        return self.chosen if self.chosen is not None else SQLITE_MS if database == "sqlite" else 0.0

    @property
    def ms(self) -> float:
        """Milliseconds in force, for a report to show; 0 if none was chosen and no database was asked yet."""
        return max(map(self.added, self.seen), default=self.chosen or 0.0)


class latency:
    """Sets a round trip at once; as a context manager it brings the former one back.

    Args:
        trip: what to set.
        ms: milliseconds, 0 for none; None for the default.

    Raises:
        MeasurementError: if ``ms`` is negative or not a number.
    """

    def __init__(self, trip: RoundTrip, ms: float | None) -> None:
        if ms is not None and (isinstance(ms, bool) or not isinstance(ms, int | float) or not 0 <= ms < float("inf")):
            raise MeasurementError(say("core.bad_latency", ms=ms))
        self._trip, self._before = trip, trip.chosen
        trip.chosen = ms

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: object) -> None:
        self._trip.chosen = self._before

    def __repr__(self) -> str:
        ms = self._trip.chosen
        return say("core.latency_default") if ms is None else say("core.latency", ms=number(ms, ",.3g"))


class Request(Flight):
    """A request under way: knows its round trip, and the connections on which its SQL can be interrupted."""

    connections: tuple[tuple[dict[str, Any], Any], ...] = ()
    statement = ""
    late_by = 0.0
    _count = 0

    def __init__(
        self, label: str, limit: float, task: asyncio.Task[Any] | None, parent: Flight | None, trip: RoundTrip
    ) -> None:
        Flight.__init__(self, label, limit, task, parent)
        self.trip = trip

    def statements(self) -> int:
        """How many statements it has run."""
        return self._count

    def late(self) -> RequestTimeout:
        """Note that a statement was about to begin past the limit; the sentence that is raised in its place."""
        self.ending = "statement"
        if not self.stage:
            self.stage, self.pressed = 1, time.monotonic()
            site = user_site(sys._getframe()) or user_site(_waiting())
            self.place = site.place if site else ""
        return self.timeout()

    def interrupt(self) -> bool:
        """Stop its statements, wherever they run; whether one was running."""
        if running := bool(self.statement):
            self.ending = "statement"
        for info, driver in self.connections:
            if info.get(_OWNER) is self:  # else it went back to the pool and works for another request
                with suppress(Exception):
                    _interrupt(driver)
        return running


def _waiting() -> FrameType | None:
    """The frame that waits for this one: an async engine runs in a greenlet of its own."""
    greenlet = sys.modules.get("greenlet")
    outer = greenlet.getcurrent().parent if greenlet is not None else None
    return outer.gr_frame if outer is not None else None


def _interrupt(driver: Any) -> None:
    driver = getattr(driver, "_conn", driver)  # aiosqlite keeps the real one inside
    if hasattr(driver, "interrupt"):  # sqlite3
        driver.interrupt()
    elif hasattr(driver, "cancel_safe") and not asyncio.iscoroutinefunction(driver.cancel_safe):  # psycopg
        driver.cancel_safe(timeout=0.2)  # an async driver does this itself when its task is cancelled


def cut_off(file: Path) -> None:
    """From now on nobody reaches this SQLite file by SQLAlchemy: neither requests, nor health checks, nor cells.

    Connecting and statements raise the driver's OperationalError. The file itself is not touched.

    Args:
        file: resolved.
    """
    _gone.append(file)


def restore(file: Path) -> None:
    """Take one ``cut_off`` back."""
    _gone.remove(file)


def _refuse(database: Any, dialect: Any) -> None:
    if dialect.name == "sqlite" and database and (file := Path(str(database)).resolve()) in _gone:
        raise dialect.loaded_dbapi.OperationalError(f"unable to open database file {str(file)!r} (simulated outage)")


def _connecting(dialect: Any, record: Any, words: Any, options: Any) -> None:
    if _gone and words:
        _refuse(words[0], dialect)


def _before(connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool) -> None:
    if _gone:
        _refuse(connection.engine.url.database, connection.dialect)
    flight = current.get()
    if flight.__class__ is not Request:
        return
    assert isinstance(flight, Request)
    flight._count += 1
    if time.monotonic() > flight.deadline:
        raise flight.late()
    info, dialect = connection.info, connection.dialect
    if info.get(_OWNER) is not flight:
        info[_OWNER] = flight
        flight.connections += ((info, connection.connection.driver_connection),)
    flight.statement = statement
    flight.trip.seen.add(dialect.name)
    if wait := flight.trip.added(dialect.name) / 1000:
        begun, pause = time.monotonic(), max(0.0, wait - flight.late_by)
        if dialect.is_async:
            from sqlalchemy.util import await_only

            await_only(_pause(pause))
        else:
            time.sleep(pause)
        # A timer rings a tenth of a millisecond late; taken off the next pause, it leaves the promised time on average.
        flight.late_by = min(max(0.0, time.monotonic() - begun - pause), _TIMER)


async def _pause(seconds: float) -> None:
    """``asyncio.sleep`` to the fraction of a millisecond that its selector rounds up to a whole one."""
    if seconds < 0.002:
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, seconds)
    else:
        await asyncio.sleep(seconds)


def _after(connection: Any, *rest: Any) -> None:
    flight = current.get()
    if isinstance(flight, Request):
        flight.statement = ""


def _failed(failure: Any) -> None:
    _after(failure.connection)


@cache
def listen() -> None:
    """Listen to every engine of the process, once."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "do_connect", _connecting)
    event.listen(Engine, "before_cursor_execute", _before)
    event.listen(Engine, "after_cursor_execute", _after)
    event.listen(Engine, "handle_error", _failed)
