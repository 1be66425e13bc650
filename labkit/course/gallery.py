"""The trap gallery: a card a trap, with a guess, the trap and its cure measured on this machine, cause and cure.

A cell of ``08_trap_gallery`` holds the trap's own code; between the same markers its source holds the cure, which the
build puts into ``starters.json``. `Gallery.card` runs both through the measurement of that trap and shows them side by
side, so that a cure that does not cure cannot hide.
"""

from __future__ import annotations

import ast
import importlib
import linecache
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.patches import Patch, Rectangle

from labkit import _html, plots
from labkit.course.cards import Card, words
from labkit.course.checks import Context, Verdict, done, run_check
from labkit.course.exercises import Exercise, Outline, outline
from labkit.course.trapcard import Found, TrapCard, digits
from labkit.settings import set_language

LIMIT = 60.0
"""Seconds that a card may take, when the learner's changes make it slow; as it comes it takes one or two."""

A_ROW = 13  # boxes of the map


Measure = Callable[[Context, Any, Any], Found]


class _Recorder:
    """Stands in for the gallery while the cure's cell runs: it only wants what would be measured."""

    def __init__(self) -> None:
        self.things: tuple[Any, ...] = ()

    def card(self, id: str, *things: Any, guess: float | None = None) -> None:
        self.things = things


class Gallery:
    """The cards of a gallery. No method raises for what a learner wrote: the answer is a card that says so.

    Args:
        plan: the gallery's outline, with the cures.
        measures: how each trap is measured, by its id.
        places: where each trap of the course text is met, by exercise and id; empty where nothing needs to be shown.
        lab: the Lab that the measurements use.
    """

    def __init__(
        self,
        plan: Outline,
        measures: Mapping[str, Measure],
        places: Mapping[int, Mapping[str, str]],
        *,
        lab: Any = None,
    ) -> None:
        self.plan, self.lab = plan, lab
        self.seen: dict[str, TrapCard] = {}
        self._measures, self._places = measures, places

    def card(self, id: str, *things: Any, guess: float | None = None) -> TrapCard | Card:
        """Measure a trap and its cure, and tell what was found.

        Args:
            id: ``"T12"``.
            things: what the cell made, in the order that the cell came with.
            guess: the prediction of the number that the card shows.
        """
        measure, cell = self._measures.get(id), self.plan.cures.get(id)
        if measure is None or cell is None:
            return Card("error", words("gallery.no_such_card", id=id, known=", ".join(self.plan.cures)))
        namespace = sys._getframe(1).f_globals

        def check(ctx: Context, given: tuple[Any, ...]) -> Verdict:
            ctx.keep("found", measure(ctx, _one(given), _one(run_cure(id, cell, namespace))))
            return done("gallery.cured")

        outcome = run_check(check, self.plan, Exercise(id, id, 0, {}), things, lab=self.lab, limit=LIMIT)
        room = self._room(id)
        if "found" not in outcome.kept:
            return replace(outcome.card, title=f"{id} · {words(f'{room}.{id.lower()}_name')}")
        card = TrapCard(id, room, _plain(guess), outcome.kept["found"], _without_call(cell))
        self.seen[id] = card
        return card

    def _room(self, id: str) -> str:
        """The catalogue of a trap's words: one an exercise."""
        exercise = next(exercise for exercise, traps in self._places.items() if id in traps)
        return f"{self.plan.room}_{exercise}"

    def map(self) -> plots.Figure:
        """Every trap of the course text: which lesson's main path it lies on, or that its card is here."""
        names = {id: words(f"{self._room(id)}.{id.lower()}_name") for id in self.plan.cures}
        return _map(self._places, names)

    @property
    def df(self) -> pd.DataFrame:
        """One row a card seen: id, name, guess, trap, cure."""
        rows = [(card.id, card.name, *(value for _, value, _ in card.rows), card.unit) for card in self._ordered]
        heads = ["id", *(words(f"gallery.{key}") for key in ("name", "guess", "trap", "cure", "unit"))]
        return pd.DataFrame(rows, columns=heads)

    @property
    def _ordered(self) -> list[TrapCard]:
        return [self.seen[id] for traps in self._places.values() for id in traps if id in self.seen]

    def __repr__(self) -> str:
        return words("gallery.title", seen=len(self.seen), total=len(self.plan.cures))

    def _repr_html_(self) -> str:
        header = [words(f"gallery.{key}") for key in ("name", "guess", "trap", "cure", "unit")]
        rows = [
            (f"{card.id} · {card.name}", *(digits(value) for _, value, _ in card.rows), card.unit)
            for card in self._ordered
        ]
        body = _html.table(header, rows, (1, 2, 3)) if rows else words("gallery.how")
        return _html.card(repr(self), body, symbol="→")


