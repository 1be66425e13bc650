"""Exercise 4.2: a warming, judged by what it reads, in which order, at what expense, and with Redis away."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from labkit.course.checks import Context, Verdict, almost, done
from labkit.course.lessons._lives import visits

CALLS, FIRST, PAGES = 50, 500, 400
PAUSE, SECONDS = 0.02, 0.3
"""Seconds that a slow page takes, and the budget then given."""

WAIT = 4.0
"""Seconds after which a warming that waits for a page without end is given up."""

TIMEOUT = 0.2
"""Seconds for which a read waits for a Redis that is down or frozen."""


class Gone(Exception):
    """The page is no longer there."""


class Pages:
    """Pages in the Lab's Redis, read as a service would: ask the cache, else compute and keep.

    Attributes:
        asked: the pages read, in order; ``made``: those that had to be computed; ``good``: reads that succeeded.
        most: reads that were under way at once.
        given_up: whether it all took longer than ``WAIT``.
    """

    def __init__(
        self, url: str, pause: float = 0.0, gone: Iterable[int] = (), endless: int = 0, timeout: float = 5.0
    ) -> None:
        self.url, self.pause, self.gone, self.endless = url, pause, set(gone), endless
        self.mark = f"lesson-04:{secrets.token_hex(4)}:"
        self.asked, self.made = list[int](), list[int]()
        self.good = self.under_way = self.most = 0
        self.given_up = False
        # In a thread: redis.asyncio waits by asyncio.wait_for, which on Python 3.11 may swallow a cancellation.
        patient: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        self._redis = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **patient)

    async def read(self, page: int) -> str:
        """One page.

        Raises:
            Gone: if it is.
            RedisError: if Redis is away.
        """
        self.asked.append(page)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            value = await self._find(page)
        finally:
            self.under_way -= 1
        self.good += 1
        return value

    async def _find(self, page: int) -> str:
        if page in self.gone:
            raise Gone(f"page {page}")
        if page == self.endless:
            await asyncio.sleep(3600)
        if (kept := await asyncio.to_thread(self._redis.get, f"{self.mark}{page}")) is not None:
            return str(kept)
        self.made.append(page)
        await asyncio.sleep(self.pause)
        await asyncio.to_thread(self._redis.set, f"{self.mark}{page}", f"page {page}", ex=60)
        return f"page {page}"

    async def use(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something, for a few seconds at most."""
        limit = asyncio.timeout(WAIT)
        try:
            async with limit:
                return await work
        finally:
            self.given_up = limit.expired()

    def clear(self) -> None:
        """Delete what was kept."""
        with redis.Redis.from_url(self.url, socket_timeout=5) as client:
            for key in client.scan_iter(match=f"{self.mark}*", count=1000):
                client.delete(key)
        self._redis.close()


def check_4_2(ctx: Context, warm_up: Callable[..., Any]) -> Verdict:
    """What it reads, then its budgets and what fails, then with Redis down and frozen."""
    ctx.require(inspect.iscoroutinefunction(warm_up), "warm_sync")
    url = ctx.lab.app.state.redis_url
    yesterday = visits(ctx.seed, pages=PAGES, favourites=ctx.seed)
    today = visits(ctx.seed + 1, FIRST, pages=PAGES, favourites=ctx.seed)
    ranked = [page for page, _ in Counter(yesterday).most_common()]

    with _cleared(Pages(url)) as calm:
        told = _run(ctx, calm, warm_up, yesterday, CALLS, 10.0)
        _right_pages(ctx, calm, yesterday, today)
    ctx.require(calm.most == 1, "warm_all_at_once", most=calm.most)
    number = isinstance(told, int) and not isinstance(told, bool)
    ctx.require(number and told == CALLS, "warm_count", told=repr(told)[:40], good=CALLS)
    _troubles(ctx, url, warm_up, yesterday, ranked)
    hits = {name: _hits(today, warmed) for name, warmed in (("cold", []), ("warm", calm.asked))}
    return done("warm_done", calls=CALLS, first=FIRST, **hits)


