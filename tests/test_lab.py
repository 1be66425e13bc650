"""The Lab: any application, its services, its measurements, its end."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from sqlalchemy import create_engine, text

import labkit
from labkit import Lab
from labkit._client import Client
from labkit.blog import create_app
from labkit.errors import AppError, MeasurementError, RequestError, RequestTimeout, ServiceError


def plain() -> FastAPI:
    app = FastAPI(title="Tienda")

    @app.api_route("/method", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def method(request: Request) -> str:
        return request.method

    @app.get("/async")
    async def asynchronous(n: int = 1) -> int:
        return n

    @app.get("/sync")
    def sync() -> str:
        return threading.current_thread().name

    @app.get("/raises")
    def raises() -> float:
        return 1 / 0

    @app.get("/hangs")
    async def hangs() -> None:
        await asyncio.sleep(60)

    return app


# Requests


def test_every_verb_and_option() -> None:
    with Lab(plain()) as lab:
        verbs = (lab.get, lab.post, lab.put, lab.patch, lab.delete)
        assert [verb("/method").json for verb in verbs] == ["GET", "POST", "PUT", "PATCH", "DELETE"]
        assert lab.request("put", "/method").json == "PUT"
        assert lab.get("/async", params={"n": 7}).json == 7


def test_unusable_requests_are_explained() -> None:
    with Lab(plain()) as lab:
        with pytest.raises(
            RequestError, match=r"no tiene la opción data, timeout\. Tiene: params, headers, json"
        ):
            lab.post("/method", data={}, timeout=3)
        with pytest.raises(RequestError, match="no empieza con"):
            lab.get("async")
        assert "/async" in repr(lab.get("/asinc"))
        with pytest.raises(RequestError, match=r"(?s)GET /asinc respondió 404.*/async"):
            lab.queries("/asinc")
        with pytest.raises(
            RequestError, match=r"(?s)GET /raises respondió 500.*test_lab.py.*ZeroDivisionError"
        ):
            lab.queries("/raises")
        with pytest.raises(RequestError, match="no tiene la opción data"):
            lab.queries("/async", data={})


def test_a_request_has_a_time_limit_and_the_next_one_works() -> None:
    with Lab(plain(), time_limit=0.1) as lab:
        with pytest.raises(RequestTimeout, match="GET /hangs no terminó en 100 ms"):
            lab.get("/hangs")
        assert lab.get("/async").json == 1 and not lab.tainted
    with pytest.raises(RequestError, match="límite de tiempo 0"):
        Lab(plain(), time_limit=0)


def test_a_limit_holds_for_each_request_of_a_job_and_for_the_job() -> None:
    async def some(client: Client) -> list[Any]:
        calls = [client.call("GET", path) for path in ("/async", "/hangs", "/async")]
        return await asyncio.gather(*calls, return_exceptions=True)

    async def after(client: Client) -> Any:
        try:
            await client.call("GET", "/hangs")
        except RequestTimeout:
            return (await client.call("GET", "/async")).json

    with Lab(plain(), time_limit=0.1) as lab:
        first, second, third = lab.run(some)
        assert (first.json, third.json) == (1, 1) and isinstance(second, RequestTimeout)
        assert lab.run(after) == 1
        result = lab.load("/hangs", requests=3, concurrency=3)
        assert result.errors == 3
    with Lab(plain()) as lab, pytest.raises(RequestTimeout):
        lab.run(lambda client: client.call("GET", "/hangs"), timeout=0.1)


def test_a_cell_declares_an_endpoint_again() -> None:
    app = plain()
    with Lab(app) as lab:
        for word in ("one", "two"):

            @app.get("/new")
            def new(word: str = word) -> str:
                return word

            assert lab.get("/new").json == word
            assert lab.run(lambda client: client.call("GET", "/new")).json == word


def test_a_call_from_inside_the_application_is_explained() -> None:
    app = plain()

    @app.get("/inside")
    async def inside() -> Any:
        return lab.get("/async").json

    @app.get("/worker")
    def worker() -> Any:
        return lab.get("/async").json

    with Lab(app, time_limit=5) as lab:
        assert "dentro de la aplicación" in lab.get("/inside").error
        assert lab.get("/worker").json == 1  # from a worker thread it is a call like any other


# Applications


def test_an_application_of_any_kind() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"bare"})

    with Lab(bare) as lab:
        assert lab.get("/").text == "bare" and lab.app is bare and lab.redis is None
        assert lab.database_url is None
        with pytest.raises(MeasurementError, match=r"app\.state\.engine"):
            _ = lab.engine
        with pytest.raises(MeasurementError, match=r"app\.state\.factory"):
            lab.sample("/")


def with_lifespan(before: Callable[[], Any], after: Callable[[], Any] = lambda: None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        before()
        yield {"n": 5}
        after()

    app = FastAPI(lifespan=lifespan)

    @app.get("/n")
    async def n(request: Request) -> int:
        return int(request.state.n)

    return app


def test_the_lifespan_runs_once_and_its_state_arrives() -> None:
    steps: list[str] = []
    with Lab(with_lifespan(lambda: steps.append("start"), lambda: steps.append("end"))) as lab:
        assert lab.get("/n").json == 5 and steps == ["start"]
    assert steps == ["start", "end"]


def test_a_broken_application_is_explained() -> None:
    def fail() -> None:
        raise ConnectionError("no queue")

    with pytest.raises(AppError, match=r"(?s)no arrancó.*test_lab.py.*no queue") as caught:
        Lab(with_lifespan(fail))
    assert "site-packages" not in str(caught.value)
    with pytest.raises(AppError, match="no arrancó en 100 ms"):
        Lab(with_lifespan(lambda: time.sleep(0.8)), time_limit=0.1)
    with pytest.raises(AppError, match="función que crea la aplicación"):
        Lab(create_app)  # type: ignore[arg-type]
    with pytest.raises(AppError, match="es int"):
        Lab(3)  # type: ignore[arg-type]
    lab = Lab(with_lifespan(lambda: None, fail))
    with pytest.raises(AppError, match=r"(?s)falló al terminar.*no queue"):
        lab.close()
    lab.close()


def test_an_application_named_by_a_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = """
        import os
        from fastapi import FastAPI
        app = FastAPI()
        URL = os.environ.get("REDIS_URL")
        app.get("/redis")(lambda: URL)
    """
    (tmp_path / "labnamed.py").write_text(textwrap.dedent(code))
    with Lab("labnamed:app", redis=True) as lab:
        assert lab.redis is not None and lab.get("/redis").json == lab.redis.url
        assert os.environ["REDIS_URL"] == lab.redis.url and "labnamed:app" in repr(lab)
    assert "REDIS_URL" not in os.environ
    with pytest.raises(AppError, match="No existe el módulo"):
        Lab("labnowhere:app")


# What it runs on


def asking(**state: Any) -> FastAPI:
    app = FastAPI()
    for name, value in state.items():
        setattr(app.state, name, value)
    app.get("/state")(lambda: [app.state.redis_url, app.state.database_url])
    return app


def test_an_empty_place_is_filled_before_the_start() -> None:
    app = asking(redis_url=None, database_url=None)
    with Lab(app, database_url="sqlite:///mine.sqlite3") as lab:
        assert lab.redis is not None and lab.get("/state").json == [lab.redis.url, "sqlite:///mine.sqlite3"]
        pid = lab.redis.pid
    assert app.state.redis_url is None  # the next Lab fills it anew
    assert pid is None or not _alive(pid)


def test_a_place_that_is_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab(asking(redis_url="redis://mine", database_url="sqlite://")) as lab:
        assert lab.redis is None and lab.get("/state").json == ["redis://mine", "sqlite://"]
    monkeypatch.setenv("REDIS_URL", "redis://env")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///env.sqlite3")
    with Lab(asking(redis_url=None, database_url=None)) as lab:
        assert lab.redis is None and lab.get("/state").json == ["redis://env", "sqlite:///env.sqlite3"]
    with Lab(asking(redis_url=None, database_url=None), redis="redis://given") as lab:
        assert lab.get("/state").json[0] == "redis://given"
    with Lab(asking(redis_url=None, database_url=None), redis=False) as lab:
        assert lab.get("/state").json[0] is None


def test_postgresql_on_request() -> None:
    try:
        with Lab(create_app(), postgres=True, redis=False) as lab:
            assert str(lab.database_url).startswith("postgresql+psycopg://")
            reply = lab.get("/performance/fast-endpoint")
            assert (reply.status, reply.queries, lab.latency_ms) == (200, 2, 0)
            assert "***" not in str(lab.database_url)
    except ServiceError as error:
        pytest.skip(str(error))


def test_data_is_prepared_with_progress_before_the_start() -> None:
    steps: list[Any] = []
    app = with_lifespan(lambda: steps.append("start"))

    def prepare(progress: Callable[[int, int], None]) -> None:
        for done in range(3):
            progress(done, 2)
        steps.append(threading.current_thread().name)

    app.state.prepare = prepare
    with Lab(app):
        assert steps == ["MainThread", "start"]

    def fails(progress: Callable[[int, int], None]) -> None:
        raise OSError("disk full")

    app.state.prepare = fails
    with pytest.raises(AppError, match=r"(?s)preparar sus datos.*test_lab.py.*disk full"):
        Lab(app)


def test_a_database_that_cannot_be_reached_is_explained() -> None:
    engine = create_engine("postgresql+psycopg://ana:secret@127.0.0.1:1/shop")
    app = FastAPI()

    @app.get("/users")
    def users() -> Any:
        with engine.connect() as connection:
            return connection.execute(text("SELECT 1")).scalar_one()

    with Lab(app) as lab:
        reply = lab.get("/users")
        assert reply.status == 500 and "No llego a la base de datos" in reply.error
        assert "test_lab.py" in reply.error and "secret" not in reply.error
    with pytest.raises(AppError) as caught:
        Lab(create_app(database_url="postgresql+psycopg://ana:secret@127.0.0.1:1/shop"), redis=False)
    assert "secret" not in str(caught.value) and "127.0.0.1" in str(caught.value)


# Measurements, on the blog


@pytest.fixture(scope="module")
def blog() -> Any:
    with Lab(create_app(), redis=False) as lab:
        yield lab


def test_statements_are_counted_and_the_n_plus_1_found(blog: Lab) -> None:
    with blog.latency(0):
        assert blog.get("/performance/slow-endpoint").queries == 1051
        report = blog.queries("/performance/slow-endpoint")
    assert report.count == 1051 and {finding.count for finding in report.findings} >= {50, 1000}
    assert blog.queries("/performance/fast-endpoint").latency_ms == blog.latency_ms == 0.5


def test_profilers_and_comparison_are_at_hand(blog: Lab) -> None:
    path = "/performance/fast-endpoint"
    assert blog.profile(path).wall > 0
    assert len(blog.lines(path).df) and len(blog.memory(path).df)
    comparison = blog.compare("/performance/slow-endpoint", path, seconds=1)
    assert comparison.same_body and comparison.latency_ms == 0.5
    assert (comparison.statements_a, comparison.statements_b) == (1051, 2)
    assert blog.load("/health/", requests=20).requests == 20


def test_a_plan_is_explained(blog: Lab) -> None:
    plan = blog.explain("SELECT * FROM posts WHERE author_id = :a", {"a": 1})
    assert plan.text and "sqlite" in str(blog.database_url) and blog.engine.dialect.name == "sqlite"


# The end


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_closing_twice_is_fine_and_then_it_is_closed() -> None:
    lab = Lab(plain())
    assert "Tienda: abierto" in repr(lab)
    lab.close()
    lab.close()
    assert "cerrado" in repr(lab)
    with pytest.raises(RequestError, match="cerrado"):
        lab.get("/async")


def test_two_labs_are_independent() -> None:
    one, two = Lab(plain(), time_limit=0.2), Lab(plain())
    assert one.get("/sync").json and two.get("/sync").json
    with pytest.raises(RequestTimeout):
        one.get("/hangs")
    one.close()
    assert two.get("/async").json == 1
    two.close()


def test_a_lab_that_nobody_holds_closes() -> None:
    steps: list[str] = []
    lab = Lab(with_lifespan(lambda: None, lambda: steps.append("end")))
    gone = weakref.ref(lab)
    lab.get("/n")
    del lab
    gc.collect()
    assert gone() is None and steps == ["end"]


def _threads_and_files() -> tuple[int, int]:
    folder = Path("/proc/self/fd")
    return threading.active_count(), len(list(folder.iterdir())) if folder.exists() else 0


def test_twenty_cycles_leave_nothing() -> None:
    def cycle(redis: bool) -> Any:
        with Lab(asking(redis_url=None, database_url=None), redis=None if redis else False) as lab:
            lab.get("/state")
            return lab.redis.pid if lab.redis else None

    cycle(redis=True)
    before = _threads_and_files()
    pids = [cycle(redis=number < 3) for number in range(20)]
    end = time.monotonic() + 5
    while time.monotonic() < end and any(a > b for a, b in zip(_threads_and_files(), before, strict=True)):
        time.sleep(0.02)
    assert all(a <= b for a, b in zip(_threads_and_files(), before, strict=True))
    assert not any(pid and _alive(pid) for pid in pids)


def test_the_exit_closes_what_was_left_open() -> None:
    program = """
        import asyncio
        from contextlib import asynccontextmanager
        from fastapi import FastAPI
        from labkit import Lab

        @asynccontextmanager
        async def lifespan(app):
            yield
            print("end", flush=True)

        app = FastAPI(lifespan=lifespan)

        @app.get("/hangs")
        def hangs():
            import time
            time.sleep(60)

        lab = Lab(app, time_limit=0.1)
        try:
            lab.get("/hangs")
        except Exception as error:
            print(type(error).__name__, flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("RequestTimeout\nend\n", "")


# The package


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'fastapi', 'pandas', 'sqlalchemy', 'matplotlib'}"
    program = f"import labkit, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_package_names_what_it_has() -> None:
    assert labkit.__all__ == sorted(labkit.__all__) == dir(labkit)
    assert all(getattr(labkit, name).__name__ == name for name in labkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lab_'"):
        _ = labkit.lab_
