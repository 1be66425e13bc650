"""What the notebook of lesson 03 shows of registries: the metrics there are, and who counts those that hang up."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from labkit import plots
from labkit._html import Safe, card
from labkit._text import duration
from labkit.course.cards import words
from labkit.course.lessons._leaving import leave
from labkit.lab import Lab
from labkit.monitoring.samples import DURATION, REQUESTS, Snapshot

# --- which metrics there are


@dataclass(frozen=True, repr=False)
class Inventory:
    """The application's metrics in a registry.

    Attributes:
        df: one row a metric: ``metric``, ``type``, ``series``, ``total`` (of a histogram: how many observations).
    """

    df: pd.DataFrame

    @property
    def series(self) -> int:
        """How many series a scrape brings."""
        return int(self.df["series"].sum())

    @property
    def fed(self) -> int:
        """How many metrics say something other than 0."""
        return int((self.df["total"] > 0).sum())

    def __repr__(self) -> str:
        return words("lesson_03.inventory", series=self.series, fed=self.fed, count=len(self.df))

    def _repr_html_(self) -> Safe:
        shown = self.df.set_axis([words(f"lesson_03.column_{name}") for name in self.df.columns], axis=1)
        whole = self.fed == len(self.df)
        return card(
            repr(self), plots.frame(shown), colour=plots.GREEN if whole else plots.ORANGE, symbol="●" if whole else "◐"
        )


def inventory(source: Any) -> Inventory:
    """The metrics whose names begin with ``app_`` in a registry, or in what has one as ``registry``."""
    rows = []
    for family in getattr(source, "registry", source).collect():
        names = {"counter": "_total", "info": "_info"}
        name = family.name + names.get(family.type, "")
        if name.startswith("app_"):
            samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            counted = [sample.value for sample in samples if not sample.name.endswith(("_bucket", "_sum"))]
            rows.append((name, family.type, len(samples), round(math.fsum(counted))))
    return Inventory(pd.DataFrame(rows, columns=["metric", "type", "series", "total"]))


# --- who hangs up (T51)


def hang_up(lab: Lab, app: Any, path: str, *, times: int = 20, after: int = 1) -> None:
    """Ask for a streamed answer and leave after some of its pieces, again and again.

    Args:
        lab: in whose loop it happens.
        app: the application with what is put around it.
        path: of the request.
        times: how many clients.
        after: pieces that each of them reads.
    """

    async def work(client: Any) -> None:
        await asyncio.gather(*(leave(app, path, after=after, state=client.state) for _ in range(times)))

    lab.run(work, 20.0)


@dataclass(frozen=True, repr=False)
class Counted:
    """What several registries counted for one endpoint: one row each, one column a status, and the mean time."""

    df: pd.DataFrame
    endpoint: str

    def __repr__(self) -> str:
        return words("lesson_03.counted", endpoint=self.endpoint)

    def _repr_html_(self) -> Safe:
        return card(repr(self), plots.frame(self.df), symbol="→")


def statuses(endpoint: str, **sources: Any) -> Counted:
    """How often each registry counted which status for an endpoint, and its mean duration."""
    rows = []
    for name, source in sources.items():
        seen = Snapshot.of(source)
        row: dict[str, Any] = {words("lesson_03.column_who"): name}
        for labels, value in sorted(seen.series(REQUESTS, endpoint=endpoint)):
            row[dict(labels)["status"]] = str(int(value))
        count = seen.total(f"{DURATION}_count", endpoint=endpoint)
        mean = seen.total(f"{DURATION}_sum", endpoint=endpoint) / count if count else math.nan
        rows.append((row, {words("lesson_03.column_mean"): duration(mean)}))
    known = sorted({name for row, _ in rows for name in row if name.isdigit()})
    whole = [row | {name: row.get(name, "0") for name in known} | mean for row, mean in rows]
    return Counted(pd.DataFrame(whole), endpoint)
