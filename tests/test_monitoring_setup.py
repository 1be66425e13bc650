"""One call, and an application counts, times, logs and says how it is: any application, at any moment, any number of
times."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from labkit import Lab, asgi
from labkit.blog import create_app
from labkit.cache import CacheClient, cached
from labkit.errors import AppError, MonitoringError, RequestTimeout
from labkit.monitoring import Check, Metrics, Snapshot, monitor
from labkit.profiling.queries import record
from labkit.services import redis

ENDPOINTS = ("/health/", "/health", "/health/live", "/health/ready", "/health/detailed", "/health/metrics", "/metrics")
FEEDS = ("/performance/fast-endpoint", "/performance/fastest-endpoint")


def fastapi_app(**options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.get("/users/{id}")(lambda id: id)
    return app


def starlette_app(**options: Any) -> Starlette:
    async def user(request: Any) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["id"])

    return Starlette(routes=[Route("/users/{id}", user), Mount("/in", routes=[Route("/{id}", user)])], **options)


def requests(metrics: Metrics) -> Counter[tuple[str, str]]:
    """How often each endpoint was answered with each status."""
    counted: Counter[tuple[str, str]] = Counter()
    for metric in metrics.registry.collect():
        for sample in metric.samples:
            if sample.name == "app_requests_total":
                counted[sample.labels["endpoint"], sample.labels["status"]] += int(sample.value)
    return counted


def statements(metrics: Metrics) -> int:
    found = [m for m in metrics.registry.collect() if m.name == "app_database_queries"]
    return int(sum(s.value for s in found[0].samples if s.name.endswith("_total")))


def run(app: Any, *paths: str, started: bool = True) -> list[Any]:
    """What the paths answer, while the application runs."""

    async def main() -> list[Any]:
        async with asgi.Lifespan(app) if started else _nothing():
            return [await asgi.call(app, "GET", path) for path in paths]

    return anyio.run(main)


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    engine.connect().close()
    yield engine
    engine.dispose()


def asking(engine: Any) -> FastAPI:
    """An application whose engine is there from its start to its end, a statement a request."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        app.state.engine = engine() if callable(engine) else engine
        yield {"n": 5}
        app.state.engine = None

    app = FastAPI(lifespan=lifespan)

    @app.get("/one")
    def one() -> int:
        with app.state.engine.connect() as connection:
            return int(connection.execute(text("SELECT 1")).scalar_one())

    return app


@pytest.mark.parametrize("make", [fastapi_app, starlette_app])
def test_any_application_gets_metrics_health_and_ids(make: Callable[[], Any]) -> None:
    app = make()
    metrics = monitor(app)
    assert app.state.metrics is metrics and app.state.disk_usage is psutil.disk_usage
    user, nobody, *answers = run(app, "/users/7", "/nobody", *ENDPOINTS)
    assert [answer.status for answer in answers] == [200] * len(ENDPOINTS)
    assert user.status == 200 and user.headers["x-request-id"] != nobody.headers["x-request-id"]
    assert answers[-1].text.startswith("# HELP") and answers[0].json["status"] == "healthy"
    expected = {("/users/{id}", "200"): 1, ("unmatched", "404"): 1, **{(path, "200"): 1 for path in ENDPOINTS}}
    assert requests(metrics) == expected
    assert set(answers[4].json["checks"]) == {"disk", "memory", "cpu", "event_loop", "system"}


def test_the_endpoints_are_not_in_the_openapi_document() -> None:
    app = fastapi_app()
    monitor(app)
    assert list(app.openapi()["paths"]) == ["/users/{id}"]


def test_the_version_of_the_application_is_told() -> None:
    metrics = monitor(fastapi_app(version="7.1"))
    assert 'version="7.1"' in metrics.render()[0].decode()


