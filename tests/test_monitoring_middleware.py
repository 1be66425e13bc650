"""The layer that measures requests: when it records, with which status, what it adds, and what it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from labkit.errors import MonitoringError
from labkit.monitoring import Metrics, MetricsMiddleware, _exchange
from labkit.monitoring.ids import request_id
from tests.measured import Answer, ask, asked, counted, run, scope_of, series, statuses, total


class Boom(Exception):
    """What the applications under test raise."""


class Clock:
    """Time that passes when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(_exchange, "perf_counter", made)
    return made


def measured(**options: Any) -> tuple[FastAPI, Metrics]:
    metrics = Metrics()
    app = FastAPI(openapi_url=None, **options)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    return app, metrics


def only(metrics: Metrics) -> tuple[str, str, int]:
    """The one request that was counted; nothing is under way any more."""
    found = counted(metrics)
    assert sum(found.values()) == 1, found
    assert total(metrics, "app_requests_in_progress") == 0
    assert total(metrics, "app_request_duration_seconds_count") == 1
    return next(iter(found))


# What is recorded, and when


def test_a_request_is_counted_timed_and_weighed() -> None:
    app, metrics = measured()
    app.post("/users/{n}", status_code=201)(lambda n: "x" * 98)
    answer = asked(app, "/users/7", "POST")
    assert (answer.status, len(answer.body)) == (201, 100)
    assert only(metrics) == ("POST", "/users/{n}", 201)
    assert total(metrics, "app_response_bytes_total", endpoint="/users/{n}") == 100
    assert float(answer.header("x-response-time")) <= total(metrics, "app_request_duration_seconds_sum") < 5
    assert total(metrics, "app_active_users") == 1


def test_the_course_s_middleware_face_works() -> None:
    """``request.state.request_id`` and the two headers, on an application of Starlette alone as well."""

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.request_id, headers={"X-Request-ID": "own", "x-response-time": "own"})

    metrics = Metrics()
    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)])
    answer = asked(app)
    assert answer.header("x-request-id") == answer.body.decode()
    assert float(answer.header("x-response-time")) >= 0


def test_the_duration_lasts_to_the_last_byte_and_background_tasks_come_after_it(clock: Clock) -> None:
    app, metrics = measured()
    ended = []

    async def later() -> None:
        clock.now += 1_000
        ended.append(total(metrics, "app_request_duration_seconds_count"))

    @app.get("/")
    async def stream(tasks: BackgroundTasks) -> StreamingResponse:
        tasks.add_task(later)
        clock.now += 1

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(4):
                clock.now += 2
                yield b"part"

        return StreamingResponse(parts(), background=tasks)

    async def slow(message: dict[str, Any]) -> None:
        clock.now += 0.25  # the client takes its time

    answer = run(lambda: ask(app, each=slow, clock=clock))
    assert answer.header("x-response-time") == "1.0000"  # until the head was ready
    assert total(metrics, "app_request_duration_seconds_sum") == 1 + 4 * 2 + 6 * 0.25 == answer.at[-1] + 0.25 - 100
    assert ended == [1]
    assert clock.now > 1_100


def test_a_stream_is_handed_on_part_by_part_as_it_comes() -> None:
    app, _ = measured()
    events: list[str] = []

    @app.get("/")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for part in (b"a", b"b", b"c"):
                events.append(f"made {part.decode()}")
                yield part

        return StreamingResponse(parts())

    async def note(message: dict[str, Any]) -> None:
        if message.get("body"):
            events.append(f"sent {message['body'].decode()}")

    run(lambda: ask(app, each=note))
    assert events == ["made a", "sent a", "made b", "sent b", "made c", "sent c"]