def _run(ctx: Context, pages: Pages, warm_up: Callable[..., Any], *args: Any) -> Any:
    """Her function on these pages; a Redis error that she lets through becomes the caller's to judge."""

    try:
        return ctx.run(pages.use, ctx.call(warm_up, pages.read, *args))
    except TimeoutError:
        key = "warm_endless" if pages.given_up else "warm_timeout"
        raise almost(key, seconds=args[-1], waited=WAIT) from None


def _hits(today: list[int], warmed: Iterable[int]) -> int:
    """Of today's visits, those to a page that is there already."""
    return len(today) - len({*today} - {*warmed})


def _right_pages(ctx: Context, pages: Pages, yesterday: list[int], today: list[int]) -> None:
    """Told apart: none, too many, the same ones again, the first by id, the coldest, others, the wrong order."""
    asked, times = pages.asked, Counter(yesterday)
    ctx.require(asked, "warm_nothing")
    best = [page for page, _ in times.most_common(CALLS)]
    counts = {
        "calls": CALLS,
        "asked": len(asked),
        "first": FIRST,
        "hits": _hits(today, asked),
        "best": _hits(today, best),
        "cold": _hits(today, []),
    }
    ctx.require(len(asked) <= CALLS, "warm_too_many", **counts)
    ctx.require(len({*asked}) == len(asked), "warm_repeated", different=len({*asked}), **counts)
    ctx.require({*asked} <= times.keys(), "warm_strangers", **counts)
    ctx.require(asked != sorted(times)[: len(asked)], "warm_by_id", **counts)
    wanted, got = sorted((times[page] for page in best), reverse=True), [times[page] for page in asked]
    ctx.require(len(asked) == CALLS, "warm_few", **counts)
    ctx.require(sum(got) >= sum(wanted) / 2, "warm_coldest", **counts)
    ctx.require(sorted(got, reverse=True) == wanted, "warm_others", **counts)
    ctx.require(got == wanted, "warm_order", **counts)


def _troubles(ctx: Context, url: str, warm_up: Callable[..., Any], yesterday: list[int], ranked: list[int]) -> None:
    """Pages that are gone, slow or endless; then Redis down, and frozen."""
    with _cleared(Pages(url, gone=ranked[1:4])) as pages:
        try:
            told = _run(ctx, pages, warm_up, yesterday, 10, 10.0)
        except Gone:
            raise almost("warm_stops", asked=len(pages.asked)) from None
        ctx.require(pages.good == 7, "warm_stops", asked=len(pages.asked))
        ctx.require(told == 7, "warm_count", told=repr(told)[:40], good=7)
    most = round(SECONDS / PAUSE) + 1
    with _cleared(Pages(url, pause=PAUSE)) as pages:
        _run(ctx, pages, warm_up, yesterday, 60, SECONDS)
        ctx.require(len(pages.asked) <= most, "warm_late", **_spent(pages, SECONDS, most))
    with _cleared(Pages(url, endless=ranked[0])) as pages:
        _run(ctx, pages, warm_up, yesterday, 10, SECONDS)
    for fault, seconds in (("redis_down", 2.0), ("redis_frozen", 0.5)):
        with _cleared(Pages(url, timeout=TIMEOUT)) as pages, ctx.lab.fault(fault):
            try:
                told = _run(ctx, pages, warm_up, yesterday, 10, seconds)
            except RedisError as error:
                raise almost(f"warm_{fault}", error=type(error).__name__, asked=len(pages.asked)) from None
            most = round(seconds / TIMEOUT) + 2
            ctx.require(fault == "redis_down" or len(pages.asked) <= most, "warm_late", **_spent(pages, seconds, most))
            ctx.require(told == 0, "warm_count", told=repr(told)[:40], good=0)


def _spent(pages: Pages, seconds: float, most: int) -> dict[str, float]:
    return {"asked": len(pages.asked), "seconds": seconds, "most": most}


@contextmanager
def _cleared(pages: Pages) -> Iterator[Pages]:
    try:
        yield pages
    finally:
        with suppress(RedisError):  # a Redis that is away keeps nothing for long
            pages.clear()
