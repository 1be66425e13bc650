"""The cache's client against a real server that is frozen, killed, restarted, and against impostors."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import re
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hiredis import Reader
from redis.exceptions import DataError

from labkit.cache._debts import Debts
from labkit.cache._link import _NOTHING, Link
from labkit.cache.breaker import Breaker
from labkit.cache.client import CacheClient, Unavailable, finished, grave_of, token_of
from labkit.cache.events import Event
from labkit.errors import CacheError
from labkit.services import redis
from labkit.services.redis import RedisServer

pytestmark = pytest.mark.anyio
PATIENT = 5.0  # a timeout for tests in which nothing may fail on a busy machine


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One that nobody breaks."""
    with redis.start() as running:
        yield running


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[RedisServer]:
    """One to be broken; it keeps its data over a restart."""
    with redis.start(tmp_path / "redis", appendonly=True) as running:
        yield running


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[CacheClient]:
    async with CacheClient(server.url, timeout=PATIENT) as made:
        await made.call("FLUSHALL")
        yield made


async def closed(client: CacheClient, within: float = 1.0) -> None:
    """Go on asking until the breaker is closed."""
    limit = time.monotonic() + within
    while client.breaker.state != "closed":
        await client.get("anything")
        await asyncio.sleep(0.005)
        assert time.monotonic() < limit, client.breaker.changes


async def connections(client: CacheClient) -> int:
    return len((await client.call("CLIENT", "LIST", "TYPE", "NORMAL")).splitlines())


# Well


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1, 2.5, None]}, {1: (2, 3)}, b"\0\xff", {1, 2}])
async def test_values_come_back(client: CacheClient, value: Any) -> None:
    assert await client.get("k") is None
    assert not await client.exists("k")
    assert await client.set("k", value, ttl=60)
    back = await client.get("k")
    assert back == value
    assert type(back) is type(value)
    assert await client.exists("k")
    assert 55 < await client.call("TTL", "k") <= 60
    assert await client.delete("k", "other")
    assert not await client.delete("k")
    assert not await client.delete()
    assert not await client.exists("k")


def test_plain_functions_have_the_same(server: RedisServer) -> None:
    client = CacheClient(server.url, timeout=PATIENT)
    assert client.sync.set("plain", {"a": (1,)}, ttl=60)
    assert client.sync.get("plain") == {"a": (1,)}
    assert client.sync.exists("plain")
    assert client.sync.delete("plain")
    assert not client.sync.delete("plain")
    assert client.sync.get("plain") is None
    assert finished(client.sync.commands.block(0.05, "XREAD", "BLOCK", 50, "STREAMS", "none", "0")) in (None, [])
    with pytest.raises(CacheError, match="ttl=0"):
        client.sync.set("plain", 1, ttl=0)
    client.sync.commands.close()


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, True, None, "60", 1e300])
async def test_a_life_that_is_none_is_refused(client: CacheClient, ttl: Any) -> None:
    with pytest.raises(CacheError, match=r"ttl=.*300"):
        await client.set("k", 1, ttl=ttl)
    assert not await client.exists("k")


async def test_a_life_may_be_short(client: CacheClient) -> None:
    assert await client.set("k", 1, ttl=0.0001)
    await asyncio.sleep(0.02)
    assert await client.get("k") is None


async def test_what_others_left_is_a_miss(client: CacheClient) -> None:
    await client.write("k", b"\x80\x04 not ours", 60)
    assert await client.get("k") is None
    await client.call("LPUSH", "list", "a")
    assert await client.get("list") is None
    assert client.breaker.closed, "a refusal is an answer"


@pytest.mark.parametrize("sync", [False, True])
async def test_scripts_are_sent_once_and_again_when_lost(client: CacheClient, sync: bool) -> None:
    commands: Any = client.sync.commands if sync else client
    script = f"return {{KEYS[1], ARGV[1], {random.random()}}}"
    for _ in range(2):
        assert (await commands.run(script, ("key",), (7,)))[:2] == [b"key", b"7"]
    await client.call("SCRIPT", "FLUSH")
    assert (await commands.run(script, ("key",), ("x",)))[:2] == [b"key", b"x"]
    with pytest.raises(Unavailable, match="broken"):
        await commands.run("return redis.error_reply('ERR broken')")
    assert client.breaker.closed


