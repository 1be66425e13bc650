"""A notebook without Jupyter: run a lesson's cells, hand in an exercise in some version, read the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from labkit import Lab
from labkit.course import open_lesson
from labkit.course.cards import Card
from labkit.course.markers import Role
from tests.cells import run, text

SOURCES = Path(__file__).parents[2] / "notebooks/source"
SEEDS = (0, 977_131)
NAMES = {
    "1.1": "profile_endpoint",
    "1.2": "find_n_plus_one",
    "1.3": "fast_endpoint",
    "1.4": "create_indexes",
    "1.5": "improvement",
}


@cache
def cell_text(lesson: str, cell: str, role: Role) -> str:
    return text(SOURCES / f"{lesson}.py", cell, role)


class Judged(NamedTuple):
    """A card, and the key of its message."""

    card: Card
    key: str

    @property
    def state(self) -> tuple[str, str]:
        return self.card.verdict, self.key


@dataclass
class Notebook:
    """One lesson opened with a Lab, and the names that its cells made.

    Attributes:
        names: exercise id to the name that the learner's function has.
    """

    lesson_name: str
    lab: Lab
    names: dict[str, str]
    setup: Sequence[str] = ()
    language: str = "es"
    namespace: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lesson = open_lesson(self.lesson_name, language=self.language, lab=self.lab)
        self.namespace["lab"] = self.lab
        for cell in self.setup:
            run(self.text(cell), self.namespace)

    def text(self, cell: str, role: Role = "starter") -> str:
        return cell_text(self.lesson_name, cell, role)

    def version(self, id: str, *swaps: tuple[str, str], role: Role = "solution") -> str:
        """The exercise's cell with some text replaced, which must be there."""
        source = self.text(id, role)
        for old, new in swaps:
            assert old in source, f"{old!r} is no longer in the {role} of {id}"
            source = source.replace(old, new)
        return source

    def write(self, id: str, source: str) -> Any:
        """Run a cell in a copy of the notebook and return the exercise's function."""
        return run(source, dict(self.namespace))[self.names[id]]

    def judge(self, id: str, thing: Any, seed: int | None = None) -> Judged:
        card = self.lesson.check(id, thing, seed=seed)
        return Judged(card, self.lesson.evidence.of("check", exercise=id)[-1]["key"])

    def check(self, id: str, source: str, seed: int | None = None) -> Judged:
        return self.judge(id, self.write(id, source), seed)


def shows_its_trap(notebook: Notebook, id: str, key: str, counts: Mapping[str, object]) -> None:
    """Assert that the untouched starter is still to do, and what its sentence is and counts."""
    judged = notebook.check(id, notebook.text(id))
    assert judged.state == ("todo", key)
    assert judged.card.counts.items() >= counts.items()


def profiling(lab: Lab) -> Notebook:
    """Lesson 01 with its imports and its slow endpoint."""
    return Notebook("01_profiling", lab, NAMES, ("imports", "slow-endpoint"))
