"""What a layer that measures requests adds to each: ours, the peers', and the least that does anything."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.middleware.base import BaseHTTPMiddleware

from benchmarks._measure import QUICK, Case, Row, Table, publish, rounds
from labkit.monitoring import Metrics, MetricsMiddleware
from labkit.stats import median_interval

sys.path.append(str(Path(sys.prefix) / "peers"))  # last: what the product itself installs goes first

ROUTES = (1, 200)
GOAL = 9e-6  # seconds that ours may add
HEADERS = [
    (b"host", b"localhost:8000"),
    (b"user-agent", b"python-httpx/0.28.1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"connection", b"keep-alive"),
]
_URL = "/items100/7"  # in the middle of 200 routes
SLICES = 2 if QUICK else 7


class HandWritten:
    """The least that counts, times and knows how much is under way: three instruments, bound beforehand, one label."""

    def __init__(self, app: Any) -> None:
        registry = CollectorRegistry()
        self.app = app
        self.count = Counter("requests_total", "Requests", ["status"], registry=registry).labels("200").inc
        self.seconds = Histogram("seconds", "Seconds", ["status"], registry=registry).labels("200").observe
        self.gauge = Gauge("in_progress", "Requests under way", registry=registry)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Knows neither route nor status: what every one of the others does besides, it does not."""
        start = time.perf_counter()
        self.gauge.inc()
        try:
            await self.app(scope, receive, send)
        finally:
            self.gauge.dec()
            self.seconds(time.perf_counter() - start)
            self.count()


class Nothing(BaseHTTPMiddleware):
    """Starlette's own base class, doing nothing."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        """Hand the request on."""
        return await call_next(request)


@dataclass
class Layer:
    """Something to put around an application.

    Attributes:
        name: what the table calls it.
        add: puts it there.
        goal: seconds that it may add.
        package: distribution that it comes from, if it is a peer.
    """

    name: str
    add: Callable[[FastAPI], object]
    goal: float | None = None
    package: str = ""

    @property
    def missing(self) -> bool:
        """Whether the peer is not installed."""
        try:
            return bool(self.package) and not version(self.package)
        except PackageNotFoundError:
            return True

    @property
    def title(self) -> str:
        """With the peer's version."""
        return f"{self.name} {version(self.package)}" if self.package else self.name


def _instrumentator(app: FastAPI) -> None:
    from prometheus_fastapi_instrumentator import Instrumentator

    Instrumentator(registry=CollectorRegistry()).instrument(app)


def _exporter(app: FastAPI) -> None:
    from starlette_exporter import PrometheusMiddleware

    app.add_middleware(PrometheusMiddleware)


def _aioprometheus(app: FastAPI) -> None:
    from aioprometheus import MetricsMiddleware as Peer
    from aioprometheus import Registry

    app.add_middleware(Peer, registry=Registry())


LAYERS = (
    Layer("none", lambda app: None),
    Layer("counter + histogram + gauge, by hand", lambda app: app.add_middleware(HandWritten)),
    Layer("labkit.monitoring", lambda app: app.add_middleware(MetricsMiddleware, metrics=Metrics()), GOAL),
    Layer("prometheus-fastapi-instrumentator", _instrumentator, package="prometheus-fastapi-instrumentator"),
    Layer("starlette-exporter", _exporter, package="starlette-exporter"),
    Layer("aioprometheus, which times nothing", _aioprometheus, package="aioprometheus"),
    Layer("BaseHTTPMiddleware doing nothing", lambda app: app.add_middleware(Nothing)),
)


def application(routes: int) -> FastAPI:
    """As many routes as that; the one asked for is in their middle."""
    app = FastAPI(openapi_url=None)
    for number in range(100 - routes // 2, 100 + (routes + 1) // 2):

        @app.get(f"/items{number}/{{item}}")
        async def item(item: int) -> dict[str, int]:
            return {"item": item}

    return app


def requests(app: FastAPI, layer: Layer, loop: asyncio.AbstractEventLoop) -> Callable[[int], float]:
    """Seconds of CPU time that so many requests take, one after the other.

    It is the same application for all, with one layer after the other: another one, elsewhere in memory, may be some
    microseconds faster or slower just for that.
    """
    app.user_middleware.clear()
    app.middleware_stack = None
    layer.add(app)
    stack = app.build_middleware_stack()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise RuntimeError(message["status"])

    def once() -> Awaitable[None]:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": _URL,
            "raw_path": _URL.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*HEADERS],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        return app(scope, receive, send)

    async def batch(times: int) -> float:
        app.middleware_stack = stack
        start = time.thread_time()
        for _ in range(times):
            await once()
        return time.thread_time() - start

    return lambda times: loop.run_until_complete(batch(times))


def measure(routes: int, layers: Sequence[Layer], missing: str, loop: asyncio.AbstractEventLoop) -> Table:
    """What each layer adds to the same application without any.

    Neighbours on the machine only ever add time, and they stay for seconds. So a run is cut into slices of many short
    turns; within a slice the fastest tenth of the turns counts, and of the slices the median.
    """
    app = application(routes)
    cases = [Case(layer.title, requests(app, layer, loop)) for layer in layers]
    slices = [
        [_fast(turns) for turns in zip(*rounds(cases, seconds=6, batch=0.015), strict=True)] for _ in range(SLICES)
    ]
    rows = [Row(layers[0].title, median(times[0] for times in slices))]
    least = median(times[1] - times[0] for times in slices)
    for i, layer in enumerate(layers[1:], 1):
        added, low, high = median_interval([times[i] - times[0] for times in slices])
        goal, reached = (f"<= {layer.goal * 1e6:g} us", added <= layer.goal) if layer.goal else ("", None)
        rows.append(Row(layer.title, added, added / least, low * 1e6, high * 1e6, goal, reached))
    floor = (
        "the same application without a layer, whose time the first line says; the others say what they add to it, the "
        "ratio to what the layer by hand adds"
    )
    about = f"{routes} route{'s'[: routes > 1]}, CPU time added to a request (interval in us)"
    return Table(about, f"{floor}{missing}", rows, len(slices))


def _fast(turns: Sequence[float]) -> float:
    return sorted(turns)[len(turns) // 10]


def main() -> None:
    """1 route and 200, all layers in one run, turn by turn."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    gone = ", ".join(layer.name for layer in LAYERS if layer.missing)
    layers = [layer for layer in LAYERS if not layer.missing]
    tables = [measure(routes, layers, f". Not installed: {gone}" if gone else "", loop) for routes in ROUTES]
    loop.close()
    publish(
        "monitoring",
        "What a layer that measures requests adds to each. Ours also gives each answer an id and its time, tells users "
        "apart, counts the bytes and measures the event loop's lag.",
        tables,
    )


if __name__ == "__main__":
    main()