def test_other_messages_pass_as_they_are() -> None:
    own = [
        {"type": "http.response.debug", "info": {"x": 1}},
        {"type": "http.response.start", "status": 200, "headers": ((b"a", b"b"),), "trailers": True},
        {"type": "http.response.pathsend", "path": "/somewhere"},
    ]
    copies = [dict(each) for each in own]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for each in own:
            await send(each)

    metrics = Metrics()
    answer = asked(MetricsMiddleware(app, metrics=metrics))
    assert own == copies  # nothing was written into them
    assert [answer.messages[0], answer.messages[2]] == [own[0], own[2]]
    assert answer.messages[1]["trailers"] is True and (b"a", b"b") in answer.headers
    assert only(metrics) == ("GET", "unmatched", 200)


def test_a_file_that_the_server_reads_in_several_parts_ends_with_the_last_one() -> None:
    metrics = Metrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 206, "headers": []})
        await send({"type": "http.response.zerocopysend", "file": 3, "count": 5, "more_body": True})
        assert not counted(metrics)
        await send({"type": "http.response.zerocopysend", "file": 3})
        assert counted(metrics)

    asked(MetricsMiddleware(app, metrics=metrics))
    assert only(metrics) == ("GET", "unmatched", 206)


def test_in_progress_counts_what_is_not_answered_yet() -> None:
    app, metrics = measured()
    go = asyncio.Event()

    @app.get("/")
    async def waits() -> None:
        await go.wait()

    async def work() -> list[float]:
        tasks = [asyncio.create_task(ask(app)) for _ in range(3)]
        await asyncio.sleep(0.05)
        during = total(metrics, "app_requests_in_progress")
        go.set()
        await asyncio.gather(*tasks)
        return [during, total(metrics, "app_requests_in_progress")]

    assert run(work) == [3, 0]


# Failures


def failing(after: int) -> Callable[[], Any]:
    """An endpoint that breaks off after so many parts; 0 is before the head."""

    async def endpoint() -> Any:
        if not after:
            raise Boom("secret")

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(after):
                yield b"part"
            raise Boom("secret")

        return StreamingResponse(parts())

    return endpoint


@pytest.mark.parametrize("after", [0, 1, 3])
def test_who_breaks_off_is_a_500_also_in_the_middle(after: int) -> None:
    app, metrics = measured()
    app.get("/")(failing(after))
    answer = asked(app)
    assert (answer.status, answer.whole) == (200 if after else 500, not after)
    assert only(metrics) == ("GET", "/", 500)
    assert answer.header("x-request-id") and answer.header("x-response-time")
    assert isinstance(answer.error, Boom | ExceptionGroup)  # it reaches the server as before


def plain(app: FastAPI, metrics: Metrics) -> Any:
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    return app


def below(app: FastAPI, metrics: Metrics) -> Any:
    """Other layers further inside."""
    for layer in (GZipMiddleware, BaseHTTPMiddleware):
        app.add_middleware(layer, **({"dispatch": passes} if layer is BaseHTTPMiddleware else {}))
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    return plain(app, metrics)


def above(app: FastAPI, metrics: Metrics) -> Any:
    """Other layers further outside."""
    plain(app, metrics)
    app.add_middleware(GZipMiddleware, minimum_size=1)
    app.add_middleware(BaseHTTPMiddleware, dispatch=passes)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    return app


def around(app: FastAPI, metrics: Metrics) -> Any:
    return MetricsMiddleware(app, metrics=metrics)


def twice(app: FastAPI, metrics: Metrics) -> Any:
    return MetricsMiddleware(plain(plain(app, metrics), metrics), metrics=metrics)


async def passes(request: Request, call_next: Any) -> Any:
    return await call_next(request)


