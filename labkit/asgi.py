"""Talk to an ASGI application directly: no server, no socket, no client library in between.

``call`` makes one request and returns a ``Reply``; ``prepare`` readies many of a kind; ``Lifespan`` runs the
application's start and end; ``load_app`` finds it by its name. All of it runs inside an event loop that somebody
else owns.
"""

from __future__ import annotations

import asyncio
import json as _json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from functools import lru_cache
from time import perf_counter
from typing import Any
from urllib.parse import quote, unquote, urlencode

from labkit import _routes
from labkit._apps import load_app
from labkit._frames import describe
from labkit._reply import RawHeaders, Reply
from labkit._text import say
from labkit.errors import AppError, RequestError

__all__ = ["Lifespan", "Reply", "call", "load_app", "prepare"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Params = Mapping[str, Any] | Iterable[tuple[str, Any]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

Caller = Callable[[str, Callable[[], int] | None], Awaitable[Reply]]  # path, and what counts its statements

# The same as uvicorn says of itself, so that an application takes the same paths here as there.
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_CLIENT, _SERVER = ("127.0.0.1", 50000), ("127.0.0.1", 80)
_HEADERS: RawHeaders = ((b"host", b"localhost"), (b"accept", b"*/*"), (b"user-agent", b"labkit"))
_SAFE = "/%:@!$&'()*+,;=~?-._[]"
_NOTHING: Any = object()
_ANSWERED = (Exception, SystemExit, KeyboardInterrupt)


def _query(params: Params | None) -> str:
    """What stands after the question mark."""
    if not params:
        return ""
    try:
        pairs = params.items() if isinstance(params, Mapping) else params
        plain = [(key, str(value).lower() if isinstance(value, bool) else value) for key, value in pairs]
    except (TypeError, ValueError):
        raise RequestError(say("core.bad_pairs", name="params", value=repr(params))) from None
    return urlencode(plain, doseq=True)


@lru_cache(maxsize=4096)  # traffic goes to the same addresses again and again
def _address(path: str, more: str) -> tuple[str, bytes, bytes]:
    """The decoded path, the path as sent, and the query string, to which ``more`` is added."""
    path, _, query = path.partition("#")[0].partition("?")
    query = "&".join(filter(None, (query, more)))
    if "%" not in path and path.isascii() and " " not in path:
        return path, path.encode(), query.encode() if query.isascii() else quote(query, _SAFE).encode()
    raw = quote(path, _SAFE)
    return unquote(raw), raw.encode(), quote(query, _SAFE).encode()


def _content(
    headers: Mapping[str, str] | None, cookies: Mapping[str, str] | None, json: Any, body: bytes | str
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The request's headers and body; a header that is given replaces ours."""
    if headers is None and cookies is None and json is _NOTHING and body == b"":
        return [*_HEADERS], b""
    extra: dict[bytes, bytes] = {}
    if json is not _NOTHING:
        try:
            body = _json.dumps(json, ensure_ascii=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise RequestError(say("core.bad_json", value=repr(json), reason=error)) from None
        extra[b"content-type"] = b"application/json"
    if not isinstance(body, str | bytes | bytearray | memoryview):
        raise RequestError(say("core.bad_body", value=repr(body)))
    for option, given in (("headers", headers), ("cookies", cookies)):
        if given is not None and not isinstance(given, Mapping):
            raise RequestError(say("core.bad_pairs", name=option, value=repr(given)))
    data = body.encode() if isinstance(body, str) else bytes(body)
    if data:
        extra[b"content-length"] = b"%d" % len(data)
    if cookies:
        extra[b"cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items()).encode()
    for name, value in (headers or {}).items():
        try:
            extra[name.lower().encode("latin-1")] = str(value).encode("latin-1")
        except (AttributeError, UnicodeEncodeError):
            raise RequestError(say("core.bad_header", name=repr(name), value=repr(value))) from None
    return [*((key, value) for key, value in _HEADERS if key not in extra), *extra.items()], data


def prepare(
    app: ASGIApp,
    method: str,
    *,
    params: Params | None = None,
    headers: Mapping[str, str] | None = None,
    json: Any = _NOTHING,
    body: bytes | str = b"",
    cookies: Mapping[str, str] | None = None,
    state: Mapping[str, Any] | None = None,
    explain: Callable[[BaseException], str] = describe,
) -> Caller:
    """What many requests share, made once: the answer is called with each one's path, as ``call`` is.

    Args:
        params: added to the query string; lists repeat the name, booleans become ``true`` and ``false``.
        json: sent as JSON; ``body`` sends bytes or text as they are (name their type in ``headers``).
        state: what the lifespan left for the requests (``Lifespan.state``).
        explain: makes ``Reply.error`` of what the application raised.

    Raises:
        RequestError: if an option cannot be sent.
    """
    method, more = method.upper(), _query(params)
    sent_headers, data = _content(headers, cookies, json, body)

    async def request(path: str, count: Callable[[], int] | None = None) -> Reply:
        if not isinstance(path, str) or not path.startswith("/"):
            raise RequestError(say("core.bad_path", path=path))
        decoded, raw_path, query = _address(path, more)
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": decoded,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": [*sent_headers],
            "client": _CLIENT,
            "server": _SERVER,
            "state": dict(state) if state else {},
        }
        status, finish = 0, 0.0
        answered: RawHeaders = ()
        chunks: list[bytes] = []
        sent = False
        ended: asyncio.Event | None = None

        async def receive() -> dict[str, Any]:
            nonlocal sent, ended
            if not sent:
                sent = True
                return {"type": "http.request", "body": data, "more_body": False}
            if not finish:  # whoever listens for a client that hangs up waits until the answer is complete
                ended = ended or asyncio.Event()
                await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status, answered, finish
            if message["type"] == "http.response.body":
                if chunk := message.get("body"):
                    chunks.append(chunk)
                if not message.get("more_body"):
                    finish = perf_counter()
                    if ended is not None:
                        ended.set()
            elif message["type"] == "http.response.start":
                status, answered = message["status"], tuple(message.get("headers", ()))

        error = note = ""
        start = perf_counter()
        try:
            await app(scope, receive, send)
        except (*_ANSWERED, BaseExceptionGroup) as raised:
            if isinstance(raised, BaseExceptionGroup):  # of a task group's, as middleware uses them
                if raised.split(_ANSWERED)[1] is not None:
                    raise  # somebody stops the request
                raised = raised.subgroup(_ANSWERED[1:]) or raised
            error = explain(raised)  # an endpoint's sys.exit() as well: it asks this process, which is not its own
            finish = finish or perf_counter()
        else:
            if not finish:
                error, finish = say("core.no_answer", label=f"{method} {decoded}"), perf_counter()
        if error:
            status = status or 500
        elif status == 404 and "endpoint" not in scope:
            note = _routes.suggest(app, decoded)
        queries = 0 if count is None else count()
        return Reply(status, b"".join(chunks), answered, finish - start, queries, f"{method} {path}", error, note)

    return request


async def call(
    app: ASGIApp, method: str, path: str, *, count: Callable[[], int] | None = None, **options: Any
) -> Reply:
    """Make one request and wait until the application has finished, background tasks included.

    Args:
        count: read at the very end, becomes ``Reply.queries``.
        options: see ``prepare``.

    Raises:
        RequestError: if the path does not begin with a slash, or an option cannot be sent.
    """
    return await prepare(app, method, **options)(path, count)


class Lifespan:
    """Runs an application's start on entry and its end on exit, in a task of its own as servers do.

    ``state`` holds what the application's lifespan yielded. An application without a lifespan is fine.

    Raises:
        AppError: if its start or its end fails; says where in the learner's own lines.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._outbox: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
        self._task: asyncio.Task[None]  # from the entry on
        self._error: BaseException | None = None

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": _ASGI, "state": self.state}
        try:
            await self._app(scope, self._inbox.get, self._outbox.put)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            self._error = error
        finally:
            self._outbox.put_nowait(None)

    async def _step(self, name: str) -> None:
        """Ask for ``startup`` or ``shutdown``; nothing happens if the application takes no part."""
        self._inbox.put_nowait({"type": f"lifespan.{name}"})
        answer = await self._outbox.get()
        if answer is not None and answer["type"] == f"lifespan.{name}.failed":
            await asyncio.wait([self._task], timeout=1)
            reason = describe(self._error) if self._error else str(answer.get("message", ""))
            raise AppError(say(f"core.{name}_failed", reason=reason))

    async def __aenter__(self) -> Lifespan:
        self._task = asyncio.create_task(self._run(), name="labkit lifespan")
        try:
            await self._step("startup")
        except BaseException:
            self._task.cancel()
            raise
        return self

    async def __aexit__(self, kind: object, *raised: object) -> None:
        if not self._task.done() and kind is not GeneratorExit:
            await self._step("shutdown")
            await self._task