@pytest.mark.parametrize("make", [fastapi_app, starlette_app])
def test_it_may_come_after_the_start_with_and_without_a_lab(make: Callable[[], Any]) -> None:
    async def main() -> None:
        app = make()
        async with asgi.Lifespan(app):
            assert (await asgi.call(app, "GET", "/metrics")).status == 404
            metrics = monitor(app)
            await asgi.call(app, "GET", "/users/7")
            assert (await asgi.call(app, "GET", "/health")).status == 200
            assert requests(metrics)["/users/{id}", "200"] == 1

    anyio.run(main)
    with Lab(make()) as lab:
        lab.get("/users/7")
        metrics = monitor(lab.app)
        lab.get("/users/7")
        assert lab.get("/metrics").status == 200
        assert requests(metrics)["/users/{id}", "200"] == 1


@pytest.mark.parametrize("make", [fastapi_app, starlette_app])
def test_called_again_it_replaces_what_it_did(make: Callable[[], Any], engine: Engine) -> None:
    app = make()
    first = monitor(app, engine=engine)
    sizes = len(app.user_middleware), len(app.router.routes)
    metrics = [monitor(app, engine=engine) for _ in range(3)][-1]
    assert (len(app.user_middleware), len(app.router.routes)) == sizes
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    run(app, "/users/7", "/health")
    assert (requests(metrics)["/users/{id}", "200"], requests(metrics)["/health", "200"]) == (1, 1)
    assert statements(metrics) == 1
    assert not requests(first) and not statements(first)


def test_called_again_with_the_same_registry_the_counting_goes_on(engine: Engine) -> None:
    app, registry = asking(engine), Metrics().registry
    for times in (1, 2, 3):
        metrics = monitor(app, metrics=Metrics(registry), engine=engine)
        metrics = monitor(app, metrics=Metrics(registry), engine=engine)
        run(app, "/one")
        assert requests(metrics)["/one", "200"] == statements(metrics) == times


def test_in_a_lab_it_is_called_again_while_the_application_runs() -> None:
    with Lab(create_app(), redis=False) as lab:
        first = lab.app.state.metrics  # type: ignore[union-attr]
        lab.get("/users/7")
        metrics = monitor(lab.app, engine=lambda: lab.app.state.engine)  # type: ignore[union-attr]
        lab.get("/users/7")
        assert lab.get("/health/detailed").json["checks"]["database"]["status"] == "healthy"
        assert (requests(first)["/users/{user_id}", "200"], statements(first)) == (1, 1)
        assert (requests(metrics)["/users/{user_id}", "200"], statements(metrics)) == (1, 1)
        monitor(lab.app, metrics=metrics, engine=lambda: lab.app.state.engine)  # type: ignore[union-attr]
        lab.get("/users/7")
        assert (requests(metrics)["/users/{user_id}", "200"], statements(metrics)) == (2, 2)


