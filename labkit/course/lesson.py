"""The one object a lesson's notebook talks to: checks, hints, predictions, progress and the report."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from labkit import _html, plots
from labkit._text import number
from labkit.course import predictions, report
from labkit.course.cards import Card, has, words
from labkit.course.checks import Check, run_check
from labkit.course.deliverables import find_cell, history, requirements
from labkit.course.evidence import Evidence, plain
from labkit.course.exercises import Exercise, Outline, outline
from labkit.course.progress import Progress, progress
from labkit.errors import WorkFolderError
from labkit.settings import set_language, work_folder

T = TypeVar("T")
RUNGS = 4


def open_lesson(name: str, language: str = "es", lab: Any = None) -> Lesson:
    """Open a lesson in a notebook.

    Args:
        name: ``"01_profiling"``.
        language: ``"es"`` or ``"en"``; of every card, figure and error from here on.
        lab: the Lab that the checks send their requests to.

    Raises:
        CourseError: if there is no such lesson.
    """
    set_language(language)
    plan = outline(name)
    module = importlib.import_module(f"labkit.course.lessons.{plan.room}")
    checks = {e.id: check for e in plan.exercises.values() if (check := getattr(module, f"check_{e.slug}", None))}
    try:
        folder, notice = work_folder(), ""
    except WorkFolderError as error:  # the lesson works without a disk; its card says what is wrong
        folder, notice = Path.cwd() / "work", str(error)
    evidence = Evidence(folder / "progress" / f"{name}.json")
    evidence.notice = evidence.notice or notice
    return Lesson(plan, checks, evidence, lab=lab, sections=getattr(module, "report_sections", None))


class Lesson:
    """A lesson in progress. No method raises for what a learner hands in: the answer is a card that says so.

    Attributes:
        lab: the Lab that the checks use; may be set later.
    """

    def __init__(
        self,
        plan: Outline,
        checks: Mapping[str, Check],
        evidence: Evidence,
        *,
        lab: Any = None,
        sections: report.Sections | None = None,
    ) -> None:
        self.plan, self.lab, self.evidence = plan, lab, evidence
        self._checks, self._sections = checks, sections
        self.evidence.add("open")

    def check(self, id: str, thing: Any = None, *, seed: int | None = None) -> Card:
        """Judge what the learner wrote for an exercise.

        Args:
            id: the exercise, ``"1.3"``.
            thing: her function or value.
            seed: of the hidden data, to see a failure again; new at each check by default.
        """
        if isinstance(exercise := self._exercise(id), Card):
            return exercise
        limit = 1.5 * (self.lab.time_limit if self.lab else 30.0)  # a request that hangs is the Lab's to end
        outcome = run_check(self._checks.get(id), self.plan, exercise, thing, lab=self.lab, limit=limit, seed=seed)
        card = outcome.card
        for name, result in outcome.kept.items():
            self.evidence.keep(name, result)
        self.evidence.add(
            "check",
            exercise=id,
            verdict=card.verdict,
            key=outcome.key,
            message=card.message,
            counts={name: plain(value) for name, value in card.counts.items()},
            source=outcome.source,
            needs=requirements(outcome.source, history()),
        )
        return self._noted(card)

    def hint(self, id: str) -> Card:
        """The next rung for an exercise: a question, the place, the API, the code."""
        if isinstance(exercise := self._exercise(id), Card):
            return exercise
        keys = [f"{self.plan.room}.hint_{exercise.slug}_{rung}" for rung in range(1, RUNGS + 1)]
        keys = [key for key in keys if has(key)]
        if not keys:
            return Card("", words("course.no_hint"), title=words("course.exercise", id=id))
        used = {event["rung"] for event in self.evidence.of("hint", exercise=id)}
        rung = min(len(used) + 1, len(keys))
        if rung not in used:
            self.evidence.add("hint", exercise=id, rung=rung)
        name = words(f"course.rung_{rung}")
        title = (
            words("course.exercise", id=id) + " · " + words("course.hint_title", rung=rung, rungs=len(keys), name=name)
        )
        text = words(keys[rung - 1])
        is_code = rung == RUNGS
        return self._noted(
            Card(
                "",
                "" if is_code else text,
                hint_key=keys[rung - 1],
                title=title,
                code=text if is_code else "",
            )
        )

    def predict(self, id: str, **guess: Any) -> Card:
        """Store a guess before the measurement: ``predict("1.1", queries=40)``. The first guess counts."""
        title = words("course.prediction", id=id)
        values = predictions.usable(guess)
        if not values:
            names = ", ".join(guess) or "predict(..., queries=10)"
            return Card("todo", words("course.guess_missing", names=names), title=title)
        before = {p.name: p.guess for p in predictions.predictions(self.evidence) if p.id == id and p.name in values}
        self.evidence.add("predict", question=id, values=values)
        known = {name: value for name, value in before.items() if value is not None}
        key, said = ("course.guess_kept", known) if known else ("course.guess_saved", values)
        text = ", ".join(f"{predictions.label(self.plan.room, n)} = {number(v, ',g')}" for n, v in said.items())
        return self._noted(Card("", words(key, values=text), title=title, counts=said))

    def actual(self, id: str, **values: Any) -> plots.Figure | Card:
        """Join the measurement to the guess: a figure of both, or a card if ``values`` holds no number."""
        measured = predictions.usable(values)
        if not measured:
            text = words("course.actual_missing", names=", ".join(values) or "actual(..., queries=report.count)")
            return Card("error", text, title=words("course.prediction", id=id))
        self.evidence.add("actual", question=id, values=measured)
        found = [p for p in predictions.predictions(self.evidence) if p.id == id and p.name in measured]
        return predictions.versus(found, self.plan.room)

    def calibration(self) -> plots.Figure:
        """How far the learner's guesses were off, all of the lesson in one figure."""
        return predictions.calibration(predictions.predictions(self.evidence), self.plan.room)

    def reflect(self, id: str, text: str = "") -> Card:
        """Keep what the learner concludes, for the report; the last text of a question counts."""
        title = words("course.reflection", id=id)
        if not text.strip():
            return Card("todo", words("course.reflection_empty"), title=title)
        self.evidence.add("reflect", question=id, text=text.strip())
        return self._noted(Card("", words("course.reflection_saved", count=len(text.split())), title=title))

    def keep(self, name: str, result: T) -> T:
        """Put a measurement into the report under a name, and hand it back so that the cell shows it."""
        self.evidence.keep(name, result)
        return result

    def progress(self) -> Progress:
        """Exercises done, checks, hints and minutes spent against the budget."""
        return progress(self.plan, self.evidence)

    def report(self, *results: Any) -> Card:
        """Write the lesson's report, figures, modules and README into ``work/ejercicios-semana7``.

        Args:
            results: measurements to put in, as ``keep`` does under the name of their type (``comparison``).
        """
        title = self._title
        if self.plan.room not in report.TREE:
            return Card("", words("report.none"), title=title)
        for result in results:
            self.keep(type(result).__name__.lower(), result)
        self._collect_parts()
        folder = self.evidence.path.parents[1] / report.FOLDER
        try:
            made = report.write(self.plan, self.evidence, folder, self._sections)
        except OSError as error:
            reason = error.strerror or str(error)
            return Card("error", words("report.not_written", path=folder, reason=reason), title=title)
        names = ", ".join(path.name for path in made.backups)
        note = words("report.backups", names=names) if names else ""
        text = words("report.written", path=made.report, count=len(made.files))
        return self._noted(Card("", text, title=title, note=note))

    def _collect_parts(self) -> None:
        """Cells of the deliverables that no check looks at, as they last ran in this notebook."""
        ran = history()
        for part in self.plan.parts:
            source = "" if part.exercise else find_cell(part.names, ran)
            if source:
                self.evidence.add("part", cell=part.cell, source=source, needs=requirements(source, ran))

    def reset(self) -> Card:
        """Begin the lesson's evidence anew; the old one is kept as a backup beside it."""
        backup = self.evidence.reset()
        return Card("", words("course.was_reset", backup=backup or "-"), title=self._title)

    def __repr__(self) -> str:
        lines = [self._title, repr(self.progress()), words("course.saved_in", path=self.evidence.path)]
        return "\n".join(filter(None, [*lines, self.evidence.notice, self.evidence.problem]))

    def _repr_html_(self) -> str:
        where = words("course.saved_in", path=self.evidence.path)
        note = " ".join(filter(None, [self.evidence.notice, self.evidence.problem])) or where
        seen = self.progress()
        return _html.card(self._title, _html.join([_html.tag("div", seen.title), seen.table]), symbol="→", note=note)

    @property
    def _title(self) -> str:
        key = f"{self.plan.room}.title"
        return words(key) if has(key) else words("course.lesson", name=self.plan.name)

    def _exercise(self, id: str) -> Exercise | Card:
        if (found := self.plan.exercises.get(str(id))) is not None:
            return found
        known = ", ".join(self.plan.exercises) or "-"
        return Card("error", words("course.no_such_exercise", id=id, known=known))

    def _noted(self, card: Card) -> Card:
        """The card with what went wrong in saving, if anything did."""
        return replace(card, note=" ".join(filter(None, [card.note, self.evidence.problem])))
