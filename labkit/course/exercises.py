"""What a lesson's exercises are: read from ``starters.json``, which the editions builder writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
        file: the deliverable it becomes, relative to the delivery folder; empty if none.
        minutes: time promised for it.
        functions: fingerprint of each function of the untouched starter, by name.
    """

    id: str
    cell: str
    file: str
    minutes: float
    functions: dict[str, str]

    @property
    def slug(self) -> str:
        """The id as it stands in message keys and function names: ``"1_3"``."""
        return self.id.replace(".", "_")


@dataclass(frozen=True)
class Outline:
    """A lesson as its source describes it: name, promised minutes and exercises in order."""

    name: str
    minutes: float
    exercises: dict[str, Exercise]

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
    return Outline(name, data["minutes"], exercises)
