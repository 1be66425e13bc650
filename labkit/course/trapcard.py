"""What a card of the trap gallery shows: guess, trap and cure side by side, effect, cause and corrected code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from labkit import _html, plots
from labkit._text import number
from labkit.course.cards import LOOK, State, has, inline, words

_LOOKS: dict[str, State] = {
    "cured": "done",
    "open": "almost",
    "avoided": "done",
    "myth": "inconclusive",
    "absent": "inconclusive",
}


@dataclass(frozen=True)
class Found:
    """What a measurement found, of the trap and of the cure.

    Attributes:
        trap: the one number that shows the trap, of the code in the cell.
        cure: the same of the corrected code.
        shown: whether ``trap`` shows the trap.
        cured: whether ``cure`` does not.
        values: more numbers, for the sentences; ``trap`` and ``cure`` are there by themselves.
        picture: where the numbers alone do not say it.
        table: more that was seen, row by row.
        says: which sentence tells the effect: ``effect``, or another where this Python or machine shows another one.
    """

    trap: float
    cure: float
    shown: bool
    cured: bool
    values: Mapping[str, Any] = field(default_factory=dict)
    picture: plots.Figure | None = None
    table: pd.DataFrame | None = None
    says: str = "effect"


def judged(
    trap: float,
    cure: float,
    *,
    bad: Callable[[float], bool],
    picture: plots.Figure | None = None,
    table: pd.DataFrame | None = None,
    says: str = "effect",
    **values: Any,
) -> Found:
    """What was found, where ``bad`` tells of a number whether it shows the trap."""
    return Found(trap, cure, bad(trap), not bad(cure), values, picture, table, says)


@dataclass(frozen=True)
class TrapCard:
    """One trap as it was found on this machine.

    Attributes:
        id: ``"T12"``.
        room: the catalogue of its sentences, ``"lesson_08_1"``.
        guess: the learner's prediction; None without one.
        found: the measurement.
        code: the corrected code.
    """

    id: str
    room: str
    guess: float | None
    found: Found
    code: str

    @property
    def state(self) -> str:
        """``cured``; ``open`` (the cure did not help either); ``avoided`` (the code of the cell does not fall into the
        trap), ``myth`` (what is believed is not what was measured) or ``absent`` (not to be had on this Python)."""
        if self.found.shown:
            return "cured" if self.found.cured else "open"
        return {"effect": "avoided", "myth": "myth"}.get(self.found.says, "absent")

    @property
    def name(self) -> str:
        """The trap's name, without its id."""
        return self._say("name")

    @property
    def heading(self) -> str:
        """``"T12 · ... · curada"``."""
        return " · ".join([self.id, self.name, words(f"gallery.{self.state}")])

    @property
    def rows(self) -> list[tuple[str, float | None, str]]:
        """Guess, trap and cure: what it is, the number, its colour."""
        return [
            (words("gallery.guess"), self.guess, plots.ORANGE),
            (self._label("trap"), self.found.trap, plots.VERMILION),
            (self._label("cure"), self.found.cure, plots.BLUE),
        ]

    @property
    def df(self) -> pd.DataFrame:
        """One row each for guess, trap and cure."""
        return pd.DataFrame([row[:2] for row in self.rows], columns=[words("course.value"), self.unit])

    @property
    def paragraphs(self) -> list[tuple[str, str]]:
        """Heading and sentence of effect, cause and cure."""
        avoided = self.state == "avoided"
        measured = words("gallery.not_shown", measured=digits(self.found.trap)) if avoided else ""
        effect = measured or self._say(self.found.says)
        return [
            (words("gallery.effect"), effect),
            (words("gallery.cause"), self._say("cause")),
            (words("gallery.instead" if self.state == "myth" else "gallery.remedy"), self._say("cure")),
        ]

    @property
    def unit(self) -> str:
        """What the numbers count."""
        return self._say("unit")

    def _label(self, what: str) -> str:
        """What one of the two numbers is: the trap's own word for it, where it has one."""
        own = f"{self.room}.{self.id.lower()}_{what}_label"
        return words(own) if has(own) else words(f"gallery.{what}")

    def _say(self, what: str) -> str:
        values = {**self.found.values, "trap": self.found.trap, "cure": self.found.cure}
        return words(f"{self.room}.{self.id.lower()}_{what}", **values)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}: {digits(value)}" for name, value, _ in self.rows)
        lines = [f"{_look(self)[0]} {self.heading}", f"{self._say('unit')}: {numbers}"]
        return "\n".join([*lines, *(f"{head}: {text}" for head, text in self.paragraphs), self.code])

    def _repr_html_(self) -> str:
        symbol, colour = _look(self)
        pieces = [_bars(self.unit, self.rows)]
        pieces += [_paragraph(head, text) for head, text in self.paragraphs]
        pieces.append(_folded(words("gallery.other" if self.state == "myth" else "gallery.code"), self.code))
        if self.found.table is not None:
            pieces.append(plots.frame(self.found.table))
        if self.found.picture is not None:
            pieces.append(self.found.picture.html())
        return _html.card(self.heading, _html.join(pieces), colour=colour, symbol=symbol)


def _look(card: TrapCard) -> tuple[str, str]:
    return LOOK[_LOOKS[card.state]]


def digits(value: float | None) -> str:
    """A number of a card, whole or to three digits; a dash for none."""
    if value is None:
        return "–"
    return number(value, ",.0f" if abs(value) >= 1000 or value == int(value) else ",.3g")


def _bars(unit: str, rows: list[tuple[str, float | None, str]]) -> _html.Safe:
    """Guess, trap and cure as a table whose bars are drawn to scale."""
    longest = max([abs(value) for _, value, _ in rows if value is not None], default=0) or 1

    def row(name: str, value: float | None, colour: str) -> _html.Safe:
        width = 0 if value is None else max(100 * abs(value) / longest, 0.5)
        bar = _html.tag("div", "", f"background:{colour};width:{width:.1f}%;height:12px;border-radius:2px")
        cell = "padding:2px 10px 2px 0;border:0;text-align:"
        return _html.tag(
            "tr",
            _html.join(
                [
                    _html.tag("td", name, f"{cell}left;white-space:nowrap"),
                    _html.tag("td", digits(value), f"{cell}right;font-weight:600;font-variant-numeric:tabular-nums"),
                    _html.tag("td", bar, f"{cell}left;width:380px"),
                ]
            ),
            "background:transparent",
        )

    head = _html.tag("caption", unit, f"caption-side:top;text-align:left;color:{_html.FAINT};padding:0 0 2px")
    style = f"border-collapse:collapse;color:{_html.INK};background:transparent;font-size:13px;margin:2px 0 8px"
    return _html.tag("table", _html.join([head, *(row(*given) for given in rows)]), style)


def _paragraph(head: str, text: str) -> _html.Safe:
    return _html.tag("div", _html.join([_html.tag("b", f"{head}. "), inline(text)]), "margin:4px 0")


def _folded(summary: str, code: str) -> _html.Safe:
    style = f"background:{_html.SHADE};color:{_html.INK};padding:6px 10px;margin:6px 0;overflow-x:auto"
    pieces = [_html.tag("summary", summary, "cursor:pointer;margin:4px 0"), _html.tag("pre", code, style)]
    return _html.tag("details", _html.join(pieces))