def test_addresses(fragile: RedisServer) -> None:
    async def use(url: str | Callable[[], str]) -> bool:
        async with CacheClient(url, timeout=PATIENT) as client:
            return await client.set("k", 1) and await client.get("k") == 1 and client.sync.get("k") == 1

    assert asyncio.run(use(fragile.socket_url))
    assert asyncio.run(use(lambda: fragile.url))
    assert asyncio.run(use(fragile.url.replace("/0", "/3")))
    admin = CacheClient(fragile.url, timeout=PATIENT)
    assert finished(admin.sync.commands.call("CONFIG", "SET", "requirepass", "secret"))
    assert asyncio.run(use(fragile.url.replace("//", "//:secret@")))
    assert not asyncio.run(use(fragile.url)), "without the password it is a cache that holds nothing"
    admin.sync.commands.close()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "127.0.0.1:6379", "redis+claster://x", "redis://[::1", "redis://h:port", "unix"]
)
async def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(CacheError, match=re.escape(url)):
        CacheClient(url)
    with pytest.raises(CacheError, match="unix://"):
        await CacheClient(lambda: url).get("k")


@pytest.mark.parametrize(
    "url", ["unix:///no/such/socket", "redis://.x", "rediss://127.0.0.1:1", "redis+cluster://127.0.0.1:1"]
)
async def test_addresses_where_nobody_answers(url: str) -> None:
    async with CacheClient(url, breaker=Breaker(recovery=60)) as client:
        assert await client.get("k") is None
        assert client.breaker.state == "open"
    client = CacheClient(url, breaker=Breaker(recovery=60))
    assert client.sync.get("k") is None
    assert client.breaker.state == "open"


async def test_no_address_yet() -> None:
    given: list[Any] = []
    client = CacheClient(lambda: given[0] if given else None)  # type: ignore[arg-type,return-value]
    assert await client.get("k") is None
    assert client.sync.get("k") is None
    assert client.breaker.closed, "there is nothing to be found back"


# Many at once


async def test_many_share_one_connection(client: CacheClient) -> None:
    await asyncio.gather(*(client.write(f"k{i}", b"%d" % i, 60) for i in range(500)))
    answers = await asyncio.gather(*(client.read(f"k{i}") for i in range(500)))
    assert answers == [b"%d" % i for i in range(500)]
    assert await connections(client) == 1


async def test_cancelled_callers_shift_no_answers(client: CacheClient) -> None:
    """In the middle of a command, of opening, of a big answer: whoever stays gets what it asked for."""
    dice = random.Random(20)
    for i in range(50):
        await client.write(f"k{i}", b"%d:" % i + b"x" * dice.choice([1, 1_000, 300_000]), 60)

    async def ask(i: int) -> None:
        answer = await client.read(f"k{i}")
        assert answer is not None
        assert answer.startswith(b"%d:" % i)

    for round_ in range(20):
        if round_ % 5 == 0:
            await client.close()
        tasks = [asyncio.create_task(ask(dice.randrange(50))) for _ in range(60)]
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
        gone = dice.sample(tasks, 30)
        for task in gone:
            task.cancel()
        await asyncio.gather(*(task for task in tasks if task not in gone))
        await asyncio.gather(*gone, return_exceptions=True)
    assert client.breaker.closed
    assert await connections(client) == 1


@pytest.mark.parametrize("name", ["\ud800", None])
async def test_what_cannot_be_sent_shifts_no_answers(client: CacheClient, name: Any) -> None:
    for key in "ab":
        await client.set(key, key)
    with pytest.raises((UnicodeError, TypeError)):
        await client.get(name)
    with pytest.raises(DataError):
        client.sync.get(None)  # type: ignore[arg-type]
    assert await asyncio.wait_for(asyncio.gather(client.get("a"), client.get("b")), 2) == ["a", "b"]
    assert client.breaker.closed


def test_threads_wait_for_a_connection(server: RedisServer) -> None:
    client = CacheClient(server.url, timeout=PATIENT, max_connections=2)

    def work(i: int) -> bool:
        return client.sync.set(f"t{i}", i) and client.sync.get(f"t{i}") == i

    with ThreadPoolExecutor(40) as pool:
        assert all(pool.map(work, range(200)))
    assert asyncio.run(counted(server.url)) <= 3  # two, and the one that counts
    client.sync.commands.close()


async def counted(url: str) -> int:
    async with CacheClient(url, timeout=PATIENT) as client:
        return await connections(client)