ARRANGEMENTS = [plain, below, above, around, twice]


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("handler", ["none", "async", "sync", "500"])
def test_every_500_carries_its_id_and_the_error_reaches_the_server(
    arrange: Callable[..., Any], debug: bool, handler: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, app, handled = Metrics(), FastAPI(debug=debug, openapi_url=None), []
    app.get("/")(failing(0))

    async def asynchronous(request: Request, error: Exception) -> Response:
        return synchronous(request, error)

    def synchronous(request: Request, error: Exception) -> Response:
        handled.append((request.state.request_id, request_id.get(), type(error)))
        return JSONResponse({"handled": True}, 503 if handler == "sync" else 500)

    if handler != "none":
        key = 500 if handler == "500" else Exception
        app.add_exception_handler(key, synchronous if handler == "sync" else asynchronous)
    entry = arrange(app, metrics)
    for number in range(2):  # the second time Starlette's stack is built and led through
        handled.clear()
        answer = asked(entry, headers=[(b"x-request-id", b"mine"), (b"accept", b"text/html")])
        assert type(answer.error) is Boom
        own = handler != "none" and not debug
        assert answer.status == (503 if own and handler == "sync" else 500)
        assert answer.header("x-request-id") == "mine" and float(answer.header("x-response-time")) >= 0
        assert handled == ([("mine", "mine", Boom)] if own else [])  # once, and it knows the id
        assert answer.body == b'{"handled":true}' if own else (b"Boom" in answer.body) is debug
        seen = 500 if arrange is above else answer.status  # layers outside of ours might still have answered otherwise
        assert statuses(metrics) == {seen: number + 1}
        assert arrange is above or total(metrics, "app_response_bytes_total") == (number + 1) * len(answer.body)
    assert total(metrics, "app_requests_in_progress") == 0
    errors = [record for record in caplog.records if record.name == "labkit.http" and record.levelno == logging.ERROR]
    assert len(errors) == 2 and all(record.exc_info and record.exc_info[0] is Boom for record in errors)


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
def test_answers_to_known_errors_are_answers(arrange: Callable[..., Any]) -> None:
    metrics, app = Metrics(), FastAPI(openapi_url=None)

    class Known(Exception):
        pass

    app.add_exception_handler(Known, lambda request, error: PlainTextResponse("known", 418))

    @app.get("/{kind}")
    async def raises(kind: str, n: int = 0) -> None:
        raise Known if kind == "known" else HTTPException(403, "no")

    entry = arrange(app, metrics)
    for path, query, status in (("/http", b"", 403), ("/known", b"", 418), ("/http", b"n=x", 422), ("/a/b", b"", 404)):
        answer = asked(entry, path, query_string=query)
        assert (answer.status, answer.error) == (status, None)
        assert answer.header("x-request-id") and answer.header("x-response-time")
    assert statuses(metrics) == {403: 1, 418: 1, 422: 1, 404: 1}


def test_a_layer_outside_that_answers_errors_itself_goes_on_doing_so() -> None:
    app, metrics = measured()
    app.get("/")(failing(0))

    @app.middleware("http")
    async def catches(request: Request, call_next: Any) -> Any:
        try:
            return await call_next(request)
        except Boom:
            return PlainTextResponse("caught", 503)

    answer = asked(app)
    assert (answer.status, answer.body, answer.error) == (503, b"caught", None)
    assert only(metrics) == ("GET", "/", 500)  # what came to us


def test_a_500_carries_its_id_although_a_layer_has_kept_the_head() -> None:
    """GZip waits with the head for the first part of the body, which never comes."""
    app, metrics = measured()
    app.add_middleware(GZipMiddleware)

    @app.get("/")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            raise Boom
            yield b""

        return StreamingResponse(parts())

    answer = asked(app, headers=[(b"accept-encoding", b"gzip"), (b"x-request-id", b"mine")])
    assert (answer.status, answer.header("x-request-id")) == (500, "mine")
    assert only(metrics) == ("GET", "/", 500)


def test_a_layer_inside_that_fails_is_a_500() -> None:
    metrics, app = Metrics(), FastAPI(openapi_url=None)
    app.get("/")(lambda: 1)

    @app.middleware("http")
    async def fails(request: Request, call_next: Any) -> Any:
        await call_next(request)
        raise HTTPException(401)  # of no use here: nobody turns it into an answer

    answer = asked(plain(app, metrics))
    assert answer.status == 500 and answer.header("x-request-id")
    assert statuses(metrics) == {500: 1}


def test_a_handler_that_fails_itself_is_a_500_too() -> None:
    app, metrics = measured()
    app.get("/")(failing(0))

    @app.exception_handler(Exception)
    async def fails(request: Request, error: Exception) -> Response:
        raise ValueError("also")

    assert isinstance(asked(app).error, ValueError)
    assert only(metrics) == ("GET", "/", 500)
    assert request_id.get() == ""


def test_what_no_framework_answers_is_answered_as_starlette_would() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise Boom

    metrics = Metrics()
    answer = asked(MetricsMiddleware(fails, metrics=metrics))
    assert (answer.status, answer.body, type(answer.error)) == (500, b"Internal Server Error", Boom)
    assert answer.header("x-request-id")
    assert only(metrics) == ("GET", "unmatched", 500)


def test_who_never_answers_is_a_500_that_the_server_sends() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    for app in (silent, half):
        metrics = Metrics()
        asked(MetricsMiddleware(app, metrics=metrics))
        assert only(metrics) == ("GET", "unmatched", 500)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_process_is_a_500(error: type[BaseException]) -> None:
    async def ends(scope: Any, receive: Any, send: Any) -> None:
        raise error

    metrics = Metrics()
    with pytest.raises(error):
        raise asked(MetricsMiddleware(ends, metrics=metrics)).error or AssertionError
    assert only(metrics) == ("GET", "unmatched", 500)


def test_exception_groups_count_as_what_they_hold() -> None:
    app, metrics = measured()

    @app.get("/failed")
    async def failed() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 5)
            raise Boom

    @app.get("/limit")
    async def limit() -> str:
        with anyio.move_on_after(0):
            await anyio.sleep(5)
        return "in time"

    @app.get("/awaits")
    async def awaits() -> None:
        task = asyncio.create_task(asyncio.sleep(5))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task  # a CancelledError, but nobody has cancelled this request

    assert asked(app, "/failed").status == 500
    assert asked(app, "/limit").status == 200
    assert isinstance(asked(app, "/awaits").error, asyncio.CancelledError)
    assert counted(metrics) == {("GET", "/failed", 500): 1, ("GET", "/limit", 200): 1, ("GET", "/awaits", 500): 1}


