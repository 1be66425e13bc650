"""plots: every figure carries its words and numbers, and may be drawn in any thread."""

from __future__ import annotations

import base64
import math
import re
import threading
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from labkit import plots
from labkit.plots import Node

TREE = Node(
    "GET /users",
    1.4,
    (
        Node("list_users", 1.2, (Node("lazy load", 0.9), Node("dust", 0.001)), own=True),
        Node("costs $1 and $2", 0.2),
    ),
)


def texts(figure: plots.Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_a_figure_shows_as_picture_with_words_and_its_table() -> None:
    def draw(ax: Any) -> None:
        plots.bars(ax, ["antes", "<después>"], [1051, 2], [plots.BEFORE, plots.AFTER])

    data = pd.DataFrame({"who": ["antes", "<después>"], "statements": [1051, 2]})
    figure = plots.figure(draw, title="1.051 consultas → 2", alt='dos barras: "antes" y <después> de ello', data=data)
    shown, metadata = figure._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html", "image/png"}
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"] == figure.alt
    html = shown["text/html"]
    assert shown["image/png"] in html
    assert "&lt;después&gt;" in html and "<después>" not in html
    assert "&quot;antes&quot;" in html and "1.051" in html and "<details>" in html
    assert "<details>" not in figure.html(with_table=False)
    assert re.search(r"<img[^>]*>(?!</img>)", html)


def test_png_is_the_same_each_time() -> None:
    pictures = [plots.icicle(TREE, "t", "un árbol de llamadas de ejemplo").png() for _ in range(2)]
    assert pictures[0] == pictures[1]


def test_an_icicle_shows_callers_above_and_marks_own_code() -> None:
    figure = plots.icicle(TREE, "El 86 % está en tu endpoint", "un árbol de llamadas de ejemplo")
    assert texts(figure) == ["GET /users  1,40 s", "list_users  1,20 s", "lazy load  900 ms", "costs $1 and $2"]
    bold = [text.get_text() for text in figure.axes[0].texts if text.get_fontweight() == "bold"]
    assert bold == ["list_users  1,20 s"]
    assert "naranja" in figure.axes[0].get_xlabel()
    assert figure.table is not None
    assert figure.table["proporción"].tolist() == ["100 %", "86 %", "64 %", "14 %"]
    assert figure.png()  # a dollar sign is not mathematics


def test_an_icicle_ends_somewhere_and_survives_empty_trees() -> None:
    node = Node("leaf", 1.0)
    for level in range(50):
        node = Node(f"level {level}", 1.0, (node,))
    assert len(texts(plots.icicle(node, "profundo", "un árbol muy profundo de llamadas"))) == 12
    assert plots.icicle(Node("nothing", 0.0), "nada", "un árbol sin tiempo medido alguno").png()


def test_bars_write_their_values_and_whiskers_make_room() -> None:
    def draw(ax: Any) -> None:
        plots.bars(ax, ["a", "b"], [1.0, 0.5], show=lambda v: f"{v} s", intervals=[(0.9, 3.0), None])
        plots.durations(ax.xaxis)

    figure = plots.figure(draw, title="t", alt="dos barras con un intervalo")
    assert texts(figure) == ["1.0 s", "0.5 s"]
    assert figure.axes[0].get_xlim()[1] > 3.0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(2e-4, 2e-3, {"200 µs", "500 µs", "1 ms", "2 ms"}), (0.001, 900.0, {"10 ms", "1 s", "100 s"})],
)
def test_log_axes_in_seconds_read_as_durations(low: float, high: float, expected: set[str]) -> None:
    def draw(ax: Any) -> None:
        ax.plot([low, high], [0, 1])
        plots.durations(ax.xaxis, log=True)

    figure = plots.figure(draw, title="t", alt="una línea entre dos tiempos")
    figure.png()
    assert expected <= {label.get_text() for label in figure.axes[0].get_xticklabels()}


def test_numbers_of_axes_and_tables_follow_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    def labels() -> set[str]:
        def draw(ax: Any) -> None:
            ax.plot([0, 2000], [0, 1])
            plots.numbers(ax.xaxis)

        figure = plots.figure(draw, title="t", alt="una línea hasta dos mil")
        figure.png()
        return {label.get_text() for label in figure.axes[0].get_xticklabels()}

    data = pd.DataFrame({"weight": [1234.5, 0.12345], "n": [1051, 2], "ok": [True, False]})
    assert "2.000" in labels() and "1.234" in plots.frame(data) and "0,123" in plots.frame(data)
    monkeypatch.setenv("LABKIT_LANG", "en")
    assert "2,000" in labels() and "0.123" in plots.frame(data)


def cells(html: str, name: str = "td") -> list[str]:
    return re.findall(rf"<{name}\b[^>]*>([^<]*)", html)


def test_headings_of_tables_are_in_the_language_and_the_data_keeps_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pd.DataFrame({"path": ["/a"], "median_s": [0.5], "<mine>": [1], 7: [2]})
    assert cells(plots.frame(data), "th") == ["ruta", "mediana", "&lt;mine&gt;", "7"]
    monkeypatch.setenv("LABKIT_LANG", "en")
    assert cells(plots.frame(data), "th") == ["path", "median", "&lt;mine&gt;", "7"]
    assert list(data.columns) == ["path", "median_s", "<mine>", 7]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("median_s", 6.5e-05, "65,0 µs"),
        ("seconds", 1.25, "1,25 s"),
        ("from_s", 0.0, "0 s"),
        ("ms", 340.0, "340 ms"),
        ("start_ms", 0.065, "65,0 µs"),
        ("low_s", -math.inf, "−∞"),
        ("high_s", math.inf, "∞"),
        ("median_s", math.nan, "–"),
        ("x_cache", None, "–"),
        ("hit_rate", 0.876, "87,6 %"),
        ("stale", 1051, "1.051"),
        ("accesses_per_s", 12.5, "12,5"),
        ("ok", True, "True"),
        ("code", "6.5e-05", "6.5e-05"),
    ],
)
def test_values_of_tables_are_legible(name: str, value: object, shown: str) -> None:
    assert cells(plots.frame(pd.DataFrame({name: [value]}))) == [shown]


def test_long_tables_say_how_much_is_left_out() -> None:
    html = plots.frame(pd.DataFrame({"n": range(1100)}), most=30)
    assert html.count("<tr>") == 31 and "1.070" in html


def test_threads_draw_at_once_and_leave_matplotlib_as_it_was() -> None:
    before, errors = dict(mpl.rcParams), []

    def work() -> None:
        try:
            figure = plots.icicle(TREE, "t", "un árbol de llamadas de ejemplo")
            assert figure.get_facecolor()[:3] == mpl.colors.to_rgb("#fdfdfb")
            assert figure.png().startswith(b"\x89PNG")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert dict(mpl.rcParams) == before
