"""``@cached`` on functions: one run for many callers, invalidations that win, errors, and Redis away."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from labkit.cache import cached, locks
from labkit.errors import CacheError
from tests.caching import Kitchen, calls, command, start, the_kitchen, the_server  # noqa: F401 (the fixtures)


def test_a_value_is_computed_once_and_none_is_one(kitchen: Kitchen) -> None:
    @cached(key_prefix="user", client=kitchen.client, observer=kitchen.events.append)
    async def find(user_id: int, deep: bool = False) -> dict[str, int] | None:
        kitchen.runs[user_id] += 1
        return {"id": user_id} if user_id else None

    async def work() -> None:
        for _ in range(3):
            assert await find(7) == {"id": 7}
            assert await find(0) is None
        assert await find(user_id=7, deep=False) == {"id": 7}

    kitchen(work)
    assert kitchen.runs == {7: 1, 0: 1}
    assert kitchen.kinds == ["miss", "miss", "hit", "hit", "hit", "hit", "hit"]
    assert kitchen.events[0].function == "find" and kitchen.events[0].key == find.key(7) != find.key(0)
    assert find.key(7).startswith("user:find:") and find.client is kitchen.client
    assert 290 <= command(kitchen.server, "TTL", find.key(7)) <= 300
    assert command(kitchen.server, "KEYS", "*fill*") == []


def test_nobody_can_change_what_another_gets(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client)
    async def rows() -> list[int]:
        await asyncio.sleep(0.01)
        return [1]

    async def work() -> None:
        for got in await asyncio.gather(*(rows() for _ in range(5))):
            assert got == [1]
            got.append(2)

    kitchen(work)


def test_200_concurrent_misses_are_one_run(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client, observer=kitchen.events.append)
    async def slow(n: int) -> list[int]:
        kitchen.runs[n] += 1
        await asyncio.sleep(0.05)
        return [n]

    async def work() -> None:
        assert await asyncio.gather(*(slow(1) for _ in range(200))) == [[1]] * 200
        before = calls(kitchen.server)["get"]
        assert await asyncio.gather(*(slow(1) for _ in range(200))) == [[1]] * 200
        assert calls(kitchen.server)["get"] - before <= 2

    kitchen(work)
    assert kitchen.runs == {1: 1}
    assert kitchen.kinds.count("miss") == 1 and kitchen.kinds.count("hit") == 399


_CHILD = """
import asyncio, sys, time
from labkit.cache import CacheClient, cached
url, at, runs = sys.argv[1], float(sys.argv[2]), []

async def main():
    async with CacheClient(url, timeout=5.0) as client:
        @cached(client=client)
        async def shared(n: int) -> list[int]:
            runs.append(n)
            await asyncio.sleep(1)
            return [n]
        print("ready", flush=True)
        sys.stdin.readline()
        answers = await asyncio.gather(*(shared(1) for _ in range(50)))
        assert answers == [[1]] * 50
        print(len(runs))

