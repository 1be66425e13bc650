"""Measure every request: a pure ASGI layer that touches neither streams nor connections.

A request is recorded at the last byte of its answer, once, with the status that the client has seen: 500 if the
application broke off, 499 (nginx's number) if the client did not wait for the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labkit.monitoring._templates import Templates
from labkit.monitoring.ids import accepted, new_id, request_id
from labkit.monitoring.metrics import Metrics

MARK = "labkit.monitoring"  # in the scope: who measures this request already
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"))
GONE = 499
_OWN = (b"x-request-id", b"x-response-time")
_LOG = logging.getLogger("labkit.http")


def visitor(scope: Scope) -> Hashable:
    """Who asks, as far as can be told: the credentials or the session (only their hash), else the address."""
    for name, value in scope["headers"]:
        if name == b"authorization" or (name == b"cookie" and b"session" in value):
            return hash(value)
    client = scope.get("client")
    return client[0] if client else None


class MetricsMiddleware:
    """Counts and times what an application answers, and gives each answer an id.

    ``app.add_middleware(MetricsMiddleware, metrics=metrics)``, or around anything else that speaks ASGI.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        excluded: Iterable[str] = (),
        user: Callable[[Scope], Hashable] | None = None,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self._excluded = tuple(path.rstrip("/") + "/" for path in excluded)
        self.user = user or visitor
        self.templates = Templates(app)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get(MARK) is self.metrics.registry or "labkit.cache" in scope:
            await self.app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self.metrics.watch_loop(loop)
        exchange = _Exchange(self, scope, receive, send)
        token = request_id.set(exchange.id)
        try:
            await self.app(scope, exchange.receive, exchange.send)
            exchange.close(GONE if exchange.gone else 500)
        except BaseException as error:
            exchange.close(GONE if exchange.gone or not isinstance(error, Exception) else 500)
            raise
        finally:
            request_id.reset(token)

    def counts(self, path: str) -> bool:
        return not (self._excluded and (path + "/").startswith(self._excluded))


class _Exchange:
    """One request and its answer."""

    __slots__ = ("begun", "closed", "gone", "id", "owner", "root", "scope", "server", "size", "source", "status")

    def __init__(self, owner: MetricsMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        self.owner, self.scope, self.source, self.server = owner, scope, receive, send
        self.begun = perf_counter()
        self.gone = False
        self.status = self.size = 0
        self.root = scope.get("app")
        given = None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = accepted(value)
                break
        self.id = given or new_id()
        scope[MARK] = owner.metrics.registry
        scope.setdefault("state", {})["request_id"] = self.id
        self.closed = not owner.counts(scope["path"])
        if not self.closed:
            owner.metrics.in_progress.inc()

    async def receive(self) -> Message:
        message = await self.source()
        if message["type"] == "http.disconnect":
            self.gone = True
        return message

    async def send(self, message: Message) -> None:
        last = False
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() not in _OWN]
            headers.append((b"x-request-id", self.id.encode()))
            headers.append((b"x-response-time", b"%.4f" % (perf_counter() - self.begun)))
            message = {**message, "headers": headers}
        elif kind == "http.response.body":
            self.size += len(message.get("body", b""))
            last = not message.get("more_body", False)
        try:
            await self.server(message)
        except OSError:
            self.gone = True
            raise
        if last:
            self.close(GONE if self.gone else self.status)

    def close(self, status: int) -> None:
        if self.closed:
            return
        self.closed = True
        seconds = perf_counter() - self.begun
        scope, owner = self.scope, self.owner
        method = scope["method"] if scope["method"] in METHODS else "other"
        owner.metrics.in_progress.dec()
        owner.metrics.series(method, owner.templates.of(scope, self.root), status).record(seconds, self.size)
        with suppress(Exception):
            if (user := owner.user(scope)) is not None:
                owner.metrics.saw(user)
        if _LOG.isEnabledFor(logging.INFO):
            _LOG.info("%s %s %d %.4f s", scope["method"], scope["path"], status, seconds)
