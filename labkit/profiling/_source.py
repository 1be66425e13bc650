"""A measurement beside each line of some functions: a table whose background tells the heat, and bars."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from types import CodeType
from typing import Any, ClassVar

import pandas as pd

from labkit import plots
from labkit._frames import place
from labkit._html import FAINT, INK, LINE, MONO, Safe, card, code, join, tag
from labkit._text import number, say
from labkit.errors import MeasurementError

_CELL = f"padding:1px 8px;border-bottom:1px solid {LINE};white-space:pre;font-family:{MONO};text-align:"


@dataclass(frozen=True, eq=False)
class SourceReport:
    """Lines of source with their measurements.

    Attributes:
        label: the request.
        df: one row a line: ``function, line, hits``, the measurements, ``source``.
        codes: the functions.
    """

    label: str
    df: pd.DataFrame = field(repr=False)
    codes: tuple[CodeType, ...] = field(repr=False)

    shown: ClassVar[Mapping[str, Callable[[float], str]]]
    drawn: ClassVar[tuple[str, ...]]
    axis: ClassVar[staticmethod[..., None]]
    room: ClassVar[str]

    @property
    def heat(self) -> pd.Series[float]:
        """How much each line matters, from 0 to 1."""
        raise NotImplementedError

    @property
    def hottest(self) -> Any:
        """The row of the line that matters most."""
        return self.df.iloc[int(self.heat.where(self.df.hits > 0, -1.0).to_numpy().argmax())]

    def plot(self) -> plots.Figure:
        """The ten lines that matter most as bars, in the order of the source."""
        top = self.df.loc[self.heat[self.df.hits > 0].nlargest(10).index].sort_index()
        names = [
            f"{line}: {shorten(source, 44, placeholder='…')}" for line, source in zip(top.line, top.source, strict=True)
        ]

        def draw(given: Any) -> None:
            for ax, column in zip(given if panels > 1 else [given], self.drawn, strict=True):
                plots.bars(ax, names, top[column].clip(lower=0).tolist(), show=self.shown[column])
                ax.set_xlabel(say(f"profiling.axis_{column}"))
                self.axis(ax.xaxis)
                # One scale, so that the panels may be compared.
                ax.set_xlim(0, 1.25 * max(1e-12, top[list(self.drawn)].to_numpy().max()))
                names[:] = [""] * len(names)  # beside the first panel alone

        panels, size = len(self.drawn), (11, 1.6 + 0.4 * len(top))
        alt = say(f"profiling.{self.room}_alt", label=self.label)
        data = self.df.rename(columns={"hits": "runs"})  # elsewhere hits are those of a cache
        return plots.figure(draw, title=self.says, alt=alt, data=data, size=size, panels=panels)

    @property
    def says(self) -> str:
        """The finding, in one sentence."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{self.label}: {self.says}\n    {self.hottest.source.strip()}"

    def _repr_html_(self) -> Safe:
        head = [say("profiling.hits"), *(say(f"profiling.{column}") for column in self.shown)]
        titles = join(tag("th", name, "padding:1px 8px;text-align:right") for name in ("", *head, ""))

        def line(row: Any) -> Safe:
            # Vermilion laid thinly over whatever the theme has: the text keeps the theme's own colour.
            glow = f";background:rgba(213,94,0,{0.5 * max(0.0, self.heat[row.Index]):.2f})"
            cells = [number(row.hits), *(show(getattr(row, key)) for key, show in self.shown.items())]
            numbers = [tag("td", cell if row.hits else "", f"{_CELL}right{glow}") for cell in cells]
            first = tag("td", row.line, f"{_CELL}right;color:{FAINT}")
            return tag("tr", join([first, *numbers, tag("td", row.source, f"{_CELL}left{glow}")]))

        parts = []
        for one in self.codes:
            rows = self.df[self.df.function == one.co_qualname].itertuples()
            parts.append(tag("div", join([code(one.co_qualname), " ", place(one)]), f"color:{FAINT}"))
            style = f"border-collapse:collapse;color:{INK};background:transparent;font-size:12.5px"
            table = tag("table", join([tag("tr", titles), *map(line, rows)]), style)
            parts.append(tag("div", table, "overflow-x:auto"))
        return card(f"{self.label}: {self.says}", join(parts), note=say(f"profiling.{self.room}_note"))


def by_line(
    codes: Collection[CodeType], reply: Any, measured: Callable[[CodeType, int], dict[str, float]]
) -> pd.DataFrame:
    """The table of a report: each line of the functions, from files or notebook cells, with what was
    measured.

    Raises:
        MeasurementError: if no line ran.
    """
    rows = []
    for one in codes:
        try:
            source, first = inspect.getsourcelines(one)
        except OSError:
            first, last = one.co_firstlineno, max(line for *_, line in one.co_lines() if line)
            source = [""] * (last - first + 1)
        for line, text in enumerate(source, first):
            values = measured(one, line)
            rows.append({"function": one.co_qualname, "line": line, **values, "source": text.rstrip()})
    if not any(row["hits"] for row in rows):
        key = "profiling.not_run" if codes else "profiling.no_endpoint"
        names, status = ", ".join(one.co_qualname for one in codes), str(getattr(reply, "status", "?"))
        raise MeasurementError(say(key, names=names, label=getattr(reply, "label", ""), status=status))
    return pd.DataFrame(rows)
