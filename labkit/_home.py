"""A thread with an event loop in it, and the record of what is under way there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, thread
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context, ContextVar, copy_context
from queue import SimpleQueue
from time import monotonic
from typing import Any

from labkit._text import duration, say
from labkit._threads import Stopped, at_task, at_thread, immortal, stop, value, workers
from labkit.errors import RequestTimeout

GRACE = 0.25  # seconds that each means of stopping has to take effect before the next stronger one

current: ContextVar[Flight | None] = ContextVar("labkit_flight", default=None)


class Flight:
    """One piece of work under way in a loop, with its limit.

    Attributes:
        label: what a person calls it, ``GET /users``.
        limit: seconds it may take; ``inf`` for no limit.
        parent: the work that it is a part of.
        stage: how many means of stopping it have been tried; 0 while it is in time.
        ending: how it was stopped, as the name of a message.
    """

    # Every request of a load makes one: what most never touch stands here, not in each.
    pressed, stage = 0.0, 0
    ending, place = "cancelled", ""

    def __init__(self, label: str, limit: float, task: asyncio.Task[Any] | None, parent: Flight | None) -> None:
        self.label, self.limit, self.task, self.parent = label, limit, task, parent
        self.deadline = monotonic() + limit

    def interrupt(self) -> bool:
        """Stop what it waits for outside of Python and note that as its ending; whether there was any."""
        return False

    def cancel(self, home: Home) -> None:
        """Cancel its task, unless it has landed. Called in the loop."""
        if self in home.flights and self.task is not None:
            self.task.cancel()

    def timeout(self) -> RequestTimeout:
        """The sentence for whoever waits for it."""
        place = say("core.at", place=self.place) if self.place else ""
        return RequestTimeout(say(f"core.{self.ending}", label=self.label, limit=duration(self.limit), place=place))


class _Threads(ThreadPoolExecutor):
    """For ``asyncio.to_thread`` and ``run_in_executor`` of the application.

    Works in the context of who asks, so that its SQL counts; a thread that never returns does not hold up the exit.
    """

    def submit(self, *args: Any, **options: Any) -> Any:
        future = super().submit(copy_context().run, *args, **options)
        for worker in self._threads:
            getattr(thread, "_threads_queues", {}).pop(worker, None)
        return future


class Home:
    """A daemon thread that runs one loop, inside one context (an application's lifespan).

    Attributes:
        started: gets None once the context is entered, or the exception that it raised.
        ending: what the end of the context raised.
        lost: whether the thread was given up.
        over: set when the thread is at its end. To be asked rather than the thread's own ``is_alive``, which lies on
            Python 3.11 once an interrupt broke off a ``join``.
        left: what could be stopped neither in its worker thread nor in its task.
    """

    def __init__(self, setup: Callable[[set[Flight]], AbstractAsyncContextManager[Any]]) -> None:
        self.flights: set[Flight] = set()
        self.jobs: set[asyncio.Task[Any]] = set()
        self.left: list[Flight] = []
        self.started: SimpleQueue[BaseException | None] = SimpleQueue()
        self.ending: BaseException | None = None
        self.lost = False
        self.loop = asyncio.new_event_loop()
        self._setup = setup
        self._leave = asyncio.Event()
        self._threads = _Threads(thread_name_prefix="labkit worker")
        self.loop.set_default_executor(self._threads)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="labkit", daemon=True)
        self.thread.start()

    async def _main(self) -> None:
        try:
            async with self._setup(self.flights):
                self.started.put(None)
                await self._leave.wait()
                for task in self.jobs:
                    task.cancel()
                if self.jobs:
                    await asyncio.wait(self.jobs, timeout=GRACE)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            self.ending = error
            self.started.put(error)

    def _run(self) -> None:
        try:
            self._live()
        finally:
            self.over.set()

    def _live(self) -> None:
        # run_until_complete and not run_forever: anyio keeps its worker threads only for a root task.
        main = self.loop.create_task(self._main(), name="labkit")
        while not main.done() and not self.lost:
            with suppress(SystemExit, KeyboardInterrupt, Stopped, RuntimeError, asyncio.CancelledError):
                self.loop.run_until_complete(main)  # an endpoint's sys.exit() comes out here
        left = asyncio.all_tasks(self.loop)
        if not self.lost:
            for task in left:
                task.cancel()
            with suppress(BaseException):
                if left:
                    self.loop.run_until_complete(asyncio.wait(left, timeout=GRACE))
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        # To collect half a lifespan is to run its end, under the new one's feet: what is not over is never freed.
        for task in (main, *left):
            if not task.done():
                immortal(task)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.loop.close()

    def post(self, action: Callable[..., Any], *args: Any) -> None:
        """Have the loop call something soon; nothing happens if it is closed."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(action, *args)

    def answers(self, within: float = GRACE) -> bool:
        """Whether the loop turns."""
        pong = threading.Event()
        self.post(pong.set)
        return pong.wait(within)

    def free(self) -> bool:
        """Make a loop that does not turn come back, by an exception in its thread; whether it turns."""
        if self.answers():
            return True
        stop(self.thread.ident or 0)
        return self.answers()

    def place(self) -> str:
        """The user's line that keeps the thread, or else the first that a task waits in; may be empty."""
        busy = at_thread(self.thread.ident or 0)
        return busy or next(filter(None, map(at_task, asyncio.all_tasks(self.loop))), "")

    def _place(self, flight: Flight) -> str:
        """The user's line that a flight waits in: in a task that it started rather than in its own."""
        begun = [task for task in asyncio.all_tasks(self.loop) if value(task, current) is flight]
        begun.sort(key=lambda task: task is flight.task)
        return next(filter(None, map(at_task, begun)), "")

    def leave(self, within: float) -> bool:
        """End the context and the thread; whether both did in time. From inside it only asks."""
        self.post(self._leave.set)
        if threading.current_thread() is self.thread:
            return True
        if self.over.wait(within):
            self.thread.join(GRACE)
        return self.over.is_set()

    def abandon(self) -> None:
        """Give the thread up. Should it ever wake, it ends without running the end of its context."""
        self.lost = True
        self.post(self.loop.stop)

    @property
    def tainted(self) -> bool:
        """Whether something that was given up still runs."""
        self.left = [flight for flight in self.left if self._runs(flight)]
        return bool(self.left) or (self.lost and not self.over.is_set())

    def _runs(self, flight: Flight) -> bool:
        waits = flight.task is not None and not flight.task.done() and not self.over.is_set()
        return waits or bool(workers(lambda context: context.get(current) is flight))

    def press(self, flight: Flight) -> None:
        """Use the next means to stop a flight that is over its limit: SQL, worker, task, loop."""
        flight.stage += 1
        flight.pressed = monotonic()

        def mine(context: Context) -> bool:
            return context.get(current) is flight

        threads = workers(mine)
        if flight.stage == 1:
            busy = next(filter(None, map(at_thread, threads)), "")
            flight.place = busy or at_thread(self.thread.ident or 0) or self._place(flight)
            if flight.interrupt():
                return
            flight.stage = 2
        if flight.stage == 2:
            for worker in (threads := workers(mine)):  # anew: it may have come back meanwhile
                flight.ending = "stopped"  # before it is: who waits for it may read that at once
                stop(worker)
            if not threads:
                self.post(flight.cancel, self)
        elif flight.stage == 3:
            self.left.extend([flight] if threads else [])
            if self.answers():
                flight.ending = "left" if threads else "cancelled"
                self.post(flight.cancel, self)
            else:
                flight.ending = "blocked"
                stop(self.thread.ident or 0)
                if not self.answers():
                    flight.ending = "replaced"
                    self.abandon()
        elif flight.stage == 4 and flight not in self.left:
            flight.ending = "uncancelled"
            self.left.append(flight)
