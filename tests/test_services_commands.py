"""What a Redis receives, seen as redis-cli monitor shows it; commands of one's own; servers that are not ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as client
from fastapi import FastAPI

from labkit import Lab
from labkit.errors import ServiceError
from labkit.services import commands, redis
from labkit.services.commands import Command
from labkit.services.redis import GivenRedis, RedisServer


@pytest.fixture(params=["real", "fake", "given"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server itself, fakeredis, and the server as one of the user's own."""
    monkeypatch.setenv("LABKIT_FAKE_REDIS", "1" if request.param == "fake" else "0")
    with redis.start() as started:
        yield GivenRedis(started.url) if request.param == "given" else started


@pytest.fixture
def real() -> Iterator[RedisServer]:
    with redis.start() as started:
        yield started


@pytest.fixture
def plain(server: Any) -> Iterator[client.Redis]:
    """Somebody else's connection."""
    with client.Redis.from_url(server.url, protocol=2, driver_info=None) as connection:
        yield connection


def test_sees_what_is_sent_and_nothing_else(server: Any, plain: client.Redis) -> None:
    plain.set("before", 1)
    with server.monitor() as seen:
        plain.set("user:7", b'a "quoted" \\ word', ex=60)
        plain.get("user:7")
    plain.get("after")
    assert [one.words for one in seen.commands] == [
        ("SET", "user:7", 'a "quoted" \\ word', "EX", "60"),
        ("GET", "user:7"),
    ]
    assert [one.key for one in seen.commands] == ["user:7", "user:7"]
    assert not seen.cut
    assert len({one.client for one in seen.commands}) == 1
    assert all(one.client.startswith("127.0.0.1:") for one in seen.commands)


def test_may_be_looked_at_inside_the_block_and_used_again(server: Any, plain: client.Redis) -> None:
    monitor = server.monitor()
    with monitor as seen:
        assert len(seen) == 0
        assert "0" in repr(seen)
        plain.append("n", "1")
        assert [one.name for one in seen.commands] == ["APPEND"]
        plain.append("n", "1")
        assert len(seen) == 2
    with monitor as seen:
        plain.get("n")
    assert [str(one).partition("] ")[2] for one in seen.commands] == ['"GET" "n"']


def test_tables_cards_and_lines(server: Any, plain: client.Redis) -> None:
    with server.monitor() as seen:
        assert "recibió Redis: 0" in seen._repr_html_()
        for i in range(25):
            plain.set(f"<k{i}>", "x" * 1000)
        plain.ping()
    frame = seen.df
    assert list(frame.columns) == ["time", "client", "command", "key", "arguments"]
    assert list(frame["command"]) == ["SET"] * 25 + ["PING"]
    assert frame["key"][3] == "<k3>"
    assert str(frame["time"].dt.tz) == "UTC"
    assert frame["time"].is_monotonic_increasing
    assert len(frame["arguments"][0]) < 250, "long words are cut"
    assert repr(seen).startswith("Comandos que recibió Redis: 26")
    assert len(repr(seen).splitlines()) == 1 + commands.SHOWN + 1
    card = seen._repr_html_()
    assert "&lt;k0&gt;" in card
    assert "<k0>" not in card
    assert "En .df hay más: 6." in card
    assert json.dumps(card)


def test_bytes_that_are_no_text(server: Any, plain: client.Redis) -> None:
    with server.monitor() as seen:
        plain.set("k", b"\x00\xff\n")
    assert seen.commands[0].words[2] in ("\\x00\\xff\\n", "\\x00\\xff\\x0a")


def test_commands_of_ones_own(server: Any) -> None:
    assert server.command("SET", "user:ñ", "año", "EX", 60)
    assert server.command("GET", "user:ñ") == "año"
    assert 55 < server.command("TTL", "user:ñ") <= 60
    assert server.command("GET", "none") is None
    assert server.command("KEYS", "*") == ["user:ñ"]
    server.command("SET", "bytes", b"\xff")
    assert server.command("GET", "bytes") == "\\xff"
    with pytest.raises(ServiceError, match="NOSUCH thing"):
        server.command("NOSUCH", "thing")
    with pytest.raises(ServiceError, match="None"):
        server.command("GET", None)
    with pytest.raises(ServiceError):
        server.command()


