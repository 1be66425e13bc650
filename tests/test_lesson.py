"""The lesson object: hints, predictions, progress, and a whole lesson in a real IPython session."""

from __future__ import annotations

import importlib
import json
import os
import re
import string
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from labkit import plots, settings
from labkit._text import say
from labkit.course import exercises, open_lesson, predictions
from labkit.course.cards import Card, words
from labkit.course.checks import Context, Verdict, done
from labkit.course.editions import STARTERS
from labkit.course.evidence import Evidence
from labkit.course.exercises import Outline, outline_from
from labkit.course.lesson import Lesson
from labkit.course.markers import fingerprints
from labkit.errors import CourseError
from tests.cells import run

STARTER = "def total(items):\n    return 0\n"
SOLUTION = 'def total(items):\n    """Sum."""\n    return sum(items)\n'
PLAN = outline_from(
    "01_profiling",
    {
        "minutes": 10,
        "exercises": {
            "1.1": {"cell": "total", "minutes": 5, "functions": fingerprints(STARTER)},
            "1.9": {"cell": "other", "minutes": 2, "functions": {}},
        },
        "parts": [{"cell": "total", "file": "profiling/profiler.py", "names": ["total"], "exercise": "1.1"}],
    },
)


def check_1_1(ctx: Context, total: Any) -> Verdict:
    got = total([1, 2, 3])
    ctx.require(got == 6, "course.guess_kept", values=got)
    ctx.keep("sum", SimpleNamespace(df=None))
    return done("course.guess_saved", values=got, strange={(1, 2): object})


