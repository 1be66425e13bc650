"""Guesses made before a measurement, and how far they were off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.ticker import FuncFormatter, NullLocator

from labkit import plots
from labkit._text import number
from labkit.course.cards import has, words
from labkit.course.evidence import Evidence


@dataclass(frozen=True)
class Prediction:
    """One value of one question: the first guess and the last measurement, None while unknown."""

    id: str
    name: str
    guess: float | None
    actual: float | None

    @property
    def factor(self) -> float | None:
        """How many times too high (> 1) or too low (< 1) the guess was; None if that has no meaning."""
        if self.guess is None or self.actual is None:
            return None
        if self.guess == self.actual:
            return 1.0
        return self.guess / self.actual if self.guess > 0 and self.actual > 0 else None


def predictions(evidence: Evidence) -> list[Prediction]:
    """Every prediction of a lesson, in order: the first guess of a value and its last measurement."""
    guesses: dict[tuple[str, str], float] = {}
    actuals: dict[tuple[str, str], float] = {}
    for event in evidence.of("predict"):
        for name, value in event["values"].items():
            guesses.setdefault((event["question"], name), value)
    for event in evidence.of("actual"):
        actuals |= {(event["question"], name): value for name, value in event["values"].items()}
    keys = sorted(dict.fromkeys([*guesses, *actuals]), key=lambda key: key[0])
    return [Prediction(*key, guesses.get(key), actuals.get(key)) for key in keys]


def label(room: str, name: str) -> str:
    """What a value is called on a figure, with its unit: the message ``name_<name>``, else its name."""
    for key in (f"{room}.name_{name}", f"course.name_{name}"):
        if has(key):
            return words(key)
    return name


def versus(found: list[Prediction], room: str) -> plots.Figure:
    """Guess against measurement, one panel a value."""
    data = frame(found, room)

    def draw(given: Any) -> None:
        for axes, item in zip(given if len(found) > 1 else [given], found, strict=True):
            rows = [
                (words("course.guess"), item.guess, plots.ORANGE),
                (words("course.measured"), item.actual, plots.BLUE),
            ]
            names, values, colours = zip(*(row for row in rows if row[1] is not None), strict=True)
            plots.bars(axes, names, values, colours, show=_digits)
            axes.set_xlabel(label(room, item.name))
            plots.numbers(axes.xaxis)

    return plots.figure(
        draw,
        title=_title(found, room),
        alt=words("course.versus_alt", values=", ".join(label(room, item.name) for item in found)),
        data=data,
        size=(9.0, 2.4),
        panels=len(found),
    )


def calibration(found: list[Prediction], room: str) -> plots.Figure:
    """How far each guess was off, as a factor: 1 is right, left is too low, right is too high."""
    scored = [(item, item.factor) for item in found if item.factor is not None]
    near = sum(1 for _, factor in scored if 0.5 <= factor <= 2)

    def draw(axes: Any) -> None:
        axes.axvspan(0.5, 2, color=plots.GREEN, alpha=0.12)
        axes.axvline(1, color=plots.GREY, linewidth=1)
        for y, (_, factor) in enumerate(scored):
            colour, shape = (plots.GREEN, "o") if 0.5 <= factor <= 2 else (plots.VERMILION, "D")
            axes.plot([1, factor], [y, y], color=colour, linewidth=2)
            axes.plot(factor, y, shape, color=colour, markersize=8)
        names = [f"{item.id} · {label(room, item.name)}" for item, _ in scored]
        axes.set_yticks(range(len(scored)), names)
        reach = max([4.0, *(max(factor, 1 / factor) for _, factor in scored)]) * 1.5
        axes.set(xscale="log", xlim=(1 / reach, reach), ylim=(max(len(scored), 1) - 0.5, -0.5))
        axes.set_xlabel(words("course.calibration_axis"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x, ",.6g")))
        axes.grid(axis="y", visible=False)

    return plots.figure(
        draw,
        title=words("course.calibration_title", near=near, total=len(scored)) if scored else words("course.no_guess"),
        alt=words("course.calibration_alt", near=near, total=len(scored)),
        data=frame(found, room),
        size=(9.0, 1.4 + 0.45 * max(len(scored), 1)),
    )


def frame(found: list[Prediction], room: str) -> pd.DataFrame:
    """The predictions as a table."""
    return pd.DataFrame(
        {
            words("course.question"): [item.id for item in found],
            words("course.value"): [label(room, item.name) for item in found],
            words("course.guess"): [_cell(item.guess) for item in found],
            words("course.measured"): [_cell(item.actual) for item in found],
            words("course.factor"): [
                _cell(item.factor, ".2g" if (item.factor or 0) < 100 else ",.0f") for item in found
            ],
        }
    )


def _cell(value: float | None, spec: str = ",.4g") -> str:
    return "-" if value is None else number(value, spec)


def _digits(value: float | None) -> str:
    return "-" if value is None else number(value, ",.0f" if abs(value) >= 1000 or value == int(value) else ",.3g")


def _title(found: list[Prediction], room: str) -> str:
    first = found[0]
    if first.guess is None or first.actual is None:
        return words("course.versus_unguessed", name=label(room, first.name), actual=_digits(first.actual))
    if first.guess == first.actual:
        return words("course.versus_right", name=label(room, first.name), actual=_digits(first.actual))
    return words(
        "course.versus_title",
        name=label(room, first.name),
        guess=_digits(first.guess),
        actual=_digits(first.actual),
    )


def usable(values: dict[str, Any]) -> dict[str, float]:
    """The values that are finite numbers (a guess left as ``None`` or ``...`` is none)."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
