"""The health of an application under faults, and a load with an outage in its middle (lesson 03)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from sqlalchemy import URL, make_url

from labkit import plots, settings
from labkit._text import duration
from labkit.course.cards import words
from labkit.errors import RequestError, ServiceError
from labkit.lab import Lab
from labkit.load import LoadResult
from labkit.services import postgres

PATIENCE = 1.0
"""Seconds that a health probe may take."""

FAULTS = ("", "database_down", "database_frozen", "redis_down", "redis_frozen", "disk_full")
EXPECTED = {"": "healthy", "database_down": "unhealthy", "database_frozen": "unhealthy"}
CODES = {"healthy": 200, "degraded": 200, "unhealthy": 503}
COLOURS = {"healthy": plots.GREEN, "degraded": plots.ORANGE, "unhealthy": plots.VERMILION}
GIVEN_UP = 3.0
"""Seconds after which a probe that does not answer is broken off."""


def has_postgres() -> bool:
    """Whether a PostgreSQL of our own can be started, and no other database was asked for."""
    return not settings.database_url() and postgres.available()


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
