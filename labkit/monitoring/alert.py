"""A basic alert: a value above a threshold for some time, in Prometheus' words (inactive, pending, firing)."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import pandas as pd

from labkit import plots
from labkit._html import card
from labkit._text import duration, number, say
from labkit.errors import MonitoringError
from labkit.monitoring.samples import History

State = Literal["inactive", "pending", "firing"]
Expression = Callable[[History], float]

_KNOWN: dict[str, Expression] = {
    "error_rate": History.error_rate,
    "p50": lambda history: history.quantile(0.50),
    "p95": lambda history: history.quantile(0.95),
    "p99": lambda history: history.quantile(0.99),
}
# A state is a word, a shape, a colour and a hatching.
LOOKS = {
    "inactive": (plots.GREEN, "✓", ""),
    "pending": (plots.ORANGE, "◆", "//"),
    "firing": (plots.VERMILION, "▲", "xx"),
}
_MOST = 3_600  # looks and changes that are remembered
_log = logging.getLogger("labkit.alerts")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of state: the moment, from what to what, the value then (NaN if there was none)."""

    time: float
    before: State
    after: State
    value: float

    @property
    def word(self) -> str:
        """What is said of it: the new state, or ``resolved`` after ``firing``."""
        return "resolved" if self.before == "firing" else self.after


