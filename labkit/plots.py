"""The one look of every figure: style sheet, colours, and a Figure that carries its alt text and its table.

Figures are made with matplotlib's object interface, never with pyplot: they may be drawn in any thread and
nothing is kept alive. In a notebook a figure shows as an image with alt text and, folded below it, the same
numbers as a table.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from importlib.resources import as_file, files
from typing import Any

from matplotlib import style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _Figure

from labkit._html import FAINT, Safe, join, table, tag
from labkit._text import number, say

# Okabe and Ito's palette: told apart with any colour vision.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK, YELLOW = "#CC79A7", "#56B4E9", "#000000", "#F0E442"
GREY = "#8A8A8A"
BEFORE, AFTER = VERMILION, BLUE


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
        data = base64.b64encode(self.png()).decode()
        image = Safe(tag("img", "", "max-width:100%;height:auto;border-radius:4px", alt=self.alt, src=f"data:image/png;base64,{data}").replace("></img>", ">"))
        if self.table is None or not with_table:
            return image
        return join([image, tag("details", join([tag("summary", say("plots.as_table"), f"cursor:pointer;color:{FAINT};font-size:12px"), frame(self.table)]))])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": self.alt or repr(self), "text/html": self.html()}


def _style() -> Any:
    with as_file(files("labkit") / "labkit.mplstyle") as path:
        return style.context(path)


def figure(draw: Callable[[Any], None], *, title: str, alt: str, data: pd.DataFrame | None = None,
           size: tuple[float, float] = (9.0, 3.6), panels: int = 1) -> Figure:
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
            fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        else:
            axes[0].set_title(title)
    fig.alt, fig.table = alt, data
    return fig


def frame(data: pd.DataFrame, most: int = 30) -> Safe:
    """A DataFrame as an escaped table with the numbers of the language, at most ``most`` rows."""
    numeric = [i for i, kind in enumerate(data.dtypes) if pd.api.types.is_numeric_dtype(kind)]

    def show(value: Any) -> Any:
        if isinstance(value, float):
            return number(value, ",.3g") if abs(value) < 1000 else number(value, ",.0f")
        return number(value) if isinstance(value, int) and not isinstance(value, bool) else value

    shown = table(list(data.columns), [[show(v) for v in row] for row in data.head(most).astype(object).values.tolist()], numeric)
    rest = len(data) - most
    return join([shown, tag("div", say("plots.more_rows", rest=rest), f"color:{FAINT};font-size:12px")]) if rest > 0 else shown