async def test_blocking_commands_have_connections_of_their_own(client: CacheClient) -> None:
    async def wait() -> Any:
        return await client.block(PATIENT, "XREAD", "BLOCK", 5000, "STREAMS", "news", "0")

    waiting = [asyncio.create_task(wait()) for _ in range(3)]
    while await connections(client) < 4:
        await asyncio.sleep(0.005)
    assert await client.get("k") is None
    waiting[0].cancel()
    await client.call("XADD", "news", "*", "a", "b")
    for answer in await asyncio.gather(*waiting[1:]):
        assert answer[0][0] == b"news"
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    while await connections(client) > 1:
        await asyncio.sleep(0.005)
    assert await client.block(0.05, "XREAD", "BLOCK", 50, "STREAMS", "none", "0") is None


# Its life


def test_one_loop_after_another(server: RedisServer) -> None:
    """Without close, and no warning: conftest makes errors of them."""
    client = CacheClient(server.url, timeout=PATIENT)
    for i in range(5):
        assert asyncio.run(client.set("k", i))
        assert asyncio.run(client.get("k")) == i
    gc.collect()
    assert asyncio.run(counted(server.url)) == 1


async def test_a_loop_in_another_thread_takes_over(client: CacheClient) -> None:
    await client.set("k", 1)
    assert await asyncio.to_thread(lambda: asyncio.run(client.get("k"))) == 1
    assert await client.get("k") == 1
    assert await connections(client) == 1


async def test_loops_at_once_do_not_disturb_one_another(client: CacheClient) -> None:
    """As a cell's loop and the Lab's: neither breaks the other's connection off in the middle of a fill."""
    start = threading.Barrier(2)

    async def many() -> set[Any]:
        await asyncio.to_thread(start.wait)
        return {await client.get("k") for _ in range(200)}

    async def served() -> int:
        found = re.search(rb"total_connections_received:(\d+)", await client.call("INFO", "stats"))
        return int(found[1]) if found else 0

    await client.set("k", 1)
    before = await served()
    assert await asyncio.gather(many(), asyncio.to_thread(lambda: asyncio.run(many()))) == [{1}, {1}]
    assert await served() - before == 1 and client.breaker.closed


async def test_closed_and_used_again(client: CacheClient) -> None:
    await client.set("k", 1)
    others = asyncio.all_tasks() - {client._link.task if client._link else None}
    slow = client.spawn(asyncio.sleep(60))
    client.timeout = 0.01
    await client.close()
    assert slow.cancelled()
    assert asyncio.all_tasks() == others
    client.timeout = PATIENT
    assert await client.get("k") == 1
    await client.close()
    await client.close()


async def test_a_client_that_is_forgotten_takes_its_connection_along(client: CacheClient, server: RedisServer) -> None:
    other = CacheClient(server.url, timeout=PATIENT)
    await other.set("k", 1)
    assert await connections(client) == 2
    del other
    gc.collect()
    limit = time.monotonic() + PATIENT
    while await connections(client) > 1:
        await asyncio.sleep(0.005)
        assert time.monotonic() < limit


async def test_a_blocked_loop_is_no_timeout(server: RedisServer) -> None:
    async with CacheClient(server.url, timeout=PATIENT) as client:
        await client.write("k", b"x" * 400_000, 60)  # more than one read of the socket
        link = client._link
        assert isinstance(link, Link)
        assert link._timer is not None
        link._timer.cancel()
        link._timeout, link._timer = 0.05, None
        answers = [asyncio.create_task(client.read("k")) for _ in range(5)]
        await asyncio.sleep(0)
        time.sleep(0.2)
        assert all(len(answer or b"") == 400_000 for answer in await asyncio.gather(*answers))
        assert client.breaker.closed


# Redis away


