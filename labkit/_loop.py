"""One event loop in one thread of its own, called from any other thread, that nothing can hang for good.

The thread that calls is also the guard. While it waits it looks at the clock of everything under way; what is
over its limit is stopped by ever stronger means: its SQL is interrupted, its worker thread or its task is
stopped, the loop's own thread gets an exception thrown in. A loop that does not come back even then is
abandoned, and the next call starts another.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar

from labkit._home import GRACE, Flight, Home, current
from labkit._text import duration, say
from labkit._threads import Stopped
from labkit.errors import AppError, LabkitError, RequestError

T = TypeVar("T")

TICK = 0.1  # seconds between two looks at the clock while waiting
FOREVER = float("inf")
GIVEN_UP = 4  # the stage of a flight that nothing stops


class LoopThread:
    """Runs coroutines in a loop of its own for threads that wait for them.

    Args:
        setup: makes the context that surrounds everything (an application's lifespan) and is handed the set
            of what is under way: work with a limit of its own is added to it in the loop, and discarded at its
            end. Entered in the loop, and entered anew whenever the loop had to be replaced.
        limit: seconds that the start and the end of that context may take.
    """

    def __init__(
        self, setup: Callable[[set[Flight]], AbstractAsyncContextManager[Any]], *, limit: float = 30.0
    ) -> None:
        self._setup, self._limit = setup, limit
        self._home: Home | None = None
        self._lost: list[Home] = []
        self._mender: threading.Thread | None = None
        self._lock = threading.RLock()
        self._closed = False
        atexit.register(self._at_exit)

    @property
    def tainted(self) -> bool:
        """Whether a thread that was given up still runs: timings are not to be trusted meanwhile."""
        return any(home.tainted for home in (*self._lost, *filter(None, [self._home])))

    def start(self) -> None:
        """Start the loop and enter the context, unless that is done already.

        Raises:
            AppError: if the context is not entered in time; what it raises itself passes through.
            RequestError: if this was closed, or if called from inside.
        """
        mender = self._mender
        if mender is not None and mender is not threading.current_thread():
            mender.join()  # an interrupted call is still being stopped; a second or so
        with self._lock:
            if self._closed:
                raise RequestError(say("core.closed"))
            if self._home is not None and not self._home.over.is_set():
                return
            home = self._home = Home(self._setup)
            try:
                failure = home.started.get(timeout=self._limit)
            except Empty:
                place = home.place()
                home.free()
                text = say("core.startup_hangs", limit=duration(self._limit), place=_at(place))
                self._drop(home)
                raise AppError(text) from None
            except BaseException:  # an interrupted cell
                self._drop(home)
                raise
            if failure is not None:
                self._home = None
                home.over.wait(GRACE)
                raise failure

    def run(self, make: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None, label: str = "") -> T:
        """Run ``make()`` in the loop and wait for what it returns.

        Args:
            make: called in the loop, in a copy of the caller's context.
            timeout: seconds; None for no limit of its own (its parts may have theirs).
            label: what to call it in a sentence.

        Raises:
            RequestTimeout: if a limit was passed; the next call works, in a new loop if need be.
            RequestError: if called from inside the loop, or after ``close``.
        """
        home = self._home
        if home is None or home.lost or self._mender is not None or self._closed:
            self.start()
            home = self._home
            assert home is not None
        if threading.get_ident() == home.thread.ident:
            raise RequestError(say("core.inside"))
        job = Flight(label, FOREVER if timeout is None else timeout, None, None)
        box: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        async def work() -> None:
            current.set(job)
            home.flights.add(job)
            try:
                box.put((await make(), None))
            except BaseException as error:
                box.put((None, error))
            finally:
                home.flights.discard(job)

        def begin() -> None:
            if job.deadline > 0:  # else it was interrupted before it began
                job.task = task = home.loop.create_task(work())
                home.jobs.add(task)
                task.add_done_callback(home.jobs.discard)

        try:
            home.post(begin)
            result, error = self._wait(home, job, box)
        except (KeyboardInterrupt, Stopped):  # Stopped: a check that was interrupted or took too long
            self._interrupted(home, job)
            raise
        if error is None:
            return result  # type: ignore[no-any-return]
        if job.stage:
            raise job.timeout() from None
        if isinstance(error, asyncio.CancelledError | Stopped):
            raise RequestError(say("core.closed_meanwhile", label=label)) from None
        raise error.with_traceback(None) if isinstance(error, LabkitError) else error

    def _wait(
        self, home: Home, job: Flight, box: SimpleQueue[tuple[Any, BaseException | None]]
    ) -> tuple[Any, BaseException | None]:
        while True:
            try:
                return box.get(timeout=TICK)
            except Empty:
                family = _family(home, job)
                self._guard(home, tuple(home.flights))
                latest = max(family, key=lambda flight: flight.stage)
                if home.lost and latest.stage:
                    latest.ending = "replaced"
                    raise latest.timeout() from None
                if latest.stage >= GIVEN_UP:
                    raise latest.timeout() from None
                if home.lost or (home.over.is_set() and box.empty()):
                    raise RequestError(say("core.closed_meanwhile", label=job.label)) from None

    def _guard(self, home: Home, flights: Iterable[Flight]) -> None:
        """Press on what is over its limit."""
        for flight in flights:
            with self._lock:
                now = monotonic()
                if now > flight.deadline and now > flight.pressed + GRACE and not home.lost:
                    home.press(flight)
                if home.lost:
                    self._drop(home)

    def _interrupted(self, home: Home, job: Flight) -> None:
        """The caller wants to be free at once: what it waited for is stopped behind its back."""
        family = _family(home, job)
        for flight in family:
            flight.deadline = 0.0

        def mend() -> None:
            try:
                while not home.lost and any(f in home.flights and f.stage < GIVEN_UP for f in family):
                    self._guard(home, family)
                    pause.wait(TICK / 2)
            finally:
                self._mender = None

        pause = threading.Event()
        self._mender = threading.Thread(target=mend, name="labkit mender", daemon=True)
        self._mender.start()

    def _drop(self, home: Home) -> None:
        """Give a thread up, by force if it turns out to be needed; the next call starts another."""
        home.abandon()
        with self._lock:
            if home not in self._lost:
                self._lost.append(home)
            if self._home is home:
                self._home = None

    def close(self, within: float | None = None) -> None:
        """End the context and the thread. Twice is fine; from inside the loop it only asks.

        Raises:
            AppError: if the end of the context hangs (the thread is then given up); what it raises itself
                passes through. This is closed in any case.
        """
        atexit.unregister(self._at_exit)
        self._closed = True
        home, self._home = self._home, None
        if home is None:
            return
        limit = self._limit if within is None else within
        if threading.current_thread() is not home.thread:
            home.free()
        if not home.leave(limit):
            place = home.place()
            home.free()
            self._drop(home)
            raise AppError(say("core.shutdown_hangs", limit=duration(limit), place=_at(place)))
        if home.ending is not None:
            raise home.ending

    def _at_exit(self) -> None:
        with suppress(Exception):
            self.close(within=0.5)


def _family(home: Home, job: Flight) -> list[Flight]:
    """The work that somebody waits for, and the requests that are a part of it."""
    return [job, *(flight for flight in tuple(home.flights) if flight.parent is job)]


def _at(place: str) -> str:
    return say("core.at", place=place) if place else ""
