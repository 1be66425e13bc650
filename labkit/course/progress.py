"""How far a learner is: exercises done, hints used, minutes spent against the minutes promised."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from labkit import _html
from labkit._text import number
from labkit.course.cards import LOOK, State, words
from labkit.course.evidence import Evidence
from labkit.course.exercises import Outline

# A pause longer than this is a break, not work on the lesson.
PAUSE = 10 * 60.0


@dataclass(frozen=True)
class Step:
    """One exercise: best verdict so far, checks made, rungs of hints used, minutes promised."""

    id: str
    state: State
    checks: int
    hints: int
    minutes: float


@dataclass(frozen=True)
class Progress:
    """A lesson's progress.

    Attributes:
        lesson: its name.
        steps: the exercises in order.
        spent: minutes spent, pauses of more than ten minutes counted as ten.
        minutes: minutes promised.
    """

    lesson: str
    steps: tuple[Step, ...]
    spent: float
    minutes: float

    @property
    def done(self) -> int:
        """How many exercises are done."""
        return sum(step.state == "done" for step in self.steps)

    @property
    def df(self) -> pd.DataFrame:
        """One row an exercise."""
        states = [f"{LOOK[step.state][0]} {words(f'course.state_{step.state}')}" for step in self.steps]
        return pd.DataFrame(
            {
                words("course.column_exercise"): [step.id for step in self.steps],
                words("course.column_state"): states,
                words("course.column_checks"): [step.checks for step in self.steps],
                words("course.column_hints"): [step.hints for step in self.steps],
                words("course.column_minutes"): [number(step.minutes, "g") for step in self.steps],
            }
        )

    def __repr__(self) -> str:
        return "\n".join([self.title, *(f"  {' · '.join(map(str, row))}" for row in self.df.to_numpy().tolist())])

    def _repr_html_(self) -> str:
        return _html.card(self.title, self.table, symbol="→")

    @property
    def table(self) -> _html.Safe:
        """One row an exercise, as HTML."""
        rows = self.df
        return _html.table(list(rows.columns), rows.to_numpy().tolist(), numeric=(2, 3, 4))

    @property
    def title(self) -> str:
        """Exercises done and minutes spent, as a sentence."""
        return words(
            "course.progress",
            done=self.done,
            total=len(self.steps),
            spent=round(self.spent),
            minutes=self.minutes,
        )


def progress(outline: Outline, evidence: Evidence) -> Progress:
    """Fold the evidence of a lesson into its progress."""
    steps = []
    for exercise in outline.exercises.values():
        checks = evidence.of("check", exercise=exercise.id)
        states: list[State] = [event["verdict"] for event in checks]
        state: State = "done" if "done" in states else states[-1] if states else "todo"
        rungs = {event["rung"] for event in evidence.of("hint", exercise=exercise.id)}
        steps.append(Step(exercise.id, state, len(checks), len(rungs), exercise.minutes))
    times = [float(event["at"]) for event in evidence]
    spent = sum(min(after - before, PAUSE) for before, after in pairwise(times))
    return Progress(outline.name, tuple(steps), spent / 60, outline.minutes)
