"""One Lab for the tests of a lesson's checks: its data is made once and indexed, so that the slow endpoint is quick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit import Lab
from labkit.blog import create_app, indexes
from labkit.course.lessons import lesson_01
from tests.lessons.judging import Notebook, profiling


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blog")


@pytest.fixture(scope="session")
def notebook(data: Path) -> Iterator[Notebook]:
    """Lesson 01 with its imports and its slow endpoint."""
    with Lab(create_app(data_folder=data), redis=False, latency=0) as lab:
        indexes.create(lab.engine)
        yield profiling(lab)


@pytest.fixture
def remembered(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow endpoint's statements, recorded once: they are the same each time."""
    if "report" not in notebook.namespace:
        notebook.namespace["report"] = notebook.lab.queries("/performance/slow-endpoint?sleep_ms=0")
    monkeypatch.setattr(lesson_01, "_slow", lambda ctx: notebook.namespace["report"])
