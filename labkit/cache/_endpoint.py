"""Cached endpoints: FastAPI hands the request in, and what is stored is the response as it is sent.

FastAPI is told of two more parameters, the connection and the response that dependencies write headers on. It passes
a ``Response`` through as it is; so a result is rendered here as the route would have done.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastapi.datastructures import DefaultPlaceholder
from fastapi.exceptions import HTTPException
from fastapi.routing import serialize_response
from fastapi.utils import is_body_allowed_for_status_code
from starlette.requests import HTTPConnection
from starlette.responses import Response, StreamingResponse

from labkit.cache.arguments import hints
from labkit.cache.client import finished
from labkit.cache.codec import Codec, Corrupt
from labkit.cache.engine import Made, Raised
from labkit.cache.entry import Entry
from labkit.cache.locks import Lock

CONNECTION, RESPONSE = "labkit_connection", "labkit_response"
MARK = "labkit.cache"  # in the scope of a request that the cache itself makes: the lock to fill under
_RAISED = "raised"  # in place of a route: an HTTPException
_GONE = frozenset({404, 410})
_EMPTY = frozenset({204, 304})  # these have no length either
_OWN = frozenset({b"x-cache", b"age", b"content-length"})  # of each answer anew
_TELLING = frozenset({b"set-cookie", b"vary"})
_KEPT = {"type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"}
_KEPT |= {"headers", "client", "server"}
Headers = list[tuple[bytes, bytes]]


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """What FastAPI is to see: the function's own parameters, and two that only the cache needs."""
    shown = inspect.signature(function)
    hidden = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        for name, kind in ((CONNECTION, HTTPConnection), (RESPONSE, Response))
    ]
    own = list(shown.parameters.values())
    last = len(own) - bool(own and own[-1].kind is inspect.Parameter.VAR_KEYWORD)
    return shown.replace(parameters=[*own[:last], *hidden, *own[last:]])


def doubles(function: Callable[..., Any]) -> dict[str, str]:
    """Parameters of the function that FastAPI does not fill because ours take the same, and which of ours that is."""
    found = {n: kind for n, kind in hints(function).items() if n != "return" and inspect.isclass(kind)}
    of = {n: RESPONSE for n, kind in found.items() if issubclass(kind, Response)}
    return of | {n: CONNECTION for n, kind in found.items() if kind is HTTPConnection}


class Stored(Response):
    """A response from its parts, which are ready to be sent."""

    def __init__(self, status: int, body: bytes, headers: Headers) -> None:
        self.status_code, self.body, self.raw_headers, self.background = status, body, headers, None


