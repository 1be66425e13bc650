"""The one look of every figure: style sheet, colours, and a Figure that carries its alt text and its table.

Figures are made with matplotlib's object interface, never with pyplot: they may be drawn in any thread and
nothing is kept alive. In a notebook a figure shows as an image with alt text and, folded below it, the same
numbers as a table.
"""

from __future__ import annotations

import base64
import io
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure as _Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from labkit._html import FAINT, Safe, join, table, tag
from labkit._text import duration, number, say
from labkit.errors import LabkitError

# Okabe and Ito's palette: told apart with any colour vision.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
GREY = "#8A8A8A"
BEFORE, AFTER = VERMILION, BLUE
_DEPTH, _LEAST = 12, 0.004  # of an icicle: rows at most, and the narrowest box as a fraction of the root

_SHARES = ("gain", "high", "hit_rate", "hits", "low", "share", "stale")  # columns of a table, from 0 to 1

# The style sheet acts through matplotlib's global settings: one thread at a time may change them.
_drawing = threading.RLock()


class Figure(_Figure):
    """A matplotlib figure with ``alt`` (text for who cannot see it) and ``table`` (the numbers it draws)."""

    alt: str = ""
    table: pd.DataFrame | None = None

    def png(self) -> bytes:
        """The picture as PNG bytes."""
        buffer = io.BytesIO()
        with _style():
            self.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
        return buffer.getvalue()

    def html(self, *, with_table: bool = True) -> Safe:
        """``<img>`` with alt text and the table folded below it."""
        return self._html(base64.b64encode(self.png()).decode(), with_table)

    def _html(self, picture: str, with_table: bool) -> Safe:
        image = Safe(
            tag(
                "img",
                "",
                "max-width:100%;height:auto;border-radius:4px",
                alt=self.alt,
                src=f"data:image/png;base64,{picture}",
            ).removesuffix("</img>")
        )
        if self.table is None or not with_table:
            return image
        summary = tag("summary", say("plots.as_table"), f"cursor:pointer;color:{FAINT};font-size:12px")
        return join([image, tag("details", join([summary, frame(self.table)]))])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        # The HTML is what JupyterLab shows; viewers that drop pictures from HTML (GitHub) take the PNG.
        picture = base64.b64encode(self.png()).decode()
        data = {
            "text/plain": self.alt or repr(self),
            "text/html": self._html(picture, True),
            "image/png": picture,
        }
        return data, {"image/png": {"alt": self.alt}}


@contextmanager
def _style() -> Iterator[None]:
    with _drawing, as_file(files("labkit") / "labkit.mplstyle") as path, style.context(path):
        yield


def figure(
    draw: Callable[[Any], None],
    *,
    title: str,
    alt: str,
    data: pd.DataFrame | None = None,
    size: tuple[float, float] = (9.0, 3.6),
    panels: int = 1,
) -> Figure:
    """Make a figure in the house style and let ``draw`` fill it.

    Args:
        draw: called with the Axes (a list of Axes if ``panels`` > 1).
        title: the finding, as a sentence ("1.051 consultas → 2").
        alt: what the picture shows, five words or more.
        data: the numbers drawn, shown as a table below the picture.
        size: width and height in inches.
        panels: how many Axes, side by side.
    """
    with _style():
        fig = Figure(figsize=size, layout="constrained")
        axes: list[Axes] = list(fig.subplots(1, panels, squeeze=False)[0])
        draw(axes if panels > 1 else axes[0])
        if panels > 1:
            fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", parse_math=False)
        else:
            axes[0].set_title(title, parse_math=False)
    fig.alt, fig.table = alt, data
    return fig


def frame(data: pd.DataFrame, most: int = 30) -> Safe:
    """A DataFrame as an escaped table in the words and numbers of the language, at most ``most`` rows.

    Columns that the catalogue knows get its heading, others keep their name. Seconds (``*_s``) and milliseconds are
    shown as durations, what is not there as a dash.
    """
    numeric = [i for i, kind in enumerate(data.dtypes) if pd.api.types.is_numeric_dtype(kind)]
    names = list(map(str, data.columns))
    cells = data.head(most).astype(object).values.tolist()
    rows = [[_cell(name, value) for name, value in zip(names, row, strict=True)] for row in cells]
    shown, rest = table(list(map(_heading, names)), rows, numeric), len(data) - most
    if rest <= 0:
        return shown
    return join([shown, tag("div", say("plots.more_rows", rest=rest), f"color:{FAINT};font-size:12px")])


def _heading(name: str) -> str:
    try:
        return say(f"plots.column_{name}")
    except LabkitError:
        return name


def _cell(name: str, value: Any) -> Any:
    if pd.isna(value) is True:
        return "–"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if name in ("seconds", "time") or (name.endswith("_s") and not name.endswith("_per_s")):
        return duration(value) if value else "0 s"
    if name == "ms" or name.endswith("_ms"):
        return duration(value / 1e3) if value else "0 s"
    if isinstance(value, int):
        return number(value)
    if name in _SHARES:
        return number(value, ".1%")
    return number(value, ",.3g") if abs(value) < 1000 else number(value, ",.0f")


