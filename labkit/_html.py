"""Small, escaped pieces of HTML for notebook reprs: cards and tables that read well in light and dark themes.

Inline styles only (a saved notebook loses style sheets), JupyterLab's own colour variables with fallbacks, no
scripts. Everything that is not ``Safe`` is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

INK = "var(--jp-ui-font-color1, #222)"
FAINT = "var(--jp-ui-font-color2, #666)"
LINE = "var(--jp-border-color2, #d0d0d0)"
PAPER = "var(--jp-layout-color1, #fff)"
SHADE = "var(--jp-layout-color2, #f4f4f4)"
MONO = "var(--jp-code-font-family, ui-monospace, monospace)"


class Safe(str):
    """A string that already is HTML and is put in as it stands."""

    __slots__ = ()


def escape(value: Any) -> Safe:
    """HTML of a value: as it stands if ``Safe``, else its ``str`` escaped."""
    return value if isinstance(value, Safe) else Safe(html.escape(str(value)))


def tag(name: str, content: Any = "", style: str = "", **attributes: Any) -> Safe:
    """One element; ``class_``-style trailing underscores are dropped from attribute names."""
    parts = [f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()]
    if style:
        parts.append(f' style="{html.escape(style)}"')
    return Safe(f"<{name}{''.join(parts)}>{escape(content)}</{name}>")


def join(pieces: Iterable[Any]) -> Safe:
    """Pieces one after the other, each escaped unless ``Safe``."""
    return Safe("".join(escape(piece) for piece in pieces))


def code(value: Any) -> Safe:
    """Inline code."""
    return tag("code", value, f"font-family:{MONO};font-size:0.92em")


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], numeric: Iterable[int] = ()) -> Safe:
    """A plain table; the columns whose index is in ``numeric`` are set flush right with tabular figures."""
    right = set(numeric)

    def cell(name: str, index: int, value: Any) -> Safe:
        align = "right;font-variant-numeric:tabular-nums" if index in right else "left"
        weight = "font-weight:600;" if name == "th" else ""
        return tag(
            name,
            value,
            f"{weight}text-align:{align};padding:3px 10px;border-bottom:1px solid {LINE};vertical-align:top",
        )

    head = tag("tr", join(cell("th", i, value) for i, value in enumerate(header)))
    body = join(tag("tr", join(cell("td", i, value) for i, value in enumerate(row))) for row in rows)
    return tag(
        "table",
        join([tag("thead", head), tag("tbody", body)]),
        f"border-collapse:collapse;color:{INK};background:transparent;font-size:13px;margin:4px 0",
    )


def card(title: Any, body: Any, *, colour: str = "#0072B2", symbol: str = "", note: Any = "") -> Safe:
    """A bordered card: a coloured edge, a title with an optional symbol, a body and a faint note below."""
    heading = tag(
        "div",
        join([tag("span", symbol, f"color:{colour};margin-right:6px", aria_hidden="true") if symbol else "", title]),
        "font-weight:600;margin-bottom:4px",
    )
    foot = tag("div", note, f"color:{FAINT};font-size:12px;margin-top:6px") if note else ""
    return tag(
        "div",
        join([heading, tag("div", body), foot]),
        f"border:1px solid {LINE};border-left:5px solid {colour};border-radius:4px;padding:10px 14px;margin:6px 0;"
        f"max-width:980px;color:{INK};background:{PAPER};font-size:14px;line-height:1.45",
    )
