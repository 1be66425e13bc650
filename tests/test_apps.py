"""The application itself: its start and end, and how it is found by its name."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from labkit.asgi import Lifespan, call, load_app
from labkit.errors import AppError


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def lifespan_app(*, at_start: Callable[[], Any] = lambda: None, at_end: Callable[[], Any] = lambda: None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        at_start()
        yield {"answer": 42}
        at_end()

    app = FastAPI(lifespan=lifespan)

    @app.get("/state")
    async def state(request: Request) -> int:
        request.state.mine = 1
        return request.state.answer  # type: ignore[no-any-return]

    return app


def test_lifespan_state_reaches_the_requests() -> None:
    steps: list[str] = []

    async def work() -> None:
        app = lifespan_app(at_start=lambda: steps.append("start"), at_end=lambda: steps.append("end"))
        async with Lifespan(app) as lifespan:
            assert (await call(app, "GET", "/state", state=lifespan.state)).json == 42
            assert lifespan.state == {"answer": 42}  # a request changes its own copy
            steps.append("request")

    run(work())
    assert steps == ["start", "request", "end"]


def test_an_application_without_a_lifespan_is_fine() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    async def work() -> None:
        async with Lifespan(bare) as lifespan:
            assert lifespan.state == {}

    run(work())


def test_a_lifespan_that_fails_is_told_in_the_learners_lines() -> None:
    def fail() -> None:
        raise ConnectionError("no queue")

    async def work(app: FastAPI) -> None:
        async with Lifespan(app):
            pass

    with pytest.raises(AppError, match=r"(?s)no arrancó.*test_apps.py.*no queue") as start:
        run(work(lifespan_app(at_start=fail)))
    assert "site-packages" not in str(start.value)
    with pytest.raises(AppError, match=r"(?s)al terminar.*no queue"):
        run(work(lifespan_app(at_end=fail)))


# Finding the application


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    files = {
        "labfound.py": "from fastapi import FastAPI\napp = FastAPI()\nclass box:\n    app = app\n"
        "def create_app():\n    return app\ndef wsgi(environ, start_response): ...\nnumber = 3\n",
        "labbroken.py": "value = {}\nvalue['missing']\n",
        "labneeds.py": "import a_module_that_is_not_there\n",
        "labexits.py": "import sys\nsys.exit('no settings')\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_an_application_is_found_by_its_name(package: Path) -> None:
    assert load_app("labfound:app") is load_app("labfound:box.app") is sys.modules["labfound"].app


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("labfound", "paquete.modulo:atributo"),
        ("labnowhere:app", "No existe el módulo «labnowhere»"),
        ("labnowhere.deep:app", "No existe el módulo «labnowhere.deep»"),
        ("labneeds:app", "(?s)No pude importar.*labneeds.py:1.*a_module_that_is_not_there"),
        ("labbroken:app", "(?s)No pude importar.*labbroken.py:2.*value.*KeyError: 'missing'"),
        ("labexits:app", "(?s)No pude importar.*no settings"),
        ("labfound:ap", "no tiene «ap».*app"),
        ("labfound:number", "es int, no una aplicación ASGI"),
        ("labfound:create_app", "función que crea la aplicación"),
        ("labfound:wsgi", "WSGI"),
        ("labfound:FastAPI", "clase"),
    ],
)
def test_a_wrong_name_is_explained(package: Path, target: str, says: str) -> None:
    with pytest.raises(AppError, match=says):
        load_app(target)