asyncio.run(main())
"""


def test_four_processes_of_50_are_one_run_and_few_commands(kitchen: Kitchen) -> None:
    command = [sys.executable, "-c", _CHILD, kitchen.server.url, "0"]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    try:
        for child in children:
            assert child.stdout and child.stdout.readline() == "ready\n"
        before = calls(kitchen.server)
        for child in children:
            assert child.stdin
            child.stdin.write("\n")
            child.stdin.flush()
        counts = [int(child.communicate(timeout=60)[0]) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    used = calls(kitchen.server) - before
    assert sorted(counts) == [0, 0, 0, 1]
    assert used.total() <= 50, used


def test_a_dead_owner_costs_the_others_no_more_than_its_lease(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE", 0.3)

    @cached(client=kitchen.client)
    async def find(n: int) -> int:
        kitchen.runs[n] += 1
        return n

    async def work() -> None:
        await kitchen.client.call("SET", f"{{{find.key(1)}}}:fill", "of a dead process", "PX", 300)
        assert await asyncio.wait_for(find(1), 10) == 1

    kitchen(work)
    assert kitchen.runs == {1: 1}


def test_a_living_owner_keeps_its_lock_beyond_the_lease(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LEASE", 0.3)

    @cached(client=kitchen.client)
    async def slow() -> int:
        await asyncio.sleep(0.8)
        return 1

    async def work() -> None:
        await slow()
        assert await kitchen.client.exists(slow.key())

    kitchen(work)

    @cached(client=kitchen.client)
    def plain() -> int:
        time.sleep(0.8)
        return 1

    assert plain() == 1 and kitchen.client.sync.exists(plain.key())
    deadline = time.monotonic() + 5
    while any(thread.name == "labkit cache lock" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_cancelled_leader_hands_over_to_one_with_arguments_of_its_own(kitchen: Kitchen) -> None:
    ran = []

    @cached(client=kitchen.client)
    async def find(n: int, db: Session) -> int:
        ran.append(db.info["name"])
        await asyncio.sleep(0.05)
        return n

    def session(name: str) -> Session:
        return Session(info={"name": name})

    async def work() -> None:
        tasks = [asyncio.create_task(find(1, session(f"s{i}"))) for i in range(5)]
        await asyncio.sleep(0.03)
        tasks[0].cancel()
        tasks[1].cancel()  # not the heir yet, or the heir: either way the next goes on
        assert await asyncio.gather(*tasks[2:]) == [1, 1, 1]
        assert all(task.cancelled() for task in tasks[:2])
        assert await kitchen.client.exists(find.key(1))
        # The only caller: its lock is given back at once, not at the end of its lease.
        alone = asyncio.create_task(find(2, session("alone")))
        await asyncio.sleep(0.03)
        alone.cancel()
        await asyncio.wait([alone])
        assert await asyncio.wait_for(find(2, session("next")), 2) == 2

    kitchen(work)
    assert ran == ["s0", "s2", "alone", "next"]


def test_whoever_waits_shares_the_error_and_it_is_not_kept(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client, observer=kitchen.events.append)
    async def broken(n: int) -> int:
        kitchen.runs[n] += 1
        await asyncio.sleep(0.02)
        raise ValueError(n)

    async def work() -> None:
        for _ in range(2):
            got = await asyncio.gather(*(broken(1) for _ in range(20)), return_exceptions=True)
            assert [type(one) for one in got] == [ValueError] * 20
        assert await kitchen.client.call("KEYS", "*fill*") == []

    kitchen(work)
    assert kitchen.runs == {1: 2} and set(kitchen.kinds) == {"error"}


def test_not_found_is_kept_only_if_asked_for(kitchen: Kitchen) -> None:
    def find(n: int) -> None:
        kitchen.runs[n] += 1
        raise HTTPException(n, {"id": n}, {"X-Reason": "none"})

    asks, keeps = (
        cached(client=kitchen.client)(find),
        cached(client=kitchen.client, key_prefix="k", negative_ttl=5)(find),
    )
    for function, status in ((asks, 404), (keeps, 404), (keeps, 403)):
        for _ in range(3):
            with pytest.raises(HTTPException) as caught:
                function(status)
            assert (caught.value.status_code, caught.value.detail) == (status, {"id": status})
            assert caught.value.headers == {"X-Reason": "none"}
    assert kitchen.runs == {404: 3 + 1, 403: 3}
    assert 3 <= command(kitchen.server, "TTL", keeps.key(404)) <= 5


def test_an_invalidation_during_a_fill_wins(kitchen: Kitchen) -> None:
    """T40, from this process and from another one."""
    data = {"v": "old"}

    async def work(invalidate: Any) -> None:
        await kitchen.client.call("FLUSHALL")
        began, go_on = asyncio.Event(), asyncio.Event()

        @cached(client=kitchen.client, tags=["all", "item:{n}"])
        async def read(n: int) -> str:
            kitchen.runs[n] += 1
            found = data["v"]
            began.set()
            await go_on.wait()
            return found

        data["v"] = "old"
        leader = asyncio.create_task(read(1))
        await began.wait()
        early = asyncio.create_task(read(1))  # came before the invalidation: may get either
        await asyncio.sleep(0)
        data["v"] = "new"
        await invalidate(read)
        late = [asyncio.create_task(read(1)) for _ in range(3)]
        await asyncio.sleep(0.02)
        go_on.set()
        assert await leader == "old" and await early in ("old", "new")
        assert await asyncio.gather(*late) == ["new"] * 3
        assert await read(1) == "new"
        await read.invalidate(1)

    async def elsewhere(read: Any) -> None:
        with_other = Kitchen(kitchen.server)

        @cached(client=with_other.client)
        async def unused() -> None: ...

        assert await with_other.client.forget([read.key(1)])
        await with_other.client.close()

    kitchen(lambda: work(lambda read: read.invalidate(1)))
    kitchen(lambda: work(lambda read: read.invalidate_tag("item:1")))
    kitchen(lambda: work(lambda read: read.invalidate_tag("all")))
    kitchen(lambda: work(elsewhere))
    assert kitchen.runs[1] <= 4 * 3


def test_without_redis_an_invalidation_parts_who_came_before_from_who_came_after() -> None:
    with start() as server:
        kitchen, data, go_on = Kitchen(server, timeout=0.2), ["old"], asyncio.Event()
        server.kill()

        @cached(client=kitchen.client)
        async def read() -> str:
            found = data[0]
            await go_on.wait()
            return found

        async def work() -> None:
            before = asyncio.create_task(read())
            await asyncio.sleep(0.02)
            data[0] = "new"
            assert await read.invalidate() is False
            after = asyncio.create_task(read())
            await asyncio.sleep(0.02)
            go_on.set()
            assert (await before, await after) == ("old", "new")

        kitchen(work)


def test_tags_from_templates_and_from_the_result(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client, tags=["user:{user_id}"])
    async def user(user_id: int) -> int:
        kitchen.runs["user"] += 1
        return user_id

    @cached(client=kitchen.client, tags=lambda result, page: [f"user:{one}" for one in result])
    async def listed(page: int) -> list[int]:
        kitchen.runs["list"] += 1
        return [page, page + 1]

    async def work() -> None:
        for _ in range(2):
            await user(1), await user(9), await listed(1), await listed(5)
        assert await user.invalidate_tag("user:1")
        await user(1), await user(9), await listed(1), await listed(5)
        assert await listed.invalidate_tag("never used")

    kitchen(work)
    assert kitchen.runs == {"user": 2 + 1, "list": 2 + 1}


def test_a_tag_forgets_keys_that_have_expired(kitchen: Kitchen) -> None:
    long, short = (
        cached(ttl=ttl, client=kitchen.client, key_prefix=str(ttl), tags=["t"])(lambda n: n) for ttl in (3000, 10)
    )
    long(1)
    for age in (2000, 3200):
        added = (time.time() - age) * 1e6
        command(kitchen.server, "ZADD", "tag:t", *(word for n in range(80) for word in (added, f"gone:{age}:{n}")))
    short(1)
    kept = command(kitchen.server, "ZRANGEBYSCORE", "tag:t", 0, "inf")
    assert len(kept) == 82 and {long.key(1), short.key(1)} < set(kept) and "gone:2000:1" in kept
    assert 3000 < command(kitchen.server, "TTL", "tag:t") <= 3060
    assert long.invalidate_tag("t") and not command(kitchen.server, "EXISTS", long.key(1), short.key(1))


def test_what_cannot_be_tagged_is_not_kept_and_nobody_waits_for_it(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client, tags=["t"])
    async def read() -> int:
        kitchen.runs[0] += 1
        return 1

    async def work() -> None:
        await kitchen.client.call("SET", "tag:t", "theirs")
        assert await read() == 1
        assert await kitchen.client.call("KEYS", "{read*:fill") == []
        assert await read() == 1 and kitchen.runs == {0: 2}
        assert await read.invalidate_tag("t") and await read.invalidate_tag("\ud800")

    kitchen(work)


def test_one_tag_may_be_given_as_it_is(kitchen: Kitchen) -> None:
    for tags in ("all", lambda result, n: "all"):
        read = cached(client=kitchen.client, tags=tags)(lambda n: kitchen.runs.update([n]) or kitchen.runs[n])
        assert read(1) == read(1) and read.invalidate_tag("all")
    assert read(1) == kitchen.runs[1] == 3


def test_what_belongs_to_an_object_is_refused(kitchen: Kitchen) -> None:
    class Shop:
        def price(self, n: int) -> int:
            return n

        @classmethod
        def tax(cls, n: int) -> int:
            return n

        __call__ = price

    for wrong in (Shop().price, Shop.tax, Shop(), Shop, functools.partial(Shop.price, Shop()), len):
        with pytest.raises(CacheError, match="función"):
            cached(client=kitchen.client)(wrong)


def test_what_a_cell_says_anew_is_another_function(kitchen: Kitchen, tmp_path: Path) -> None:
    def cell(code: str, module: str) -> Any:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        path.write_text(f"@cached(client=client)\ndef read(n):\n    return {code}\n")
        space = {"cached": cached, "client": kitchen.client, "__name__": module}
        exec(compile(path.read_text(), path, "exec"), space)
        return space["read"]

    keys = [cell(code, "__main__").key(1) for code in ("n", "n + 1", "n")]
    assert keys[0] == keys[2] != keys[1]
    assert cell("n", "shop").key(1) == cell("n + 1", "shop").key(1)  # deployed one after the other, both may run
    assert kitchen.client.prefixes == {"read:"}


def test_refresh_runs_now_and_keeps_the_value(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client)
    async def count() -> int:
        kitchen.runs[0] += 1
        return kitchen.runs[0]

    async def work() -> None:
        assert [await count(), await count(), await count.refresh(), await count()] == [1, 1, 2, 2]
        assert await count.invalidate() and await count() == 3

    kitchen(work)


def test_plain_functions_in_threads_share_a_run(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client, observer=kitchen.events.append)
    def slow(n: int) -> dict[int, int]:
        kitchen.runs[n] += 1
        time.sleep(0.1)
        return {n: n}

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(slow, [1] * 20)) == [{1: 1}] * 20
    assert kitchen.runs == {1: 1} and slow(1) == {1: 1}
    assert slow.invalidate(1) is True and slow.refresh(1) == {1: 1} == slow(1)
    assert kitchen.runs == {1: 2}
    kitchen(lambda: asyncio.sleep(0))


def test_one_function_serves_loop_after_loop(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client)
    async def find(n: int) -> int:
        kitchen.runs[n] += 1
        await asyncio.sleep(0.01)
        return n

    async def left() -> None:
        asyncio.create_task(find(1))  # noqa: RUF006 - abandoned with its loop
        await asyncio.sleep(0)

    async def work() -> None:
        while not kitchen.client.breaker.closed:
            await find(0)
            await asyncio.sleep(0.05)
        assert await find(1) == 1

    asyncio.run(left())
    for _ in range(3):
        kitchen(work)
    assert kitchen.runs[1] == 1


@pytest.mark.parametrize("way", ["killed", "frozen"])
def test_without_redis_nothing_fails_and_a_run_is_still_shared(way: str) -> None:
    with start() as server:
        kitchen = Kitchen(server, timeout=0.2)

        @cached(client=kitchen.client, observer=kitchen.events.append)
        async def find(n: int) -> int:
            kitchen.runs[n] += 1
            await asyncio.sleep(0.01)
            return n

        async def work() -> None:
            assert await find(0) == 0
            server.kill() if way == "killed" else server.freeze()
            assert await asyncio.gather(*(find(1) for _ in range(50))) == [1] * 50
            assert await find.invalidate(0) is False
            assert await find(0) == 0

        kitchen(work)
        assert kitchen.runs == {0: 2, 1: 1}
        assert kitchen.kinds == ["miss", *["bypass"] * 51]

        async def back() -> None:
            server.restart() if way == "killed" else server.thaw()
            while not kitchen.client.breaker.closed:
                await find(2)
                await asyncio.sleep(0.05)
            await find(0), await find(0)

        kitchen(back)
        assert kitchen.runs[0] == 3 and kitchen.kinds[-2:] == ["miss", "hit"]


def test_what_lies_there_and_is_not_ours_is_a_miss_and_told(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client, observer=kitchen.events.append)
    async def find(n: int) -> int:
        return n

    async def work() -> None:
        for rubbish in (b"", b"LK", b"\x80\x04pickle", os.urandom(200)):
            await kitchen.client.write(find.key(1), rubbish, 5)
            assert await find(1) == 1 and await find(1) == 1

    kitchen(work)
    assert kitchen.kinds == ["error", "miss", "hit"] * 4


def test_options_that_make_no_sense_are_refused(kitchen: Kitchen) -> None:
    async def find(n: int) -> int:
        return n

    async def stream() -> Any:
        yield 1

    for wrong in (0, -1, True, float("nan"), float("inf"), "5"):
        with pytest.raises(CacheError, match="ttl"):
            cached(ttl=wrong, client=kitchen.client)  # type: ignore[arg-type]
        with pytest.raises(CacheError, match="ttl"):
            cached(negative_ttl=wrong, client=kitchen.client)  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="client"):
        cached(client=None)  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="stream"):
        cached(client=kitchen.client)(stream)
    for tag in ("user:{userid}", "userid{"):
        with pytest.raises(CacheError, match="userid"):
            cached(client=kitchen.client, tags=[tag])(find)


def test_a_value_that_would_not_come_back_is_refused_by_name(kitchen: Kitchen) -> None:
    @cached(client=kitchen.client)
    async def find() -> Any:
        return {"born": [object()]}

    async def work() -> None:
        with pytest.raises(CacheError, match="born"):
            await find()

    kitchen(work)
