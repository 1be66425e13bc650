"""The panel: what it sees by a clock in hand, what it costs, and one picture that changes in a real kernel."""

from __future__ import annotations

import asyncio
import base64
import math
import re
import subprocess
import sys
import textwrap
import threading
import time
import types
from itertools import pairwise
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from prometheus_client import CollectorRegistry, Counter, Histogram

from labkit._text import number
from labkit.errors import MonitoringError
from labkit.monitoring import _screen
from labkit.monitoring._charts import NAMES, Canvas
from labkit.monitoring.alert import Alert
from labkit.monitoring.metrics import Metrics
from labkit.monitoring.panel import Panel
from labkit.monitoring.samples import CACHE, DURATION, REQUESTS
from labkit.settings import set_language

PNG = b"\x89PNG"


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A registry such as a learner makes, a panel on it, and a clock."""

    def __init__(self, **options: Any) -> None:
        self.registry, self.clock = CollectorRegistry(), Clock()
        self.count = Counter(REQUESTS, "Total requests", ["method", "endpoint", "status"], registry=self.registry)
        self.seconds = Histogram(DURATION, "Request duration", ["method", "endpoint"], registry=self.registry)
        self.cache = Counter(CACHE, "Cache operations", ["operation", "result"], registry=self.registry)
        self.panel = Panel(self.registry, clock=self.clock, **options)

    def requests(self, status: int, times: int, seconds: float = 0.003) -> None:
        self.count.labels("GET", "/a", status).inc(times)
        for _ in range(times):
            self.seconds.labels("GET", "/a").observe(seconds)

    def second(self, good: int = 0, bad: int = 0, hits: int = 0, misses: int = 0) -> None:
        """A second goes by, with so many requests."""
        self.requests(200, good)
        self.requests(503, bad, 0.3)
        self.cache.labels("get", "hit").inc(hits)
        self.cache.labels("get", "miss").inc(misses)
        self.cache.labels("set", "ok").inc(misses)
        self.clock.now += 1.0
        self.panel.sample()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_what_it_sees(watched: Watched) -> None:
    watched.requests(200, 1)  # before the first look: not part of it, but its series is known
    watched.requests(503, 1)
    watched.cache.labels("get", "hit").inc()
    watched.cache.labels("get", "miss").inc()
    watched.panel.sample()
    assert watched.panel.df.iloc[0].fillna(-1).tolist() == [0] + 9 * [-1], "one look says nothing yet"
    for _ in range(4):
        watched.second(good=18, bad=2, hits=3, misses=1)
    seen = watched.panel.df
    assert list(seen.columns) == list(NAMES) and list(seen["time_s"]) == [0, 1, 2, 3, 4]
    last = seen.iloc[-1]
    assert last[["status_2xx", "status_3xx", "status_4xx", "status_5xx"]].tolist() == pytest.approx([18, 0, 0, 2])
    assert last[["errors", "hit_rate"]].tolist() == pytest.approx([0.1, 0.75])
    assert 0 < last["p50_s"] < 0.005 < 0.25 < last["p95_s"] < last["p99_s"] < 0.5
    assert repr(watched.panel) == "80 peticiones: 10,0 % con error · p95 375 ms · hit rate 75 %"


def test_the_title_counts_what_no_rate_can_see(watched: Watched) -> None:
    watched.panel.sample()
    watched.second(good=3, bad=1)
    assert repr(watched.panel) == "4 peticiones: 25,0 % con error · p95 450 ms"
    assert math.isnan(watched.panel.df["errors"].iloc[-1]), "both series were born between two looks"


def test_a_counter_that_begins_anew(watched: Watched) -> None:
    watched.panel.sample()
    watched.second(good=5)
    watched.count.clear()
    watched.second(good=3)
    assert repr(watched.panel).startswith("8 peticiones: 0,0 %")


def test_words(watched: Watched) -> None:
    assert repr(watched.panel) == "Sin peticiones todavía"
    watched.panel.sample()
    watched.second(good=2_000)
    set_language("en")
    assert repr(watched.panel) == "2,000 requests: 0.0 % failed · p95 4.75 ms"
    assert "Looks: 2. Each point sums up the last 3 s." in watched.panel._repr_html_()


def test_alerts_are_looked_at_too() -> None:
    errors, slow = Alert("Errors", "error_rate", above=0.05, for_=2), Alert("Slow", "p99", above=10)
    watched = Watched(alerts=[errors, slow])
    watched.panel.sample()
    for bad in (0, 0, 2, 2, 2, 2, 2, 0, 0, 0, 0):
        watched.second(good=8, bad=bad)
        if errors.state == "firing":
            assert "▲ Errors: firing" in repr(watched.panel) and "Slow" not in repr(watched.panel)
    assert [change.word for change in errors.changes] == ["pending", "firing", "resolved"]
    assert len(errors.df) == len(watched.panel.df) == 12


class TestFigure:
    def test_three_charts_with_units_and_words(self, watched: Watched) -> None:
        watched.panel.sample()
        for _ in range(5):
            watched.second(good=18, bad=2, hits=3, misses=1)
        figure = watched.panel.plot()
        rate, took, _ = figure.axes
        assert [ax.get_ylabel() for ax in figure.axes] == ["peticiones por segundo", "duración", "proporción (%)"]
        words = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
        assert words == [["2xx", "5xx"], ["p50", "p95", "p99"], ["5xx", "hit rate"]]
        assert [line.get_visible() for line in rate.lines] == [True, False, False, True]
        assert len({(line.get_color(), line.get_linestyle()) for line in took.lines}) == 3, "not by colour alone"
        assert rate.get_ylim() == (0, 20) and took.get_ylim() == (0.002, 0.5) and rate.get_xlim() == (0, 10)
        assert figure.texts[0].get_text() == repr(watched.panel) and repr(watched.panel) in figure.alt
        assert figure.table is not None and len(figure.table) == 6
        assert figure.table.iloc[-1].tolist()[-1] == "75,0 %"
        assert figure.png().startswith(PNG)

    def test_nothing_yet(self, watched: Watched) -> None:
        for _ in range(2):
            figure = watched.panel.plot()
            assert figure.texts[0].get_text() == "Sin peticiones todavía" and figure.png().startswith(PNG)
            watched.panel.sample()

    def test_a_long_time(self, watched: Watched) -> None:
        watched.panel.sample()
        for _ in range(1300):
            watched.second(good=1)
        figure = watched.panel.plot()
        assert len(watched.panel.df) == 1200, "it forgets"
        assert figure.axes[0].get_xlim() == (60, 1320)
        assert figure.table is not None and len(figure.table) == 30

    def test_a_canvas_draws_axes_only_when_they_change(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        built, canvas, build = list[int](), Canvas(), Canvas._build

        def count(self: Canvas, *arguments: Any) -> None:
            built.append(len(watched.panel.df))
            build(self, *arguments)

        monkeypatch.setattr(Canvas, "_build", count)
        watched.panel.sample()
        pictures = list[tuple[bytes, int, int]]()
        for _ in range(30):
            watched.second(good=18, hits=3)
            pictures.append(canvas.draw(watched.panel._array(), repr(watched.panel)))
        # The first; rates and times once there are some, three times while the window fills; 10 s and 20 s are over.
        assert len(built) <= 7 and built[-2:] == [12, 22]
        assert len({png for png, _, _ in pictures}) == 30 and pictures[0][0].startswith(PNG)
        assert Canvas().draw(watched.panel._array(), repr(watched.panel)) == pictures[-1], (
            "nothing of those before shows"
        )
        assert len({(width, height) for _, width, height in pictures}) == 1, "nothing below it jumps"


class Notebook:
    """In the place of IPython: what was displayed, what it became, and when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown, self.handles = list[dict[str, Any]](), 0
        shell: Any = types.ModuleType("IPython")
        shell.get_ipython = lambda: types.SimpleNamespace(kernel=1)
        shell.version_info = (9, 0)  # matplotlib asks
        shell.display = types.SimpleNamespace(display=self.display)
        monkeypatch.setitem(sys.modules, "IPython", shell)
        monkeypatch.setattr(_screen, "PAUSE", 0.05)

    def display(self, bundle: dict[str, Any], *, display_id: bool, **options: Any) -> Notebook:
        self.handles += 1
        self.update(bundle, **options)
        return self

    def update(self, bundle: dict[str, Any], *, metadata: dict[str, Any], raw: bool) -> None:
        assert raw
        self.shown.append(bundle)