class Alert:
    """Fires when a value has been above a threshold for some time; looked at again and again by ``evaluate``.

    As in Prometheus: above the threshold it is *pending*, and *firing* once that has lasted ``for_`` seconds without
    a break; otherwise *inactive*. No value (NaN: no requests, too few samples) is not above anything. What flaps
    faster than ``for_`` never fires. A firing alert whose value came down is *resolved*: noted in ``changes``, and
    inactive from then on. Changes go to the logger ``labkit.alerts``.

    Args:
        name: a short name, such as ``"HighErrorRate"``.
        expr: ``"error_rate"`` (a share, 0 to 1), ``"p50"``, ``"p95"``, ``"p99"`` (seconds), or a function of the
            ``History``.
        above: the threshold, in the unit of the value.
        for_: seconds that the value must stay above it; 0: fires at once.

    Attributes:
        state: the state now.
        changes: the last changes of state.

    Raises:
        MonitoringError: if there is no such expression or a number is none.
    """

    def __init__(self, name: str, expr: str | Expression, *, above: float, for_: float = 0.0) -> None:
        if not callable(expr) and expr not in _KNOWN:
            raise MonitoringError(say("watch.no_expression", expr=expr, known=", ".join(_KNOWN)))
        if math.isnan(above):
            raise MonitoringError(say("watch.bad_above", value=above))
        if not 0 <= for_ < math.inf:
            raise MonitoringError(say("watch.bad_for", value=for_))
        self.name, self.above, self.for_ = name, float(above), float(for_)
        name = expr if isinstance(expr, str) else getattr(expr, "__name__", "")
        self.expr = name if name.isidentifier() else say("watch.column_value")  # a lambda has none worth reading
        self.state: State = "inactive"
        self.changes: deque[Change] = deque(maxlen=_MOST)
        self._value = expr if callable(expr) else _KNOWN[expr]
        self._show = _percent if expr == "error_rate" else duration if expr in _KNOWN else _plain
        self._since = math.nan  # the moment at which the value came above the threshold
        self._seen: deque[tuple[float, float, State]] = deque(maxlen=_MOST)

    def evaluate(self, history: History, at: float | None = None) -> State:
        """Look once and return the state.

        Args:
            history: what the value is reckoned from.
            at: the moment, in seconds of the same clock as the history's; by default that of its newest snapshot.
        """
        at, value, before = history.last.time if at is None else at, float(self._value(history)), self.state
        if not value > self.above:  # also if there is no value
            self.state = "inactive"
        else:
            if before == "inactive":
                self._since = at
            self.state = "firing" if at - self._since >= self.for_ else "pending"
        self._seen.append((at, value, self.state))
        if self.state != before:
            self._tell(Change(at, before, self.state, value))
        return self.state

    def _tell(self, change: Change) -> None:
        self.changes.append(change)
        level = logging.WARNING if change.after == "firing" else logging.INFO
        fields = {"alert": self.name, "state": change.word, "value": change.value, "threshold": self.above}
        text = "%s is %s: %.6g, threshold %.6g"
        _log.log(level, text, self.name, change.word, change.value, self.above, extra=fields)

    @property
    def value(self) -> float:
        """The value at the last look; NaN if there was none."""
        return self._seen[-1][1] if self._seen else math.nan

    @property
    def df(self) -> pd.DataFrame:
        """One row a look: ``time`` (seconds of the clock), ``value``, ``state``."""
        return pd.DataFrame(list(self._seen), columns=["time", "value", "state"])

    def plot(self) -> plots.Figure:
        """The value against the threshold, over time; the states as bands."""
        runs = self._runs()
        start, scale = runs[0][1] if runs else 0.0, 100.0 if self._show is _percent else 1.0
        points = [(moment - start, scale * value) for moment, value, _ in list(self._seen)]
        seen = pd.DataFrame(points, columns=["x", "y"]).replace([math.inf, -math.inf], math.nan)

        def draw(ax: Any) -> None:
            for state, since, until in runs:
                colour, symbol, hatch = LOOKS[state]
                known = f"{symbol} {state}" in ax.get_legend_handles_labels()[1]
                ax.axvspan(since - start, until - start, facecolor=f"{colour}2b", edgecolor=f"{colour}66", hatch=hatch,
                           linewidth=0, label=None if known else f"{symbol} {state}")  # fmt: skip
            ax.plot(seen["x"], seen["y"], "o-", color=plots.BLUE, markersize=3, label=self.expr)
            label = say("watch.threshold", value=self._show(self.above))
            ax.axhline(scale * self.above, color=plots.BLACK, linestyle="--", linewidth=1.4, label=label)
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            unit = f"{self.expr} (%)" if scale > 1 else self.expr
            ax.set(xlabel=say("watch.time_axis"), ylabel=unit, ylim=(min(0, seen["y"].min()), None))
            plots.numbers(ax.xaxis)
            (plots.durations if self._show is duration else plots.numbers)(ax.yaxis)

        title = self._finding(runs)
        return plots.figure(draw, title=title, alt=say("watch.alert_alt", says=title), data=self._table())

    def _runs(self) -> list[tuple[State, float, float]]:
        """The states one after the other, each from its first look to that of the next."""
        seen = list(self._seen)  # a panel may look meanwhile
        runs = [(state, next(looks)[0]) for state, looks in groupby(seen, itemgetter(2))]
        ends = [*(since for _, since in runs[1:]), *(moment for moment, _, _ in seen[-1:])]
        return [(state, since, until) for (state, since), until in zip(runs, ends, strict=True)]

    def _finding(self, runs: list[tuple[State, float, float]]) -> str:
        fired = sum(until - since for state, since, until in runs if state == "firing")
        times = Counter(state for state, _, _ in runs)
        if times["firing"]:
            return say("watch.fired", name=self.name, times=times["firing"], seconds=duration(fired))
        return say("watch.not_fired", name=self.name, pending=times["pending"])

    def _table(self) -> pd.DataFrame:
        start = self._seen[0][0] if self._seen else 0.0
        words = (say("watch.column_time_s"), say("watch.column_state"), say("watch.column_value"))
        rows = [(number(each.time - start, ",.1f"), each.word, self._say(each.value)) for each in list(self.changes)]
        return pd.DataFrame(rows, columns=words)

    def _say(self, value: float) -> str:
        return self._show(value) if math.isfinite(value) else "–" if math.isnan(value) else number(value)

    def __repr__(self) -> str:
        rule = {"name": self.name, "state": self.state, "expr": self.expr, "above": self._show(self.above)}
        return say("watch.alert_for", seconds=duration(self.for_), **rule) if self.for_ else say("watch.alert", **rule)

    def _repr_html_(self) -> str:
        colour, symbol, _ = LOOKS[self.state]
        body = plots.frame(self._table()) if self.changes else say("watch.no_changes")
        return card(repr(self), body, colour=colour, symbol=symbol)


def _percent(value: float) -> str:
    return number(value, ".1%")


def _plain(value: float) -> str:
    return number(value, ",.4g")