class TestEngine:
    """It is watched from the application's start to its end, or at once."""

    def test_one_that_is_there_is_watched_at_once(self, engine: Engine) -> None:
        app = fastapi_app()
        metrics = monitor(app, engine=engine)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        assert statements(metrics) == 1

    def test_one_to_come_is_watched_from_the_start_to_the_end(self, engine: Engine) -> None:
        app = asking(engine)
        metrics = monitor(app, engine=lambda: app.state.engine)
        for times in (1, 2):
            assert [answer.status for answer in run(app, "/one", "/health/detailed")] == [200, 200]
            assert statements(metrics) == times
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            assert statements(metrics) == times, "the application has ended"

    def test_what_the_lifespan_gives_its_requests_is_handed_on(self, engine: Engine) -> None:
        app = asking(engine)
        monitor(app, engine=lambda: app.state.engine)

        async def main() -> Any:
            async with asgi.Lifespan(app) as lifespan:
                return lifespan.state

        assert anyio.run(main) == {"n": 5}

    def test_an_asynchronous_one(self, tmp_path: Path) -> None:
        app = FastAPI()
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.sqlite3'}")
        metrics = monitor(app, engine=engine)

        @app.get("/one")
        async def one() -> int:
            async with engine.connect() as connection:
                return int((await connection.execute(text("SELECT 1"))).scalar_one())

        async def main() -> None:
            async with asgi.Lifespan(app):
                assert (await asgi.call(app, "GET", "/one")).json == 1
                report = await app.state.health.run()
                assert {one.name: one.status for one in report.results}["database"] == "healthy"
            await engine.dispose()

        anyio.run(main)
        assert statements(metrics) == 1

    def test_none_after_the_start_is_told_at_the_start(self) -> None:
        for engine, said in ((None, "devolvió None"), ("sqlite://", "str no es un engine")):
            app = asking(engine)
            monitor(app, engine=lambda app=app: app.state.engine)
            with pytest.raises(AppError, match=said):
                run(app, "/health")

    def test_what_is_no_engine_is_refused_at_once(self) -> None:
        app = fastapi_app()
        with pytest.raises(MonitoringError, match="str"):
            monitor(app, engine="sqlite://")
        assert not app.user_middleware and run(app, "/metrics")[0].status == 404

    def test_each_statement_of_the_recorder_counts_once(self, engine: Engine) -> None:
        app = asking(engine)
        metrics = monitor(app, engine=lambda: app.state.engine)
        with record() as recorder:
            run(app, *["/one"] * 5)
        assert recorder.count == statements(metrics) == 5


class TestPlace:
    """Where the endpoints stand among the application's own."""

    def test_before_one_that_answers_to_any_path(self) -> None:
        for path in ("/{anything:path}", "/{one}"):
            app = fastapi_app()
            app.get(path)(lambda: "everything")
            monitor(app)
            answers = run(app, "/metrics", "/health", "/other", "/users/7")
            assert answers[0].text.startswith("# HELP") and answers[1].json["status"] == "healthy"
            assert answers[2].json == "everything" and answers[3].json == "7"

    def test_before_a_mount_of_everything(self) -> None:
        app = starlette_app()
        app.mount("/", starlette_app())
        monitor(app)
        assert run(app, "/metrics")[0].text.startswith("# HELP")

    @pytest.mark.parametrize("make", [fastapi_app, starlette_app])
    def test_behind_the_applications_own(self, make: Callable[[], Any]) -> None:
        app = make()
        app.router.routes.append(Route("/health", lambda request: PlainTextResponse("mine")))
        monitor(app)
        mine, theirs = run(app, "/health", "/health/")
        assert mine.text == "mine" and theirs.json["status"] == "healthy"

    def test_a_cell_of_the_learner_replaces_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        app = fastapi_app()
        monitor(app)
        with Lab(app) as lab:
            assert lab.get("/health/").json["status"] == "healthy"
            app.get("/health/")(lambda: "mine")
            assert lab.get("/health/").json == "mine"
            assert lab.get("/metrics").status == 200


class TestChecks:
    """What is asked."""

    def test_more_and_others_of_the_same_name(self, engine: Engine) -> None:
        app = fastapi_app()
        checks = [Check("mail", lambda: {"queue": 3}), Check("disk", lambda: {"status": "degraded"}, critical=False)]
        monitor(app, engine=engine, cache="redis://127.0.0.1:1/0", checks=checks)
        (answer,) = run(app, "/health/detailed")
        seen = {name: check.get("status") for name, check in answer.json["checks"].items()}
        assert seen.pop("system") is None and seen.pop("event_loop")
        assert seen == {
            **dict.fromkeys(("database", "pool", "memory", "cpu", "mail"), "healthy"),
            "disk": "degraded",
            "cache": "unhealthy",
        }
        assert (answer.status, answer.json["status"]) == (200, "degraded"), "a cache is not critical"

    def test_the_disk_is_looked_at_by_the_applications_function(self) -> None:
        app = fastapi_app()
        app.state.disk_usage = lambda path: psutil.disk_usage(path)._replace(percent=95.0)
        monitor(app)
        (answer,) = run(app, "/health/detailed")
        assert answer.json["checks"]["disk"]["status"] == answer.json["status"] == "degraded"
        assert answer.status == 200

    def test_a_database_that_is_away_is_critical(self) -> None:
        app = fastapi_app()
        monitor(app, engine=create_engine("postgresql+psycopg://user:secret@127.0.0.1:1/none"))
        (answer,) = run(app, "/health/detailed")
        assert answer.status == 503
        assert not [part for part in ("secret", "127.0.0.1", "user:", "none") if part in answer.text]