@pytest.mark.parametrize(("reads", "length", "status"), [(True, True, 413), (True, False, 413), (False, True, 413)])
def test_a_body_that_is_too_large_is_a_413(reads: bool, length: bool, status: int) -> None:
    """Starlette's limiter stands outside of every layer, and may answer without telling us."""
    app, metrics = measured(max_body_size=10)

    @app.post("/")
    async def endpoint(request: Request) -> int:
        return len(await request.body()) if reads else 0

    headers = [(b"content-length", b"20") if length else (b"transfer-encoding", b"chunked")]
    answer = asked(app, "/", "POST", body=[b"x" * 5, b"x" * 15], headers=headers)
    assert (answer.status, answer.error) == (status, None)
    assert only(metrics) == ("POST", "/", status)


# Clients that leave


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
def test_a_request_that_is_cancelled_is_a_499(arrange: Callable[..., Any]) -> None:
    metrics, app = Metrics(), FastAPI(openapi_url=None)

    @app.get("/plain")
    async def slow() -> None:
        await asyncio.sleep(60)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"part"
            await asyncio.sleep(60)

        return StreamingResponse(parts())

    entry = arrange(app, metrics)

    async def by_task(path: str) -> None:
        task = asyncio.create_task(ask(entry, path))
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # Starlette's groups may swallow it in the middle of a stream
            await task

    async def by_scope(path: str) -> None:
        with anyio.move_on_after(0.05):
            await ask(entry, path)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, entry, path)
            await anyio.sleep(0.05)
            group.cancel_scope.cancel()

    for path in ("/plain", "/stream"):
        run(lambda path=path: by_task(path))
        run(lambda path=path: by_scope(path))
    assert statuses(metrics) == {499: 6}
    assert total(metrics, "app_requests_in_progress") == 0
    assert request_id.get() == ""