def open_gallery(name: str, language: str = "es", lab: Any = None) -> Gallery:
    """Open a gallery in a notebook.

    Args:
        name: ``"08_trap_gallery"``.
        language: ``"es"`` or ``"en"``; of every card from here on.
        lab: the Lab that the measurements use.

    Raises:
        CourseError: if there is no such gallery.
    """
    set_language(language)
    plan = outline(name)
    module = importlib.import_module(f"labkit.course.lessons.{plan.room}")
    return Gallery(plan, module.measures(), module.PLACES, lab=lab)


def run_cure(id: str, cell: str, namespace: dict[str, Any]) -> tuple[Any, ...]:
    """Run the cell of the solutions edition in a copy of the notebook, and return what it would have measured."""
    filename, recorder = f"<cure {id}>", _Recorder()
    linecache.cache[filename] = (len(cell), None, cell.splitlines(keepends=True), filename)
    exec(compile(cell, filename, "exec"), {**namespace, "gallery": recorder})
    return recorder.things


def _one(things: tuple[Any, ...]) -> Any:
    """A measurement of one thing gets it as it is, of several a tuple."""
    return things[0] if len(things) == 1 else things


def _plain(guess: Any) -> float | None:
    return float(guess) if isinstance(guess, int | float) and not isinstance(guess, bool) else None


def _without_call(cell: str) -> str:
    """The code of a cell before its last statement, the call of ``gallery.card``."""
    last = ast.parse(cell).body[-1]
    return "\n".join(cell.splitlines()[: last.lineno - 1]).strip("\n")


def _map(places: Mapping[int, Mapping[str, str]], names: Mapping[str, str]) -> plots.Figure:
    """A box a trap, the traps of an exercise together; ``names`` are those of the cards."""
    lessons = sorted({lesson for traps in places.values() for lesson in traps.values() if lesson})
    kinds = [words("gallery.here"), *(words("gallery.in_lesson", number=lesson) for lesson in lessons)]
    named = dict(zip(["", *lessons], [words("gallery.nowhere"), *kinds[1:]], strict=True))
    colours = dict(zip(kinds, (plots.ORANGE, plots.SKY, plots.GREEN, plots.PURPLE), strict=False))
    colours |= {named[""]: "none"}
    found = [
        (exercise, id, kinds[0] if id in names else named[lesson], names.get(id, "–"))
        for exercise, traps in places.items()
        for id, lesson in traps.items()
    ]
    heads = [words(f"gallery.{key}") for key in ("exercise", "id", "place", "name")]

    def draw(ax: Any) -> None:
        y, ticks = 0.0, []
        for exercise, traps in places.items():
            ticks.append((y, words("course.exercise", id=exercise)))
            for index, (_, id, place, _) in enumerate(row for row in found if row[0] == exercise):
                left, top = index % A_ROW, y + index // A_ROW
                face = colours[place]
                ax.add_patch(Rectangle((left, top - 0.42), 0.9, 0.84, facecolor=face, edgecolor=plots.GREY))
                ax.text(left + 0.45, top, id, ha="center", va="center", fontsize=10)
            y += (len(traps) - 1) // A_ROW + 1.3
        ax.set(xlim=(-0.1, A_ROW), ylim=(y - 0.6, -0.6), xticks=[])
        ax.set_yticks(*map(list, zip(*ticks, strict=True)))
        ax.tick_params(axis="y", length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        handles = [Patch(facecolor=colour, edgecolor=plots.GREY, label=kind) for kind, colour in colours.items()]
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(handles), frameon=False)

    return plots.figure(
        draw,
        title=words("gallery.map_title", total=len(found), here=len(names)),
        alt=words("gallery.map_alt", total=len(found), here=len(names)),
        data=pd.DataFrame(found, columns=heads),
        size=(10.0, 4.2),
    )
