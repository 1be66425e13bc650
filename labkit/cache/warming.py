"""Fill the cache before the visitors come: the calls that were made most often, hottest first, within a budget."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from labkit import asgi
from labkit._text import duration, say
from labkit.cache.events import Event
from labkit.errors import CacheError


class Hottest:
    """An observer that counts which keys are asked for, in bounded memory: give it as ``observer=``.

    No count is too high, and none is too low by more than ``1 / most`` of all calls (Misra and Gries, "Finding
    repeated elements", 1982; here many at a time, so that a call costs an addition). Keys are the same in every
    process: what ``counts`` holds may be saved and given to tomorrow's.

    Args:
        most: keys that can be told apart; twice as many are held at times.
        counts: where to begin.

    Raises:
        CacheError: if ``most`` is not at least 1.
    """

    def __init__(self, most: int = 1_000, counts: Mapping[str, int] | None = None) -> None:
        if most < 1:
            raise CacheError(say("smart.bad_hottest", most=most))
        self.most, self.counts = most, Counter(counts)

    def __call__(self, event: Event) -> None:
        if event.kind not in ("error", "breaker"):
            self.counts[event.key] += 1
            if len(self.counts) > 2 * self.most:
                ranked = self.counts.most_common(self.most + 1)
                least = ranked.pop()[1]
                self.counts = Counter({key: count - least for key, count in ranked if count > least})


@dataclass(frozen=True, slots=True)
class Warmed:
    """What a warming did.

    Attributes:
        done, failed, left: calls made, those of them that raised or answered 400 or more, and those not made.
        seconds: that it took.
        share: part of the calls counted before that the ones made here stand for; 0 where none were counted.
    """

    done: int
    failed: int
    left: int
    seconds: float
    share: float

    def __repr__(self) -> str:
        took, share = duration(self.seconds), 100 * self.share
        return say("smart.warmed", done=self.done, failed=self.failed, left=self.left, seconds=took, share=share)


async def warm(
    function: Any,
    arguments: Iterable[Mapping[str, Any]],
    *,
    hot: Hottest,
    app: asgi.ASGIApp | None = None,
    path: str = "",
    seconds: float = 5.0,
    calls: int = 1_000,
    progress: Callable[[int, int], object] = lambda done, planned: None,
) -> Warmed:
    """Call a cached function with those of the ``arguments`` that were asked for most, one after the other.

    Args:
        function: made by ``cached``.
        arguments: what it may be called with, by name; in which order does not matter, but for what ``hot`` never saw.
        hot: what was observed.
        app, path: for an endpoint: the application and the path of a GET request, ``"/users/{user_id}"``.
        seconds: budget; a call under way is then cancelled and counts as left.
        calls: budget.
        progress: told of calls made and planned after each one.

    Raises:
        CacheError: if an argument makes no key.
    """
    start, done, failed, weight = time.perf_counter(), 0, 0, 0
    counted = [(hot.counts[key], each) for each in arguments if (key := function.key(**each))]
    planned = sorted(counted, key=lambda one: -one[0])[: max(0, calls)]
    every = hot.counts.total()
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            for count, each in planned:
                if time.perf_counter() - start >= seconds:
                    break
                failed += not await _succeeds(function, each, app, path)
                done, weight = done + 1, weight + count
                progress(done, len(planned))
    return Warmed(done, failed, len(counted) - done, time.perf_counter() - start, weight / every if every else 0.0)


async def _succeeds(function: Any, arguments: Mapping[str, Any], app: asgi.ASGIApp | None, path: str) -> bool:
    try:
        if app is not None:
            return (await asgi.call(app, "GET", path.format(**arguments))).status < 400
        original = inspect.unwrap(function)
        if any(map(inspect.iscoroutinefunction, (original, type(original).__call__))):
            await function(**arguments)
        else:  # a plain function must not block the loop
            await asyncio.to_thread(function, **arguments)
    except Exception:
        return False
    return True