def test_who_is_cancelled_after_the_last_byte_was_served() -> None:
    app, metrics = measured()

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> str:
        tasks.add_task(asyncio.sleep, 60)
        return "served"

    async def work() -> None:
        task = asyncio.create_task(ask(app))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work)
    assert only(metrics) == ("GET", "/", 200)


@pytest.mark.parametrize("arrange", [plain, below, around])
def test_a_client_that_leaves_before_the_answer_is_a_499(arrange: Callable[..., Any]) -> None:
    """By ``http.disconnect``, whoever looks for it: the application, Starlette's stream, or nobody at all."""
    metrics, app = Metrics(), FastAPI(openapi_url=None)

    @app.get("/plain")
    async def slow() -> str:
        await asyncio.sleep(0.05)
        return "for nobody"

    @app.get("/sync")
    def in_thread() -> str:
        time.sleep(0.05)
        return "for nobody"

    @app.get("/asks")
    async def asks(request: Request) -> str:
        while not await request.is_disconnected():
            await asyncio.sleep(0.005)
        return "for nobody"

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            while True:
                yield b"part"
                await asyncio.sleep(0.005)

        return StreamingResponse(parts())

    entry = arrange(app, metrics)

    async def work(method: str, path: str) -> None:
        leave = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, leave.set)
        await ask(entry, path, method, leave=leave, body=[b"1", b"2"][: 1 + (path == "/body")])

    paths = [
        "/plain",
        "/sync",
        "/stream",
        *([] if arrange is below else ["/asks"]),
    ]  # which waits for ever there, ours or not
    for path in paths:
        run(lambda path=path: work("GET", path))
    assert statuses(metrics) == {499: len(paths)}

    async def breaks_off() -> None:
        leave = asyncio.Event()
        leave.set()
        await ask(entry, "/body", "POST", leave=leave)

    run(breaks_off)
    assert statuses(metrics) == {499: len(paths) + 1}
    assert total(metrics, "app_requests_in_progress") == 0


@pytest.mark.parametrize("error", [OSError, ConnectionResetError, BrokenPipeError])
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("spec", ["2.3", "2.4"])
def test_a_server_that_cannot_send_any_more_is_a_499(error: type[OSError], after: int, spec: str) -> None:
    app, metrics = measured()

    @app.get("/")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield b"part"

        return StreamingResponse(parts())

    def broken(answer: Answer) -> OSError | None:
        return error("gone") if len(answer.messages) >= after else None

    answer = asked(app, broken=broken, asgi={"version": "3.0", "spec_version": spec})
    assert only(metrics) == ("GET", "/", 499)
    assert isinstance(answer.error, OSError if spec == "2.3" else ClientDisconnect)


def test_an_endpoint_s_own_oserror_is_a_500() -> None:
    app, metrics = measured()

    @app.get("/")
    async def endpoint() -> str:
        return Path("/nowhere/at/all").read_text()

    assert asked(app).status == 500
    assert only(metrics) == ("GET", "/", 500)