@pytest.mark.parametrize("how", ["freeze", "kill"])
async def test_away_and_back(fragile: RedisServer, how: str) -> None:
    events: list[Event] = []
    async with CacheClient(fragile.url, observer=events.append) as client:
        assert await client.set("k", 1)
        assert client.sync.get("k") == 1
        getattr(fragile, how)()
        start = time.perf_counter()
        assert await client.get("k") is None
        assert time.perf_counter() - start < 0.5  # 0.05 on a machine of one's own
        assert client.breaker.state == "open"
        start = time.perf_counter()
        for _ in range(250):
            assert await client.get("k") is None
            assert not await client.exists("k")
            assert client.sync.get("k") is None
        assert time.perf_counter() - start < 0.75  # a thousand waits would be 50 s
        with pytest.raises(Unavailable):
            await client.read("k")
        with pytest.raises(Unavailable):
            await client.block(1, "XREAD", "BLOCK", 1000, "STREAMS", "s", "0")
        await asyncio.sleep(0.3)
        await client.get("k")  # one probe, in vain
        await asyncio.sleep(0.1)
        assert client.breaker.state == "open"
        {"freeze": fragile.thaw, "kill": fragile.restart}[how]()
        await closed(client)
        assert await client.get("k") == 1
        assert client.sync.get("k") == 1
        states = [event.detail.split()[0] for event in events]
        assert states[0] == "open"
        assert states[-2:] == ["half_open", "closed"]
        assert {event.kind for event in events} == {"breaker"}
    assert "labkit-cache-probe" not in {thread.name for thread in threading.enumerate()}


async def test_a_restart_that_nobody_noticed_costs_nothing(fragile: RedisServer) -> None:
    async with CacheClient(fragile.url, timeout=PATIENT) as client:
        assert await client.set("k", 1)
        fragile.restart()
        await asyncio.sleep(0.01)
        assert await client.get("k") == 1
        assert not client.breaker.changes


async def test_answers_that_come_too_late_reach_nobody(fragile: RedisServer) -> None:
    async with CacheClient(fragile.url) as client:
        for name in "abc":
            await client.set(name, name)
        for _ in range(3):
            fragile.freeze()
            assert await asyncio.gather(client.get("a"), client.get("b")) == [None, None]
            fragile.thaw()
            await closed(client)
            assert [await client.get(name) for name in "cab"] == list("cab")
            assert [client.sync.get(name) for name in "cab"] == list("cab")


def test_plain_functions_first(fragile: RedisServer) -> None:
    client = CacheClient(fragile.url)
    assert client.sync.set("a", "a")
    assert client.sync.set("b", "b")
    fragile.freeze()
    assert client.sync.get("a") is None
    assert not client.sync.delete("b")
    assert client.breaker.state == "open"
    fragile.thaw()
    limit = time.monotonic() + 1
    while not client.breaker.closed and time.monotonic() < limit:
        client.sync.get("a")
        time.sleep(0.005)
    assert [client.sync.get(name) for name in "ba"] == [None, "a"]
    client.sync.commands.close()


async def test_what_one_thread_finds_out_goes_for_all(fragile: RedisServer) -> None:
    async with CacheClient(fragile.url, breaker=Breaker(recovery=60)) as client:
        blocked = asyncio.create_task(client.block(30, "XREAD", "BLOCK", 30_000, "STREAMS", "s", "0"))
        await client.set("k", 1)
        fragile.freeze()
        assert await asyncio.to_thread(client.sync.get, "k") is None
        assert client.breaker.state == "open"
        fragile.thaw()
        assert await client.get("k") is None, "no connection from before is used"
        with pytest.raises(Unavailable):
            await asyncio.wait_for(blocked, PATIENT)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n+OK\r\n", b"$-9\r\n", b""])
