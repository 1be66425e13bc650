"""A basic alert: a value above a threshold for some time, in Prometheus' words (inactive, pending, firing)."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from labkit import plots
from labkit._html import card, table
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
# A verdict is a word, a shape and a colour; the heights of the bands tell the states apart too.
_LOOKS = {"inactive": (plots.GREEN, "✓"), "pending": (plots.ORANGE, "…"), "firing": (plots.VERMILION, "▲")}
_HATCHES = {"pending": "//", "firing": "xx"}
_MOST = 3_600  # looks and changes that are remembered
_log = logging.getLogger("labkit.alerts")
_log.addHandler(logging.NullHandler())  # whoever configures no logging is not written to


@dataclass(frozen=True, slots=True)
class Change:
    """A change of state: the moment, from what to what, the value then (NaN if there was none).

    ``resolved`` says that the alert had been firing and is over.
    """

    time: float
    before: State
    after: State
    value: float

    @property
    def resolved(self) -> bool:
        return self.before == "firing"


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
            raise MonitoringError(say("watch.bad_number", name="above", value=above))
        if not 0 <= for_ < math.inf:
            raise MonitoringError(say("watch.bad_for", value=for_))
        self.name, self.above, self.for_ = name, float(above), float(for_)
        self.expr = expr if isinstance(expr, str) else getattr(expr, "__name__", "value")
        self.state: State = "inactive"
        self.changes: deque[Change] = deque(maxlen=_MOST)
        self._value = expr if callable(expr) else _KNOWN[expr]
        self._show = _percent if expr == "error_rate" else duration if expr in _KNOWN else _plain
        self._since = math.nan  # the moment at which the value came above the threshold
        self._looks: deque[tuple[float, float, State]] = deque(maxlen=_MOST)

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
            self.state = "firing" if before == "firing" or at - self._since >= self.for_ else "pending"
        self._looks.append((at, value, self.state))
        if self.state != before:
            self._tell(Change(at, before, self.state, value))
        return self.state

    def _tell(self, change: Change) -> None:
        self.changes.append(change)
        word = "resolved" if change.resolved else change.after
        level = logging.WARNING if change.after == "firing" else logging.INFO
        fields = {"alert": self.name, "state": word, "value": change.value, "threshold": self.above}
        _log.log(level, "%s is %s: %s = %.6g, threshold %.6g", self.name, word, self.expr, change.value, self.above,
                 extra=fields)  # fmt: skip

    @property
    def value(self) -> float:
        """The value at the last look; NaN if there was none."""
        return self._looks[-1][1] if self._looks else math.nan

    @property
    def df(self) -> pd.DataFrame:
        """One row a look: ``time`` (seconds of the clock), ``value``, ``state``."""
        return pd.DataFrame(list(self._looks), columns=["time", "value", "state"])

    def plot(self) -> plots.Figure:
        """The value against the threshold, over time; the states as bands."""
        looks = list(self._looks)
        start = looks[0][0] if looks else 0.0
        times = [moment - start for moment, _, _ in looks]

        def draw(ax: Any) -> None:
            ax.plot(times, [value for _, value, _ in looks], color=plots.BLUE)
            ax.axhline(self.above, color=plots.BLACK, linestyle="--", linewidth=1.2)
            ax.set_xlabel(say("watch.axis_time"))

        return plots.figure(draw, title=repr(self), alt=say("watch.alert_alt", says=repr(self)), data=self.df)

    def __repr__(self) -> str:
        rule = say(
            "watch.rule", expr=self.expr, above=self._show(self.above), for_=duration(self.for_) if self.for_ else "0 s"
        )
        return say("watch.alert", name=self.name, state=self.state, rule=rule)

    def _repr_html_(self) -> str:
        colour, symbol = _LOOKS[self.state]
        rows = [[number(change.time), change.after] for change in self.changes]
        return card(repr(self), table(["", ""], rows) if rows else "", colour=colour, symbol=symbol)


def _percent(value: float) -> str:
    return number(value, ".1%")


def _plain(value: float) -> str:
    return number(value, ",.4g")