class TestLive:
    def test_one_place_refreshed_and_the_last_picture_stays(
        self, watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        notebook, children = Notebook(monkeypatch), psutil.Process().children()
        watched.panel = Panel(watched.registry, every=0.02)
        with watched.panel.live() as entered:
            assert entered is watched.panel and len(notebook.shown) == 1, "there at once"
            watched.requests(200, 7)
            end = time.monotonic() + 20
            while len(notebook.shown) < 4 and time.monotonic() < end:
                time.sleep(0.01)
        assert notebook.handles == 1 and len(notebook.shown) >= 5
        assert "Sin peticiones" in notebook.shown[0]["text/html"] and "<table" not in notebook.shown[-2]["text/html"]
        last = notebook.shown[-1]
        assert "<table" in last["text/html"] and 'alt="Tres gráficas' in last["text/html"] and "image/png" in last
        assert "7 peticiones" in last["text/plain"]
        assert all(re.search(r'width="\d+" height="\d+"', each["text/html"]) for each in notebook.shown[:-1])
        assert not {"labkit panel", "labkit screen"} & {thread.name for thread in threading.enumerate()}
        assert psutil.Process().children() == children

    def test_without_the_child_the_picture_stays_as_it_is(
        self, watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        notebook, spawn, children = Notebook(monkeypatch), subprocess.Popen, list[Any]()

        def note(*arguments: Any, **options: Any) -> Any:
            children.append(spawn(*arguments, **options))
            return children[-1]

        monkeypatch.setattr(_screen.subprocess, "Popen", note)
        with Panel(watched.registry, every=0.02).live():
            (child,) = children
            child.kill()
            child.wait()
            watched.requests(200, 7)
            time.sleep(0.2)
        assert len(notebook.shown) == 2 and "7 peticiones" in notebook.shown[1]["text/plain"]

    def test_the_child_ends_with_us_even_after_kill_9(self) -> None:
        code = """
            import subprocess, sys, time, types
            from labkit.monitoring import Metrics, Panel
            spawn, shell = subprocess.Popen, types.ModuleType("IPython")
            def say(*arguments, **options):
                child = spawn(*arguments, **options)
                print(child.pid, flush=True)
                return child
            subprocess.Popen = say
            shell.version_info = (9, 0)
            shell.get_ipython = lambda: types.SimpleNamespace(kernel=1)
            handle = types.SimpleNamespace(update=lambda *_, **__: None)
            shell.display = types.SimpleNamespace(display=lambda *_, **__: handle)
            sys.modules["IPython"] = shell
            with Panel(Metrics()).live():
                time.sleep(60)
        """
        command = [sys.executable, "-c", textwrap.dedent(code)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            parent.kill()
        child.wait(20)

    def test_elsewhere_it_only_looks(self, watched: Watched, capfd: pytest.CaptureFixture[str]) -> None:
        panel = Panel(watched.registry, every=0.01)
        with panel.live():
            watched.requests(200, 7)
            time.sleep(0.1)
        assert len(panel.df) > 3 and repr(panel).startswith("7 ")
        assert capfd.readouterr() == ("", "")

    def test_the_next_one_begins_anew(self, watched: Watched) -> None:
        panel = Panel(watched.registry, every=0.01)
        for times in (7, 5):
            with panel.live():
                watched.requests(200, times)
            assert repr(panel).startswith(f"{times} peticiones"), (
                "what happens between the last look and the end counts"
            )
            assert panel.df["time_s"].iloc[0] == 0

    def test_a_look_that_fails_ends_it_and_says_so_afterwards(self, watched: Watched) -> None:
        class Source:
            """A registry of another kind, that fails when it is told to."""

            fails = False

            def collect(self) -> Any:
                if self.fails:
                    raise RuntimeError("not today")
                return watched.registry.collect()

        source, done = Source(), False
        panel = Panel(source, every=0.01)
        with pytest.raises(RuntimeError, match="not today"), panel.live():
            watched.requests(200, 3)
            time.sleep(0.1)
            source.fails = True
            time.sleep(0.1)
            done = True
        assert done and repr(panel).startswith("3 ")

    def test_the_blocks_own_error_comes_first(self, watched: Watched) -> None:
        panel = Panel(watched.registry, every=0.01)
        with pytest.raises(ZeroDivisionError), panel.live():
            1 / 0  # noqa: B018
        assert "labkit panel" not in {thread.name for thread in threading.enumerate()}

    def test_it_leaves_the_processor_to_the_load(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long a look takes: of 100,000 series one takes a second. The rates then look back further."""
        panel, looks, sample = Panel(watched.registry, every=0.01, window=0.05), list[float](), Panel.sample

        def busy() -> None:
            began = time.thread_time()
            looks.append(time.monotonic())
            sample(panel)
            while time.thread_time() < began + 0.04:
                pass

        monkeypatch.setattr(panel, "sample", busy)
        end = time.monotonic() + 20
        with panel.live():
            while len(looks) < 5 and time.monotonic() < end:
                time.sleep(0.01)
        assert all(later - earlier >= 6 * 0.04 for earlier, later in pairwise(looks[1:5]))
        assert panel.history.window >= 4 * 5 * 0.04


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (CollectorRegistry(), {}, REQUESTS),
        (object(), {}, "object"),
        (Metrics(), {"every": 0}, "every"),
        (Metrics(), {"every": math.nan}, "every"),
        (Metrics(), {"window": 0}, "window"),
    ],
)
def test_what_it_refuses(source: Any, options: dict[str, float], message: str) -> None:
    with pytest.raises(MonitoringError, match=message):
        Panel(source, **options)


class Counting(NotebookClient):
    """Runs a notebook and counts how often a picture was put in the place of another."""

    updates = 0

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "update_display_data":
            self.updates += "<img" in msg["content"]["data"].get("text/html", "")
        return super().process_message(msg, cell, cell_index)


SETUP = """
    import time
    from fastapi import FastAPI, Response
    from labkit import Lab
    from labkit.monitoring import Metrics, MetricsMiddleware, Panel, _screen
    _screen.PAUSE = 0.1
    shown, show = [], _screen.Screen.show
    _screen.Screen.show = lambda self, *bundle: (show(self, *bundle), shown.append(bundle))
    metrics, app = Metrics(), FastAPI()
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    @app.get("/items/{item}")
    async def item(item: int):
        return Response(status_code=503 if item % 10 == 0 else 200)
    lab = Lab(app, redis=False)
    panel, end, loads = Panel(metrics, every=0.1), time.monotonic() + 40, 0
"""
LOAD = """
    with panel.live():
        while len(shown) < 4 and time.monotonic() < end:
            lab.load("/items/{id}", ids=range(20), requests=20)
            loads += 1
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_in_a_real_kernel_one_picture_changes_and_stays() -> None:
    cells = [SETUP, LOAD, "print(loads, panel)", "lab.close()"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells])
    client = Counting(book, timeout=60, kernel_name="python3")
    asyncio.run(client.async_execute())
    assert [output for cell in book.cells for output in cell.outputs if output.get("name") == "stderr"] == []
    pictures = [output for output in book.cells[1].outputs if "<img" in output.get("data", {}).get("text/html", "")]
    assert len(pictures) == 1 and client.updates >= 4, "three while it ran, and the last"
    (picture,), said = pictures, book.cells[2].outputs[0].text.split(" ", 1)
    count = number(20 * int(said[0]))
    assert said[1].startswith(f"{count} peticiones: 10,0 % con error"), "exactly as many as were made"
    assert picture.data["text/plain"].endswith(f": {said[1].strip()}")
    assert "<table" in picture.data["text/html"] and 'alt="Tres' in picture.data["text/html"]
    assert base64.b64decode(picture.data["image/png"]).startswith(PNG)