async def test_impostors(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        await writer.drain()
        writer.close()

    impostor = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with impostor:
        port = impostor.sockets[0].getsockname()[1]
        async with CacheClient(f"redis://127.0.0.1:{port}/0", breaker=Breaker(recovery=60)) as client:
            assert await client.get("k") is None
            assert await client.get("k") is None
            assert client.sync.get("k") is None


async def test_what_is_big_takes_longer_as_long_as_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of 10 MB that is on its way is no failure; one that stops is, and so is silence."""
    now, unsent = 0.0, 0
    looks: list[float] = []
    loop = SimpleNamespace(
        time=lambda: now, call_at=lambda when, *_: looks.append(when), create_future=asyncio.Future, is_closed=bool
    )
    transport = SimpleNamespace(write=lambda data: None, get_write_buffer_size=lambda: unsent)
    for sent, part, ends in ((b"", 0, 1.0), (b"x" * 10**7, 0, 1.2), (b"", 1, 4.0), (b"x" * 10**7, 2, 4.2)):
        link = Link.__new__(Link)
        link.__dict__ |= {"loop": loop, "_transport": transport, "_timeout": 1.0, "_timer": None, "closed": False}
        link.__dict__ |= {"_reader": Reader(notEnoughData=_NOTHING), "_waiting": deque(), "_under_way": (0, 0)}
        closed: list[str] = []
        monkeypatch.setattr(Link, "close", lambda self, reason, closed=closed: closed.append(reason))
        now = 0.0
        link.ask(("SET", "k", sent))
        for step in range(10):
            if closed:
                break
            if step < 3 and part == 1:
                link.data_received(b"$100\r\n" if step == 0 else b"12345678")
            unsent = (3 - min(step, 3)) * 1000 if part == 2 else 0
            now = looks.pop()
            link._look(now)
        assert closed == ["timeout"] and now == pytest.approx(ends, abs=0.01), (len(sent), part)


# Invalidations


async def test_forget_takes_the_token_along(client: CacheClient) -> None:
    for name in ("a", token_of("a"), "b", "{c}:d", token_of("{c}:d")):
        await client.write(name, b"1", 60)
    assert await client.forget(["a", "{c}:d", "none"])
    assert await client.call("KEYS", "*") == [b"b"]
    assert token_of("{c}:d") == "{c}:d:fill"  # the slot is that of the key


async def tag(client: CacheClient, *keys: str) -> None:
    await client.call("ZADD", "tag", *(word for key in keys for word in (1, key)))


@pytest.mark.parametrize("words", [("SET", "tag", "theirs"), ("ZADD", "tag", 1, b"\xff"), ("SADD", "tag", "a")])
async def test_what_others_keep_under_a_tags_name_does_no_harm(client: CacheClient, words: tuple[Any, ...]) -> None:
    await client.call(*words)
    assert await client.forget(tags=["tag"])
    assert client.breaker.closed


async def test_what_is_tagged_anew_while_its_tag_is_invalidated_keeps_it(client: CacheClient) -> None:
    await tag(client, "a", "b")
    unlink = client.unlink

    async def meanwhile(names: Sequence[str]) -> int:
        await client.call("ZADD", "tag", await moment(client), "a")
        return await unlink(names)

    client.unlink = meanwhile  # type: ignore[method-assign]
    assert await client.forget(tags=["tag"])
    assert await client.call("ZRANGE", "tag", 0, -1) == [b"a"]


async def test_forget_a_tag(client: CacheClient) -> None:
    keys = [f"k{i}" for i in range(1200)]
    for key in keys:
        await client.write(key, b"1", 60)
        await client.write(token_of(key), b"1", 60)
    await tag(client, *keys)
    before = await moment(client)
    assert await client.forget(tags=["tag"])
    assert await client.call("KEYS", "*") == [grave_of("tag").encode()]
    assert before <= int(await client.read(grave_of("tag")) or 0) <= await moment(client)


async def moment(client: CacheClient) -> int:
    seconds, micros = await client.call("TIME")
    return int(seconds) * 1_000_000 + int(micros)


async def test_missed_invalidations_are_done_before_anything_is_read(fragile: RedisServer) -> None:
    async with CacheClient(fragile.url) as client:
        for name in ("a", "b", "c", "d", "kept", token_of("a")):
            await client.set(name, "old")
        await tag(client, "b")
        fragile.freeze()
        assert not await client.forget(["a"], ["tag"])
        assert not await client.delete("c")
        assert not client.sync.delete("nothing")
        assert not await client.set("d", "new")
        fragile.thaw()
        seen = set()
        while client.breaker.state != "closed":
            seen |= {await client.get(name) for name in "abcd"}
        assert seen == {None}
        assert [await client.get(name) for name in "abcd"] == [None] * 4
        assert await client.get("kept") == "old"
        assert not await client.exists(token_of("a"))
        assert await client.exists(grave_of("tag"))


async def test_a_cancelled_invalidation_is_done_all_the_same(client: CacheClient) -> None:
    await client.set("k", "old")
    await client.close()  # so that it has to open first
    task = asyncio.create_task(client.forget(["k"]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    limit = time.monotonic() + PATIENT
    while await client.exists("k"):
        assert time.monotonic() < limit
    assert not client.breaker.changes


def test_an_invalidation_that_its_loop_did_not_survive_is_owed(fragile: RedisServer) -> None:
    client = CacheClient(fragile.url, timeout=PATIENT)
    asyncio.run(client.set("k", "old"))

    async def begin() -> None:
        fragile.freeze()
        client.spawn(client.forget(["k"]))
        await asyncio.sleep(0.01)

    asyncio.run(begin())
    assert client.breaker.state == "open"
    fragile.thaw()
    assert asyncio.run(client.get("k")) is None
    asyncio.run(closed(client, within=3))
    assert asyncio.run(client.get("k")) is None


async def test_more_than_can_be_remembered(fragile: RedisServer) -> None:
    async with CacheClient(fragile.url) as client:
        client.prefixes.add("us*er:")
        client._debts._bound = 10
        for name in ("us*er:1", token_of("us*er:99"), "user:1", "other"):
            await client.set(name, "old")
        fragile.freeze()
        for i in range(20):
            assert not await client.forget([f"us*er:x{i}"], [f"tag{i}"])
        assert not await client.delete("other")
        assert len(client._debts.keys | client._debts.tags) <= 11
        fragile.thaw()
        await closed(client)
        left = await client.call("KEYS", "*")
        assert [name for name in left if b"gone" not in name] == [b"user:1"]


async def test_a_full_redis_refuses_and_keeps_nothing_old(fragile: RedisServer) -> None:
    async with CacheClient(fragile.url, timeout=PATIENT) as client:
        assert await client.set("k", "old")
        await client.call("CONFIG", "SET", "maxmemory", 1)
        assert not await client.set("k", "new")
        assert await client.get("k") is None
        assert not client.breaker.changes


async def test_debts_that_cannot_be_paid_are_owed_still(client: CacheClient) -> None:
    debts = Debts(threading.Lock(), set())
    assert not debts
    debts.add(["a"], ["tag"])

    class Refusing(CacheClient):
        async def call(self, *words: Any) -> Any:
            debts.add(["late"], [])
            raise Unavailable("READONLY")

    with pytest.raises(Unavailable):
        await debts.pay(Refusing(), None)
    assert debts.keys == {"a", "late"}
    assert debts.tags == {"tag"}


# A cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A cluster of one node that has all the slots."""
    binary = redis._binary()
    assert binary is not None
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1] % 50_000 + 5_000
    words = f"--port {port} --bind 127.0.0.1 --cluster-enabled yes --save '' --dir {tmp_path} --cluster-port {port + 1}"
    process = subprocess.Popen([str(binary), *words.replace("''", "").split()], stdout=subprocess.DEVNULL)
    try:
        admin = CacheClient(f"redis://127.0.0.1:{port}", timeout=PATIENT, breaker=Breaker(recovery=0))
        commands, limit = admin.sync.commands, time.monotonic() + 20
        slots: Any = None
        while slots != b"ok" and time.monotonic() < limit:
            try:
                if slots is None:
                    finished(commands.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383))
                info = finished(commands.call("CLUSTER", "INFO"))
                slots = b"ok" if "cluster_state:ok" in str(info) or "'cluster_state': 'ok'" in str(info) else b""
            except Unavailable:
                time.sleep(0.02)
        assert slots == b"ok"
        commands.close()
        yield f"redis+cluster://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def test_a_cluster(cluster: str) -> None:
    async with CacheClient(cluster, timeout=PATIENT) as client:
        assert await client.set("a", {1: (2,)})
        assert await client.get("a") == {1: (2,)}
        assert client.sync.get("a") == {1: (2,)}
        assert client.sync.set("b", 1)
        assert await client.exists("b")
        assert await client.run("return redis.call('GET', KEYS[1]) and ARGV[1]", ("b", token_of("b")), ("x",)) == b"x"
        await tag(client, "a", "b")
        assert await client.forget(["c", "d"], ["tag"])
        assert not await client.exists("a")
        assert not client.sync.exists("b")
        assert client.sync.set("b", 1)
        assert finished(client.sync.commands.forget(["b"], ["tag"]))
        assert not await client.exists("b")
        waiting = asyncio.create_task(client.block(PATIENT, "XREAD", "BLOCK", 5000, "STREAMS", "news", "0"))
        await asyncio.sleep(0.1)
        await client.call("XADD", "news", "*", "a", "b")
        assert await waiting
    # Away: an invalidation is missed, and done by the probe, node by node.
    async with CacheClient(cluster, breaker=Breaker(recovery=0.05)) as client:
        client.prefixes.add("p:")
        client.timeout = PATIENT
        assert await client.set("p:1", "old")
        client.owe(["p:2"], [], "test")
        client._debts.add([], [], everything=True)
        assert await client.get("p:1") is None
        await closed(client, within=PATIENT)
        assert await client.get("p:1") is None
        assert not client._debts
