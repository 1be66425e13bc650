"""What a Lab gives its application: servers, addresses, data."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, text

from labkit import Lab
from labkit.blog import create_app
from labkit.errors import AppError, ServiceError
from tests.labs import alive, asking, with_lifespan


def test_an_empty_place_is_filled_before_the_start() -> None:
    app = asking(redis_url=None, database_url=None)
    with Lab(app, database_url="sqlite:///mine.sqlite3") as lab:
        assert lab.redis is not None and lab.get("/state").json == [lab.redis.url, "sqlite:///mine.sqlite3"]
        pid = lab.redis.pid
    assert app.state.redis_url is None  # the next Lab fills it anew
    assert pid is None or not alive(pid)


def test_a_place_that_is_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab(asking(redis_url="redis://mine", database_url="sqlite://")) as lab:
        assert lab.redis is None and lab.get("/state").json == ["redis://mine", "sqlite://"]
    monkeypatch.setenv("REDIS_URL", "redis://env")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///env.sqlite3")
    with Lab(asking(redis_url=None, database_url=None)) as lab:
        assert lab.redis is not None and lab.redis.url == "redis://env"
        assert lab.get("/state").json == ["redis://env", "sqlite:///env.sqlite3"]
    with Lab(asking(redis_url=None, database_url=None), redis="redis://given") as lab:
        assert lab.get("/state").json[0] == "redis://given"
    with Lab(asking(redis_url=None, database_url=None), redis=False) as lab:
        assert lab.get("/state").json[0] is None


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ({"redis": True}, "redis_url"),
        ({"redis": "redis://x"}, "redis_url"),
        ({"postgres": True}, "database_url"),
        ({"database_url": "sqlite://"}, "database_url"),
    ],
)
def test_what_an_application_leaves_no_place_for_is_not_taken_for_given(option: dict[str, Any], place: str) -> None:
    for app in (FastAPI(), asking(redis_url="redis://mine", database_url="sqlite:///mine.sqlite3")):
        with pytest.raises(AppError, match=rf"{next(iter(option))}=: escribe app\.state\.{place} = None.*modulo:app"):
            Lab(app, **option)


def test_an_application_named_by_a_string_finds_its_database_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "labenviron.py").write_text("from fastapi import FastAPI\napp = FastAPI()\n")
    with Lab("labenviron:app", database_url="sqlite:///other.sqlite3") as lab:
        assert lab.database_url == os.environ["DATABASE_URL"] == "sqlite:///other.sqlite3"


def test_the_work_folder_may_be_text(tmp_path: Path) -> None:
    with Lab(asking(redis_url=None, database_url="sqlite://"), work=str(tmp_path / "data")) as lab:
        assert lab.redis is not None
        assert lab.redis.fake or (tmp_path / "data" / "redis").is_dir()


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
    with pytest.raises(AppError, match=r"(?s)preparar sus datos.*test_supplies.py.*disk full"):
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
        assert reply.status == 500 and "No puedo conectarme a la base de datos" in reply.error
        assert "test_supplies.py" in reply.error and "secret" not in reply.error
    with pytest.raises(AppError) as caught:
        Lab(create_app(database_url="postgresql+psycopg://ana:secret@127.0.0.1:1/shop"), redis=False)
    assert "secret" not in str(caught.value) and "127.0.0.1" in str(caught.value)
    assert caught.value.__suppress_context__ and "?." not in str(caught.value)
