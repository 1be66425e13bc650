"""The one object a notebook talks to.

    lab = Lab(create_app())          # or Lab("mypackage.main:app")
    lab.get("/users")                # one request: a Reply
    lab.queries("/users")            # its SQL; lab.profile, lab.lines, lab.memory look at the Python
    lab.compare("/slow", "/fast")    # the same answer? how many times faster?
    lab.close()

The application runs in this process, in an event loop that has a thread of its own, so that every call here
is a plain synchronous one and works in a cell, a script and a test alike. There is no server in between.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from labkit import _apps, _broken, _outages, _supplies, _watching, asgi, faults
from labkit._client import Client
from labkit._loop import LoopThread
from labkit._measurements import Measurements
from labkit._routes import Keeper
from labkit._text import say
from labkit.asgi import ASGIApp, Reply
from labkit.errors import LabkitError, MeasurementError, RequestError
from labkit.switchboard import Switchboard

if TYPE_CHECKING:
    from labkit.services.redis import GivenRedis, RedisServer

T = TypeVar("T")


class Lab(Measurements, _watching.Watching):
    """Runs an ASGI application and measures it. A context manager; closed at the latest at the exit.

    Args:
        app: the application, or ``"package.module:attribute"``.
        database_url: SQLAlchemy URL, for an application that asks (``app.state.database_url`` is None).
        redis: True starts a Redis, a URL names one, False gives none; by default one is started if the
            application asks (``app.state.redis_url`` is None).
        postgres: start a PostgreSQL and use that.
        latency: milliseconds that each SQL statement pays on top; None for 0.5 on SQLite, nothing elsewhere.
        time_limit: seconds that a request, the start and the end of the application may take.
        work: folder for the data of the servers started here; None for a temporary one.

    Raises:
        AppError: if the application cannot be imported, prepared or started, or leaves no place empty for a server.
        ServiceError: if a server cannot be started.
    """

    def __init__(
        self,
        app: ASGIApp | str,
        *,
        database_url: str | None = None,
        redis: bool | str | None = None,
        postgres: bool = False,
        latency: float | None = None,
        time_limit: float = 30.0,
        work: Path | str | None = None,
    ) -> None:
        if not (isinstance(time_limit, int | float) and time_limit > 0):
            raise RequestError(say("core.bad_time_limit", seconds=time_limit))
        self.time_limit = time_limit
        trip = faults.RoundTrip()
        faults.latency(trip, latency)
        faults.listen()
        self._target = app if isinstance(app, str) else None
        with ExitStack() as opened:
            supplies = opened.enter_context(_supplies.Supplies(work))
            if isinstance(app, str):
                supplies.announce(database_url, redis, postgres)
                self.app: ASGIApp = asgi.load_app(app)
            else:
                self.app = _apps.check_app(app, getattr(app, "__name__", repr(app)))
            self._journal = opened.enter_context(_watching.listen())  # after the import: basicConfig may stand there
            supplies.give(self.app, database_url, redis, postgres)
            self._supplies = supplies
            self._routes = Keeper(self.app)
            opened.callback(self._routes.close)
            self._client = Client(self.app, time_limit, trip)
            self._loop = LoopThread(self._client.live, limit=time_limit)
            opened.callback(self._loop.close)
            self._loop.start()
            self._outages = _outages.Outages(_broken.parts(supplies, self.app))
            self._switchboard = Switchboard(self._outages, self.app)
            opened.callback(self._outages.close)  # before the application's end, which may ask Redis
            self._opened = opened.pop_all()
        self._finalizer = weakref.finalize(self, _quietly, self._opened.close)
        self._finalizer.atexit = False  # loop and servers have nets of their own there, in less time

    # Requests

    def request(self, method: str, path: str, **options: Any) -> Reply:
        """Make one request.

        Args:
            method, path: ``"GET"``, ``"/users?limit=5"``; the path begins with a slash.
            options: ``params``, ``headers``, ``json``, ``body`` (bytes or text), ``cookies``.

        Raises:
            RequestTimeout: if it takes longer than the time limit; the Lab stays usable.
            RequestError: if the path or an option is unusable, or the Lab is closed.
        """
        self._client.check(options)
        self._routes.refresh()
        return self._loop.run(lambda: self._client.call(method, path, **options), None, f"{method} {path}")

    def run(self, work: Callable[[Client], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Run ``await work(client)`` inside the loop, for measurements of your own.

        Args:
            work: gets a client whose ``await client.call(method, path)`` is a request with this Lab's limit.
            timeout: seconds for the whole; None for no limit but that of each request.
        """
        self._routes.refresh()
        return self._loop.run(lambda: self._client.work(work), timeout, getattr(work, "__name__", "run"))

    # What it runs on

    def latency(self, ms: float | None) -> faults.latency:
        """Set the simulated round trip of each SQL statement, at once; ``with lab.latency(5):`` sets it back.

        Args:
            ms: milliseconds; 0 for none, None for the default (0.5 on SQLite).
        """
        return faults.latency(self._client.trip, ms)

    @property
    def latency_ms(self) -> float:
        """Milliseconds that a statement pays on top, on the databases asked so far."""
        return self._client.trip.ms

    def fault(self, name: str, ms: float | None = None) -> _outages.Fault:
        """Something goes wrong inside ``with lab.fault("redis_down"):``, and is right again after it, come what may.

        Args:
            name: ``redis_down`` (killed; started again, empty, at the end), ``redis_frozen`` (connections stay
                and nothing answers) or ``redis_slow``; ``database_down`` (killed; its data are there again at the
                end; played on SQLite) or ``database_frozen`` (a SQLite file is locked instead); ``disk_full``
                (what ``app.state.disk_usage`` answers).
            ms: milliseconds that ``redis_slow`` holds each command back; 20 by default.

        Raises:
            ServiceError: if there is no such fault, what is to be broken is not this Lab's own, or it is closed.
        """
        return self._outages.fault(name, ms)

    def switchboard(self) -> Switchboard:
        """The same faults as buttons, which also work while a cell runs; the same board at every call."""
        return self._switchboard

    @property
    def engine(self) -> Any:
        """The application's SQLAlchemy engine, ``app.state.engine``.

        Raises:
            MeasurementError: if it is not there.
        """
        engine = getattr(getattr(self.app, "state", None), "engine", None)
        if engine is None:
            raise MeasurementError(say("core.no_engine"))
        return engine

    @property
    def database_url(self) -> str | None:
        """The database's address, password included; None if the application never told."""
        return self._supplies.address(self.app)

    @property
    def redis(self) -> RedisServer | GivenRedis | None:
        """The Redis that this Lab started, or (to be watched and asked only) the one it was given; else None."""
        return self._supplies.redis or self._supplies.given

    @property
    def tainted(self) -> bool:
        """Whether abandoned code still runs in a thread, so that timings are not to be trusted."""
        return self._loop.tainted

    def close(self) -> None:
        """End the application and the servers started here. Twice is fine.

        Raises:
            AppError: if the application fails at its end; everything is closed nevertheless.
        """
        if self._finalizer.detach():
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self._target or getattr(self.app, "title", type(self.app).__name__)
        return say("core.lab", app=name, state=say("core.open" if self._finalizer.alive else "core.shut"))


def _quietly(close: Callable[[], None]) -> None:
    with suppress(LabkitError):  # a Lab that is collected has nobody left to tell
        close()
