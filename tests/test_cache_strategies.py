"""One suite over every strategy, and what each does beyond it. The clock is set, never waited for."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from labkit.cache import CacheAside, EarlyRefresh, StaleIfError, StaleWhileRevalidate, Strategy, cached, writes
from labkit.cache.entry import Entry
from labkit.cache.strategies import Verdict
from labkit.errors import CacheError
from tests.caching import Clock, Kitchen, calls, command, start, the_kitchen, the_server  # noqa: F401 (the fixtures)

ALL = [CacheAside(), StaleIfError(50), StaleWhileRevalidate(50), EarlyRefresh()]
TTL = 100.0


@pytest.fixture(name="clock")
def the_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("labkit.cache.engine.time.time", lambda: clock.now)
    return clock


def numbers(kitchen: Kitchen, strategy: Strategy, **options: Any) -> Any:
    """A function whose n-th run gives n."""

    @cached(TTL, client=kitchen.client, strategy=strategy, observer=kitchen.events.append, **options)
    async def number(of: str = "a") -> int:
        kitchen.runs[of] += 1
        run = kitchen.runs[of]
        await asyncio.sleep(0.05)
        if of == "broken" and run > 1:
            raise OSError("the database is away")
        if of == "gone" and run > 1:
            raise HTTPException(404)
        return run

    return number


async def settled(kitchen: Kitchen) -> None:
    """What runs in the background has ended."""
    while kitchen.client._tasks - {asyncio.current_task()}:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("strategy", ALL, ids=lambda one: type(one).__name__)
class TestEvery:
    def test_serves_what_is_fresh_and_runs_once_for_many(
        self, kitchen: Kitchen, strategy: Strategy, clock: Clock
    ) -> None:
        number = numbers(kitchen, strategy)

        async def work() -> None:
            assert await asyncio.gather(*(number() for _ in range(50))) == [1] * 50
            clock.now += TTL / 2
            assert await number() == 1

        kitchen(work)
        assert kitchen.runs == {"a": 1}

    def test_never_serves_what_is_beyond_its_keep(self, kitchen: Kitchen, strategy: Strategy, clock: Clock) -> None:
        number = numbers(kitchen, strategy)

        async def work() -> None:
            await number()
            assert (await kitchen.client.call("PTTL", number.key())) <= strategy.keep(TTL) * 1000
            clock.now += strategy.keep(TTL) + 0.1
            assert await number() == 2

        kitchen(work)

    def test_an_invalidation_leaves_no_old_value_behind(
        self, kitchen: Kitchen, strategy: Strategy, clock: Clock
    ) -> None:
        number = numbers(kitchen, strategy)

        async def work() -> None:
            for step in (0, TTL - 0.01, TTL + 1):
                before = await number()
                clock.now += step
                assert await number.invalidate()
                assert await number() > before
            await settled(kitchen)

        kitchen(work)
        assert "stale" not in kitchen.kinds

    def test_an_expired_value_is_computed_once_for_many(
        self, kitchen: Kitchen, strategy: Strategy, clock: Clock
    ) -> None:
        number = numbers(kitchen, strategy)

        async def work() -> None:
            await number()
            clock.now += strategy.keep(TTL) + 1
            assert await asyncio.gather(*(number() for _ in range(30))) == [2] * 30

        kitchen(work)

    def test_a_failure_after_an_invalidation_is_a_failure(
        self, kitchen: Kitchen, strategy: Strategy, clock: Clock
    ) -> None:
        number = numbers(kitchen, strategy)

        async def work() -> None:
            await number("broken")
            assert await number.invalidate("broken")
            with pytest.raises(OSError, match="away"):
                await number("broken")

        kitchen(work)


def test_stale_if_error_serves_the_old_value_where_the_new_one_fails(kitchen: Kitchen, clock: Clock) -> None:
    number = numbers(kitchen, StaleIfError(50))

    async def work() -> None:
        assert (await number("broken"), await number("gone")) == (1, 1)
        clock.now += TTL + 10
        assert await asyncio.gather(*(number("broken") for _ in range(5))) == [1] * 5
        with pytest.raises(HTTPException):  # "there is no such thing" is an answer, not a failure
            await number("gone")
        clock.now += 50
        with pytest.raises(OSError, match="away"):
            await number("broken")

    kitchen(work)
    assert kitchen.runs["broken"] == 3 and kitchen.kinds.count("stale") == 5


def test_revalidation_serves_the_old_value_at_once_and_one_refreshes(kitchen: Kitchen, clock: Clock) -> None:
    number = numbers(kitchen, StaleWhileRevalidate(50))

    async def work() -> None:
        await number()
        clock.now += TTL + 10
        before = calls(kitchen.server)
        for _ in range(30):
            assert await number() == 1
        await settled(kitchen)
        used = calls(kitchen.server) - before
        assert used["evalsha"] + used["eval"] <= 3  # the lock, and the value; perhaps a script that is new to Redis
        assert await number() == 2

    kitchen(work)
    assert kitchen.runs == {"a": 2} and kitchen.kinds == ["miss", *["stale"] * 30, "hit"]


def test_a_refresh_that_fails_is_told_and_the_old_value_goes_on(kitchen: Kitchen, clock: Clock) -> None:
    number = numbers(kitchen, StaleWhileRevalidate(50))

    async def work() -> None:
        await number("broken")
        clock.now += TTL + 10
        for _ in range(2):
            assert await number("broken") == 1
            await settled(kitchen)
        assert await kitchen.client.call("KEYS", "*fill*") == []

    kitchen(work)
    assert kitchen.runs == {"broken": 3}
    assert [event.detail for event in kitchen.events if event.kind == "error"] == ["refresh: OSError"] * 2


def test_an_invalidation_during_a_refresh_wins(kitchen: Kitchen, clock: Clock) -> None:
    number = numbers(kitchen, StaleWhileRevalidate(50))

    async def work() -> None:
        await number()
        clock.now += TTL + 10
        assert await number() == 1
        await asyncio.sleep(0.02)  # the refresh, run 2, is under way
        assert await number.invalidate()
        assert await number() == 3

    kitchen(work)


def test_who_has_a_session_refreshes_in_the_foreground_alone(kitchen: Kitchen, clock: Clock) -> None:
    @cached(TTL, client=kitchen.client, strategy=StaleWhileRevalidate(50))
    async def read(db: Session) -> int:
        kitchen.runs["n"] += 1
        await asyncio.sleep(0.05)
        return kitchen.runs["n"]

    async def work() -> None:
        await read(Session())
        clock.now += TTL + 10
        assert sorted(await asyncio.gather(*(read(Session()) for _ in range(10)))) == [*[1] * 9, 2]

    kitchen(work)


def test_plain_functions_refresh_in_the_foreground(kitchen: Kitchen, clock: Clock) -> None:
    @cached(TTL, client=kitchen.client, strategy=StaleWhileRevalidate(50))
    def number() -> int:
        kitchen.runs["n"] += 1
        return kitchen.runs["n"]

    assert number() == 1
    clock.now += TTL + 10
    assert number() == number() == 2
    kitchen(lambda: asyncio.sleep(0))


def test_early_refresh_is_the_likelier_the_nearer_the_end(kitchen: Kitchen, clock: Clock, monkeypatch: Any) -> None:
    number = numbers(kitchen, EarlyRefresh(beta=1.0))
    chance = 0.0
    monkeypatch.setattr("labkit.cache.engine.random.random", lambda: chance)

    async def work() -> None:
        nonlocal chance
        await number()
        clock.now += TTL - 0.001
        assert await number() == 1
        await settled(kitchen)
        assert kitchen.runs == {"a": 1}  # no luck, no refresh
        chance = 0.999
        assert await number() == 1
        await settled(kitchen)
        assert await number() == 2

    kitchen(work)
    assert set(kitchen.kinds) == {"miss", "hit"}  # it was fresh all the time


@given(cost=st.floats(0, 10), age=st.floats(0, 200), chance=st.floats(0, 1, exclude_max=True), beta=st.floats(0.1, 10))
def test_early_refresh_is_xfetch(cost: float, age: float, chance: float, beta: float) -> None:
    entry = Entry(b"", 1e9, TTL, cost)
    verdict = EarlyRefresh(beta).judge(entry, 1e9 + age, chance)
    if 1e9 + age >= 1e9 + TTL:
        assert verdict is Verdict.EXPIRED
    else:
        early = 1e9 + age - cost * beta * math.log(1 - chance) >= 1e9 + TTL
        assert verdict is (Verdict.STALE if early else Verdict.FRESH)


@pytest.mark.parametrize("wrong", [0, -1, True, math.nan, math.inf, "1"])
def test_windows_and_betas_that_make_no_sense_are_refused(wrong: Any) -> None:
    for make in (StaleIfError, StaleWhileRevalidate, EarlyRefresh):
        with pytest.raises(CacheError):
            make(wrong)


def table(kitchen: Kitchen) -> tuple[Any, Any, dict[int, str]]:
    rows = {1: "old"}

    @cached(client=kitchen.client, observer=kitchen.events.append)
    async def read(n: int) -> str:
        kitchen.runs["read"] += 1
        found = rows[n]
        await asyncio.sleep(0.02)
        return found

    @writes(to=read)
    async def update(n: int, name: str, wait: float = 0.0) -> str:
        rows[n] = name
        await asyncio.sleep(wait)
        if name == "bad":
            raise ValueError(name)
        return name

    return read, update, rows


def test_write_through_leaves_the_new_value(kitchen: Kitchen) -> None:
    read, update, _ = table(kitchen)

    async def work() -> None:
        assert await update(1, "new") == "new" == await read(1) == await read(n=1)

    kitchen(work)
    assert kitchen.runs == {} and kitchen.kinds == ["hit", "hit"]


def test_a_write_wins_over_a_fill_that_began_before_it(kitchen: Kitchen) -> None:
    read, update, _ = table(kitchen)

    async def work() -> None:
        filling = asyncio.create_task(read(1))
        await asyncio.sleep(0.01)
        await update(1, "new")
        assert await read(1) == "new"
        assert await filling in ("old", "new")
        assert await read(1) == "new"

    kitchen(work)


def test_of_two_writes_at_once_none_is_believed(kitchen: Kitchen) -> None:
    read, update, rows = table(kitchen)

    async def work() -> None:
        slow = asyncio.create_task(update(1, "first", 0.05))
        await asyncio.sleep(0.01)
        await update(1, "second")
        rows[1] = "first"  # the slow one commits last
        await slow
        assert await read(1) == "first"

    kitchen(work)


def test_a_write_that_fails_or_is_cancelled_forgets(kitchen: Kitchen) -> None:
    read, update, rows = table(kitchen)

    async def work() -> None:
        assert await read(1) == "old"
        with pytest.raises(ValueError, match="bad"):
            await update(1, "bad")
        assert await read(1) == "bad"  # it had reached the database
        task = asyncio.create_task(update(1, "half", 5))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert await read(1) == "half" == rows[1]

    kitchen(work)


def test_writes_says_what_does_not_fit(kitchen: Kitchen) -> None:
    read, _, _ = table(kitchen)

    async def other(m: int) -> str:
        return ""

    def plain(n: int) -> str:
        return ""

    with pytest.raises(CacheError, match="other"):
        writes(to=other)
    with pytest.raises(CacheError, match="n"):
        writes(to=read)(other)
    with pytest.raises(CacheError, match="def"):
        writes(to=read)(plain)
    stored = cached(client=kitchen.client)(plain)
    assert writes(to=stored)(plain)(2) == "" == stored(2)
