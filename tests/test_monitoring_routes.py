"""The endpoints of health and metrics: no redirect, HEAD as well, the right status, and who is asked."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import uvicorn
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette

from labkit import asgi
from labkit.asgi import Reply
from labkit.monitoring import Metrics, MetricsMiddleware
from labkit.monitoring.health import Check, Health
from labkit.monitoring.logs import Journal

ALIVE = ("/health/", "/health", "/health/live")
READY = ("/health/ready", "/health/detailed")
METRICS = ("/metrics", "/health/metrics")


class Part:
    """A part that is well until it is told otherwise."""

    def __init__(self, critical: bool = True) -> None:
        self.runs, self.well = 0, True
        self.check = Check("part", self, critical)

    def __call__(self) -> None:
        self.runs += 1
        if not self.well:
            raise OSError("no route to db.internal")


def fast(part: Part, **options: Any) -> FastAPI:
    app = FastAPI(title="shop")
    app.include_router(Health([part.check], keep=0).router(**options))
    return app


def plain(part: Part, **options: Any) -> Starlette:
    app = Starlette()
    app.routes.extend(Health([part.check], keep=0).router(**options).routes)
    return app


def ask(app: Any, path: str, method: str = "GET") -> Reply:
    return asyncio.run(asgi.call(app, method, path))


@pytest.mark.parametrize("make", [fast, plain])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ALIVE)
def test_liveness_asks_nobody_and_never_redirects(make: Any, method: str, path: str) -> None:
    part = Part()
    part.well = False
    reply = ask(make(part), path, method)
    assert reply.status == 200
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["status"] == "healthy" and abs(reply.json["timestamp"] - time.time()) < 60
    assert part.runs == 0


@pytest.mark.parametrize("make", [fast, plain])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", READY)
@pytest.mark.parametrize(
    ("critical", "well", "status", "word"),
    [(True, True, 200, "healthy"), (True, False, 503, "unhealthy"), (False, False, 200, "degraded")],
)
def test_readiness_asks(make: Any, method: str, path: str, critical: bool, well: bool, status: int, word: str) -> None:
    part = Part(critical)
    part.well = well
    reply = ask(make(part), path, method)
    assert (reply.status, reply.json["status"], part.runs) == (status, word, 1)
    assert reply.headers["cache-control"] == "no-store"
    assert "db.internal" not in reply.text


@pytest.mark.parametrize("path", [*ALIVE, *READY])
def test_only_questions_are_answered(path: str) -> None:
    assert ask(fast(Part()), path, "POST").status == 405


@pytest.mark.parametrize("make", [fast, plain])
def test_metrics_are_there_if_they_are_given(make: Any) -> None:
    metrics = Metrics()
    app = make(Part(), metrics=metrics)
    for path in METRICS:
        reply = ask(app, path)
        assert reply.status == 200 and reply.headers["content-type"] == metrics.render()[1]
        assert "app_requests_total" in reply.text
        assert ask(make(Part()), path).status == 404


def test_a_router_can_be_included_under_a_prefix_and_twice() -> None:
    part = Part()
    app, router = FastAPI(), Health([part.check], keep=0).router()
    outer = APIRouter(prefix="/v1")
    outer.include_router(router)
    app.include_router(outer)
    app.include_router(router, prefix="/v2")
    for path in ("/v1/health", "/v1/health/detailed", "/v2/health/ready"):
        assert ask(app, path).status == 200
    assert part.runs == 2


def test_what_json_cannot_say_makes_no_error_of_it() -> None:
    app = FastAPI()
    app.include_router(Health([Check("señal\ud800", lambda: {"a": "\ud800", "ñ": "<b>"})]).router())
    reply = ask(app, "/health/detailed")
    assert reply.status == 200
    assert reply.json["checks"]["señal\ud800"]["ñ"] == "<b>"


def test_every_answer_leads_to_the_whole_error() -> None:
    """Also that of a request which got the result of another's round."""
    part = Part()
    part.well = False
    app = FastAPI()
    app.include_router(Health([part.check], keep=60).router())
    app.add_middleware(MetricsMiddleware, metrics=Metrics())
    with Journal() as journal:
        first, second = (ask(app, "/health/detailed").headers["x-request-id"] for _ in range(2))
    assert part.runs == 1
    df = journal.df[journal.df["component"] == "health"].set_index("request_id")
    assert "no route to db.internal" in df.loc[first, "error"]
    assert df.loc[second, "message"] == f"unhealthy, as found under request {first}"


@contextmanager
def served(app: Any) -> Iterator[int]:
    """On loopback, by uvicorn; gives the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_a_prober_sees_it_over_http() -> None:
    part = Part()
    part.well = False
    with served(fast(part)) as port:
        for method in ("GET", "HEAD"):
            for path, status in (("/health", 200), ("/health/", 200), ("/health/detailed", 503)):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request(method, path)
                reply = connection.getresponse()
                assert reply.status == status
                assert int(reply.headers["content-length"]) > 0
                assert bool(reply.read()) == (method == "GET")
                connection.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Slow:
    """Metrics whose rendering lasts until it is let go."""

    def __init__(self) -> None:
        self.runs, self.go, self.threads = 0, threading.Event(), set[int]()

    def render(self) -> tuple[bytes, str]:
        self.runs += 1
        self.threads.add(threading.get_ident())
        assert self.go.wait(5)
        return b"up 1\n", "text/plain"


@pytest.mark.anyio
async def test_the_loop_goes_on_while_metrics_are_rendered_once_for_all_who_ask() -> None:
    """And although every thread of asyncio's and anyio's pools is taken."""
    slow = Slow()
    app = fast(Part(), metrics=slow)
    loop, stuck = asyncio.get_running_loop(), threading.Event()
    pool = ThreadPoolExecutor(1)
    loop.set_default_executor(pool)
    taken = loop.run_in_executor(None, stuck.wait, 5)
    limiter = anyio.to_thread.current_default_thread_limiter()
    tokens, limiter.total_tokens = limiter.total_tokens, 1
    held = asyncio.create_task(anyio.to_thread.run_sync(stuck.wait, 5))
    try:
        waiting = [asyncio.create_task(asgi.call(app, "GET", path)) for path in METRICS * 5]
        await asyncio.sleep(0.02)  # the loop turns
        assert (await asgi.call(app, "GET", "/health")).status == 200 and not any(each.done() for each in waiting)
        waiting.pop().cancel()  # a scraper that gives up takes nobody else's answer along
        slow.go.set()
        assert {reply.text for reply in await asyncio.gather(*waiting)} == {"up 1\n"}
        assert slow.runs == 1 and threading.get_ident() not in slow.threads
        assert (await asgi.call(app, "GET", "/metrics")).status == 200 and slow.runs == 2  # anew for who comes later
    finally:
        stuck.set()
        await asyncio.gather(taken, held)
        limiter.total_tokens = tokens


@pytest.mark.anyio
async def test_metrics_that_cannot_be_rendered_are_asked_again_the_next_time() -> None:
    class Broken:
        runs = 0

        def render(self) -> tuple[bytes, str]:
            self.runs += 1
            raise ValueError("a collector of somebody's")

    broken = Broken()
    app = fast(Part(), metrics=broken)
    for _ in range(2):
        reply = await asgi.call(app, "GET", "/metrics")
        assert reply.status == 500 and "a collector" not in reply.text
    assert broken.runs == 2


@pytest.mark.anyio
async def test_metrics_are_rendered_where_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    app = fast(Part(), metrics=Metrics())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert "app_requests_total" in (await asgi.call(app, "GET", "/metrics")).text
