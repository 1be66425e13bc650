"""What can go wrong with a Lab's Redis: who wants it wrong at the moment, and how it is set right again.

A fault is a wish. Several may stand at once, from nested ``with`` blocks and from buttons, and end in any
order: the server is brought to what the wishes left ask for, and is well when there are none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from labkit._text import number, say
from labkit.errors import LabkitError, ServiceError

if TYPE_CHECKING:
    from labkit.services.redis import RedisServer

DOWN, FROZEN, SLOW = KNOWN = "redis_down", "redis_frozen", "redis_slow"
SLOW_MS = 20.0  # within the 50 ms that a cache should wait, and dearer than most answers without a cache


class Outages:
    """The faults of one Lab.

    Args:
        server: gives the Redis that the Lab started, None if it started none.
    """

    def __init__(self, server: Callable[[], RedisServer | None]) -> None:
        self._find = server
        self._wishes: list[Fault] = []
        self._killed = self._froze = self._closed = False
        self._lock, self._turn = threading.Lock(), threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    @property
    def server(self) -> RedisServer:
        """The Redis to be broken.

        Raises:
            ServiceError: if it is not the Lab's own.
        """
        server = self._find()
        if server is None or not callable(getattr(server, "slow", None)):
            raise ServiceError(say("faults.not_ours"))
        return server

    def fault(self, name: str, ms: float | None = None) -> Fault:
        """A fault that begins when it is entered.

        Args:
            name: one of ``KNOWN``.
            ms: milliseconds that ``redis_slow`` holds each command back.

        Raises:
            ServiceError: if there is no such fault, ``ms`` is unusable, or the Lab started no Redis or is closed.
        """
        if self._closed:
            raise ServiceError(say("core.closed"))
        if name not in KNOWN:
            raise ServiceError(say("faults.unknown", name=repr(name), known=", ".join(KNOWN)))
        if ms is not None:
            usable = isinstance(ms, int | float) and not isinstance(ms, bool) and 0 < ms < float("inf")
            if name != SLOW or not usable:
                raise ServiceError(say("faults.bad_ms", ms=repr(ms), name=SLOW))
        assert self.server is not None
        return Fault(self, name, SLOW_MS if ms is None else float(ms))

    def begin(self, fault: Fault) -> None:
        """Add a wish and bring the server there; nothing of it stays if that fails or is interrupted."""
        with self._lock:
            if self._closed:
                raise ServiceError(say("core.closed"))
            self._wishes.append(fault)
        try:
            self._settle()
        except BaseException:
            with suppress(LabkitError):
                self.end(fault)
            raise

    def end(self, fault: Fault) -> None:
        """Take a wish away, if it stands."""
        with self._lock:
            if fault in self._wishes:
                self._wishes.remove(fault)
        self._settle()

    def close(self) -> None:
        """Undo everything for good: a server that is to be stopped need not be started once more."""
        with self._lock:
            self._closed = True
            self._wishes.clear()
        with suppress(LabkitError):
            self._settle()

    def _settle(self) -> None:
        """Bring the server to what is wished, in a thread: an interrupt of the cell must not leave it half done."""
        done: SimpleQueue[BaseException | None] = SimpleQueue()

        def work() -> None:
            try:
                with self._turn:
                    self._act()
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)

        threading.Thread(target=work, name="labkit fault", daemon=True).start()
        if (failed := done.get()) is not None:
            raise failed

    def _act(self) -> None:
        with self._lock:
            names = {fault.name for fault in self._wishes}
            ms = max((fault.ms for fault in self._wishes if fault.name == SLOW), default=0.0)
        server = self._find()
        if server is None:
            return
        if self._froze and server.alive:
            server.thaw()
        self._froze = False
        if DOWN in names:
            self._killed |= server.alive
            server.kill()
            return
        if self._killed and not server.alive and not self._closed:
            server.restart()
        self._killed = False
        if not server.alive:  # not our doing
            return
        if server.delay != ms:
            server.slow(ms)
        if FROZEN in names:
            self._froze = not server.frozen
            server.freeze()


class Fault:
    """Something that goes wrong for as long as a ``with`` block lasts. May be entered again, inside itself too."""

    def __init__(self, outages: Outages, name: str, ms: float) -> None:
        self.name, self.ms = name, ms
        self._outages = outages
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        try:
            if self._depth == 1:
                self._outages.begin(self)
        except BaseException:
            self._depth -= 1
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._outages.end(self)

    @property
    def simulated(self) -> bool:
        """Whether there is no real server to break: fakeredis plays it."""
        return self._outages.server.fake

    def __repr__(self) -> str:
        return f"{label(self.name, self.ms)}{say('faults.simulated') if self.simulated else ''}"


def label(name: str, ms: float = SLOW_MS) -> str:
    """What a fault is called on a button."""
    return say(f"faults.{name}", ms=number(ms, ",.3g")) if name == SLOW else say(f"faults.{name}")
