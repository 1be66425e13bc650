"""Cached endpoints: FastAPI hands the request in, and what is stored is the response as it is sent.

FastAPI is told of two more parameters: the connection, and the response that dependencies write their headers on. It
passes a ``Response`` through as it is; so a result is rendered here, as the route would have done.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import serialize_response
from fastapi.utils import is_body_allowed_for_status_code
from starlette.requests import HTTPConnection
from starlette.responses import Response, StreamingResponse

from labkit.cache.arguments import hints
from labkit.cache.call import GONE, Call, Fill, Headers, Made, Raised, read_media, write_media
from labkit.cache.client import finished
from labkit.cache.entry import Entry
from labkit.cache.locks import Lock

CONNECTION, RESPONSE = "labkit_connection", "labkit_response"
MARK = "labkit.cache"  # in the scope of a request that the cache itself makes: the lock to fill under
_KINDS = {CONNECTION: HTTPConnection, RESPONSE: Response}
_EMPTY = frozenset({204, 304})  # these have no length either
_EACH = frozenset({b"x-cache", b"age", b"content-length"})  # of each answer anew
_TELLING = frozenset({b"set-cookie", b"vary"})
_KEPT = {"type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"}
_KEPT |= {"headers", "client", "server"}
_OPTIONS = "include", "exclude", "by_alias", "exclude_unset", "exclude_defaults", "exclude_none"


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """What FastAPI is to see: the function's own parameters, and two that only the cache needs."""
    shown = inspect.signature(function)
    own = list(shown.parameters.values())
    last = len(own) - bool(own and own[-1].kind is inspect.Parameter.VAR_KEYWORD)
    hidden = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind) for name, kind in _KINDS.items()]
    return shown.replace(parameters=[*own[:last], *hidden, *own[last:]])


def doubles(function: Callable[..., Any]) -> dict[str, str]:
    """Parameters that FastAPI leaves out because ours take the same, and which of ours it is."""
    own = {name: kind for name, kind in hints(function).items() if name != "return" and inspect.isclass(kind)}
    of = {name: RESPONSE for name, kind in own.items() if issubclass(kind, Response)}
    return of | {name: CONNECTION for name, kind in own.items() if kind is HTTPConnection}


class Stored(Response):
    """A response from its parts, which are ready to be sent."""

    def __init__(self, status: int, body: bytes, headers: Headers) -> None:
        self.status_code, self.body, self.raw_headers, self.background = status, body, headers, None


@dataclass(slots=True)
class EndpointCall(Call):
    """One call, by a request.

    Attributes:
        request: as FastAPI gave it.
        injected: the response that dependencies and the endpoint write their headers and status on.
    """

    request: HTTPConnection
    injected: Response

    async def make(self) -> Made:
        before = list(self.injected.headers.raw)  # dependencies', for this request alone
        result = await self.run()
        response, plain = await self._render(result), not isinstance(result, Response)
        status, own = response.status_code, [pair for pair in self.injected.headers.raw if plain and pair not in before]
        ttl, headers = self.negative if status in GONE else None, [*response.raw_headers, *own]
        made = Made(response, tags=self.tags(result), ttl=ttl, failed=status >= 500)
        if (status < 400 or ttl is not None) and _shareable(response, headers):
            kept = [pair for pair in headers if pair[0].lower() not in _EACH]
            made.payload, made.status = bytes(response.body), status
            made.media = write_media(self._where, plain, kept)
        if plain:
            response.raw_headers = [*response.raw_headers, *self.injected.headers.raw]
        return made

    def use(self, entry: Entry) -> Any:
        if not entry.rendered:  # a value, written by a function: rendered for this route now
            response = finished(self._render(self.codec.loads(entry.payload)))
            response.raw_headers = [*response.raw_headers, *self.injected.headers.raw]
            return response
        route, plain, headers = read_media(entry.media)
        if route != self._where:
            return Call.use(self, entry)
        size = [] if entry.status in _EMPTY else [(b"content-length", b"%d" % len(entry.payload))]
        return Stored(entry.status, entry.payload, [*size, *headers, *(self.injected.headers.raw if plain else ())])

    def dress(self, result: Any, label: str, age: float) -> Any:
        marks = {"x-cache": label} | ({"age": str(max(0, int(age)))} if label in ("HIT", "STALE") else {})
        if isinstance(result, Raised):
            if "age" in marks:  # else it is the endpoint's own, not a copy
                result.error.headers = {**(result.error.headers or {}), **marks}  # type: ignore[attr-defined]
            return result
        dressed = copy(result)  # it may be an object that the endpoint returns each time
        dressed.__dict__.pop("_headers", None)
        dressed.raw_headers = [*result.raw_headers, *((name.encode(), value.encode()) for name, value in marks.items())]
        return dressed

    def behind(self, fill: Fill) -> Callable[[Lock], Awaitable[Any]] | None:
        return self._again if self.repeatable and self.request.scope["method"] == "GET" else None

    async def _again(self, lock: Lock) -> None:
        """The same request once more, for this one's session will be closed. Its middleware runs as for any other."""
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

    @property
    def _where(self) -> str:
        """Which route renders: the same function may stand behind two, with different models."""
        return f"{self.request.scope.get('root_path', '')}{self._route.path_format}"

    async def _render(self, result: Any) -> Response:
        """The response that the route makes of a result, as ``fastapi.routing.get_request_handler`` does."""
        if isinstance(result, Response):
            return result
        route, kind = self._route, self._route.response_class
        default = isinstance(kind, DefaultPlaceholder)
        as_bytes = default and route.response_field is not None
        options = {name: getattr(route, f"response_model_{name}") for name in _OPTIONS}
        content = await serialize_response(
            field=route.response_field, response_content=result, dump_json=as_bytes, **options
        )
        status = self.injected.status_code or route.status_code
        more: dict[str, Any] = {"status_code": status} if status else {}
        if as_bytes:
            response = Response(content, media_type="application/json", **more)
        else:
            response = (kind.value if default else kind)(content, **more)
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