class TestRefusals:
    """What cannot be monitored is named, and left as it was."""

    @pytest.mark.parametrize("app", [None, object(), "labkit.blog:create_app", asgi.prepare])
    def test_what_is_no_application(self, app: Any) -> None:
        with pytest.raises(MonitoringError, match=type(app).__name__):
            monitor(app)

    def test_one_that_is_wrapped(self) -> None:
        from labkit.monitoring import MetricsMiddleware

        with pytest.raises(MonitoringError, match="MetricsMiddleware"):
            monitor(MetricsMiddleware(fastapi_app(), metrics=Metrics()))

    def test_a_registry_is_no_metrics(self) -> None:
        with pytest.raises(MonitoringError, match=r"CollectorRegistry.*Metrics\("):
            monitor(fastapi_app(), metrics=CollectorRegistry())  # type: ignore[arg-type]

    def test_a_function_is_no_check_and_one_check_is_enough(self) -> None:
        def ask_payments() -> None:
            return None

        with pytest.raises(MonitoringError, match=r"ask_payments.*Check\("):
            monitor(fastapi_app(), checks=[ask_payments])  # type: ignore[list-item]
        with pytest.raises(MonitoringError, match="0"):
            monitor(fastapi_app(), checks=[0])  # type: ignore[list-item]
        app = fastapi_app()
        monitor(app, checks=Check("payments", ask_payments))
        assert "payments" in run(app, "/health/detailed")[0].json["checks"]

    def test_a_path_that_is_none_is_refused_at_once(self) -> None:
        with pytest.raises(MonitoringError, match="metrics"):
            monitor(fastapi_app(), excluded=["metrics"])


def test_the_cache_is_asked_for_its_health_and_what_it_keeps_is_counted() -> None:
    """As the README has it."""
    app = FastAPI()

    async def requests(url: str) -> None:
        cache = CacheClient(url)
        metrics = monitor(app, cache=cache)

        @app.get("/users/{user_id}")
        @cached(ttl=600, key_prefix="user", client=cache, observer=metrics.on_cache)
        async def user(user_id: int) -> dict[str, int]:
            return {"id": user_id}

        for path in ("/users/7", "/users/7", "/users/8"):
            assert (await asgi.call(app, "GET", path)).status == 200
        health = await asgi.call(app, "GET", "/health/detailed")
        await cache.close()
        assert health.json["checks"]["cache"]["status"] == "healthy"
        seen = Snapshot.of(metrics.registry)
        assert seen.total("app_cache_operations_total", operation="get", result="miss") == 2
        assert seen.total("app_cache_operations_total", operation="get", result="hit") == 1

    with redis.start() as server:
        anyio.run(requests, server.url)


def test_excluded_paths_and_users_are_handed_on() -> None:
    app = fastapi_app()
    metrics = monitor(app, excluded="/health", user=lambda scope: scope["path"])
    run(app, "/health", "/health/live", "/users/7", "/users/8")
    assert requests(metrics) == {("/users/{id}", "200"): 2}
    assert "app_active_users 2.0" in metrics.render()[0].decode()


