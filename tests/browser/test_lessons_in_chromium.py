"""Every lesson in Spanish, in a real JupyterLab in Chromium: Run All works and nothing leaves the machine.

``LABKIT_SHOTS=folder`` keeps a picture of every cell in both themes; without it none are taken.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labkit.course.exercises import outline
from tests.abreast import Jobs, abreast
from tests.browser.jupyterlab import Browser, Notebook, open_browser, prepare
from tests.launching import free_port, started

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
LEARNER = sorted((ROOT / "notebooks/es").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks/es/solutions").glob("*.ipynb"))
SHOTS = os.environ.get("LABKIT_SHOTS")
# Solutions run in nbclient. What the dark theme adds is seen on one lesson of plain cells and on one that redraws.
DARK = [path for path in SOLUTIONS if SHOTS or path.stem in ("00_start", "03_monitoring")]
RUN_SECONDS = 300


@contextmanager
def workbook(work: Path, chromium: str, theme: str = "JupyterLab Light") -> Iterator[tuple[Browser, str]]:
    """JupyterLab on this checkout's lessons, as the launcher starts it, and a browser beside it."""
    prepare(work, theme)
    with started(ROOT, work, "--port", str(free_port())) as lab, open_browser(chromium) as browser:
        yield browser, lab.address()
        assert lab.end() == 0
        assert not [line for line in lab.said.splitlines() if "Traceback" in line or "Error" in line], lab.said


def run(browser: Browser, address: str, path: str, shots: str) -> Notebook:
    """Run a notebook and expect of it what a learner may expect of every one."""
    notebook = Notebook(browser, address, path)
    notebook.run_all(RUN_SECONDS)
    if SHOTS:
        notebook.shoot(Path(SHOTS) / shots)
    assert notebook.outputs("error") == []
    assert notebook.unrun() == []
    assert notebook.outputs("stderr") == [], "warnings frighten learners"
    assert notebook.too_wide() == [], f"to be read at {browser.page.viewport_size} without scrolling sideways"
    assert browser.outside == [], "a lesson works without a network"
    assert browser.complaints == []
    return notebook


def test_there_are_lessons_to_run() -> None:
    assert LEARNER and [path.name for path in LEARNER] == [path.name for path in SOLUTIONS]


def untouched(lesson: Path, work: Path, chromium: str) -> None:
    with workbook(work, chromium) as (browser, address):
        notebook = run(browser, address, f"es/{lesson.name}", f"{lesson.stem}-light")
        assert "¡" not in notebook.panel.inner_text()


def solved(lesson: Path, work: Path, chromium: str) -> None:
    (work / "es/solutions").mkdir(parents=True)
    shutil.copy(LEARNER[SOLUTIONS.index(lesson)] if outline(lesson.stem).cures else lesson, work / "es/solutions")
    with workbook(work, chromium, "JupyterLab Dark") as (browser, address):
        run(browser, address, f"es/solutions/{lesson.name}", f"{lesson.stem}-solution-dark")
        assert browser.page.locator('body[data-jp-theme-light="false"]').count() == 1


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, chromium: str) -> Iterator[Jobs]:
    """The runs that are asked for, each with a JupyterLab, a browser and a work folder of its own."""

    def job(test: str, path: Path, folder: Path) -> None:
        (untouched if "untouched" in test else solved)(path, folder / "work", chromium)

    with abreast(request, job, by_test=True) as jobs:
        yield jobs


@pytest.mark.parametrize("path", LEARNER, ids=lambda path: path.stem)
def test_the_untouched_lesson_runs_from_top_to_bottom(path: Path, runs: Jobs) -> None:
    runs["test_the_untouched_lesson_runs_from_top_to_bottom", path].result()


@pytest.mark.parametrize("path", DARK, ids=lambda path: path.stem)
def test_the_solution_runs_in_the_dark_theme(path: Path, runs: Jobs) -> None:
    runs["test_the_solution_runs_in_the_dark_theme", path].result()
