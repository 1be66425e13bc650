"""Cards: what a check, a hint or a prediction answers, told by word, shape and colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from labkit import _html, plots
from labkit._text import Catalogue
from labkit.errors import LabkitError

State = Literal["todo", "error", "almost", "done", "inconclusive"]

# Shape and colour of each state; a card also says the word.
LOOK: dict[State, tuple[str, str]] = {
    "todo": ("○", plots.GREY),
    "error": ("✕", plots.VERMILION),
    "almost": ("◐", plots.ORANGE),
    "done": ("●", plots.GREEN),
    "inconclusive": ("◇", plots.PURPLE),
}

words = Catalogue("labkit.course")


def has(key: str) -> bool:
    """Whether the course's catalogue knows a message."""
    try:
        words(key)
    except LabkitError:
        return False
    except (LookupError, ValueError, AttributeError):  # it exists and wants values
        return True
    return True


def inline(text: str) -> _html.Safe:
    """A sentence as HTML, its `quoted` parts set as code."""
    return _html.join(_html.code(p) if i % 2 else p for i, p in enumerate(text.split("`")))


@dataclass(frozen=True)
class Card:
    """An answer to the learner.

    Attributes:
        verdict: ``todo``, ``error``, ``almost``, ``done`` or ``inconclusive``; empty for a hint or a note.
        message: what was found, in a sentence.
        hint_key: key of the hint that fits this very answer; empty if none.
        counts: the numbers behind the sentence.
        title: what the card is about ("Ejercicio 1.3").
        hint: the sentence behind ``hint_key``.
        note: what stands below: the seed, the state of the evidence.
        code: source lines to show: the place where the learner's code stopped, or the last rung of a hint.
    """

    verdict: State | Literal[""]
    message: str
    hint_key: str = ""
    counts: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    hint: str = ""
    note: str = ""
    code: str = ""

    @property
    def heading(self) -> str:
        """Title and the verdict's word: "Ejercicio 1.3 · casi"."""
        return " · ".join(part for part in (self.title, self.verdict and words(f"course.state_{self.verdict}")) if part)

    def __repr__(self) -> str:
        symbol = LOOK[self.verdict][0] if self.verdict else "→"
        lines = [f"{symbol} {self.heading}".rstrip(), self.message, self.code, self.hint, self.note]
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        symbol, colour = LOOK[self.verdict] if self.verdict else ("→", plots.BLUE)
        body = [_html.tag("div", inline(line)) for line in (self.message, self.hint) if line]
        if self.code:
            style = f"background:{_html.SHADE};color:{_html.INK};padding:6px 10px;margin:6px 0;overflow-x:auto"
            body.insert(1, _html.tag("pre", self.code.strip("\n"), style))
        return _html.card(self.heading, _html.join(body), colour=colour, symbol=symbol, note=self.note)
