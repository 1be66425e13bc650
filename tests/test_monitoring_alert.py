"""The basic alert: its states by a clock in hand, the same ones by promtool, what it tells and draws."""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from labkit.errors import MonitoringError
from labkit.monitoring.alert import Alert
from labkit.monitoring.samples import DURATION, REQUESTS, History, Snapshot
from labkit.settings import set_language

GONE = math.nan
STATES = {"i": "inactive", "p": "pending", "f": "firing"}


class Given:
    """A value for each second, in the place of what is reckoned from a history."""

    def __init__(self, *values: float) -> None:
        self.values, self.history = values, History()

    def states(self, alert: Alert, start: float = 0.0, step: float = 1.0) -> str:
        """The first letter of the state at each second."""
        found = ""
        for second, value in enumerate(self.values):
            self.now = value
            found += alert.evaluate(self.history, start + step * second)[0]
        return found

    def __call__(self, history: History) -> float:
        assert history is self.history
        return self.now


@pytest.mark.parametrize(
    ("values", "for_", "expected"),
    [
        ((1, 6, 6, 6, 6, 1), 3, "ipppfi"),
        ((1, 6, 6, 6, 1, 1), 3, "ipppii"),
        ((6, 1), 0, "fi"),
        ((6, 6, 1, 6, 6, 1, 6, 6, 1), 3, "ppippippi"),  # flaps: never three seconds on end
        ((6, 6, GONE, 6, 6), 2, "ppipp"),  # a gap is a break
        ((6, 6, 6, GONE, GONE), 2, "ppfii"),
        ((GONE, GONE, GONE), 0, "iii"),
        ((5, 5, 5), 0, "iii"),  # as high as the threshold is not above it
        ((math.inf, -math.inf), 0, "fi"),
        ((6, 6, 6, 6, 1, 6, 6, 6), 2, "ppffippf"),  # after it was resolved it has to wait again
    ],
)
def test_states(values: tuple[float, ...], for_: float, expected: str) -> None:
    given = Given(*values)
    alert = Alert("High", given, above=5, for_=for_)
    assert given.states(alert) == expected
    assert list(alert.df["state"]) == [STATES[letter] for letter in expected]
    assert alert.state == STATES[expected[-1]]
    assert alert.value == pytest.approx(values[-1], nan_ok=True)


def test_seconds_count_and_not_looks() -> None:
    given = Given(6, 6, 6, 6)
    assert given.states(Alert("High", given, above=5, for_=0.5), step=0.25) == "ppff"
    assert given.states(Alert("High", given, above=5, for_=20), start=1e9, step=10) == "ppff"


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if not found:
        pytest.skip("no promtool: install the package prometheus")
    return found


def test_promtool_sees_the_same_states(promtool: str, tmp_path: Path) -> None:
    """Thirty values that wander about a threshold, some gone for a while: every state of every second."""
    chance, seconds = random.Random(4), 40
    samples: list[list[dict[str, object]]] = [[] for _ in range(seconds)]
    series, states = [], ""
    for case in range(30):
        value, values = 5.0, []
        for _ in range(seconds):
            value = min(9.0, max(1.0, value + chance.choice((-2, -1, 0, 0, 1, 2))))
            values.append(GONE if chance.random() < 0.08 else value)
        words = ["stale" if math.isnan(value) else f"{value:g}" for value in values]
        series.append({"series": f'value{{case="{case}"}}', "values": " ".join(words)})
        given = Given(*values)
        found = given.states(Alert("High", given, above=5, for_=3))
        for second, letter in enumerate(found):
            if letter != "i":
                labels = f'ALERTS{{alertname="High", alertstate="{STATES[letter]}", case="{case}"}}'
                samples[second].append({"labels": labels, "value": 1})
        states += found
    assert all(states.count(letter) > 100 for letter in "ipf")
    rule = {"alert": "High", "expr": "value > 5", "for": "3s"}
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": [rule]}]}))
    asked = [{"expr": "ALERTS", "eval_time": f"{at}s", "exp_samples": each} for at, each in enumerate(samples)]
    tests = [{"interval": "1s", "input_series": series, "promql_expr_test": asked}]
    (tmp_path / "test.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1s", "tests": tests})
    )
    done = subprocess.run(
        [promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def history(*counts: tuple[int, int]) -> History:
    """A second each: how many requests by then were answered in 3 ms, and how many failed after 300 ms."""
    made = History(10)
    for second, (good, bad) in enumerate(counts):
        totals = {(("status", "200"),): float(good), (("status", "500"),): float(bad)}
        below = {"0.1": good, "0.5": good + bad, "+Inf": good + bad}
        made.add(
            Snapshot(
                second, {REQUESTS: totals, f"{DURATION}_bucket": {(("le", le),): float(n) for le, n in below.items()}}
            )
        )
    return made


@pytest.mark.parametrize(
    ("expr", "counts", "value"),
    [
        ("error_rate", [(0, 0), (90, 10)], 0.1),
        ("error_rate", [(0, 0), (90, 0)], 0.0),
        ("error_rate", [(90, 10), (90, 10)], GONE),  # no requests
        ("error_rate", [(90, 10)], GONE),  # one look
        ("error_rate", [], GONE),
        ("p95", [(0, 0), (90, 10)], 0.3),
        ("p50", [(0, 0), (90, 10)], 5 / 90 * 1),
        ("p99", [(90, 10), (90, 10)], GONE),
    ],
)
def test_what_it_can_look_at(expr: str, counts: list[tuple[int, int]], value: float) -> None:
    alert = Alert("High", expr, above=-1)
    assert alert.evaluate(history(*counts)) == ("inactive" if math.isnan(value) else "firing")
    assert alert.value == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expr": "errors", "above": 1}, "error_rate"),
        ({"expr": "p95", "above": math.nan}, "above"),
        ({"expr": "p95", "above": 1, "for_": -1}, "for_"),
        ({"expr": "p95", "above": 1, "for_": math.inf}, "for_"),
    ],
)
def test_what_it_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(MonitoringError, match=message):
        Alert("High", **arguments)


