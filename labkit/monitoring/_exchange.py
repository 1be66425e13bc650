"""One request and its answer, on their way through the layer that measures them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Hashable
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import Message, Receive, Scope, Send

from labkit.monitoring._failures import FAILED, lead_through
from labkit.monitoring.ids import accepted, new_id, request_id

if TYPE_CHECKING:
    from labkit.monitoring.middleware import MetricsMiddleware

MARK = "labkit.monitoring"  # in the scope: the registry in which the request is recorded already
GONE = 499
SLOW = 0.005  # seconds from which on it is worth while to ask a server whether the client is still there,
SHARE, LONGEST = 0.01, 0.002  # which may take this part of what the request took, and no longer than so many seconds

_OURS = frozenset((b"x-request-id", b"x-response-time"))
_SPENT = tuple((b"x-response-time", b"%.4f" % (tenths / 10_000)) for tenths in range(1_000))  # formatting takes longer
# What an answer's body comes in; files the server reads itself.
_PARTS = frozenset(("http.response.body", "http.response.pathsend", "http.response.zerocopysend"))
_BODY = frozenset((b"content-length", b"transfer-encoding"))
_TELLING = frozenset((b"x-request-id", b"authorization", b"cookie"))
# Names of bounded length: else a cookie of nothing but the word would hold up the loop for seconds.
_session = re.compile(rb"(?:^|;) *((?:[\w.-]{0,64}session[\w.-]{0,64}|[\w.-]{0,64}\bsid)=[^;]+)", re.IGNORECASE).search
_log = logging.getLogger("labkit.http")


class Exchange:
    """What is known about a request until it is recorded."""

    id = ""
    user: Hashable = None
    open = False  # whether it is still to be recorded
    status = size = 0  # as they were sent so far
    gone = False  # whether the client is known to have left
    asking = False  # whether the application waits for a message
    heard = False  # whether the request's body was received to its end
    kept: Message | None = None  # a message that was received for the application
    recorded = 0  # the status, if so

    def __init__(self, layer: MetricsMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun = perf_counter()
        self.layer, self.scope, self._receive, self._send = layer, scope, receive, send
        self.root = scope.get("app")
        for name, value in scope["headers"]:
            if name in _TELLING:
                self._heed(name, value)
        if self.user is None and (client := scope.get("client")):
            self.user = client[0]
        if MARK in scope and (outer := request_id.get()):  # a layer around this one records it elsewhere
            self.id = outer
        else:
            scope[MARK] = layer.registry
            self.id = self.id or new_id()
        if "state" in scope:
            scope["state"]["request_id"] = self.id
        else:
            scope["state"] = {"request_id": self.id}
        if not layer.excluded or not (scope["path"] + "/").startswith(layer.excluded):
            self.open = True
            layer.begin()

    def _heed(self, name: bytes, value: bytes) -> None:
        """A header that tells the request's id, or who asks: credentials rather than a session."""
        if name == b"authorization":
            self.user = hash(value)
        elif name == b"x-request-id":
            self.id = self.id or accepted(value) or new_id()
        elif self.user is None and (session := _session(value)):
            self.user = hash(session[1])

    async def receive(self) -> Message:
        """What the application receives: messages as they come."""
        if self.kept is not None:
            message, self.kept = self.kept, None
            return message
        if self.gone:  # some servers say it once only
            return {"type": "http.disconnect"}
        self.asking = True
        try:
            message = await self._receive()
        finally:
            self.asking = False
        if message["type"] == "http.disconnect":
            self.gone = True
        elif not message.get("more_body"):
            self.heard = True
        return message

    async def send(self, message: Message) -> None:
        """What the application sends, at once; the head gets its headers, and after the end the request is recorded."""
        kind = message["type"]
        if kind == "http.response.body":
            self.size += len(message.get("body", b""))
        elif kind == "http.response.start":
            self.status = message["status"]
            seconds = perf_counter() - self.begun
            if seconds > SLOW:
                await self._look(seconds)
            tenths = int(seconds * 10_000)  # of a millisecond
            spent = _SPENT[tenths] if tenths < len(_SPENT) else (b"x-response-time", b"%.4f" % seconds)
            headers = [(b"x-request-id", self.id.encode()), spent]
            for pair in message.get("headers", ()):
                if pair[0] not in _OURS:
                    headers.append(pair)
            message = {**message, "headers": headers}
        try:
            await self._send(message)
        except OSError:  # as servers say that nobody is there any more
            self.gone = True
            raise
        if kind in _PARTS and self.open and not message.get("more_body"):
            server = getattr(self._receive, "__self__", None)  # as in _left(), which takes longer
            self._close(GONE if self.gone or getattr(server, "disconnected", False) else self.status)

    def end(self) -> None:
        """The application is done."""
        if self.open:  # and has not finished its answer: because nobody waits for it, or the server does it
            self._close(GONE if self._left() else 500)
        if self.recorded == 500:
            self._note(logging.ERROR, 500)

    async def fail(self, error: BaseException) -> None:
        """The application has raised ``error``, which goes on to the server."""
        if self._cancelled(error) or (not self.recorded and self._left()):
            if self.open:
                self._close(GONE)
            return
        guard, rank = getattr(self.root, "middleware_stack", None), self._rank()
        if status := self._answered_outside(error, rank):
            if self.open:
                self._close(status)
            return
        self._note(logging.ERROR, self.recorded or 500, error)
        answered = self.status or not isinstance(error, Exception)
        if isinstance(guard, ServerErrorMiddleware):
            # Also if a head went out: a layer outside may have kept it, or make an error of what is none.
            self.scope[FAILED] = self
            lead_through(guard)
            if rank == 0 and not answered:
                return  # Starlette answers, and the answer comes by here
        elif not answered:
            with suppress(Exception):  # the same error, or that the client has left
                await ServerErrorMiddleware(partial(_fail, error))(self.scope, self.receive, self.send)
        if self.open:
            self._close(500)

    async def answer(self, response: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what Starlette answers for the application that has failed."""
        self._send = send
        try:
            await response(scope, receive, self.send)
        finally:
            if self.open:
                self._close(GONE if self._left() else 500)

    def abandon(self) -> None:
        """The handler of the failure has failed."""
        if self.open:
            self._close(500)

    def _left(self) -> bool:
        """Whether the client left before the end. uvicorn knows, and drops without a word what is sent to nobody."""
        return self.gone or getattr(getattr(self._receive, "__self__", None), "disconnected", False)

    async def _look(self, seconds: float) -> None:
        """Ask other servers whether the client has left while it was waiting; nothing that they say is lost."""
        if (
            not self.open
            or self.gone
            or self.asking
            or hasattr(getattr(self._receive, "__self__", None), "disconnected")
        ):
            return
        rounds = 1
        if not self.heard:
            if any(name in _BODY for name, _ in self.scope["headers"]):
                return  # the application may still want the body
            self.heard, self.kept = True, {"type": "http.request", "body": b"", "more_body": False}
            rounds = 2
        with anyio.move_on_after(min(seconds * SHARE, LONGEST)):
            for _ in range(rounds):
                self.gone = (await self._receive())["type"] == "http.disconnect"

    def _cancelled(self, error: BaseException) -> bool:
        """Whether somebody has stopped the request."""
        if isinstance(error, BaseExceptionGroup):
            return all(map(self._cancelled, error.exceptions))
        if not isinstance(error, asyncio.CancelledError):
            return isinstance(error, GeneratorExit)
        # Who awaits a task that was cancelled gets the same error. With it an answer hardly ever breaks off in the
        # middle, and there the count cannot be trusted: anyio's scopes may take it back on the way.
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0 or bool(self.status)

    def _rank(self) -> int | None:
        """How many other layers, which might answer in their own way, stand between ours and Starlette's last one."""
        metrics = self.layer.metrics
        for rank, layer in enumerate(getattr(self.root, "user_middleware", ())):
            if any(each is metrics for each in (*layer.args, *layer.kwargs.values())):
                return rank
        return None  # ours is no layer of an application, but around one or around a part of it

    def _answered_outside(self, error: BaseException, rank: int | None) -> int:
        """The status by which Starlette answers to some errors on the other side of our layer, or 0."""
        http = isinstance(error, HTTPException)
        if type(error).__module__ == "starlette.middleware.body_limit" and not (http and self.status):
            return 413
        part = rank is None and self.root is not None  # of an application, which turns them into answers
        return error.status_code if part and not self.status and isinstance(error, HTTPException) else 0

    def _close(self, status: int) -> None:
        """Record the request."""
        seconds = perf_counter() - self.begun
        self.open, self.recorded = False, status
        layer, scope = self.layer, self.scope
        layer.finish()
        method, place = scope["method"], scope.get("route")
        if "fastapi" in scope and (context := scope["fastapi"].get("effective_route_context")) is not None:
            place = context
        known = layer.known.get((method, status, id(place)))
        if known is None or known[0] is not place or "app_root_path" in scope:
            known = layer.find(scope, self.root, status, place)
        known[1](seconds, 0 if method == "HEAD" else self.size)
        user = self.user
        if layer.user is not None:
            user = None
            with suppress(Exception):  # nobody's request fails because it cannot be told whose it is
                user = layer.user(scope)
        if user is not None:
            layer.saw(user)
        if status != 500 and _log.isEnabledFor(logging.INFO):
            self._note(logging.INFO, status)

    def _note(self, level: int, status: int, error: BaseException | None = None) -> None:
        method, path, seconds = self.scope["method"], quote(self.scope["path"]), perf_counter() - self.begun
        extra = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
        _log.log(level, "%s %s %d", method, path, status, exc_info=error, extra=extra)


async def _fail(error: BaseException, *asgi: object) -> None:
    raise error
