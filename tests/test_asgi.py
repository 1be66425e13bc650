"""Requests straight into an application: what goes in, what comes back, what is said when it breaks."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Body, Cookie, Depends, FastAPI, Header, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.middleware.base import BaseHTTPMiddleware

from labkit import asgi
from labkit.asgi import Reply, call
from labkit.errors import RequestError


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def echo() -> FastAPI:
    """An application that says what arrived."""
    app = FastAPI()

    @app.api_route("/echo/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def echo(request: Request, rest: str) -> dict[str, Any]:
        return {
            "method": request.method,
            "path": request.url.path,
            "raw": request.scope["raw_path"].decode(),
            "rest": rest,
            "query": request.query_params.multi_items(),
            "headers": dict(request.headers),
            "cookies": request.cookies,
            "body": (await request.body()).decode(),
        }

    return app


async def current(x_user: Annotated[str, Header()] = "nobody") -> AsyncIterator[str]:
    yield x_user


def token(session: Annotated[str, Cookie()] = "") -> str:
    return session


def test_endpoints_dependencies_and_bodies_of_every_kind_work() -> None:
    app = FastAPI()

    @app.get("/sync")
    def sync(user: Annotated[str, Depends(current)]) -> dict[str, str]:
        return {"user": user}

    @app.get("/async")
    async def asynchronous(session: Annotated[str, Depends(token)]) -> dict[str, str]:
        return {"session": session}

    @app.post("/json")
    async def as_json(data: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        return data

    @app.post("/raw")
    async def raw(request: Request) -> Response:
        return Response(await request.body(), status_code=201, media_type="application/x-thing")

    async def work() -> list[Reply]:
        return [
            await call(app, "get", "/sync", headers={"X-User": "ana"}),
            await call(app, "GET", "/async", cookies={"session": "s1"}),
            await call(app, "POST", "/json", json={"ñ": [1, None]}),
            await call(app, "POST", "/json", json=None),
            await call(app, "POST", "/raw", body=b"\x00\xff"),
            await call(app, "POST", "/raw", body="hola"),
        ]

    sync_reply, async_reply, json_reply, null_reply, raw_reply, text_reply = run(work())
    assert sync_reply.json == {"user": "ana"} and async_reply.json == {"session": "s1"}
    assert json_reply.json == {"ñ": [1, None]} and null_reply.status == 422
    assert (raw_reply.status, raw_reply.body, text_reply.text) == (201, b"\x00\xff", "hola")
    assert raw_reply.headers["Content-Type"] == raw_reply.headers["content-type"] == "application/x-thing"
    assert sync_reply.label == "GET /sync" and sync_reply.elapsed > 0 and sync_reply.queries == 0


def test_form_bytes_arrive_as_they_were_sent() -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    reply = run(call(echo(), "POST", "/echo/form", body=b"name=Ana+Mar%C3%ADa", headers=headers)).json
    assert reply["body"] == "name=Ana+Mar%C3%ADa" and reply["headers"]["content-length"] == "19"
    assert reply["headers"]["content-type"] == headers["content-type"]


def test_the_address_is_sent_as_a_browser_would() -> None:
    app = echo()
    params = {"q": "a b&c", "many": [1, 2], "yes": True}
    reply = run(call(app, "GET", "/echo/ñandú y %2F?x=1#top", params=params)).json
    assert reply["rest"] == "ñandú y /" and reply["raw"] == "/echo/%C3%B1and%C3%BA%20y%20%2F"
    expected = [["x", "1"], ["q", "a b&c"], ["many", "1"], ["many", "2"], ["yes", "true"]]
    assert reply["query"] == expected
    assert run(call(app, "GET", "/echo/a", params=[("k", "1"), ("k", "2")])).json["query"] == [
        ["k", "1"],
        ["k", "2"],
    ]
    assert run(call(app, "GET", "/echo/a?q=ñ")).json["query"] == [["q", "ñ"]]


def test_given_headers_replace_ours() -> None:
    headers = {"Host": "shop.example", "Content-Type": "text/plain", "Content-Length": "2"}
    reply = run(call(echo(), "POST", "/echo/a", json={}, headers=headers, cookies={"a": "1", "b": "2"})).json
    assert reply["headers"]["host"] == "shop.example" and reply["headers"]["content-type"] == "text/plain"
    assert reply["cookies"] == {"a": "1", "b": "2"} and reply["headers"]["user-agent"] == "labkit"


@settings(max_examples=60, deadline=None)
@given(
    segment=st.text(st.characters(exclude_characters="/?#%", exclude_categories=("Cs", "Cc")), min_size=1),
    value=st.text(st.characters(exclude_categories=("Cs",))),
    body=st.text(st.characters(exclude_categories=("Cs",))),
)
def test_any_text_survives_the_way(segment: str, value: str, body: str) -> None:
    reply = run(call(_ECHO, "POST", f"/echo/{segment}", params={"v": value}, json=body)).json
    assert reply["rest"] == segment and reply["query"] == [["v", value]] and json.loads(reply["body"]) == body


_ECHO = echo()


def test_a_path_without_a_slash_is_refused() -> None:
    with pytest.raises(RequestError, match=r"users.*/"):
        run(call(echo(), "GET", "users"))


def test_streams_are_joined_and_timed_to_the_last_byte() -> None:
    app = FastAPI()
    steps: list[str] = []

    @app.get("/stream")
    async def stream(tasks: BackgroundTasks) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for part in (b"a", b"b", b"c"):
                await asyncio.sleep(0.01)
                yield part

        async def after() -> None:
            await asyncio.sleep(0.2)
            steps.append("background")

        tasks.add_task(after)
        return StreamingResponse(chunks(), background=tasks)

    for inner in (app, BaseHTTPMiddleware(app, dispatch=lambda request, call_next: call_next(request))):
        steps.clear()
        reply = run(call(inner, "GET", "/stream"))
        assert reply.body == b"abc" and steps == ["background"]
        assert 0.03 <= reply.elapsed < 0.2  # the three pauses are in it, the background task is not


def test_whoever_listens_for_a_hang_up_waits_for_the_end() -> None:
    app = FastAPI()
    heard: list[Any] = []

    @app.get("/listen")
    async def listen(request: Request) -> PlainTextResponse:
        heard.append(await request.is_disconnected())
        return PlainTextResponse("ok")

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        heard.append((await receive())["type"])

    assert run(call(app, "GET", "/listen")).text == "ok"
    assert run(call(raw, "GET", "/")).status == 204
    assert heard == [False, "http.disconnect"]


def test_an_endpoint_that_raises_gives_500_and_the_learners_lines() -> None:
    app = FastAPI()

    def inner(value: int) -> float:
        return 1 / value

    @app.get("/sync")
    def sync() -> float:
        return inner(0)

    @app.get("/async")
    async def asynchronous() -> float:
        try:
            return inner(0)
        except ZeroDivisionError as error:
            raise ValueError("no se puede <b>") from error

    @app.get("/exit")
    async def leave() -> None:
        sys.exit("adiós")

    sync_reply, async_reply, exit_reply = (run(call(app, "GET", path)) for path in ("/sync", "/async", "/exit"))
    assert (sync_reply.status, async_reply.status, exit_reply.status) == (500, 500, 500)
    for reply in (sync_reply, async_reply):
        assert "test_asgi.py" in reply.error and "return 1 / value" in reply.error
        assert "site-packages" not in reply.error and "routing.py" not in reply.error
    assert sync_reply.error.endswith("ZeroDivisionError: division by zero")
    assert async_reply.error.endswith("ValueError: no se puede <b>") and "ZeroDivisionError" in async_reply.error
    assert "SystemExit: adiós" in exit_reply.error
    assert "&lt;b&gt;" in async_reply._repr_html_() and "<b>" not in async_reply._repr_html_()
    assert repr(sync_reply).startswith("GET /sync → 500") and "division by zero" in repr(sync_reply)


def test_a_failure_amid_the_stream_keeps_what_was_sent() -> None:
    app = FastAPI()

    @app.get("/broken")
    async def broken() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("cable cut")

        return StreamingResponse(chunks())

    reply = run(call(app, "GET", "/broken"))
    assert (reply.status, reply.body) == (200, b"half") and "cable cut" in reply.error


def test_an_application_without_an_answer_is_named() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    reply = run(call(silent, "GET", "/x"))
    assert reply.status == 500 and "GET /x" in reply.error


def test_an_unknown_path_names_the_nearest() -> None:
    app = FastAPI()

    @app.get("/performance/slow-endpoint")
    async def slow() -> None: ...

    @app.get("/missing/{id}")
    async def missing() -> Response:
        return Response(status_code=404)

    reply = run(call(app, "GET", "/performance/slow-endpont"))
    assert reply.status == 404 and "/performance/slow-endpoint" in reply.note and reply.note in repr(reply)
    assert reply.note in reply._repr_html_()
    assert run(call(app, "GET", "/missing/3")).note == ""  # the application's own 404


def test_the_count_is_read_once_when_the_background_tasks_are_done() -> None:
    app, ran = FastAPI(), list[str]()

    @app.get("/later")
    async def later(tasks: BackgroundTasks) -> None:
        tasks.add_task(ran.append, "background")

    def count() -> int:
        ran.append("count")
        return len(ran)

    assert run(call(app, "GET", "/later", count=count)).queries == 2 and ran == ["background", "count"]


def test_the_call_costs_next_to_nothing() -> None:
    """Counted, not timed: no task, no queue and one pass through the application for a plain request."""
    passes: list[str] = []

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        passes.append(scope["type"])
        assert len(asyncio.all_tasks()) == 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    assert run(asgi.call(app, "GET", "/")).body == b"ok" and passes == ["http"]
