"""What a Lab's tools hold inside the loop: it makes requests under the Lab's time limit and latency."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from labkit import asgi
from labkit._frames import describe
from labkit._home import Flight, current
from labkit._text import say
from labkit.asgi import ASGIApp, Reply
from labkit.errors import RequestError
from labkit.faults import Request, RoundTrip

SHOWN = 300  # characters of a refusal's body: what FastAPI found wrong with the request
T = TypeVar("T")


class Caller(Protocol):
    """Makes a request; who asks often says in which task, which costs more to find out than one would think."""

    def __call__(self, path: str, task: asyncio.Task[Any] | None = None) -> Awaitable[Reply]: ...


OPTIONS = ("params", "headers", "json", "body", "cookies")


class Client:
    """Makes requests inside the Lab's loop.

    Attributes:
        app: the application.
        limit: seconds a request may take.
        trip: round trip that its statements pay.
        state: what the application's lifespan left for the requests.
    """

    def __init__(self, app: ASGIApp, limit: float, trip: RoundTrip) -> None:
        self.app, self.limit, self.trip = app, limit, trip
        self.state: Mapping[str, Any] = {}
        self.flights: set[Flight] = set()

    @asynccontextmanager
    async def live(self, flights: set[Flight]) -> AsyncIterator[None]:
        """From the application's start to its end; ``flights`` lists the requests under way."""
        async with asgi.Lifespan(self.app) as lifespan:
            self.state, self.flights = lifespan.state, flights
            yield

    @staticmethod
    def check(options: Mapping[str, Any], *more: str) -> None:
        """Raise a RequestError if a request has no such options; ``more`` names what else there would be."""
        if unknown := options.keys() - set(OPTIONS):
            names, known = ", ".join(sorted(unknown)), ", ".join((*OPTIONS, *more))
            raise RequestError(say("core.bad_option", names=names, known=known))

    async def work(self, make: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Do a job of the user's own.

        Raises:
            RequestError: if it is nothing to wait for.
        """
        job = make(self)
        if not isinstance(job, Awaitable):
            raise RequestError(say("core.bad_work", value=repr(job)))
        return await job

    async def measured(self, method: str, path: str, **options: Any) -> Reply:
        """A request that is worth measuring.

        Raises:
            RequestError: if the endpoint raised, the status is 400 or more, or an option is unusable.
        """
        self.check(options)
        reply = await self.call(method, path, **options)
        if reply.error or reply.status >= 400:
            text = say("core.failed_request", label=reply.label, status=reply.status)
            reason = reply.error or reply.note or reply.text[:SHOWN]
            raise RequestError("\n".join(filter(None, (text, reason))))
        return reply

    def caller(self, method: str, **options: Any) -> Caller:
        """For many requests of the same kind: the answer is called with each one's path.

        Raises:
            RequestError: if an option cannot be sent.
        """
        request = asgi.prepare(self.app, method, state=self.state, explain=explain, **options)

        async def call(path: str, task: asyncio.Task[Any] | None = None) -> Reply:
            flight = Request(f"{method} {path}", self.limit, task or asyncio.current_task(), current.get(), self.trip)
            outer = current.set(flight)
            self.flights.add(flight)
            reply = None
            try:
                reply = await request(path, flight.statements)
            except BaseException:  # what stops it arrives as it is, or in a group of anyio's
                if not flight.stage:
                    raise
            finally:
                self.flights.discard(flight)
                current.reset(outer)
            if reply is None or flight.stage:
                if flight.task is not None and flight.task.cancelling():
                    flight.task.uncancel()
                raise flight.timeout() from None
            return reply._replace(latency_ms=self.trip.ms) if reply.queries else reply

        return call

    async def call(self, method: str, path: str, **options: Any) -> Reply:
        """Make a request; see `labkit.asgi.prepare` for the options.

        Raises:
            RequestTimeout: if it ran past the limit; SQL is interrupted, its task or thread stopped.
            RequestError: if the path or an option is unusable.
        """
        return await self.caller(method, **options)(path)


def explain(error: BaseException) -> str:
    """The learner's frames; with a sentence before them if it is the database that cannot be reached."""
    text = describe(error)
    return f"{sentence}\n\n{text}" if (sentence := unreachable(error)) else text


def unreachable(error: BaseException) -> str:
    """What to do about a database that does not answer, if that is what the exception says; else empty."""
    step: BaseException | None = error
    while step is not None:
        kind = type(step)
        if kind.__name__ == "OperationalError" and kind.__module__ == "sqlalchemy.exc":
            if getattr(step, "statement", "") is None:  # it failed before a statement: on connecting
                return say("core.database_unreachable", reason=str(getattr(step, "orig", step)).strip())
            return ""
        step = step.__cause__ or step.__context__
    return ""