class Clock:
    """Seconds that a test moves on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lesson(tmp_path: Path, clock: Clock) -> Lesson:
    return Lesson(PLAN, {"1.1": check_1_1}, Evidence(tmp_path / "work" / "progress" / "01_profiling.json", clock))


def own(source: str) -> Any:
    return run(source)["total"]


# --- check


def test_a_check_is_kept_as_evidence_with_the_learners_cell(lesson: Lesson) -> None:
    assert lesson.check("1.1", own(STARTER)).verdict == "todo"
    assert lesson.check("1.1", own(SOLUTION)).verdict == "done"
    last = Evidence(lesson.evidence.path).of("check", exercise="1.1")[-1]
    assert (last["verdict"], last["source"], last["counts"]["values"]) == ("done", SOLUTION, 6)
    assert "sum" in lesson.evidence.kept()


@pytest.mark.parametrize("name", ["9.9", "", "1_1", None, 1.2, []])
def test_an_unknown_exercise_is_a_card_that_names_the_known(lesson: Lesson, name: Any) -> None:
    for card in (lesson.check(name, own(SOLUTION)), lesson.hint(name)):
        assert card.verdict == "error" and "1.1, 1.9" in card.message


def test_an_exercise_without_a_check_says_so(lesson: Lesson) -> None:
    assert lesson.check("1.9", 3).verdict == "error"


def test_what_goes_wrong_with_saving_stands_on_the_card(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("labkit.course.evidence.os.fsync", full)
        card = lesson.check("1.1", own(SOLUTION))
        assert card.verdict == "done" and "No space left" in card.note and "No space left" in lesson._repr_html_()
    assert lesson.check("1.1", own(SOLUTION)).note == ""
    assert len(Evidence(lesson.evidence.path).of("check")) == 2


# --- hints


def test_hints_come_rung_by_rung_and_the_last_stays(lesson: Lesson) -> None:
    keys = [lesson.hint("1.1").hint_key for _ in range(6)]
    assert keys == [f"lesson_01.hint_1_1_{n}" for n in (1, 2, 3, 4, 4, 4)]
    assert [step.hints for step in lesson.progress().steps] == [4, 0]
    assert lesson.hint("1.1").code and not lesson.hint("1.1").message
    assert lesson.hint("1.9").hint_key == ""
    assert all(lesson.hint("1.1").verdict == "" for _ in range(2))  # shown, not punished


# --- predictions


def test_the_first_guess_counts_and_the_last_measurement(lesson: Lesson) -> None:
    assert "10" in lesson.predict("1", queries=10, seconds=0.5).message
    assert "10" in lesson.predict("1", queries=99).message
    lesson.actual("1", queries=5)
    figure = lesson.actual("1", queries=20)
    assert isinstance(figure, plots.Figure) and figure.table is not None and len(figure.alt.split()) >= 5
    found = {item.name: item for item in predictions.predictions(lesson.evidence)}
    assert (found["queries"].guess, found["queries"].actual, found["queries"].factor) == (10, 20, 0.5)
    assert (found["seconds"].actual, found["seconds"].factor) == (None, None)


@pytest.mark.parametrize(
    "bad", [{}, {"queries": None}, {"queries": ...}, {"queries": "ten"}, {"queries": float("nan")}]
)
def test_a_guess_that_is_no_number_is_asked_for_again(lesson: Lesson, bad: dict[str, Any]) -> None:
    assert lesson.predict("1", **bad).verdict == "todo"
    card = lesson.actual("1", **bad)
    assert isinstance(card, Card) and card.verdict == "error"
    assert not lesson.evidence.of("predict") and not lesson.evidence.of("actual")


@pytest.mark.parametrize(
    ("guess", "actual", "factor"), [(10, 20, 0.5), (7, 7, 1.0), (0, 0, 1.0), (0, 5, None), (-1, 5, None)]
)
def test_how_far_a_guess_was_off(guess: float, actual: float, factor: float | None) -> None:
    assert predictions.Prediction("1", "x", guess, actual).factor == factor


@pytest.mark.parametrize(("actual", "shown"), [(0.065, "154"), (0.65, "15"), (1051, "0,0095")])
def test_how_far_off_is_written_as_people_write_numbers(actual: float, shown: str) -> None:
    table = predictions.frame([predictions.Prediction("1", "x", 10, actual)], "lesson_00")
    assert table[words("course.factor")][0] == shown


def test_figures_are_drawn_with_and_without_guesses(lesson: Lesson) -> None:
    assert lesson.calibration().png().startswith(b"\x89PNG")
    unguessed = lesson.actual("2", queries=0)
    lesson.predict("3", queries=3, ratio=-1.0, odd=2)
    several = lesson.actual("3", queries=3, ratio=2.0, odd=1e9)
    for figure in (unguessed, several, lesson.calibration()):
        assert isinstance(figure, plots.Figure) and figure.png().startswith(b"\x89PNG")
    assert lesson.calibration().axes[0].get_title(loc="left") == words("course.calibration_title", near=1, total=2)
    lesson.predict("4", seconds=10)
    figure = lesson.actual("4", seconds=0.049041)
    assert isinstance(figure, plots.Figure) and "10, " in figure.axes[0].get_title(loc="left")
    assert "0,049 " in figure.axes[0].get_title(loc="left")
    assert [text.get_text() for text in figure.axes[0].texts] == ["10", "0,049"]


# --- progress, reflection, reset


def test_minutes_spent_leave_breaks_out(lesson: Lesson, clock: Clock) -> None:
    for pause in (60, 120, 3600):  # the last one is a break: it counts as ten minutes
        clock.now += pause
        lesson.check("1.1", own(SOLUTION))
    found = lesson.progress()
    assert found.spent == pytest.approx(1 + 2 + 10) and found.minutes == 10
    assert (found.done, found.steps[0].checks, found.steps[0].state) == (1, 3, "done")
    assert len(found.df) == 2 and "1" in repr(found) and "<table" in found._repr_html_()


def test_done_stays_done_when_a_later_try_fails(lesson: Lesson) -> None:
    lesson.check("1.1", own(SOLUTION))
    lesson.check("1.1", own("def total(items):\n    return 1\n"))
    assert lesson.progress().steps[0].state == "done"


def test_a_reflection_is_kept_and_an_empty_one_is_asked_for(lesson: Lesson) -> None:
    assert lesson.reflect("1.1", "  \n").verdict == "todo" and lesson.reflect("1.1").verdict == "todo"
    assert lesson.reflect("1.1", "\nuna dos tres\n").verdict == ""
    assert lesson.evidence.of("reflect")[-1]["text"] == "una dos tres"


def test_reset_begins_anew_and_names_the_backup(lesson: Lesson) -> None:
    lesson.check("1.1", own(SOLUTION))
    assert "reset" in lesson.reset().message
    assert lesson.progress().done == 0


def test_the_lesson_shows_as_a_card(lesson: Lesson) -> None:
    assert str(lesson.evidence.path) in repr(lesson) and "<table" in lesson._repr_html_()


def test_a_measurement_is_handed_back_to_be_shown(lesson: Lesson) -> None:
    thing = SimpleNamespace()
    assert lesson.keep("thing", thing) is thing and "thing" in lesson.evidence.kept()


# --- report


def test_a_report_is_a_card_whatever_happens(lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson.check("1.1", own(SOLUTION))
    card = lesson.report()
    folder = tmp_path / "work" / "ejercicios-semana7"
    assert str(folder / "profiling" / "optimization_report.md") in card.message and card.verdict == ""
    module = folder / "profiling" / "profiler.py"
    module.write_text("x")
    assert "profiler.bak-1.py" in lesson.report().note
    monkeypatch.setattr("labkit.course.report.write_atomically", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    failed = lesson.report()
    assert failed.verdict == "error" and "full" in failed.message and str(folder) in failed.message


def test_a_lesson_that_delivers_nothing_says_so(tmp_path: Path) -> None:
    plan = Outline("00_start", 10, {})
    assert Lesson(plan, {}, Evidence(tmp_path / "a" / "b.json")).report().verdict == ""


# --- opening


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sample lesson one of the course's."""
    entry = {"minutes": 10, "exercises": {}, "parts": []}
    entry["exercises"] = {"1.1": {"cell": "total", "minutes": 5, "functions": fingerprints(STARTER)}}
    monkeypatch.setattr(exercises, "_starters", lambda: {"97_sample": entry})
    module = ModuleType("labkit.course.lessons.lesson_97")
    module.check_1_1 = check_1_1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_lesson_is_opened_by_name_and_sets_the_language(sample: None, work: Path) -> None:
    lesson = open_lesson("97_sample", language="en")
    assert settings.language() == "en"
    assert (
        lesson.check("1.1", own(SOLUTION)).heading
        == f"{words('course.exercise', 'en', id='1.1')} · {words('course.state_done', 'en')}"
    )
    assert (work / "progress" / "97_sample.json").exists()
    assert open_lesson("97_sample").progress().done == 1 and settings.language() == "es"


