"""What of a Lab can be broken: its Redis, its database, the disk that its application looks at.

A server of the Lab's own is killed, frozen and slowed for real. A SQLite file has no server: there ``database_down``
is played, for whoever asks by SQLAlchemy, and ``database_frozen`` is another connection that locks the file. A disk
is not filled either: the application is told that it is full.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import make_url

from labkit import faults
from labkit._outages import Line, Part
from labkit._supplies import Supplies
from labkit._text import number, say
from labkit.errors import ServiceError
from labkit.services.redis import RedisServer
from labkit.services.server import Server

FULL = 97.0  # per cent, past the 90 from which a health check warns
PATIENCE = 5.0  # seconds that whoever uses a file has to leave it, before it cannot be locked


def parts(supplies: Supplies, app: Any) -> list[Part]:
    """Whatever of a Lab can be broken.

    Args:
        supplies: its servers.
        app: its application.
    """
    return [Redis(lambda: supplies.redis), Database(supplies, app), Disk(app)]


class Hand:
    """Breaks a server, and sets right what it did itself: what others did to it stays theirs."""

    def __init__(self) -> None:
        self._killed = self._froze = False

    def settle(self, server: Server, wish: str, closing: bool, adjust: Callable[[], None] = lambda: None) -> None:
        """Bring a server to ``wish``: ``down``, ``frozen`` or, if it is to run, empty; ``adjust`` is for one that runs.

        Raises:
            ServiceError: if it does not do what it should.
        """
        if self._froze and server.alive:
            server.thaw()
        self._froze = False
        if wish == "down":
            self._killed |= server.alive
            server.kill()
            return
        if self._killed and not server.alive and not closing:
            server.restart()
        self._killed = False
        if not server.alive:  # not our doing
            return
        adjust()
        if wish == "frozen":
            self._froze = not server.frozen
            server.freeze()


def _wish(wished: Mapping[str, float], down: str, frozen: str) -> str:
    return "down" if down in wished else "frozen" if frozen in wished else ""


class Redis(Part):
    """The Redis that a Lab started, or the stand-in for it.

    Args:
        find: gives it; None if there is none.
    """

    names = DOWN, FROZEN, SLOW = "redis_down", "redis_frozen", "redis_slow"
    with_ms = SLOW

    def __init__(self, find: Callable[[], RedisServer | None]) -> None:
        self._find, self._hand = find, Hand()

    def check(self, name: str) -> None:
        if self._find() is None:
            raise ServiceError(say("faults.not_ours"))

    def simulated(self, name: str) -> bool:
        server = self._find()
        return server is not None and server.fake

    def settle(self, wished: Mapping[str, float], closing: bool) -> None:
        if (server := self._find()) is None:
            return
        ms = wished.get(self.SLOW, 0.0)

        def adjust() -> None:
            if server.delay != ms:
                server.slow(ms)

        self._hand.settle(server, _wish(wished, self.DOWN, self.FROZEN), closing, adjust)

    def lines(self) -> list[Line]:
        if (server := self._find()) is None:
            return []
        if not server.alive:
            symbol, text = "✗", say("faults.is_down")
        elif server.frozen:
            symbol, text = "✗", say("faults.is_frozen")
        elif server.delay:
            symbol, text = "▲", say("faults.is_slow", ms=number(server.delay, ",.3g"))
        else:
            symbol, text = "●", say("faults.is_well")
        return [(symbol, text + (say("faults.simulated") if server.fake else ""))]


class Database(Part):
    """The Lab's PostgreSQL, or the SQLite file that its application chose itself."""

    names = DOWN, FROZEN = "database_down", "database_frozen"

    def __init__(self, supplies: Supplies, app: Any) -> None:
        self._supplies, self._app, self._hand = supplies, app, Hand()
        self._cut: Path | None = None
        self._lock: sqlite3.Connection | None = None

    def _file(self) -> Path:
        """The SQLite file.

        Raises:
            ServiceError: if there is none, or the database is somebody else's.
        """
        if (address := self._supplies.address(self._app)) is None:
            raise ServiceError(say("faults.no_database"))
        url = make_url(address)
        if "DATABASE_URL" in self._supplies.environment or url.get_backend_name() != "sqlite":
            raise ServiceError(say("faults.database_not_ours"))
        file = Path(url.database or "").resolve()
        if not file.is_file():
            raise ServiceError(say("faults.database_no_file", database=url.database or ":memory:"))
        return file

    def check(self, name: str) -> None:
        if self._supplies.postgres is None:
            self._file()

    def simulated(self, name: str) -> bool:
        return self._supplies.postgres is None and name == self.DOWN

    def settle(self, wished: Mapping[str, float], closing: bool) -> None:
        if (server := self._supplies.postgres) is not None:
            self._hand.settle(server, _wish(wished, self.DOWN, self.FROZEN), closing)
            return
        if self.DOWN in wished and self._cut is None:
            faults.cut_off(file := self._file())
            self._cut = file
        elif self.DOWN not in wished and self._cut is not None:
            faults.restore(self._cut)
            self._cut = None
        if self.FROZEN in wished:
            self._lock = self._lock or _locked(self._file())
        elif self._lock is not None:
            self._lock.close()  # nothing was written with it
            self._lock = None

    def lines(self) -> list[Line]:
        if (server := self._supplies.postgres) is not None:
            state = "down" if not server.alive else "frozen" if server.frozen else "well"
            return [_database_line(state)]
        try:
            self._file()
        except ServiceError:
            return []
        if self._cut:
            return [_database_line("down", say("faults.simulated"))]
        return [_database_line("well" if self._lock is None else "frozen")]


