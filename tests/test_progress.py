"""A bar that shows how far work is: where somebody looks, in one place, seldom, and gone at the end."""

from __future__ import annotations

import asyncio
import io
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from labkit import Lab, _watch
from labkit._progress import Bar
from labkit._watch import Watch
from labkit.load import LoadResult


def says(done: int, total: int) -> str:
    return f"<{done} of {total}>"


class Notebook:
    """In the place of IPython: notes what is displayed and what it becomes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown = list[str]()
        self.handles = 0
        module: Any = types.ModuleType("IPython")
        module.get_ipython = lambda: types.SimpleNamespace(kernel=1)
        module.display = types.SimpleNamespace(display=self.display)
        monkeypatch.setitem(sys.modules, "IPython", module)

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        self.handles += 1
        self.update(bundle, raw=raw)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        self.shown.append(bundle["text/html"])


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    return Notebook(monkeypatch)


def test_in_a_notebook_one_bar_grows_and_goes(notebook: Notebook) -> None:
    bar = Bar(says)
    bar.clear()
    assert bar.shown and notebook.shown == [], "nothing was begun"
    for done in (1, 2):
        bar(done, 2)
    bar.clear()
    assert notebook.handles == 1 and "&lt;1 of 2&gt;" in notebook.shown[0] and 'value="1.000"' in notebook.shown[1]
    assert notebook.shown[2] == ""


def test_in_a_terminal_one_line_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "IPython", None)
    bar = Bar(says)
    bar(1, 3)
    bar.clear()
    assert terminal.getvalue() == "\r<1 of 3>\x1b[K\r\x1b[K"
    bar(3, 3)
    assert terminal.getvalue().endswith("\r<3 of 3>\x1b[K\n"), "what is done ends its line"


def test_elsewhere_nothing_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)
    bar = Bar(says)
    bar(1, 2)
    bar.clear()
    assert not bar.shown and capsys.readouterr() == ("", "")
    watch = Watch(lambda: 0, 1, None)

    async def work() -> None:
        async with watch:
            ...

    asyncio.run(work())
    assert watch._thread.ident is None, "no bar and no Redis: no thread"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> None:
        await asyncio.sleep(0.02)

    with Lab(app) as lab:
        yield lab


def _load(lab: Lab, requests: int) -> LoadResult:
    return lab.load("/slow", requests=requests, concurrency=1)


def test_a_load_shows_its_progress_five_times_a_second_at_most(notebook: Notebook, lab: Lab) -> None:
    result = _load(lab, 40)
    assert _watch.PAUSE >= 0.2
    assert 2 <= len(notebook.shown) <= 1 + result.seconds / 0.2, "a few steps and the end"
    assert "de 40 peticiones" in notebook.shown[0] and notebook.shown[-1] == ""


def test_a_short_load_shows_none(notebook: Notebook, lab: Lab) -> None:
    assert _load(lab, 1).requests == 1 and notebook.shown == []
