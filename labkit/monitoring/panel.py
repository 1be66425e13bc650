"""A first panel: how many requests, how many errors, how long, and the hit rate of the cache, while it happens."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import asdict, dataclass
from typing import Any, Self

import pandas as pd

from labkit import plots
from labkit._text import duration, number, say
from labkit.errors import MonitoringError
from labkit.monitoring.alert import Alert
from labkit.monitoring.samples import COURSE, DURATION, REQUESTS, History, Snapshot, histogram_quantile

CLASSES = ("2xx", "3xx", "4xx", "5xx")
_MOST = 600  # looks that are remembered
_PART = 0.1  # of the time at most that looking and drawing may take


@dataclass(frozen=True, slots=True)
class Look:
    """What the panel saw at one moment, over the window before it.

    Attributes:
        time_s: seconds since the panel's first look.
        per_s: requests a second, of each class of status.
        errors: share of the requests answered with a 5xx; NaN without requests, as what follows.
        p50_s, p95_s, p99_s: percentiles of the duration, as far as the buckets tell.
        hit_rate: share of the cache's look-ups that were hits.
    """

    time_s: float
    per_s: dict[str, float]
    errors: float
    p50_s: float
    p95_s: float
    p99_s: float
    hit_rate: float


class Panel:
    """Watches the course's metrics in a registry and draws them.

    ::

        panel = Panel(metrics)
        with panel.live():
            lab.load("/performance/fast-endpoint")

    In a notebook the picture below the cell is refreshed while the cell runs, and the last one stays. Elsewhere the
    panel only looks.

    Args:
        source: a Metrics, or any registry of prometheus_client that has the course's names.
        every: seconds between two looks, at least: looking and drawing take a tenth of the time at most.
        window: seconds that each rate looks back on.
        alerts: evaluated at every look.
        clock: in seconds.

    Attributes:
        history: the snapshots of the last while, for PromQL's functions.
        looks: what was seen.

    Raises:
        MonitoringError: if the source is no registry or does not count requests by the course's name.
    """

    def __init__(
        self,
        source: Any,
        *,
        every: float = 1.0,
        window: float = 5.0,
        alerts: Sequence[Alert] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not every > 0:
            raise MonitoringError(say("watch.bad_number", name="every", value=every))
        self.alerts, self.history, self.looks = tuple(alerts), History(window), deque[Look](maxlen=_MOST)
        self._source, self._every, self._clock = source, every, clock
        self._start = math.nan
        self.sample()

    def sample(self) -> Look:
        """Look once, now."""
        snapshot = Snapshot.of(self._source, *COURSE, clock=self._clock)
        if math.isnan(self._start):
            self._start = snapshot.time
        self.history.add(snapshot)
        rates = self.history.rates(REQUESTS, ("status",))
        per_s = {name: sum(v for (s,), v in rates.items() if s[:1] == name[0]) for name in CLASSES}
        buckets = [(float(le), v) for (le,), v in self.history.rates(f"{DURATION}_bucket", ("le",)).items()]
        p50, p95, p99 = (histogram_quantile(q, buckets) for q in (0.5, 0.95, 0.99))
        look = Look(
            snapshot.time - self._start, per_s, self.history.error_rate(), p50, p95, p99, self.history.hit_rate()
        )
        self.looks.append(look)
        for alert in self.alerts:
            alert.evaluate(self.history)
        return look

    @contextmanager
    def live(self) -> Iterator[Self]:
        """Look every second or so while the block runs, and refresh the picture in a notebook."""
        over, show, wrong = threading.Event(), _screen(), list[BaseException]()

        def look() -> None:
            pause = self._every
            try:
                while not over.wait(pause):
                    began = time.perf_counter()
                    self.sample()
                    show(self.plot())
                    pause = max(self._every, (time.perf_counter() - began) / _PART)
            except Exception as error:
                wrong.append(error)

        self.sample()
        show(self.plot())
        thread = threading.Thread(target=copy_context().run, args=(look,), name="labkit panel", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
            self.sample()
            show(self.plot())
        if wrong:
            raise wrong[0]

    @property
    def df(self) -> pd.DataFrame:
        """One row a look, see ``Look``; requests a second as ``2xx_per_s`` and so on."""
        rows = []
        for look in self.looks:
            row = asdict(look)
            row.update({f"{name}_per_s": value for name, value in row.pop("per_s").items()})
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> plots.Figure:
        """The picture as it is now."""
        looks = list(self.looks)
        times = [look.time_s for look in looks]

        def draw(axes: Any) -> None:
            rate, took, part = axes
            for name in CLASSES:
                rate.plot(times, [look.per_s[name] for look in looks], label=name)
            for name in ("p50_s", "p95_s", "p99_s"):
                took.plot(times, [getattr(look, name) for look in looks], label=name)
            part.plot(times, [look.errors for look in looks])
            part.plot(times, [look.hit_rate for look in looks])

        return plots.figure(
            draw,
            title=repr(self),
            alt=say("watch.panel_alt", says=repr(self)),
            data=self.df,
            size=(11.0, 3.4),
            panels=3,
        )

    def __repr__(self) -> str:
        look = self.looks[-1]
        return say(
            "watch.panel", per_s=sum(look.per_s.values()), errors=number(look.errors, ".1%"), p95=duration(look.p95_s)
        )


def _screen() -> Callable[[plots.Figure], None]:
    """What shows a picture, always in the same place; outside of a notebook nothing does."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if ipython is None or not hasattr(shell, "kernel"):
        return lambda picture: None
    handle: Any = None

    def show(picture: plots.Figure) -> None:
        nonlocal handle
        data, metadata = picture._repr_mimebundle_()
        if handle is None:
            handle = ipython.display.display(data, metadata=metadata, raw=True, display_id=True)
        else:
            handle.update(data, metadata=metadata, raw=True)

    return show
