"""The source of functions with a measurement beside each line, as a table whose background tells the heat."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any

from labkit._frames import place
from labkit._html import FAINT, LINE, MONO, Safe, code, join, tag
from labkit._text import say
from labkit.errors import MeasurementError

Row = tuple[int, Sequence[Any], float, str]  # line number, cells, heat from 0 to 1, source


def source_of(function: CodeType) -> dict[int, str]:
    """Line number -> text, of files and of notebook cells; empty where there is no source."""
    try:
        lines, first = inspect.getsourcelines(function)
    except OSError:
        return dict.fromkeys(sorted({line for *_, line in function.co_lines() if line}), "")
    return {number: line.rstrip() for number, line in enumerate(lines, first)}


def not_run(functions: Iterable[CodeType], reply: Any) -> MeasurementError:
    """The error to raise when none of the functions ran inside the endpoint."""
    names, status = ", ".join(one.co_qualname for one in functions), getattr(reply, "status", "?")
    key = "profiling.not_run" if names else "profiling.no_endpoint"
    return MeasurementError(say(key, names=names, label=getattr(reply, "label", ""), status=str(status)))


def heat_table(function: CodeType, head: Sequence[str], rows: Iterable[Row]) -> Safe:
    """The source of one function; ``head`` names the cells between the line number and the source."""
    thin = f"padding:1px 8px;border-bottom:1px solid {LINE};white-space:pre;font-family:{MONO};"

    def line(row: Row) -> Safe:
        number, cells, heat, source = row
        # Vermilion laid thinly over whatever the theme has: the text keeps the theme's own colour.
        glow = f"background:rgba(213,94,0,{0.55 * heat:.2f});" if heat > 0.005 else ""
        numbers = [tag("td", cell, f"{thin}text-align:right;{glow}") for cell in cells]
        first = tag("td", number, f"{thin}text-align:right;color:{FAINT}")
        return tag("tr", join([first, *numbers, tag("td", source, f"{thin}text-align:left;{glow}")]))

    titles = [tag("th", name, "padding:1px 8px;text-align:right;font-weight:600") for name in ("", *head)]
    where = tag(
        "div", join([code(function.co_qualname), " ", place(function)]), f"color:{FAINT};margin-top:6px"
    )
    body = join([tag("tr", join([*titles, tag("th", "")])), *map(line, rows)])
    return join(
        [where, tag("table", body, "border-collapse:collapse;font-size:12.5px;background:transparent")]
    )
