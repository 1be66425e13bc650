"""What a load asks for, and when: ids, addresses, and the moments of arrival."""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, cycle
from typing import Any

from labkit._text import say
from labkit.errors import MeasurementError, RequestError

Ids = Iterable[object] | Callable[[random.Random], object]
Paths = str | Mapping[str, float]

ARRIVALS = ("fixed", "poisson")
LEAD = 0.0003  # seconds that a thread and then the loop take to wake


def zipf(n: int, s: float = 1.1) -> Callable[[random.Random], int]:
    """Ids that are asked for as on a real site: a few very often, most hardly ever (Zipf's law).

    Id k, of 1 to ``n``, is drawn with a probability proportional to ``1 / k**s``.

    Raises:
        MeasurementError: if ``n`` is not at least 1 or ``s`` is negative.
    """
    if n < 1 or s < 0:
        raise MeasurementError(say("stats.bad_zipf", n=n, s=s))
    ids = range(1, n + 1)
    shares = list(accumulate(k**-s for k in ids))
    return lambda chance: chance.choices(ids, cum_weights=shares)[0]


def targets(path: Paths, ids: Ids | None, requests: int, chance: random.Random) -> tuple[list[str], list[str]]:
    """The path as it was given and the address, of each request.

    Raises:
        MeasurementError: if ``{id}`` and ``ids`` do not go together, or a weight is not a number above 0.
        RequestError: if the path is neither text nor a mapping.
    """
    if not isinstance(path, str | Mapping):
        raise RequestError(say("core.bad_path", path=path))
    if isinstance(path, str):
        given = [path] * requests
    else:
        if not path or not all(map(_weight, path.values())):
            raise MeasurementError(say("load.bad_mix", path=dict(path)))
        given = chance.choices(list(path), list(path.values()), k=requests)
    filled = any("{id}" in each for each in ([path] if isinstance(path, str) else path))
    if filled != (ids is not None):
        raise MeasurementError(say("stats.bad_ids", path=path if isinstance(path, str) else list(path)))
    if ids is None:
        return given, given
    drawn = (ids(chance) for _ in given) if callable(ids) else cycle(ids)
    try:
        return given, [each.replace("{id}", str(next(drawn))) if "{id}" in each else each for each in given]
    except StopIteration:
        raise MeasurementError(say("stats.bad_ids", path=path)) from None


def _weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def moments(rate: float, arrivals: str, requests: int, chance: random.Random) -> Iterator[float]:
    """Seconds after the start at which requests arrive, whatever became of those before.

    Args:
        rate: requests a second, on average.
        arrivals: ``"fixed"``, one every ``1 / rate`` seconds; ``"poisson"``, independently of each other, as
            people do who know nothing of one another.
        requests: how many.
        chance: where Poisson's come from.

    Raises:
        MeasurementError: if there are no such arrivals.
    """
    if arrivals not in ARRIVALS:
        raise MeasurementError(say("load.bad_arrivals", arrivals=arrivals, known=", ".join(ARRIVALS)))
    if arrivals == "fixed":
        return (place / rate for place in range(requests))
    return accumulate(chance.expovariate(rate) for _ in range(requests))


class Clockwork(threading.Thread):
    """Calls something in the running loop shortly before given moments, from a thread that no stalled loop holds up.

    A loop's own timers are late by up to a millisecond, and as late as the application blocks the loop.

    Args:
        due: moments by ``time.perf_counter``, in order.
        arrive: called in the loop, in the present context, with its moment.
        done: called in the loop when all moments are over.
    """

    def __init__(self, due: Iterator[float], arrive: Callable[[float], None], done: Callable[[], Any]) -> None:
        super().__init__(name="labkit arrivals", daemon=True)
        self._due, self._arrive, self._done = due, arrive, done
        self._loop, self._context = asyncio.get_running_loop(), contextvars.copy_context()
        self._stop = threading.Event()

    def run(self) -> None:
        """Wait for one moment after the other."""
        try:
            for moment in self._due:
                if self._stop.wait(max(0.0, moment - LEAD - time.perf_counter())):
                    return
                self._loop.call_soon_threadsafe(self._arrive, moment, context=self._context)
            self._loop.call_soon_threadsafe(self._done)
        except RuntimeError:  # the loop was closed
            return

    def stop(self) -> None:
        """Call nothing any more."""
        self._stop.set()