def test_looking_for_the_client_takes_no_message_away() -> None:
    """The look comes when the head is sent; who reads the body only then still gets all of it."""

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.02)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more, body = True, []
        while more:
            message = await receive()
            body.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.body", "body": b",".join(body)})

    async def twice(scope: Any, receive: Any, send: Any) -> None:
        """Reads a part, looks away, reads the rest."""
        first = await receive()
        await asyncio.sleep(0.02)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        rest = [await receive() for _ in range(2)]
        await send({"type": "http.response.body", "body": b",".join(each["body"] for each in (first, *rest))})

    length = [(b"content-length", b"3")]
    chunked = [(b"transfer-encoding", b"chunked")]
    for headers in (length, chunked):
        for app in (late, twice):
            for wrap in (lambda app: app, lambda app: BaseHTTPMiddleware(app, dispatch=passes)):
                metrics = Metrics()
                entry = wrap(MetricsMiddleware(app, metrics=metrics))
                assert asked(entry, "/", "POST", headers=headers, body=[b"1", b"2", b"3"]).body == b"1,2,3"
                assert statuses(metrics) == {200: 1}
    metrics = Metrics()
    for wrap in (lambda app: app, lambda app: BaseHTTPMiddleware(app, dispatch=passes)):
        assert (
            asked(wrap(MetricsMiddleware(late, metrics=metrics))).body == b""
        )  # a request without a body has one message
    assert statuses(metrics) == {200: 2}


def test_a_receive_that_always_has_something_to_say_does_not_hold_up_the_answer() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01)
        await PlainTextResponse("x")(scope, receive, send)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    metrics, sent = Metrics(), []

    async def send(message: Any) -> None:
        sent.append(message)

    run(lambda: asyncio.wait_for(MetricsMiddleware(app, metrics=metrics)(scope_of(), receive, send), 5))
    assert only(metrics) == ("GET", "unmatched", 200) and len(sent) == 2


# Under uvicorn


@pytest.fixture
def served() -> Iterator[tuple[int, Metrics]]:
    """A port where an application is served, and its metrics."""
    app, metrics = measured()

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(0.3)
        return "for nobody"

    @app.get("/sync")
    def in_thread() -> str:
        time.sleep(0.3)
        return "for nobody"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(200):
                yield b"part" * 100
                await asyncio.sleep(0.01)

        return StreamingResponse(parts())

    @app.get("/large")
    async def large() -> StreamingResponse:  # more than fits into the buffers on the way
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b"x" * 1_000_000

        return StreamingResponse(parts())

    @app.get("/fast")
    async def fast() -> str:
        return "here"

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.get("/fails")
    async def fails() -> None:
        raise Boom

    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1], metrics
    finally:
        server.should_exit = True
        thread.join()