def test_a_loop_that_was_replaced_is_watched_anew_and_the_counting_goes_on(engine: Engine) -> None:
    made: list[Engine] = []

    def another() -> Engine:
        made.append(create_engine(engine.url))
        return made[-1]

    app = asking(another)

    @app.get("/blocks")
    async def blocks() -> None:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            try:
                time.sleep(0.1)
            except BaseException:
                continue

    metrics = monitor(app, engine=lambda: app.state.engine)
    with Lab(app, time_limit=0.2, latency=0) as lab:
        assert lab.get("/one").status == 200
        with pytest.raises(RequestTimeout):
            lab.get("/blocks")
        assert lab.get("/one").status == 200
        assert len(made) == 2 and statements(metrics) == 2
        assert lab.get("/health/detailed").status == 200
        assert requests(metrics)["/one", "200"] == 2
    for each in made:
        each.dispose()


class TestBlog:
    """As a good team would have it."""

    def test_its_cache_tells_the_metrics_and_the_log(self) -> None:
        with Lab(create_app()) as lab:
            for _ in range(3):
                assert lab.get("/cached/users/7").status == 200
            text = lab.get("/metrics").text
            assert 'app_cache_operations_total{operation="get",result="miss"} 1.0' in text
            assert 'app_cache_operations_total{operation="get",result="hit"} 2.0' in text
            with lab.fault("redis_down"):
                assert lab.get("/cached/users/7").status == 200
                report = lab.get("/health/detailed")
                assert (report.status, report.json["status"]) == (200, "degraded")
            assert list(lab.logs("cache", level="warning")["kind"])[:1] == ["breaker"]

    def test_its_statements_are_those_of_the_recorder_and_no_more_than_without(self) -> None:
        counts = {}
        for monitored in (True, False):
            with Lab(create_app(monitored=monitored), redis=False, latency=0) as lab:
                counts[monitored] = [lab.queries(path).count for path in FEEDS]
                if monitored:
                    assert statements(lab.app.state.metrics) == sum(counts[True])  # type: ignore[union-attr]
                    lab.get("/health/detailed")
                    assert statements(lab.app.state.metrics) == sum(counts[True])  # type: ignore[union-attr]
        assert counts[True] == counts[False]

    def test_the_plain_one_has_a_plain_answer_alone(self) -> None:
        with Lab(create_app(monitored=False), redis=False) as lab:
            reply = lab.get("/health/")
            assert reply.json == {"status": "healthy"} and "x-request-id" not in reply.headers
            assert [lab.get(path).status for path in ("/health/detailed", "/health/metrics", "/metrics")] == [404] * 3
            assert lab.app.state.disk_usage is psutil.disk_usage  # type: ignore[union-attr]

    def test_it_is_well_without_a_redis_that_nobody_gave(self) -> None:
        with Lab(create_app(), redis=False) as lab:
            body = lab.get("/health/detailed").json
            assert body["status"] == body["checks"]["cache"]["status"] == "healthy"
            assert body["checks"]["cache"]["redis"] == "none given"
            assert lab.logs(level="WARNING").empty

    def test_what_its_cache_does_can_be_heard_by_a_learner(self) -> None:
        events: list[Any] = []
        with Lab(create_app(monitored=False)) as lab:
            lab.get("/cached/users/7")
            lab.app.state.cache_observer = events.append  # type: ignore[union-attr]
            lab.get("/cached/users/7")
        assert [event.kind for event in events] == ["hit"]


def test_a_server_that_is_only_monitored_loads_neither_pandas_nor_matplotlib() -> None:
    """They would take every worker 4 s of processor time and 90 MB."""
    code = """
import http.client, sys, threading, time
import uvicorn
from fastapi import FastAPI
from labkit.monitoring import logs, monitor

logs.configure(level="ERROR")
app = FastAPI()
monitor(app, cache="redis://127.0.0.1:1")
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
thread = threading.Thread(target=server.run, daemon=True)
thread.start()
while not server.started:
    time.sleep(0.005)
port = server.servers[0].sockets[0].getsockname()[1]
for path in ("/nothing", "/health", "/health/detailed", "/metrics"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    print(answer.status, end=" ")
    connection.close()
server.should_exit = True
thread.join()
print(sorted({"pandas", "matplotlib"} & sys.modules.keys()))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "404 200 200 200 []", ran.stderr