def test_an_unknown_lesson_is_named_with_the_known(sample: None, work: Path) -> None:
    with pytest.raises(CourseError, match="97_sample"):
        open_lesson("98_nothing")


def test_a_work_folder_that_cannot_be_made_is_told_and_the_lesson_goes_on(
    sample: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_WORK", str(tmp_path / "file" / "work"))
    monkeypatch.chdir(tmp_path)
    lesson = open_lesson("97_sample")
    assert str(tmp_path / "file" / "work") in lesson._repr_html_() and str(tmp_path / "file" / "work") in repr(lesson)
    assert lesson.check("1.1", own(SOLUTION)).verdict == "done"


# --- in a real session

SESSION = r"""
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
out = {}
for name, cell in json.load(open(sys.argv[1])):
    ran = shell.run_cell(cell, store_history=True)
    assert ran.success, (name, ran.error_in_exec)
    result = ran.result
    out[name] = [getattr(result, "verdict", None), repr(result)]
json.dump(out, open(sys.argv[2], "w"))
"""

SETUP = f"""
from pathlib import Path
from labkit.course.checks import done
from labkit.course.evidence import Evidence
from labkit.course.exercises import outline_from
from labkit.course.lesson import Lesson
plan = outline_from("01_profiling", {{"minutes": 10, "parts": [
    {{"cell": "given", "file": "profiling/profiler.py", "names": ["given"], "exercise": ""}},
    {{"cell": "total", "file": "profiling/profiler.py", "names": ["total"], "exercise": "1.1"}}],
    "exercises": {{"1.1": {{"cell": "total", "minutes": 5, "functions": {fingerprints(STARTER)!r}}}}}}})
def check(ctx, total):
    ctx.require(total([1, 2]) == 3, "course.guess_kept", values=0)
    return done("course.guess_saved", values=3)
lesson = Lesson(plan, {{"1.1": check}}, Evidence(Path.cwd() / "progress" / "01_profiling.json"))
"""


def test_a_whole_lesson_in_ipython(tmp_path: Path) -> None:
    """Cells have sources, places and a history there; magics and top-level await are about."""
    cells = [
        ("setup", SETUP),
        ("imports", "from functools import reduce\nimport operator, os"),
        ("given", "def given():\n    return os.name\n"),
        ("magic", "%pwd"),
        ("wait", "import asyncio\nawait asyncio.sleep(0)"),
        ("starter", STARTER + "lesson.check('1.1', total)"),
        ("broken", "def total(items):\n    # mine\n    return 1 / 0\nlesson.check('1.1', total)"),
        ("solution", "def total(items):\n    return reduce(operator.add, items)\nlesson.check('1.1', total)"),
        ("report", "lesson.report()"),
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    command = [sys.executable, "-c", SESSION, str(tmp_path / "cells.json"), str(tmp_path / "out.json")]
    env = os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    out = json.loads((tmp_path / "out.json").read_text())
    assert [out[name][0] for name in ("starter", "broken", "solution")] == ["todo", "error", "done"]
    assert say("core.cell_line", "es", cell=7, line=3) in out["broken"][1] and "site-packages" not in out["broken"][1]
    module = tmp_path / "ejercicios-semana7" / "profiling" / "profiler.py"
    text = module.read_text()
    assert "import operator\nimport os\nfrom functools import reduce\n" in text and "lesson" not in text.split('"""')[2]
    code = "from profiling.profiler import total, given; given(); raise SystemExit(total([2, 3]))"
    assert subprocess.run([sys.executable, "-c", code], cwd=module.parents[1], check=False).returncode == 5


# --- the words and the lessons of the course

MESSAGES = sorted((Path(__file__).parents[1] / "labkit" / "course" / "messages").glob("*.toml"))


def holes(text: str) -> set[str]:
    return {name.partition(".")[0] for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("file", MESSAGES, ids=lambda file: file.stem)
def test_both_languages_say_everything_with_the_same_values(file: Path) -> None:
    for key, entry in tomllib.loads(file.read_text(encoding="utf-8")).items():
        assert set(entry) == {"es", "en"}, f"{file.name}: {key}"
        assert holes(entry["es"]) == holes(entry["en"]), f"{file.name}: {key}"
        assert all(text.strip() for text in entry.values())
        assert not re.search(r"[¡]|!(?![rsa]})|[\U0001F300-\U0001FAFF]", entry["es"] + entry["en"]), (
            f"{file.name}: {key}"
        )


def test_every_exercise_of_the_course_has_a_check_and_four_rungs(project: Path) -> None:
    for name in json.loads((project / STARTERS).read_text()):
        plan = exercises.outline(name)
        if plan.cures:  # a gallery has cards
            continue
        module = importlib.import_module(f"labkit.course.lessons.{plan.room}")
        entries = tomllib.loads(next(f for f in MESSAGES if f.stem == plan.room).read_text(encoding="utf-8"))
        for exercise in plan.exercises.values():
            assert callable(getattr(module, f"check_{exercise.slug}", None)), f"{name}: {exercise.id}"
            for rung in range(1, 5):
                hint = f"hint_{exercise.slug}_{rung}"
                assert hint in entries, f"{name}: {exercise.id}, rung {rung}"
                for lang in ("es", "en"):  # code has braces, which a sentence doubles
                    assert words(f"{plan.room}.{hint}", lang=lang)