def hang_up(port: int, request: bytes, after: float, read: int = 0) -> None:
    """Send a request, wait, read as much of the answer, and go."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        if read:
            connection.recv(read)
        time.sleep(after)


def eventually(metrics: Metrics, expected: dict[int, int]) -> None:
    limit = time.monotonic() + 10
    while statuses(metrics) != expected and time.monotonic() < limit:
        time.sleep(0.01)
    assert statuses(metrics) == expected
    assert total(metrics, "app_requests_in_progress") == 0


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()


def test_under_uvicorn_who_hangs_up_is_a_499_and_who_stays_is_not(served: tuple[int, Metrics]) -> None:
    port, metrics = served
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url) as client:
        assert client.get("/fast").status_code == 200
        assert len(client.get("/large").content) == 30_000_000
        assert client.post("/body", content=b"x" * 100_000).json() == 100_000
        assert client.post("/body", content=(b"x" * 1_000 for _ in range(30))).json() == 30_000
        assert client.get("/slow", headers={"connection": "close"}).text == '"for nobody"'
        failed = client.get("/fails", headers={"x-request-id": "mine"})
        assert (failed.status_code, failed.headers["x-request-id"]) == (500, "mine")
    eventually(metrics, {200: 5, 500: 1})
    for path in ("/slow", "/sync"):
        hang_up(port, get(path), 0.05)
    hang_up(port, get("/stream"), 0.05, read=1_000)
    hang_up(port, get("/large"), 0.05, read=1_000)
    hang_up(port, b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n12345", 0.05)
    eventually(metrics, {200: 5, 500: 1, 499: 5})
    assert {endpoint for _, endpoint, status in counted(metrics) if status == 499} == {
        "/slow",
        "/sync",
        "/stream",
        "/large",
        "/body",
    }


# What it leaves alone


def test_websockets_and_the_lifespan_pass() -> None:
    steps: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        steps.append("start")
        yield {"n": 5}
        steps.append("end")

    app, metrics = measured(lifespan=lifespan)

    @app.websocket("/ws")
    async def echo(connection: WebSocket) -> None:
        await connection.accept()
        await connection.send_json([await connection.receive_text(), connection.state.n, request_id.get()])
        await connection.close()

    before = series(metrics)
    with TestClient(app) as client, client.websocket_connect("/ws") as connection:
        connection.send_text("hello")
        assert connection.receive_json() == ["hello", 5, ""]
        assert not any(key.lower() == b"x-request-id" for key, _ in connection.extra_headers or ())
    assert steps == ["start", "end"] and not counted(metrics)
    assert series(metrics) == before


def test_excluded_paths_and_what_lies_below_are_not_counted_but_have_their_headers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    app = FastAPI(openapi_url=None)
    app.add_middleware(MetricsMiddleware, metrics=metrics, excluded=["/health", "/metrics/"])
    app.get("/{path:path}")(lambda path: path)
    caplog.set_level(logging.INFO, "labkit.http")
    for path in ("/health", "/health/", "/health/live", "/metrics", "/metrics/x"):
        answer = asked(app, path)
        assert answer.status == 200 and answer.header("x-request-id") and answer.header("x-response-time")
    assert not counted(metrics) and not caplog.records
    assert total(metrics, "app_active_users") == total(metrics, "app_requests_in_progress") == 0
    for path in ("/healthy", "/", "/x/health"):
        asked(app, path)
    assert statuses(metrics) == {200: 3}


def test_an_excluded_path_that_fails_carries_its_id_and_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    app = FastAPI(openapi_url=None)
    app.add_middleware(MetricsMiddleware, metrics=metrics, excluded=["/"])
    app.get("/health")(failing(0))
    answer = asked(app, "/health")
    assert answer.status == 500 and answer.header("x-request-id")
    assert not counted(metrics) and len(caplog.records) == 1


def test_a_path_to_exclude_begins_with_a_slash() -> None:
    with pytest.raises(MonitoringError, match="'health'"):
        MetricsMiddleware(FastAPI(), metrics=Metrics(), excluded=["/metrics", "health"])
    assert MetricsMiddleware(FastAPI(), metrics=Metrics(), excluded="/metrics").excluded == ("/metrics/",)


def test_layers_of_the_same_registry_count_once_and_others_for_themselves() -> None:
    metrics, other = Metrics(), Metrics()
    again = Metrics(metrics.registry)  # a cell that has run twice
    app, inner = FastAPI(openapi_url=None), FastAPI(openapi_url=None)

    @inner.get("/{n}")
    async def endpoint(request: Request) -> list[str]:
        return [request.state.request_id, request_id.get()]

    inner.get("/fails/now")(failing(0))
    for each, of in ((inner, metrics), (inner, other), (app, metrics), (app, again)):
        each.add_middleware(MetricsMiddleware, metrics=of)
    app.mount("/inner", inner)
    entry = MetricsMiddleware(app, metrics=again)
    for path, status in (("/inner/1", 200), ("/inner/fails/now", 500), ("/inner/x/y/z", 404)):
        answer = asked(entry, path)
        assert answer.status == status
        own = answer.header("x-request-id")
        assert status != 200 or answer.json_body() == [own, own]
    expected = {("GET", "/inner/{n}", 200): 1, ("GET", "/inner/fails/now", 500): 1, ("GET", "unmatched", 404): 1}
    assert counted(metrics) == expected
    assert counted(other) == {  # the inner application's own view of itself
        (method, endpoint.removeprefix("/inner"), status): 1 for method, endpoint, status in expected
    }


def test_what_the_cache_asks_for_itself_is_nobody_s_request() -> None:
    app, metrics = measured()
    app.get("/")(lambda: 1)
    assert asked(app, **{"labkit.cache": object()}).status == 200
    assert not counted(metrics)


def test_a_scope_may_be_used_again() -> None:
    app, metrics = measured()
    app.get("/")(lambda: 1)
    scope, sent = scope_of(), []

    async def work() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            sent.append(message)

        for _ in range(3):
            await app(scope, receive, send)

    run(work)
    assert statuses(metrics) == {200: 3}


# Users and logs


def test_users_are_told_apart_by_credentials_or_session_or_address() -> None:
    app, metrics = measured()
    app.get("/")(lambda: 1)
    visits: list[tuple[list[tuple[bytes, bytes]], tuple[str, int] | None, int]] = [
        ([], ("10.0.0.1", 1), 1),
        ([], ("10.0.0.1", 2), 1),  # another connection
        ([], ("10.0.0.2", 1), 2),
        ([(b"authorization", b"Bearer a")], ("10.0.0.2", 1), 3),
        ([(b"authorization", b"Bearer a"), (b"cookie", b"session=1")], ("10.0.0.3", 1), 3),
        ([(b"cookie", b"theme=dark; session=xyz; lang=es")], ("10.0.0.2", 1), 4),
        ([(b"cookie", b"lang=en; session=xyz")], ("10.0.0.9", 1), 4),
        ([(b"cookie", b"theme=dark")], ("10.0.0.2", 1), 4),  # no session: the address
        ([], None, 4),  # a Unix socket tells nothing
    ]
    for headers, client, users in visits:
        asked(app, headers=headers, client=client)
        assert total(metrics, "app_active_users") == users
    assert b"Bearer" not in repr(vars(metrics.users)).encode() and b"xyz" not in repr(vars(metrics.users)).encode()


@pytest.mark.parametrize("cookie", [b"a.session" * 6_000, b"x; " + b"s" * 60_000, b"session;" * 8_000, b"; " * 30_000])
def test_no_cookie_holds_up_the_loop(cookie: bytes) -> None:
    """One of 60 kB, as every server lets pass, took 2.5 s of an expression that had read it again from each letter."""
    app, _ = measured()
    begun = time.process_time()
    asked(app, headers=[(b"cookie", cookie)])
    assert time.process_time() - begun < 0.5


def test_the_application_may_say_who_a_user_is() -> None:
    metrics = Metrics()
    app = FastAPI(openapi_url=None)

    def user(scope: Any) -> Any:
        name = scope["path_params"].get("name")  # when all is done, routing has left it there
        if name == "broken":
            raise Boom
        return {"nobody": None, "unusable": []}.get(name, name)

    app.add_middleware(MetricsMiddleware, metrics=metrics, user=user)
    app.get("/{name}")(lambda name: name)
    for name in ("ana", "luis", "ana", "nobody", "broken", "unusable"):
        assert asked(app, f"/{name}").status == 200
    assert total(metrics, "app_active_users") == 2
    assert statuses(metrics) == {200: 6}


def test_a_line_in_the_log_for_each_request_if_anybody_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    app, metrics = measured()
    app.get("/{n}")(lambda n: n)
    caplog.set_level(logging.WARNING, "labkit.http")  # a Lab that another test has open hears more
    asked(app, "/1")
    assert not caplog.records
    caplog.set_level(logging.INFO, "labkit.http")
    asked(app, "/a\r\nGET forged 200", "POST")
    (record,) = caplog.records
    assert record.getMessage() == "POST /a%0D%0AGET%20forged%20200 405"
    fields = vars(record)
    assert (fields["method"], fields["status"], fields["path"]) == ("POST", 405, "/a%0D%0AGET%20forged%20200")
    assert 0 <= fields["seconds"] < 5
    assert statuses(metrics) == {200: 1, 405: 1}