def test_it_tells_the_log(caplog: pytest.LogCaptureFixture) -> None:
    given = Given(6, 7, 8, 8, 1, 6, GONE)
    with caplog.at_level(logging.INFO, "labkit.alerts"):
        alert = Alert("High", given, above=5, for_=2)
        given.states(alert, start=100.0)
    assert [(r.levelname, r.__dict__["alert"], r.__dict__["state"]) for r in caplog.records] == [
        ("INFO", "High", "pending"),
        ("WARNING", "High", "firing"),
        ("INFO", "High", "resolved"),
        ("INFO", "High", "pending"),
        ("INFO", "High", "inactive"),
    ]
    assert caplog.records[1].getMessage() == "High is firing: 8, threshold 5"
    assert [(change.time, change.word) for change in alert.changes] == [
        (100, "pending"),
        (102, "firing"),
        (104, "resolved"),
        (105, "pending"),
        (106, "inactive"),
    ]


def test_who_configured_no_logging_is_not_written_to(capfd: pytest.CaptureFixture[str]) -> None:
    given = Given(6)
    given.states(Alert("High", given, above=5))
    assert capfd.readouterr() == ("", "")


class TestSeen:
    def test_words(self) -> None:
        for lang, words in (
            ("es", "High: inactive (p95 > 200 ms durante 2,00 s)"),
            ("en", "High: inactive (p95 > 200 ms for 2.00 s)"),
        ):
            set_language(lang)
            assert repr(Alert("High", "p95", above=0.2, for_=2)) == words
        assert repr(Alert("High", "error_rate", above=0.05)) == "High: inactive (error_rate > 5.0 %)"

    def test_card(self) -> None:
        given = Given(6, 7, 8)
        alert = Alert("<High>", given, above=5, for_=2)
        assert "Sin cambios" in alert._repr_html_() and "✓" in alert._repr_html_()
        given.states(alert)
        card = alert._repr_html_()
        assert "&lt;High&gt;: firing" in card and "<High>" not in card
        assert "▲" in card and "pending" in card

    @pytest.mark.parametrize(
        ("values", "title"),
        [
            ((1, 6, 6, 6, 1, 1), "High estuvo en firing 1,00 s (veces: 1)"),
            ((1, 6, 1, 6, GONE), "High no llegó a firing (veces en pending: 2)"),
            ((), "High no llegó a firing (veces en pending: 0)"),
        ],
    )
    def test_figure(self, values: tuple[float, ...], title: str) -> None:
        given = Given(*values)
        alert = Alert("High", given, above=5, for_=2)
        given.states(alert)
        figure = alert.plot()
        assert figure.axes[0].get_title(loc="left") == title
        assert title in figure.alt
        assert figure.table is not None and len(figure.table) == len(alert.changes)
        legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert ("◆ pending" in legend) == (6 in values) and ("▲ firing" in legend) == (values.count(6) == 3)
        assert figure.png().startswith(b"\x89PNG")

    @pytest.mark.parametrize(("expr", "unit"), [("error_rate", "error_rate (%)"), ("p95", "p95")])
    def test_units(self, expr: str, unit: str) -> None:
        alert = Alert("High", expr, above=0.2)
        for last in range(2, 12):
            alert.evaluate(history(*((10 * second, second) for second in range(last))))
        assert alert.plot().axes[0].get_ylabel() == unit
        assert alert.plot().png()
