"""The Lab: any application, its services, its measurements, its end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

import labkit
from labkit import Lab
from labkit._client import Client
from labkit.blog import create_app
from labkit.errors import AppError, MeasurementError, RequestError, RequestTimeout
from tests.labs import plain, with_lifespan

# Requests


def test_every_verb_and_option() -> None:
    with Lab(plain()) as lab:
        verbs = (lab.get, lab.post, lab.put, lab.patch, lab.delete)
        assert [verb("/method").json for verb in verbs] == ["GET", "POST", "PUT", "PATCH", "DELETE"]
        assert lab.request("put", "/method").json == "PUT"
        assert lab.get("/async", params={"n": 7}).json == 7


def test_unusable_requests_are_explained() -> None:
    with Lab(plain()) as lab:
        with pytest.raises(RequestError, match=r"no tiene la opción data, timeout\. Tiene: params, headers, json"):
            lab.post("/method", data={}, timeout=3)
        with pytest.raises(RequestError, match="no empieza con"):
            lab.get("async")
        assert "/async" in repr(lab.get("/asinc"))
        with pytest.raises(RequestError, match=r"(?s)GET /asinc respondió 404.*/async"):
            lab.queries("/asinc")
        with pytest.raises(RequestError, match=r"(?s)GET /raises respondió 500.*labs.py.*ZeroDivisionError"):
            lab.queries("/raises")
        with pytest.raises(RequestError, match="no tiene la opción data"):
            lab.queries("/async", data={})
        for measure in (lab.queries, lab.profile, lab.lines, lab.memory):
            with pytest.raises(RequestError, match=r"(?s)GET /async\?n=x respondió 422.*int_parsing"):
                measure("/async?n=x")
            with pytest.raises(RequestError, match="POST /async respondió 405"):
                measure("/async", method="POST")


def test_a_request_has_a_time_limit_and_the_next_one_works() -> None:
    with Lab(plain(), time_limit=0.1) as lab:
        with pytest.raises(RequestTimeout, match="GET /hangs no terminó en 100 ms"):
            lab.get("/hangs")
        assert lab.get("/async").json == 1 and not lab.tainted
    for bad in (0, "x", None):
        with pytest.raises(RequestError, match=f"límite de tiempo {bad!r}"):
            Lab(plain(), time_limit=bad)  # type: ignore[arg-type]


def test_a_limit_holds_for_each_request_of_a_job_and_for_the_job() -> None:
    async def some(client: Client) -> list[Any]:
        calls = [client.call("GET", path) for path in ("/async", "/hangs", "/async")]
        return await asyncio.gather(*calls, return_exceptions=True)

    async def after(client: Client) -> Any:
        try:
            await client.call("GET", "/hangs")
        except RequestTimeout:
            task = asyncio.current_task()
            assert task is not None and not task.cancelling()  # the job itself was not cancelled
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


def test_latency_is_said_only_of_statements(blog: Lab) -> None:
    assert blog.queries("/performance/fast-endpoint").latency_ms == 0.5
    assert blog.queries("/health/").latency_ms == 0 == blog.load("/health/", requests=3).latency_ms
    with pytest.raises(MeasurementError, match="True"):
        blog.latency(True)


def test_profilers_and_comparison_are_at_hand(blog: Lab) -> None:
    path = "/performance/fast-endpoint"
    assert blog.profile(path).wall > 0
    assert len(blog.lines(path).df) and len(blog.memory(path).df)
    comparison = blog.compare("/performance/slow-endpoint?sleep_ms=0", path, seconds=12)
    assert comparison.same_body and comparison.latency_ms == 0.5
    assert (comparison.statements_a, comparison.statements_b) == (1051, 2)
    assert blog.load("/health/", requests=20).requests == 20


def test_a_plan_is_explained(blog: Lab) -> None:
    plan = blog.explain("SELECT * FROM posts WHERE author_id = :a", {"a": 1})
    assert plan.text and "sqlite" in str(blog.database_url) and blog.engine.dialect.name == "sqlite"


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite"])
def test_a_statement_of_a_report_is_explained_wherever_it_ran(driver: str, tmp_path: Path) -> None:
    app, url = FastAPI(), f"{driver}:///{tmp_path / 'shop.sqlite3'}"
    if driver == "sqlite":
        engine = create_engine(url)

        @app.get("/one")
        def one() -> Any:
            with engine.connect() as connection:
                return connection.scalar(text("SELECT name FROM sqlite_master WHERE name = :n"), {"n": "x"})

    else:
        other = create_async_engine(url)

        @app.get("/one")
        async def one_async() -> Any:
            async with other.connect() as connection:
                return await connection.scalar(text("SELECT name FROM sqlite_master WHERE name = :n"), {"n": "x"})

        app.router.add_event_handler("shutdown", other.dispose)
    with Lab(app) as lab:
        (statement,) = lab.queries("/one").statements
        assert "sqlite_master" in lab.explain(statement).text
        with pytest.raises(MeasurementError, match=r"app\.state\.engine"):
            lab.explain("SELECT 1")
        if driver != "sqlite":
            app.state.engine = other
            assert "CONSTANT" in lab.explain("SELECT 1").text


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


def test_in_ipython_an_error_is_the_learners_own_lines_and_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell: Any = InteractiveShell.instance()
    try:
        with Lab(plain()) as shell.user_ns["lab"]:
            shell.run_cell("def ask():\n    return lab.queries('/asinc')", store_history=True)
            capsys.readouterr()
            shell.run_cell("ask()", store_history=True)
            shown = capsys.readouterr().out.splitlines()
            assert shown[:4] == [
                "celda [2], línea 1, en <module>",
                "    ask()",
                "celda [1], línea 2, en ask",
                "    return lab.queries('/asinc')",
            ]
            assert shown[4] == "RequestError: No hay nada que medir: GET /asinc respondió 404." and len(shown) == 6
            shell.run_cell("lab.post('/method', data=1)\n")
            assert len(capsys.readouterr().out.splitlines()) == 3
    finally:
        InteractiveShell.clear_instance()
