"""A Lab whose durations are drawn from a seed, so that a judgement about measuring never hangs on luck."""

from __future__ import annotations

import itertools
import random
from typing import Any, NoReturn

from labkit.asgi import Reply
from labkit.comparison import Comparison
from labkit.course.cards import words
from labkit.errors import LabkitError
from labkit.load import LoadResult
from labkit.stats import Ratio

PAIRS = 15
"""How many pairs its ``compare`` measures."""


class SimulatedLab:
    """Answers like a Lab, in no time: ``/after`` takes ``1 / factor`` of ``/before``; both scatter as on a laptop.

    Attributes:
        order: the paths asked for, one by one.
    """

    def __init__(self, seed: int, factor: float) -> None:
        self._random = random.Random(seed)
        self._factor = factor
        self.order: list[str] = []

    def get(self, path: str, **_: Any) -> Reply:
        self.order.append(path)
        seconds = 0.02 * self._random.lognormvariate(0, 0.2) / (self._factor if path == "/after" else 1)
        return Reply(200, b"{}", (), seconds)

    def load(self, path: str, *, requests: int = 1000, concurrency: int = 10, **_: Any) -> LoadResult:
        elapsed = tuple(self.get(path).elapsed for _ in range(requests))
        started = tuple(itertools.accumulate(elapsed, initial=0.0))
        return LoadResult(path, "GET", concurrency, started[-1], started[:-1], elapsed, (200,) * requests)

    def compare(self, before: str, after: str, **_: Any) -> Comparison:
        pairs = [(self.get(before).elapsed, self.get(after).elapsed) for _ in range(PAIRS)]
        timing = Ratio.of([a for a, _ in pairs], [b for _, b in pairs])
        return Comparison((before, after), True, None, 0, 0, timing)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise LabkitError(words("lesson_01.improvement_tools", name=name))

    @property
    def pairs(self) -> int:
        """How often both sides were measured."""
        return min(self.order.count("/before"), self.order.count("/after"))

    @property
    def in_blocks(self) -> bool:
        """Whether one side often came many times in a row: interleaved pairs change sides at least once each."""
        return sum(a != b for a, b in itertools.pairwise(self.order)) < self.pairs