def _database_line(state: str, note: str = "") -> Line:
    return "●" if state == "well" else "✗", say(f"faults.database_is_{state}") + note


def _locked(file: Path) -> sqlite3.Connection:
    """A connection that nobody reads or writes the file beside (in WAL mode: that nobody writes beside).

    Raises:
        ServiceError: if somebody uses it without a pause.
    """
    # Its lock is opened and closed by different threads, one after the other.
    connection = sqlite3.connect(
        f"{file.as_uri()}?mode=rw", timeout=PATIENCE, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        connection.close()
        raise ServiceError(say("faults.database_busy", file=file, reason=error)) from None
    return connection


class Usage(NamedTuple):
    """What ``psutil.disk_usage`` answers with: bytes, and per cent."""

    total: int
    used: int
    free: int
    percent: float


class Disk(Part):
    """The disk as an application sees it, by the function in its ``app.state.disk_usage``."""

    names = (FULL_DISK,) = ("disk_full",)

    _real: Any
    _played: Any

    def __init__(self, app: Any) -> None:
        self._state: Any = getattr(app, "state", None)
        self._real = self._played = None

    def check(self, name: str) -> None:
        if not callable(getattr(self._state, "disk_usage", None)):
            raise ServiceError(say("faults.no_disk_usage"))

    def simulated(self, name: str) -> bool:
        return True

    def settle(self, wished: Mapping[str, float], closing: bool) -> None:
        if wished and self._real is None:
            self.check(self.FULL_DISK)
            real = self._real = self._state.disk_usage

            def full_disk_simulated(path: Any) -> Usage:
                total = real(path).total
                return Usage(total, used := round(total * FULL / 100), total - used, FULL)

            self._played = full_disk_simulated
            self._state.disk_usage = full_disk_simulated
        elif not wished and self._real is not None:
            if self._state.disk_usage is self._played:  # else the learner's own, set meanwhile
                self._state.disk_usage = self._real
            self._real = None

    def lines(self) -> list[Line]:
        if self._real is None:
            return []
        return [("✗", say("faults.disk_is_full", percent=number(FULL, ".0f")) + say("faults.simulated"))]
