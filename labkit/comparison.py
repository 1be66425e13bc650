"""Two endpoints compared: the same answer first, then statements, then time."""

from __future__ import annotations

import json
import math
import time
from copy import copy
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from statistics import median
from typing import TYPE_CHECKING, Any

import pandas as pd

from labkit import plots, stats
from labkit._html import Safe, card, code, join, tag
from labkit._text import duration, number, say
from labkit.errors import NotJSONError, RequestTimeout

if TYPE_CHECKING:
    from labkit._client import Client
    from labkit.asgi import Reply


_MISSING = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two answers differ: its path (``users[0].username``) and both values."""

    path: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.path}: {self.a} → {self.b}"


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """Endpoint ``b`` against endpoint ``a``.

    Attributes:
        paths: the two paths, a and b.
        same_body: whether both gave the same answer (equal JSON, else equal bytes, and the same status).
        difference: where they first differ, or None.
        statements_a, statements_b: statements that one request ran.
        timing: the measured pairs and their ratio; without a pair if there is a failure.
        latency_ms: simulated round trip of each statement in milliseconds; 0 = none.
        failure: which endpoint answered with an error (a status of 400 or more, an exception) or not in time;
            else empty.
    """

    paths: tuple[str, str]
    same_body: bool
    difference: Difference | None
    statements_a: int
    statements_b: int
    timing: stats.Ratio
    latency_ms: float = 0.0
    failure: str = ""

    @property
    def ratio(self) -> float:
        """How many times faster b is; ``nan`` if no time was measured."""
        return self.timing.ratio

    @property
    def low(self) -> float:
        """Lower end of the ratio's 95 % interval."""
        return self.timing.low

    @property
    def high(self) -> float:
        """Upper end of the ratio's 95 % interval."""
        return self.timing.high

    @property
    def verdict(self) -> str:
        """``"faster"``, ``"slower"``, ``"equivalent"`` or ``"inconclusive"``, said of b."""
        return self.timing.verdict

    @property
    def improvement(self) -> float:
        """Fraction of a's time that b saves at least: from the interval's lower end; 0 if none is proven.

        A different answer in less time is none.
        """
        return max(0.0, 1 - 1 / self.low) if self.low > 0 and self.same_body else 0.0

    @property
    def says(self) -> str:
        """The finding as one line: "1.051 consultas → 2 · 38 veces más rápido (33–43)"."""
        key = "stats.finding_one" if self.statements_a == 1 else "stats.finding"
        return say(key, a=self.statements_a, b=self.statements_b, timing=self.timing.says)

    @property
    def df(self) -> pd.DataFrame:
        """One row an endpoint: statements, median seconds and the 95 % interval of that median."""
        rows = [
            (path, statements, *(stats.median_interval(seconds) if seconds else (math.nan,) * 3), len(seconds))
            for path, statements, seconds in self._sides()
        ]
        names = ["path", "statements", "median_s", "low_s", "high_s", "runs"]
        return pd.DataFrame(rows, columns=names)

    def _sides(self) -> tuple[tuple[str, int, tuple[float, ...]], tuple[str, int, tuple[float, ...]]]:
        return (
            (self.paths[0], self.statements_a, self.timing.times_a),
            (self.paths[1], self.statements_b, self.timing.times_b),
        )

    def plot(self) -> plots.Figure:
        """Before and after: statements on the left, time with its interval on the right."""
        data = self.df

        def draw(axes: list[Any]) -> None:
            names = [path if len(path) < 36 else f"…{path[-35:]}" for path in self.paths]
            colours = (plots.BEFORE, plots.AFTER)
            plots.bars(axes[0], names, data["statements"].tolist(), colours)
            axes[0].set_xlabel(say("stats.statements_axis"))
            plots.numbers(axes[0].xaxis)
            spans = [
                (low, high) if math.isfinite(high) else None
                for low, high in zip(data["low_s"], data["high_s"], strict=True)
            ]
            seconds = data["median_s"].fillna(0.0).tolist()
            plots.bars(axes[1], ["", ""], seconds, colours, show=_time, intervals=spans)
            simulated = "stats.time_axis_simulated" if self.latency_ms else "stats.time_axis"
            axes[1].set_xlabel(say(simulated, latency=self.latency_ms))
            plots.durations(axes[1].xaxis)
            if not any(seconds):
                axes[1].set_xticks([])

        alt = say("stats.comparison_alt", a=self.paths[0], b=self.paths[1], says=self.says)
        return plots.figure(draw, title=self._headline(), alt=alt, data=data, size=(11, 2.9), panels=2)

    def _headline(self) -> str:
        if self.failure:
            return say("stats.not_compared")
        return self.says if self.same_body else say("stats.not_same", says=self.says)

    @property
    def _symbol(self) -> str:
        return "✗" if self.failure else stats.SYMBOLS[self.verdict] if self.same_body else "≠"

    def __repr__(self) -> str:
        lines = [f"{self._symbol} {self._headline()}"]
        if self.failure:
            return "\n".join([*lines, self.failure])
        if self.difference:
            lines.append(str(self.difference))
        if self.latency_ms:
            lines.append(say("stats.simulated", latency=self.latency_ms))
        return "\n".join(lines)

    def _repr_html_(self) -> Safe:
        if self.failure:
            text = tag("pre", self.failure, "white-space:pre-wrap;margin:0")
            return card(self._headline(), text, colour=plots.VERMILION, symbol=self._symbol)
        body = [tag("div", say("stats.same" if self.same_body else "stats.first_difference"))]
        if self.difference:
            body.append(tag("div", code(self.difference)))
        for path, statements, seconds in self._sides():
            shown = duration(median(seconds)) if seconds else "—"
            figures = f" · {say('stats.statements_axis')}: {number(statements)} · {shown}"
            body.append(tag("div", join([code(path), figures])))
        note = say("stats.simulated", latency=self.latency_ms) if self.latency_ms else ""
        colour = stats.COLOURS[self.verdict] if self.same_body else plots.VERMILION
        return card(self._headline(), join(body), colour=colour, symbol=self._symbol, note=note)


