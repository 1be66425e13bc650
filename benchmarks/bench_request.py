"""What one request to an application in the same process costs, by the way it is made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import httpx2
from fastapi import FastAPI
from fastapi.testclient import TestClient

from benchmarks._measure import QUICK, Case, compare, publish, repeat
from labkit import Lab
from labkit.load import load

REQUESTS = 200 if QUICK else 1000  # in a batch
app = FastAPI()


@app.get("/health")
async def health() -> dict[str, str]:
    """As small as an endpoint can be."""
    return {"status": "ok"}


async def direct() -> bytes:
    """The floor: call the ASGI application by hand and keep status and body."""
    status, chunks = 0, []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            chunks.append(message["body"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/health",
        "raw_path": b"/health",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    await app(scope, receive, send)
    if status != 200:
        raise RuntimeError(status)
    return b"".join(chunks)


def each(run: Callable[[int], float]) -> Callable[[int], float]:
    """Seconds of ``times`` requests, from a batch that is as long for every case as ``lab.load`` is by default."""
    return lambda times: run(REQUESTS) / REQUESTS * times


def main() -> None:
    """Inside the loop first, then from another thread, as a notebook's cell asks."""
    with Lab(app) as lab, TestClient(app) as client:

        def inside(operation: Callable[[Any], Awaitable[object]]) -> Callable[[int], float]:
            async def batch(lab_client: Any, times: int) -> float:
                start = time.thread_time()
                for _ in range(times):
                    await operation(lab_client)
                return time.thread_time() - start

            return each(lambda times: lab.run(lambda lab_client: batch(lab_client, times)))

        def loaded(concurrency: int) -> Callable[[int], float]:
            async def batch(lab_client: Any, times: int) -> float:
                start = time.thread_time()
                await load(lab_client, "/health", requests=times, concurrency=concurrency)
                return time.thread_time() - start

            return each(lambda times: lab.run(lambda lab_client: batch(lab_client, times)))

        async_httpx = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")
        async_httpx2 = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost")
        in_loop = compare(
            "A request inside the loop",
            "a direct ASGI call written by hand; CPU time of the loop's thread, where everything here runs",
            [
                Case("direct ASGI call", inside(lambda _: direct())),
                Case("lab.load, 1 worker", loaded(1), 1.25),
                Case("lab.load, 10 workers", loaded(10), 1.25),
                Case("a request of the Lab, awaited", inside(lambda lab_client: lab_client.call("GET", "/health"))),
                Case("httpx.ASGITransport", inside(lambda _: async_httpx.get("/health"))),
                Case("httpx2.ASGITransport", inside(lambda _: async_httpx2.get("/health"))),
            ],
            seconds=25,
        )
        loop = lab.run(_running)
        from_cell = compare(
            "A request from a notebook's cell",
            "the same direct call, handed to the Lab's loop by asyncio.run_coroutine_threadsafe",
            [
                Case(
                    "direct call, one thread hop",
                    repeat(lambda: asyncio.run_coroutine_threadsafe(direct(), loop).result()),
                ),
                Case("lab.get", repeat(lambda: lab.get("/health")), 1.25),
                Case("TestClient", repeat(lambda: client.get("/health"))),
            ],
            seconds=20,
        )
    publish(
        "request", "One request to an application in the same process, by the way it is made.", [in_loop, from_cell]
    )


async def _running(_: Any) -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


if __name__ == "__main__":
    main()