@lru_cache(maxsize=256)
def _read(media: str) -> tuple[str, bool, Headers]:
    """What stands in ``Entry.media``: the route, whether the request's own headers belong to it, and the headers."""
    try:
        route, own, pairs = json.loads(media)
        return str(route), bool(own), [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    except (ValueError, TypeError, AttributeError):
        raise Corrupt("media") from None


def use_raised(entry: Entry, codec: Codec) -> Raised:
    """The exception that was stored. Raises ``Corrupt``."""
    route, _, headers = _read(entry.media)
    if route != _RAISED:
        raise Corrupt("route")
    names = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    return Raised(HTTPException(entry.status, codec.loads(entry.payload), names or None))


def keep_raised(error: Exception, codec: Codec, ttl: float | None) -> Made:
    """What to store of an exception if it says that there is no such thing; else raises it."""
    if ttl is None or not isinstance(error, HTTPException) or error.status_code not in _GONE:
        raise error
    media = json.dumps((_RAISED, False, list((error.headers or {}).items())))
    return Made(Raised(error), codec.dumps(error.detail), error.status_code, media, ttl=ttl)


@dataclass(slots=True)
class EndpointCall:
    """One request to a cached endpoint.

    Attributes:
        request: as FastAPI gave it.
        injected: the response that dependencies and the endpoint write their headers and status on.
        run: runs the endpoint.
        tags: gives the tags of a result.
        negative: seconds to keep an answer 404 or 410.
        threaded: whether it runs in a thread, where no request can be made to the application.
    """

    request: HTTPConnection
    injected: Response
    run: Callable[[], Awaitable[Any]]
    tags: Callable[[Any], Sequence[str]]
    codec: Codec
    negative: float | None
    threaded: bool

    async def make(self) -> Made:
        before = list(self.injected.headers.raw)  # dependencies', for this request alone
        result = await self.run()
        response, ready = await self._render(result), isinstance(result, Response)
        own = [] if ready else [pair for pair in self.injected.headers.raw if pair not in before]
        status = response.status_code
        ttl = self.negative if status in _GONE else None
        made = Made(response, None, tags=self.tags(result), ttl=ttl, failed=status >= 500)
        headers = [*response.raw_headers, *own]
        if (status < 400 or ttl is not None) and _shareable(response, headers):
            pairs = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in headers if k.lower() not in _OWN]
            made.payload, made.status = bytes(response.body), status
            made.media = json.dumps((self._where(), not ready, pairs))
        if not ready:
            response.raw_headers = [*response.raw_headers, *self.injected.headers.raw]
        return made

    def use(self, entry: Entry) -> Any:
        if not entry.rendered:  # written by a function: rendered for this route now
            response = finished(self._render(self.codec.loads(entry.payload)))
            response.raw_headers = [*response.raw_headers, *self.injected.headers.raw]
            return response
        route, own, headers = _read(entry.media)
        if route == _RAISED:
            return use_raised(entry, self.codec)
        if route != self._where():
            raise Corrupt("route")
        size = [] if entry.status in _EMPTY else [(b"content-length", b"%d" % len(entry.payload))]
        return Stored(entry.status, entry.payload, [*size, *headers, *(self.injected.headers.raw if own else ())])

    def dress(self, result: Any, label: str, age: float) -> Any:
        marks = {"X-Cache": label} if label in ("MISS", "BYPASS") else {"X-Cache": label, "Age": str(max(0, int(age)))}
        if isinstance(result, Raised):
            if isinstance(result.error, HTTPException) and label in ("HIT", "STALE"):
                result.error.headers = {**(result.error.headers or {}), **marks}
            return result
        dressed = copy(result)  # it may be somebody's own
        dressed.__dict__.pop("_headers", None)
        dressed.raw_headers = [*result.raw_headers, *((k.lower().encode(), v.encode()) for k, v in marks.items())]
        return dressed

    def rescue(self, error: Exception) -> Made:
        return keep_raised(error, self.codec, self.negative)

    def behind(self) -> Callable[[Lock], Awaitable[object]] | None:
        return None if self.threaded or self.request.scope["method"] != "GET" else self._again

    async def _again(self, lock: Lock) -> None:
        """The same request once more: this one's session will be closed. Its middleware runs too, as for any other."""
        scope = {name: value for name, value in self.request.scope.items() if name in _KEPT}
        scope |= {"state": dict(self.request.scope.get("state", {})), MARK: lock}
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            pass

        await self.request.scope["app"](scope, receive, send)

    @property
    def _route(self) -> Any:
        scope = self.request.scope
        return scope.get("fastapi", {}).get("effective_route_context") or scope["route"]

    def _where(self) -> str:
        """Which route renders: the same function may stand behind two, with different models."""
        return f"{self.request.scope.get('root_path', '')}{self._route.path_format}"

    async def _render(self, result: Any) -> Response:
        """The response that the route makes of a result, as ``fastapi.routing.get_request_handler`` does."""
        if isinstance(result, Response):
            return result
        route, kind = self._route, self._route.response_class
        is_default = isinstance(kind, DefaultPlaceholder)
        as_bytes = is_default and route.response_field is not None
        content = await serialize_response(
            field=route.response_field,
            response_content=result,
            include=route.response_model_include,
            exclude=route.response_model_exclude,
            by_alias=route.response_model_by_alias,
            exclude_unset=route.response_model_exclude_unset,
            exclude_defaults=route.response_model_exclude_defaults,
            exclude_none=route.response_model_exclude_none,
            is_coroutine=True,
            dump_json=as_bytes,
        )
        status = self.injected.status_code or route.status_code
        options: dict[str, Any] = {"status_code": status} if status else {}
        if as_bytes:
            response = Response(content, media_type="application/json", **options)
        else:
            response = (kind.value if is_default else kind)(content, **options)
        if not is_body_allowed_for_status_code(response.status_code):
            response.body = b""
        return response


def _shareable(response: Response, headers: Headers) -> bool:
    """Whether others may have the response: whole, without cookies, and not said to be private."""
    if not isinstance(getattr(response, "body", None), bytes | memoryview) or isinstance(response, StreamingResponse):
        return False
    control = b",".join(value for name, value in headers if name.lower() == b"cache-control").lower()
    names = {name.lower() for name, _ in headers}
    return names.isdisjoint(_TELLING) and b"private" not in control and b"no-store" not in control
