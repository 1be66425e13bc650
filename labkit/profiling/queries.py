"""Every SQL statement of a request: its text, time, rows and the line of yours that ran it.

with record() as recorder:
    ...  # sync, async, threadpool; any engine
report = recorder.report("/users")
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import pandas as pd

from labkit import plots
from labkit._frames import Site
from labkit._html import Safe, card, code, join, table, tag
from labkit._text import duration, number, say
from labkit.profiling._capture import Shot, Statement, listen, statement
from labkit.profiling.nplus1 import Finding, find

COLOURS = (plots.VERMILION, plots.BLUE, plots.GREEN, plots.ORANGE, plots.PURPLE, plots.SKY, plots.GREY)
MOST = len(COLOURS)  # lines of code that a picture or a card shows


class QueryRecorder:
    """The statements that ran inside ``record()``."""

    def __init__(self) -> None:
        self._shots: list[Shot] = []
        self._start, self._stop = perf_counter(), 0.0

    @property
    def count(self) -> int:
        """Statements so far; stays as it is once the ``with`` block is left."""
        return len(self._shots)

    def report(
        self,
        label: str = "",
        elapsed: float | None = None,
        latency_ms: float = 0,
        endpoint: Callable[..., Any] | None = None,
    ) -> QueryReport:
        """Work out what was recorded.

        Args:
            label: what was measured, a path as a rule.
            elapsed: seconds the request took; default: how long the recording was open.
            latency_ms: simulated round trip of each statement, to be shown.
            endpoint: the function that answers; the place of statements that run while none of the user's
                lines is active (an attribute that loads while the framework makes JSON of the answer).
        """
        statements = tuple(statement(shot, self._start) for shot in list(self._shots))
        if endpoint is not None and (own := getattr(inspect.unwrap(endpoint), "__code__", None)) is not None:
            home = Site(own.co_filename, own.co_firstlineno, own.co_name)
            statements = tuple(replace(one, site=one.site or home) for one in statements)
        if elapsed is None:
            elapsed = (self._stop or perf_counter()) - self._start
        return QueryReport(statements, find(statements), elapsed, label, latency_ms)


@contextmanager
def record() -> Iterator[QueryRecorder]:
    """Record the statements of this context; tasks and threadpool workers started inside count as well.

    Threads of a ThreadPoolExecutor of your own do not count: they work outside of the request's context.

    Recordings may be nested; each gets every statement. It costs a few microseconds a statement.
    """
    recorder = QueryRecorder()
    try:
        with listen(recorder._shots):
            yield recorder
    finally:
        recorder._shots = list(recorder._shots)  # a task that outlives the block goes on with the old list
        recorder._stop = perf_counter()


@dataclass(frozen=True)
class QueryReport:
    """The statements of one request and what is wrong with them.

    ``elapsed`` is the request's time in seconds, ``latency_ms`` the simulated round trip of each statement.
    """

    statements: tuple[Statement, ...]
    findings: tuple[Finding, ...]
    elapsed: float
    label: str = ""
    latency_ms: float = 0

    @property
    def count(self) -> int:
        """How many statements ran."""
        return len(self.statements)

    @property
    def df(self) -> pd.DataFrame:
        """One row a statement, in the order they ran."""
        columns = {
            "start_ms": [s.start * 1e3 for s in self.statements],
            "ms": [s.elapsed * 1e3 for s in self.statements],
            "rows": [s.rows for s in self.statements],
            "sql": [" ".join(s.sql.split()) for s in self.statements],
            "parameters": [str(s.parameters) for s in self.statements],
            "place": [_place(s.site) for s in self.statements],
            "engine": [s.engine for s in self.statements],
            "many": [s.many for s in self.statements],
            "error": [s.error for s in self.statements],
        }
        return pd.DataFrame(columns)

    def by_site(self) -> pd.DataFrame:
        """One row a line of code, the busiest first: its source, how often it asked, milliseconds, rows."""
        rows = []
        for site, own in self._lanes:
            source = linecache.getline(site.file, site.line).strip() if site else ""
            ms, fetched = sum(s.elapsed for s in own) * 1e3, sum(s.rows or 0 for s in own)
            rows.append([_place(site), source, len(own), ms, fetched])
        return pd.DataFrame(rows, columns=["place", "code", "count", "ms", "rows"])

    @property
    def _lanes(self) -> list[tuple[Site | None, list[Statement]]]:
        lanes: dict[Site | None, list[Statement]] = {}
        for one in self.statements:
            lanes.setdefault(one.site and one.site._replace(function=""), []).append(one)
        return sorted(lanes.items(), key=lambda lane: -len(lane[1]))

    @property
    def _summary(self) -> str:
        return f"{_counted('statements', self.count)}, {duration(self.elapsed)} {self._latency}".strip()

    @property
    def _latency(self) -> str:
        return say("profiling.latency_note", ms=self.latency_ms) if self.latency_ms else ""

    def plot(self) -> plots.Figure:
        """When each statement ran: a lane and a colour for each line of code, the busiest on top."""
        lanes = self._lanes[:MOST]

        def draw(axes: Any) -> None:
            for y, ((_, own), colour) in enumerate(zip(lanes, COLOURS, strict=False)):
                spans = [(s.start, s.elapsed) for s in own]
                axes.broken_barh(spans, (y - 0.32, 0.64), color=colour, linewidth=0.4 if len(own) > 99 else 1.2)
            labels = [f"{_place(site)}\n×{number(len(own))}" for site, own in lanes]
            axes.set_yticks(range(len(lanes)), labels)
            axes.set_ylim(max(len(lanes), 1) - 0.5, -0.5)
            axes.set_xlim(0, self.elapsed or 1)
            axes.set_xlabel(say("profiling.time_axis", label=self.label, note=self._latency).strip(": \n"))
            axes.grid(axis="y", visible=False)
            plots.durations(axes.xaxis)

        title = f"{_counted('statements', self.count)} {_counted('from_lines', len(self._lanes))}"
        alt = say("profiling.queries_alt", title=title, summary=self._summary)
        size = (9.0, 1.4 + 0.6 * max(len(lanes), 1))
        return plots.figure(draw, title=title, alt=alt, data=self.by_site(), size=size)

    def __repr__(self) -> str:
        return "\n".join([f"QueryReport: {self._summary}", *(f"  {one}" for one in self.findings)])

    def _repr_html_(self) -> Safe:
        found = [
            tag("div", join([one.says, " ", say("profiling.instead"), " ", code(one.fix)]), "margin:4px 0")
            for one in self.findings
        ]
        rows = []
        for colour, (place, source, count, ms, fetched) in zip(COLOURS, self.by_site().values, strict=False):
            where = join([tag("span", "■ ", f"color:{colour}", aria_hidden="true"), place])
            what = tag("span", code(source), "overflow-wrap:anywhere")
            row = tag("span", where, "white-space:nowrap"), what, number(count), duration(ms / 1e3)
            rows.append([*row, number(fetched)])
        header = [say(f"profiling.head_{name}") for name in ("place", "code", "count", "time", "rows")]
        return card(
            join([self.label, " · " if self.label else "", self._summary]),
            join([*found, table(header, rows, numeric=(2, 3, 4))]),
            colour=plots.VERMILION if found else plots.GREEN,
            symbol="▲" if found else "●",
            note=say("profiling.time_covers"),
        )


def _counted(noun: str, count: int) -> str:
    return say(f"profiling.{noun}_one" if count == 1 else f"profiling.{noun}", count=count)


def _place(site: Site | None) -> str:
    return site.place if site else say("profiling.no_place")
