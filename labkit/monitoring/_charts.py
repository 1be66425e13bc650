"""The panel's picture: three charts of what was seen, and a canvas that draws them again and again for little."""

from __future__ import annotations

import io
import math
from typing import Any, cast

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imsave

from labkit import plots
from labkit._text import duration, number, say

# What is drawn: its chart, its word in the legend, the colour and the dashes that tell it apart.
_CURVES = {
    "status_2xx": (0, "2xx", plots.BLUE, "-"),
    "status_3xx": (0, "3xx", plots.GREY, ":"),
    "status_4xx": (0, "4xx", plots.ORANGE, "-."),
    "status_5xx": (0, "5xx", plots.VERMILION, "--"),
    "errors": (2, "5xx", plots.VERMILION, "--"),
    "p50_s": (1, "p50", plots.SKY, "-"),
    "p95_s": (1, "p95", plots.BLUE, "--"),
    "p99_s": (1, "p99", plots.PURPLE, ":"),
    "hit_rate": (2, "hit rate", plots.GREEN, "-"),
}
NAMES = ("time_s", *_CURVES)  # the columns of what was seen: seconds, requests a second, seconds, shares
_ENDS = (10, 20, 30, 60, 120, 300, 600)  # of the time axis, in seconds


class Canvas:
    """Draws picture after picture: axes and words again only when they have to change, else the curves alone.

    A whole picture costs ten times as much.
    """

    def __init__(self) -> None:
        self._limits: Any = None

    def draw(self, seen: Any, title: str) -> tuple[bytes, int, int]:
        """The picture of what was seen (an array, a row a look) as PNG, its width and its height."""
        limits = _limits(seen)
        if limits != self._limits:
            self._limits = limits
            self._build(seen, title)
        self._canvas.restore_region(self._empty)
        for line, values in zip(self._lines, _values(seen), strict=True):
            line.set_data(seen[:, 0], values)
            self._figure.draw_artist(line)
        self._title.set_text(title)
        self._figure.draw_artist(self._title)
        buffer = io.BytesIO()
        imsave(buffer, self._canvas.buffer_rgba(), format="png", pil_kwargs={"compress_level": 1})
        return buffer.getvalue(), *self._canvas.get_width_height()

    def _build(self, seen: Any, title: str) -> None:
        self._figure, self._lines = charts(seen, title)
        (self._title,) = self._figure.texts
        self._canvas = cast(Any, FigureCanvasAgg(self._figure))
        for artist in (self._title, *self._lines):
            artist.set_animated(True)
        self._canvas.draw()
        self._figure.set_layout_engine("none")
        self._empty = self._canvas.copy_from_bbox(self._figure.bbox)


def charts(seen: Any, title: str) -> tuple[plots.Figure, list[Any]]:
    """The figure with all that was seen, and its curves in the order of ``NAMES``."""
    end, fastest, ticks, shown = _limits(seen)
    lines: list[Any] = []

    def draw(axes: Any) -> None:
        for (name, (chart, label, colour, dashes)), values in zip(_CURVES.items(), _values(seen), strict=True):
            visible = name in shown
            word = label if visible else "_"  # matplotlib's sign for none in the legend
            (line,) = axes[chart].plot(seen[:, 0], values, color=colour, linestyle=dashes, label=word, visible=visible)
            lines.append(line)
        plots.durations(axes[1].yaxis, log=True)
        axes[1].set_yticks(ticks)
        limits = ((0, fastest), (ticks[0], ticks[-1]), (-2, 102))
        for ax, limit, words in zip(axes, limits, ("rate", "duration", "share"), strict=True):
            ax.set(xlim=end, ylim=limit, xlabel=say("watch.time_axis"), ylabel=say(f"watch.{words}_axis"))
            if ax.get_legend_handles_labels()[1]:
                ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2, columnspacing=1.2)
            plots.numbers(ax.xaxis)
        plots.numbers(axes[0].yaxis)

    alt = say("watch.panel_alt", says=title)
    return plots.figure(draw, title=title, alt=alt, data=_table(seen), size=(11.0, 3.4), panels=3), lines


def _values(seen: Any) -> list[Any]:
    return [(100 if chart == 2 else 1) * seen[:, place] for place, (chart, *_) in enumerate(_CURVES.values(), 1)]


def _limits(seen: Any) -> tuple[Any, ...]:
    """The limits of the axes, on few round numbers so that they seldom change, and which curves there are."""
    last = seen[-1, 0]
    end = next((end for end in _ENDS if last <= end), 60 * math.ceil(last / 60))
    start = 0 if end <= _ENDS[-1] else 60 * math.floor(seen[0, 0] / 60)
    rates, times = (seen[:, places][seen[:, places] > 0] for places in (slice(1, 5), slice(6, 9)))
    ticks = _steps(times.min(), times.max()) if len(times) else _steps(1e-3, 1e-1)
    fastest = _steps(rates.max(), rates.max())[-1] if len(rates) else 1.0
    least = {"errors": 0.0, "hit_rate": 0.0}  # these say something as 0 too
    shown = tuple(name for i, name in enumerate(NAMES) if (seen[:, i] >= least.get(name, 1e-12)).any())
    return (start, end), fastest, ticks, shown


def _steps(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... from the last that is not above ``low`` to the first that is not below ``high``."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
    below, enough = [step for step in steps if step <= low], [step for step in steps if step >= high]
    return [step for step in steps if below[-1] <= step <= enough[0]]


def _table(seen: Any) -> pd.DataFrame:
    """At most thirty of the looks, in the words of the language."""

    def show(name: str, value: float) -> str:
        if math.isnan(value):
            return "–"
        if name in ("errors", "hit_rate"):
            return number(value, ".1%")
        return duration(value) if name.startswith("p") else number(value, ",.1f")

    rows = seen[:: math.ceil(len(seen) / 30)]
    return pd.DataFrame(
        {say(f"watch.column_{name}"): [show(name, value) for value in rows[:, i]] for i, name in enumerate(NAMES)}
    )
