"""Everything in one call: metrics, middleware, health checks and their endpoints, on anybody's application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import psutil
from starlette.middleware import Middleware
from starlette.routing import Match

from labkit._text import say
from labkit.errors import MonitoringError
from labkit.monitoring import checks as known
from labkit.monitoring.health import Check, Health
from labkit.monitoring.metrics import Metrics
from labkit.monitoring.middleware import MetricsMiddleware

_NOWHERE = "/a-path-that-no-endpoint-has-but-one-for-all"


def monitor(
    app: Any,
    *,
    metrics: Metrics | None = None,
    engine: Any = None,
    cache: Any = None,
    checks: Iterable[Check] | Check = (),
    excluded: Iterable[str] = (),
    user: Callable[[MutableMapping[str, Any]], Hashable] | None = None,
) -> Metrics:
    """Count, time and log the requests of a FastAPI or Starlette application, and tell whether it is well.

    Adds the middleware and the endpoints ``/metrics``, ``/health/metrics`` and those of ``Health.router``, which are
    not in the OpenAPI document. They stand behind the application's own, but before one that answers to any path.
    Before the start or after it; called again, as by a cell that runs twice, it replaces what it did before.

    Args:
        app: the application. Its ``state`` gets ``metrics``, ``health`` and, unless it is there, ``disk_usage``
            (``psutil.disk_usage``), which the check of the disk asks.
        metrics: where to count; default: a new one. `Metrics` says what it takes to have more than one worker.
        engine: SQLAlchemy engine, sync or async, or a function that gives it once the application has started
            (``lambda: app.state.engine``). Its statements are counted, and it is checked: critical.
        cache: a Redis client, a ``CacheClient``, an address, or a function that gives one; it is checked: not critical.
            Its operations count where ``metrics.on_cache`` is the observer of ``cached``.
        checks: one or more of them. The name of another (``database``, ``pool``, ``cache``, ``disk``, ``memory``,
            ``cpu``, ``event_loop``) takes its place.
        excluded: paths whose requests, and those below, are not counted.
        user: tells users apart, see `MetricsMiddleware`.

    Returns:
        The metrics.

    Raises:
        MonitoringError: if ``app`` is no such application, ``metrics``, ``engine`` or one of the ``checks`` something
            else, or a path to exclude unusable. That a function gives no engine is told at the start of the
            application.
    """
    state = getattr(app, "state", None)
    router: Any = getattr(app, "router", None)
    if state is None or not isinstance(getattr(router, "routes", None), list) or not hasattr(app, "user_middleware"):
        raise MonitoringError(say("monitor.not_an_app", type=type(app).__name__))
    if not isinstance(metrics, Metrics | None):
        raise MonitoringError(say("monitor.not_metrics", type=type(metrics).__name__))
    checks = [checks] if isinstance(checks, Check) else list(checks)
    if others := [each for each in checks if not isinstance(each, Check)]:
        raise MonitoringError(say("monitor.not_a_check", value=repr(others[0])))
    metrics = metrics or Metrics(version=getattr(app, "version", "1.0.0"))
    if not hasattr(state, "disk_usage"):
        state.disk_usage = psutil.disk_usage
    asked = [*_standard(app, metrics, engine, cache), *checks]
    health = Health({check.name: check for check in asked}.values())
    excluded = (excluded,) if isinstance(excluded, str) else tuple(excluded)
    MetricsMiddleware(app, metrics, excluded=excluded, user=user)  # what is wrong is said now, and not at a request
    layer = Middleware(MetricsMiddleware, metrics=metrics, excluded=excluded, user=user)
    setup = _Setup(app, metrics, engine)
    setup.watch(started=False)
    if (before := getattr(state, "labkit_setup", None)) is None:
        router.lifespan_context = _around(app, router.lifespan_context)
    else:
        before.undo(setup)
    setup.add(layer, health.router(metrics).routes)
    state.metrics, state.health, state.labkit_setup = metrics, health, setup
    return metrics


def _standard(app: Any, metrics: Metrics, engine: Any, cache: Any) -> Iterable[Check]:
    if engine is not None:
        yield known.database(engine)
        yield known.pool(engine)
    if cache is not None:
        yield known.cache(cache)
    yield known.disk(usage=lambda path: app.state.disk_usage(path))
    yield known.memory()
    yield known.cpu()
    yield known.event_loop(metrics.loops)


class _Setup:
    """What ``monitor`` did to an application, to be undone by the next one."""

    def __init__(self, app: Any, metrics: Metrics, engine: Any) -> None:
        self._app, self._metrics, self._engine = app, metrics, engine
        self._unwatch: Callable[[], None] | None = None
        self._layer: Any = None
        self._routes: list[Any] = []

    def watch(self, started: bool) -> None:
        """Count the engine's statements; one that is to come is waited for until the application has started.

        Raises:
            MonitoringError: if there is none after the start, or it is something else.
        """
        engine = self._engine
        if callable(engine):
            try:
                engine = engine()
            except AttributeError:  # app.state.engine, before the start
                if started:
                    raise
                return
            if engine is None and started:
                raise MonitoringError(say("monitor.no_engine"))
            if engine is None:
                return
        self.unwatch()
        if self._engine is not None:
            self._unwatch = self._metrics.watch_engine(engine)

    def unwatch(self) -> None:
        """Count the engine's statements no more."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def add(self, layer: Any, endpoints: list[Any]) -> None:
        """Put the middleware outermost, and the endpoints before the first route that would answer to anything."""
        self._layer, self._routes, mine = layer, endpoints, self._app.router.routes
        self._app.user_middleware.insert(0, layer)
        scope = {"type": "http", "method": "GET", "path": _NOWHERE, "root_path": "", "headers": [], "query_string": b""}
        greedy = (place for place, route in enumerate(mine) if route.matches(dict(scope))[0] is Match.FULL)
        place = next(greedy, len(mine))
        mine[place:place] = endpoints
        self._renew()

    def undo(self, next: _Setup) -> None:
        """Take everything away again, but not the listening to an engine that ``next`` shares: there is only one."""
        if self._unwatch is not next._unwatch:
            self.unwatch()
        layers, routes = self._app.user_middleware, self._app.router.routes
        layers[:] = [each for each in layers if each is not self._layer]
        routes[:] = [each for each in routes if not any(each is mine for mine in self._routes)]
        self._renew()

    def _renew(self) -> None:
        self._app.middleware_stack = None  # Starlette builds it anew at the next request
        if (changed := getattr(self._app.router, "_mark_routes_changed", None)) is not None:  # FastAPI
            changed()


def _around(app: Any, lifespan: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The application's lifespan, with its engine watched inside."""

    @asynccontextmanager
    async def watched(target: Any) -> AsyncIterator[Any]:
        async with lifespan(target) as given:
            app.state.labkit_setup.watch(started=True)
            try:
                yield given
            finally:
                app.state.labkit_setup.unwatch()

    return watched
