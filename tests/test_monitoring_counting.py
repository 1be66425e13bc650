"""No series but the first of each method, template and status; every request counted once, as its client saw it."""

from __future__ import annotations

import asyncio
import random
import string
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from labkit.monitoring import Metrics, MetricsMiddleware
from tests.measured import Answer, ask, counted, run, series, statuses, total

SEED = 20_261_122


class Boom(Exception):
    """What the application under test raises."""


# No growth


def of_fastapi(metrics: Metrics) -> Any:
    app, router, sub = FastAPI(openapi_url=None), APIRouter(), FastAPI(openapi_url=None)
    router.get("/users/{user_id}")(lambda user_id: user_id)
    app.include_router(router)
    sub.get("/things/{thing}")(lambda thing: thing)
    app.mount("/tenants/{tenant}", sub)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    return app


def of_starlette(metrics: Metrics) -> Any:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    mount = Mount("/tenants/{tenant}", routes=[Route("/things/{thing}", hello)])
    return MetricsMiddleware(Starlette(routes=[Route("/users/{user_id}", hello), mount]), metrics=metrics)


def word(chance: random.Random) -> str:
    return "".join(chance.choices(string.ascii_letters + string.digits + "-._~ñ%", k=chance.randint(1, 30)))


@pytest.mark.parametrize("make", [of_fastapi, of_starlette])
def test_made_up_paths_ids_redirects_and_methods_make_no_series(make: Callable[[Metrics], Any]) -> None:
    metrics, chance = Metrics(), random.Random(SEED)
    app = make(metrics)
    groups: list[tuple[int, list[tuple[str, str]]]] = [
        (404, [("GET", "/" + "/".join(word(chance) for _ in range(n % 4 + 2))) for n in range(2_000)]),
        (404, [("GET", f"/tenants/{word(chance)}/{word(chance)}") for _ in range(500)]),
        (200, [("GET", f"/users/{word(chance)}") for _ in range(2_000)]),
        (200, [("GET", f"/tenants/{word(chance)}/things/{word(chance)}") for _ in range(2_000)]),
        (307, [("GET", f"/users/{n}/") for n in range(300)]),
        (307, [("GET", f"/tenants/{n}/things/{n}/") for n in range(300)]),
        (405, [(word(chance).upper() + "X", f"/users/{n}") for n in range(300)]),
        (404, [(word(chance).upper() + "X", f"/{n}") for n in range(300)]),
    ]

    async def work() -> None:
        for status, requests in groups:
            assert (await ask(app, requests[0][1], requests[0][0])).status == status, requests[0]
        before = series(metrics)
        for status, requests in groups:
            for method, path in requests[1:]:
                assert (await ask(app, path, method)).status == status, (method, path)
        assert series(metrics) == before

    run(work)
    assert counted(metrics) == {
        ("GET", "unmatched", 404): 2_500,
        ("GET", "/users/{user_id}", 200): 2_000,
        ("GET", "/tenants/{tenant}/things/{thing}", 200): 2_000,
        ("GET", "unmatched", 307): 600,
        ("other", "/users/{user_id}", 405): 300,
        ("other", "unmatched", 404): 300,
    }
    assert len(metrics._requests._series) == 6  # nor does anything else grow
    layer = app if isinstance(app, MetricsMiddleware) else app.middleware_stack.app.app.app
    assert len(layer.templates._places) < 10 and len(layer.known) < 10


# Each once


def application() -> FastAPI:
    app, sub = FastAPI(openapi_url=None), FastAPI(openapi_url=None)

    @app.get("/plain/{n}")
    async def plain(n: int) -> int:
        return n

    @app.get("/sync/{n}")
    def in_thread(n: int) -> int:
        return n

    @app.get("/slow/{ms}")
    async def slow(ms: int) -> str:
        await asyncio.sleep(ms / 1_000)
        return "slow"

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.get("/refused/{status}")
    async def refused(status: int) -> None:
        raise HTTPException(status)

    @app.get("/fails")
    async def fails() -> None:
        await asyncio.sleep(0)
        raise Boom

    @app.get("/stream/{parts}")
    async def stream(parts: int, fails: bool = False, tasks: bool = False) -> StreamingResponse:
        async def made() -> AsyncIterator[bytes]:
            for _ in range(parts):
                yield b"part"
                await asyncio.sleep(0)
            if fails:
                raise Boom

        later = BackgroundTasks()
        if tasks:
            later.add_task(asyncio.sleep, 0.005)
        return StreamingResponse(made(), background=later)

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        def made() -> Iterator[bytes]:
            while True:
                yield b"part"
                time.sleep(0.001)

        return StreamingResponse(made())

    @app.get("/background")
    async def background(tasks: BackgroundTasks, fails: bool = False) -> str:
        async def later() -> None:
            await asyncio.sleep(0.002)
            if fails:
                raise Boom

        tasks.add_task(later)
        return "answered"

    sub.get("/items/{item}")(lambda item: item)
    app.mount("/sub/{tenant}", sub)
    return app


