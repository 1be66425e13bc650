"""What a lesson's exercises are: read from ``starters.json``, which the editions builder writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from labkit.course.cards import words
from labkit.errors import CourseError


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        id: as learners write it, ``"1.3"``.
        cell: name of its cell.
        minutes: time promised for it.
        functions: fingerprint of each function of the untouched starter, by name.
    """

    id: str
    cell: str
    minutes: float
    functions: dict[str, str]

    @property
    def slug(self) -> str:
        """The id as it stands in message keys and function names: ``"1_3"``."""
        return self.id.replace(".", "_")


@dataclass(frozen=True)
class Part:
    """A cell that goes into a deliverable.

    Attributes:
        cell: its name.
        file: the deliverable, relative to the delivery folder: ``"profiling/profiler.py"``.
        names: what the cell binds at its top level.
        exercise: the exercise's id; empty if the cell is none.
    """

    cell: str
    file: str
    names: tuple[str, ...]
    exercise: str = ""


@dataclass(frozen=True)
class Outline:
    """A lesson as its source describes it: name, promised minutes, exercises and deliverables in order.

    Attributes:
        cures: of a gallery: the cell with the corrected code, by the trap's id.
    """

    name: str
    minutes: float
    exercises: dict[str, Exercise]
    parts: tuple[Part, ...] = ()
    cures: Mapping[str, str] = field(default_factory=dict)

    @property
    def room(self) -> str:
        """The message catalogue and module of the lesson: ``"lesson_01"`` for ``"01_profiling"``."""
        return f"lesson_{self.name.partition('_')[0]}"


@cache
def _starters() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((files("labkit.course") / "starters.json").read_text(encoding="utf-8"))
    return data


def outline(name: str) -> Outline:
    """The outline of a lesson.

    Raises:
        CourseError: if there is no lesson of that name.
    """
    known = _starters()
    if name not in known:
        raise CourseError(words("course.no_such_lesson", name=name, known=", ".join(known) or "-"))
    return outline_from(name, known[name])


def outline_from(name: str, data: dict[str, Any]) -> Outline:
    """An outline from one entry of ``starters.json``."""
    exercises = {key: Exercise(id=key, **entry) for key, entry in data["exercises"].items()}
    parts = tuple(Part(**{**part, "names": tuple(part["names"])}) for part in data["parts"])
    return Outline(name, data["minutes"], exercises, parts, data.get("cures", {}))
