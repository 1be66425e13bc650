"""Measure every request: a pure ASGI layer through which streams and connections pass as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from threading import get_ident
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from labkit._text import say
from labkit.errors import MonitoringError
from labkit.monitoring._exchange import MARK, Exchange
from labkit.monitoring._templates import MOST, Templates, answered_by
from labkit.monitoring.ids import request_id
from labkit.monitoring.metrics import Metrics

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"))
Record = Callable[[float, int], None]
_CACHE = "labkit.cache"  # in the scope of requests that labkit's cache makes on its own, for no user


class MetricsMiddleware:
    """Counts and times what an application answers, and gives each answer an id and its time.

    ``app.add_middleware(MetricsMiddleware, metrics=metrics)``, or around anything that speaks ASGI. What is added last
    stands outermost, which is the place for it: it sees what the other layers do.

    A request is recorded once, at the last byte of its answer; background tasks come after that. Its endpoint is the
    template of the route, or ``unmatched``. Its status is the one that was sent, but 500 where the application broke
    off in the middle, and 499 (nginx's number) where the client did not wait for the end.

    ``X-Request-ID`` is the one that the client has sent, if it is sane, and else a new one. It is also in
    ``request.state.request_id`` and in every record of the log. ``X-Response-Time`` says the seconds until the head of
    the answer was ready. Requests that fail, answered by Starlette outside of every layer, get both as well.

    Args:
        app: what is measured.
        metrics: where it is recorded. Layers of the same metrics on the way of a request record it once.
        excluded: paths that are not recorded, and all below them.
        user: who asks, by the request's scope when all is done; None is nobody. Default: what its ``Authorization`` or
            session cookie hash to, else its address.

    Raises:
        MonitoringError: if a path to exclude does not begin with a slash.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        excluded: Iterable[str] = (),
        user: Callable[[Scope], Hashable] | None = None,
    ) -> None:
        excluded = (excluded,) if isinstance(excluded, str) else tuple(excluded)
        for path in excluded:
            if not path.startswith("/"):
                raise MonitoringError(say("middleware.bad_path", path=path))
        self.app = app
        self.metrics = metrics
        self.registry = metrics.registry
        self.excluded = tuple(path.rstrip("/") + "/" for path in excluded)
        self.user = user
        # Bound once: these are called for every request.
        self.begin, self.finish = metrics.in_progress.inc, metrics.in_progress.dec
        self.saw = metrics.users.saw
        self.known: dict[tuple[str, int, int], tuple[object, Record]] = {}
        self.templates = Templates(app)
        self._loop: Any = None  # that was seen last, and its thread
        self._thread = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] != "http" or _CACHE in scope or (MARK in scope and self._twice(scope)):
            await self.app(scope, receive, send)
            return
        if get_ident() != self._thread or not self._loop.is_running():
            self._thread, self._loop = get_ident(), asyncio.get_running_loop()  # asks the system up to Python 3.11
            self.metrics.watch_loop(self._loop)
        exchange = Exchange(self, scope, receive, send)
        token = request_id.set(exchange.id)
        try:
            await self.app(scope, exchange.receive, exchange.send)
            if exchange.open or exchange.recorded == 500:
                exchange.end()
        except BaseException as error:
            await exchange.fail(error)
            raise
        finally:
            try:  # noqa: SIM105 - suppress() takes each request 0.3 us
                request_id.reset(token)
            except ValueError:  # thrown away, and closed in another context, where it was never set
                pass

    def _twice(self, scope: Scope) -> bool:
        """Whether a layer around this one records the request. It needs both, for a scope may be used once more."""
        return scope[MARK] is self.registry and bool(request_id.get())

    def find(self, scope: Scope, root: Any, status: int, place: Any) -> tuple[object, Record]:
        """What records a request; by heart from then on, if its route alone tells the template."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        found = place, self.metrics.series(method, self.templates.of(scope, root), status).record
        alone = place is not None and answered_by(scope) is place and "app_root_path" not in scope
        if alone and method != "other":
            if len(self.known) > MOST:
                self.known.clear()
            self.known[method, status, id(place)] = found
        return found
