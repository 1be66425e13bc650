"""Cached endpoints: FastAPI hands the request in, and what is stored is the response as it is sent.

FastAPI is told of two more parameters, the connection and the response that dependencies write headers on. It passes
a ``Response`` through as it is; so a result is rendered here as the route would have done.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

from fastapi.datastructures import DefaultPlaceholder
from fastapi.exceptions import HTTPException
from fastapi.routing import serialize_response
from fastapi.utils import is_body_allowed_for_status_code
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from labkit.cache.codec import Codec, Corrupt
from labkit.cache.engine import Made, Raised
from labkit.cache.entry import Entry
from labkit.cache.locks import Lock

CONNECTION, RESPONSE = "labkit_connection", "labkit_response"
MARK = "labkit.cache"  # in the scope of a request that the cache itself makes: the lock to fill under
_RAISED = "raised"  # in place of a route: an HTTPException
_GONE = frozenset({404, 410})
_OWN = frozenset({"x-cache", "age", "content-length"})
_KEPT = "type asgi http_version method scheme path raw_path query_string root_path headers client server".split()
Headers = list[tuple[bytes, bytes]]


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """What FastAPI is to see: the function's own parameters, and those that only the cache needs."""
    shown = inspect.signature(function)
    more = {CONNECTION: HTTPConnection, RESPONSE: Response}
    own = [p for p in shown.parameters.values() if p.kind is not p.VAR_KEYWORD]
    hidden = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind) for name, kind in more.items()]
    return shown.replace(parameters=own + hidden)


def response_name(function: Callable[..., Any], hints: Mapping[str, Any]) -> str | None:
    """The parameter that takes FastAPI's response, if the function has one of its own."""
    return next(
        (n for n, kind in hints.items() if inspect.isclass(kind) and issubclass(kind, Response) and n != "return"), None
    )


class Stored(Response):
    """A response from its parts, which are ready to be sent."""

    def __init__(self, status: int, body: bytes, headers: Headers) -> None:
        self.status_code, self.body, self.raw_headers, self.background = status, body, headers, None


@lru_cache(maxsize=256)
def _read(media: str) -> tuple[str, Headers]:
    """The route and the headers in an entry's ``media``."""
    try:
        route, pairs = json.loads(media)
        return str(route), [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    except (ValueError, TypeError, AttributeError):
        raise Corrupt("media") from None


def raised(entry: Entry, codec: Codec) -> Raised:
    """The exception that was stored. Raises ``Corrupt``."""
    route, headers = _read(entry.media)
    if route != _RAISED:
        raise Corrupt("route")
    names = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    return Raised(HTTPException(entry.status, codec.loads(entry.payload), names or None))


def keep_raised(error: Exception, codec: Codec, ttl: float | None) -> Made:
    """What to store of an exception, if it says that there is no such thing; else raises it."""
    if ttl is None or not isinstance(error, HTTPException) or error.status_code not in _GONE:
        raise error
    media = json.dumps((_RAISED, list((error.headers or {}).items())))
    return Made(Raised(error), codec.dumps(error.detail), error.status_code, media, ttl=ttl)


class EndpointCall:
    """One request to a cached endpoint.

    Args:
        run: runs the endpoint.
        tags: gives the tags of a result.
    """

    def __init__(
        self,
        request: Request,
        injected: Response,
        run: Callable[[], Awaitable[Any]],
        tags: Callable[[Any], tuple[str, ...]],
        codec: Codec,
        negative: float | None,
        behind: bool,
    ) -> None:
        self._request, self._injected, self._run, self._tags = request, injected, run, tags
        self._codec, self._negative, self._behind = codec, negative, behind
        scope = request.scope
        self._route = scope.get("fastapi", {}).get("effective_route_context") or scope["route"]
        self._name = f"{scope.get('root_path', '')}{self._route.path_format}"

    async def make(self) -> Made:
        given = list(self._injected.headers.raw)  # by dependencies, for this request alone
        result = await self._run()
        response = await self._render(result)
        headers = [pair for pair in self._injected.headers.raw if pair not in given]
        if not isinstance(result, Response):
            response.raw_headers.extend(headers)
        status, ttl = response.status_code, None
        if status in _GONE:
            ttl = self._negative
        made = Made(response, None, tags=self._tags(result), ttl=ttl, failed=status >= 500)
        if (status < 400 or ttl is not None) and _shareable(response):
            pairs = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in response.raw_headers]
            kept = [pair for pair in pairs if pair[0].lower() not in _OWN]
            made.payload, made.status, made.media = bytes(response.body), status, json.dumps((self._name, kept))
        if not isinstance(result, Response):
            response.raw_headers.extend(pair for pair in given if pair in self._injected.headers.raw)
        return made