async def cancelled(app: Any, path: str, chance: random.Random) -> int:
    answer = Answer()

    async def note(message: dict[str, Any]) -> None:
        answer.messages.append(message)

    task = asyncio.create_task(ask(app, path, each=note))
    await asyncio.sleep(chance.random() * 0.006)
    whole = answer.whole
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return answer.status if whole else 499


async def hung_up(app: Any, path: str, chance: random.Random, **options: Any) -> int:
    leave = asyncio.Event()
    asyncio.get_running_loop().call_later(chance.random() * 0.01, leave.set)
    await ask(app, path, leave=leave, **options)
    return 499


async def cut_off(app: Any, path: str, chance: random.Random) -> int:
    after = chance.randint(0, 3)
    await ask(app, path, broken=lambda answer: ConnectionResetError() if len(answer.messages) >= after else None)
    return 499


async def seen(app: Any, path: str, method: str = "GET", **options: Any) -> int:
    """By the client: an answer without an end has failed."""
    answer = await ask(app, path, method, **options)
    return answer.status if answer.whole else 500


def client(app: Any, n: int, chance: random.Random) -> tuple[str, Awaitable[int]]:
    """One request, and what its client knows about the outcome."""
    kinds: list[tuple[int, str, Callable[[], Awaitable[int]]]] = [
        (40, "/plain/{n}", lambda: seen(app, f"/plain/{n}")),
        (5, "/plain/{n}", lambda: seen(app, "/plain/x")),
        (5, "/plain/{n}", lambda: seen(app, f"/plain/{n}", "DELETE")),
        (5, "/sync/{n}", lambda: seen(app, f"/sync/{n}")),
        (5, "/body", lambda: seen(app, "/body", "POST", body=[b"x" * (n % 7), b"y", b""])),
        (5, "unmatched", lambda: seen(app, f"/nothing/{n}")),
        (5, "unmatched", lambda: seen(app, f"/plain/{n}/")),
        (5, "/refused/{status}", lambda: seen(app, f"/refused/{chance.choice((400, 401, 403, 409, 503))}")),
        (5, "/fails", lambda: seen(app, "/fails")),
        (5, "/sub/{tenant}/items/{item}", lambda: seen(app, f"/sub/{n}/items/{n}")),
        (5, "/stream/{parts}", lambda: seen(app, f"/stream/{n % 5}", query_string=b"tasks=1")),
        (4, "/stream/{parts}", lambda: seen(app, f"/stream/{n % 5}", query_string=b"fails=1")),
        (3, "/background", lambda: seen(app, "/background", query_string=b"fails=1" if n % 2 else b"")),
        (2, "/slow/{ms}", partial(cancelled, app, "/slow/3", chance)),
        (2, "/slow/{ms}", partial(cancelled, app, "/slow/1000", chance)),
        (2, "/stream/{parts}", partial(cancelled, app, "/stream/20", chance)),
        (2, "/slow/{ms}", partial(hung_up, app, "/slow/40", chance)),
        (1, "/endless", partial(hung_up, app, "/endless", chance)),
        (1, "/stream/{parts}", partial(cut_off, app, "/stream/9", chance)),
    ]
    (_, endpoint, make), *_ = chance.choices(kinds, [weight for weight, *_ in kinds])
    return endpoint, make()


@pytest.mark.parametrize("kind", ["added", "around"])
def test_each_of_10_000_requests_is_counted_once_with_the_status_that_its_client_knows(kind: str) -> None:
    metrics, chance, application_ = Metrics(), random.Random(SEED), application()
    number = 10_000 if kind == "added" else 1_000
    if kind == "added":
        application_.add_middleware(MetricsMiddleware, metrics=metrics)
        app: Any = application_
    else:
        app = GZipMiddleware(MetricsMiddleware(application_, metrics=metrics))
    expected: Counter[tuple[str, int]] = Counter()

    async def worker(numbers: Iterator[int]) -> None:
        for n in numbers:
            endpoint, request = client(app, n, chance)
            expected[endpoint, await request] += 1

    async def work() -> None:
        numbers = iter(range(number))
        await asyncio.gather(*(worker(numbers) for _ in range(100)))

    run(work)
    found: Counter[tuple[str, int]] = Counter()
    for (_, endpoint, status), times in counted(metrics).items():
        found[endpoint, status] += times
    assert found == expected
    assert sum(found.values()) == number == total(metrics, "app_request_duration_seconds_count")
    assert total(metrics, "app_requests_in_progress") == 0
    assert set(statuses(metrics)) >= {200, 307, 403, 404, 405, 422, 499, 500, 503}