async def compare_endpoints(
    client: Client,
    a: str,
    b: str,
    *,
    seconds: float = 15.0,
    method: str = "GET",
    minimum_effect: float = 0.05,
    seed: int | None = None,
    **options: Any,
) -> Comparison:
    """Call both paths, compare their answers and statements, then time them in interleaved pairs.

    An endpoint that answers with an error is not timed: failing fast is not being fast.

    Args:
        client: the Lab's, inside its loop.
        a, b: paths; the verdict is said of b.
        seconds: limit for everything; a call still under way then is stopped and not counted.
        method: HTTP method.
        minimum_effect: see `labkit.stats.compare`.
        seed: makes the order of the pairs reproducible.
        options: of each request, see ``Lab.request``.

    Raises:
        MeasurementError: if ``seconds`` or ``minimum_effect`` is not a number above 0.
        RequestError: if there is no such option.
        RequestTimeout: if a request takes longer than the Lab's own limit.
    """
    client.check(options, "method", "seconds", "minimum_effect", "seed")
    stats.positive(seconds=seconds, minimum_effect=minimum_effect)
    end = time.perf_counter() + seconds
    hurried = copy(client)
    failures: list[str] = []

    async def ask(path: str) -> Reply | None:
        """The answer; None if it did not come in time. One that is an error is noted in ``failures``."""
        left = end - time.perf_counter()
        hurried.limit = min(client.limit, left)
        try:
            reply = await hurried.call(method, path, **options) if left > 0 else None
        except RequestTimeout:
            if hurried.limit < left:
                raise
            return None
        if reply and (reply.status >= 400 or reply.error):
            if time.perf_counter() >= end:  # the end of the time is what it failed of
                return None
            failures.append("\n".join(filter(None, (f"{reply.label} → {reply.status}", reply.error, reply.note))))
        return reply

    reply_a = await ask(a)
    reply_b = await ask(b) if reply_a else None
    if not reply_a or not reply_b:
        label, count = f"{method} {b if reply_a else a}", reply_a.queries if reply_a else 0
        failures.append(say("stats.cut", label=label, seconds=seconds, more=math.ceil(2 * seconds)))
        nothing = stats.Ratio.of([], [])
        return Comparison((a, b), False, None, count, 0, nothing, failure="\n".join(failures))
    timing = stats.Ratio.of([reply_a.elapsed], [reply_b.elapsed], minimum_effect)
    # These two calls serve as the warm-up pair.
    cold = {"a": reply_a.elapsed, "b": reply_b.elapsed}

    async def run(side: str, path: str) -> float:
        if side in cold:
            return cold.pop(side)
        reply = await ask(path)
        return reply.elapsed if reply and not failures else math.inf

    if not failures and (left := end - time.perf_counter()) > 0:
        timing = await stats.compare_async(
            lambda: run("a", a),
            lambda: run("b", b),
            limit=left,
            minimum_effect=minimum_effect,
            seed=seed,
        )
    if failures:
        timing = stats.Ratio.of([], [])
    found = first_difference(reply_a, reply_b)
    latency = client.trip.ms if reply_a.queries or reply_b.queries else 0.0
    statements = (reply_a.queries, reply_b.queries)
    return Comparison((a, b), found is None, found, *statements, timing, latency, "\n".join(failures))


def first_difference(a: Reply, b: Reply) -> Difference | None:
    """Where two replies first differ (status, then parsed JSON, else bytes), or None."""
    if a.status != b.status:
        return Difference("status", str(a.status), str(b.status))
    if a.body == b.body:
        return None
    try:
        return difference(a.json, b.json)
    except NotJSONError:
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(a.body, b.body, strict=False))
        place = len(list(shared))
        return Difference(f"byte {place}", *(repr(body[place : place + 20])[1:] for body in (a.body, b.body)))


def difference(a: Any, b: Any, path: str = "") -> Difference | None:
    """Where two parsed JSON values first differ, or None; ``path`` is the place where they stand themselves."""
    if isinstance(a, dict) and isinstance(b, dict):
        steps = [(_key(path, k), a.get(k, _MISSING), b.get(k, _MISSING)) for k in [*a, *(k for k in b if k not in a)]]
    elif isinstance(a, list) and isinstance(b, list):
        steps = [(f"{path}[{i}]", x, y) for i, (x, y) in enumerate(zip_longest(a, b, fillvalue=_MISSING))]
    else:
        # In JSON true is not 1, though it is for Python; 1 and 1.0 are the same number in both.
        same = a == b and isinstance(a, bool) == isinstance(b, bool)
        return None if same or (a != a and b != b) else Difference(path or "$", _shown(a), _shown(b))
    return next((found for place, x, y in steps if (found := difference(x, y, place))), None)


def _key(path: str, key: str) -> str:
    return f"{path}.{key}".lstrip(".") if key.isidentifier() else f"{path}[{json.dumps(key, ensure_ascii=False)}]"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds else "—"


def _shown(value: Any) -> str:
    if value is _MISSING:
        return say("stats.missing")
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