@dataclass(frozen=True, slots=True)
class Node:
    """A box of an icicle: ``value`` counts its children too. ``own`` marks the learner's own code."""

    name: str
    value: float
    children: tuple[Node, ...] = ()
    own: bool = False


def icicle(root: Node, title: str, alt: str) -> Figure:
    """A tree of durations as boxes: callers above, what they call below, width in proportion to value.

    Args:
        root: the tree; each value, in seconds, includes those of the children. What lies deeper than 12 rows
            or is narrower than 0.4 % of the root is left out.
        title: the finding, as a sentence.
        alt: what the picture shows.
    """
    boxes = list(_boxes(root, 0.0, 0, _LEAST * root.value))
    rows = 1 + max(level for _, _, level in boxes)
    total, width = root.value or 1.0, 11.0

    def draw(ax: Axes) -> None:
        for node, left, level in boxes:
            face = (ORANGE if level % 2 else "#F0B73A") if node.own else ("#DCE6EE" if level % 2 else "#C9D9E6")
            ax.add_patch(Rectangle((left, level), node.value, 0.94, facecolor=face, edgecolor="white"))
            room = int(node.value / total * width * 12.5) - 1  # characters of 9 points that fit
            label = f"{node.name}  {duration(node.value)}"
            if len(label) > room:
                label = node.name if len(node.name) <= room else f"{node.name[: room - 1]}…"
            if room >= 4:
                weight = "bold" if node.own else "normal"
                place = (left + 0.004 * total, level + 0.47)
                ax.text(*place, label, size=9, va="center", clip_on=True, parse_math=False, fontweight=weight)
        ax.set(xlim=(0, total), ylim=(rows, 0))
        ax.grid(False)
        ax.yaxis.set_visible(False)
        ax.spines["left"].set_visible(False)
        durations(ax.xaxis)
        ax.set_xlabel(say("plots.icicle_own" if any(node.own for node, _, _ in boxes) else "plots.icicle_axis"))

    names = [say("plots.name"), say("plots.value"), say("plots.share")]
    cells = [(node.name, duration(node.value), number(node.value / total, ".0%")) for node, _, _ in boxes]
    data = pd.DataFrame(cells, columns=names)
    return figure(draw, title=title, alt=alt, data=data, size=(width, 1.3 + 0.34 * rows))


def _boxes(node: Node, left: float, level: int, least: float) -> Iterator[tuple[Node, float, int]]:
    yield node, left, level
    for child in node.children if level + 1 < _DEPTH else ():
        if child.value >= least:
            yield from _boxes(child, left, level + 1, least)
        left += child.value


def durations(axis: Axis, *, log: bool = False) -> None:
    """Label an axis in seconds with durations of the language: 200 µs, 1,5 ms, 2 s. Call it after drawing."""
    _ticks(axis, _short, log)


def numbers(axis: Axis, *, log: bool = False) -> None:
    """Label an axis with numbers of the language: 1.051. Call it after drawing."""
    _ticks(axis, lambda x: number(x, ",.10g"), log)


def _ticks(axis: Axis, show: Callable[[float], str], log: bool) -> None:
    if log:
        low, high = axis.get_data_interval()
        (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
        # Within a decade a log axis has no ticks of its own worth reading.
        few = low > 0 and high < 6 * low
        steps = (1.0,) if low > 0 and high > 1000 * low else (1.0, 2.0, 5.0)  # of wide ranges the decades suffice
        axis.set_major_locator(MaxNLocator(6) if few else LogLocator(subs=steps, numticks=12))
    elif isinstance(axis.get_major_locator(), AutoLocator):
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: show(x)))


def _short(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size * 0.9999:
            return f"{number(seconds / size, ',.4g')} {unit}"
    return "0"


def bars(
    ax: Axes,
    names: Sequence[str],
    values: Sequence[float],
    colours: Sequence[str] | str = BLUE,
    *,
    show: Callable[[float], str] = number,
    intervals: Sequence[tuple[float, float] | None] | None = None,
) -> None:
    """Horizontal bars, the first on top, each with its value written at its end.

    Args:
        ax: where to draw.
        names: what each bar is.
        values: how long each bar is.
        colours: one for all, or one a bar.
        show: turns a value into the text beside the bar.
        intervals: (low, high) of each bar, drawn as a whisker.
    """
    places, longest = range(len(values)), max([*values, 1e-12])
    ax.barh(places, values, color=colours, height=0.62)
    for place, value in enumerate(values):
        end, whisker = value, intervals[place] if intervals else None
        if whisker:
            ax.plot(whisker, (place, place), color=BLACK, linewidth=1.6, marker="|", markersize=9)
            end = max(end, whisker[1])
            longest = max(longest, end)
        ax.annotate(show(value), (end, place), (6, 0), textcoords="offset points", va="center", fontweight="bold")
    ax.set_yticks(places, names)
    ax.set(ylim=(len(values) - 0.4, -0.6), xlim=(0, longest * 1.2))
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