def test_a_script_and_what_it_runs(real: RedisServer) -> None:
    with real.monitor() as seen:
        assert real.command("EVAL", "return redis.call('GET', KEYS[1])", 1, "user:7") is None
    assert [(one.name, one.key) for one in seen.commands] == [("EVAL", "user:7"), ("GET", "user:7")]
    assert seen.commands[1].client == "lua"


def test_over_the_socket(real: RedisServer) -> None:
    with client.Redis.from_url(real.socket_url) as plain, real.monitor() as seen:
        plain.get("k")
    assert seen.commands[-1].client == "unix", "a path of the machine has no place in a notebook"


def test_a_server_that_restarts_meanwhile(real: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SECONDS", 0.5)
    with real.monitor() as seen:
        real.restart()
    assert seen.cut


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_server_that_goes_away_meanwhile(real: RedisServer, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SECONDS", 0.2)
    with real.monitor() as seen:
        real.command("SET", "k", "v")
        assert len(seen) == 1
        getattr(real, how)()
    assert seen.cut
    assert [one.name for one in seen.commands] == ["SET"]
    assert "cortó" in seen._repr_html_()
    assert "cortó" in repr(seen)
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1"), real.monitor():
        pass
    with pytest.raises(ServiceError, match="GET k"):
        real.command("GET", "k")


def test_a_fake_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_FAKE_REDIS", "1")
    with redis.start() as fake:
        fake.kill()
        with pytest.raises(ServiceError), fake.monitor():
            pass
        with pytest.raises(ServiceError):
            fake.command("PING")


def test_a_server_that_is_not_ours_is_left_alone() -> None:
    given = GivenRedis("redis://ana:secret@redis.example:6380/2")
    actions: list[Callable[[], object]] = [given.freeze, given.thaw, given.kill, given.restart, given.stop]
    for action in actions:
        with pytest.raises(ServiceError, match=r"redis\.example:6380") as caught:
            action()
        assert "secret" not in str(caught.value)
    assert "secret" not in repr(given)


def test_a_password_stays_where_it_is() -> None:
    with pytest.raises(ServiceError) as caught:
        GivenRedis("redis://:secret@127.0.0.1:1/0").command("GET", "k")
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("GET k", "k"),
        ("get k", "k"),
        ("PING", ""),
        ("KEYS user:*", ""),
        ("EVALSHA f0 2 a b x", "a"),
        ("EVALSHA f0 0 x", ""),
        ("XREAD BLOCK 5 STREAMS s 0", "s"),
        ("XREAD", ""),
        ("GET", ""),
    ],
)
def test_the_key_of_a_command(words: str, key: str) -> None:
    assert Command(0.0, "lua", tuple(words.split())).key == key


def test_in_a_lab(real: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def asking() -> FastAPI:
        app = FastAPI()
        app.state.redis_url = None

        @app.get("/count")
        async def count() -> int:
            async with client.asyncio.Redis.from_url(app.state.redis_url) as redis:
                return int(await redis.incrby("count", 1))

        return app

    with Lab(asking()) as lab:
        assert lab.redis is not None
        with lab.redis.monitor() as seen:
            assert lab.get("/count").json == 1
        assert "INCRBY" in set(seen.df["command"])
        assert lab.redis.command("GET", "count") == "1"
    monkeypatch.setenv("REDIS_URL", real.url)
    with Lab(asking()) as lab:
        assert isinstance(lab.redis, GivenRedis)
        assert lab.get("/count").json == 1
        assert lab.redis.command("GET", "count") == "1"
        with pytest.raises(ServiceError):
            lab.redis.freeze()
    assert real.command("GET", "count") == "1"
