"""Measure cases turn by turn and set each against the first, the floor.

In every round each case runs one batch, in random order, so that a noisy neighbour hits all alike. A case's ratio is
the median of its ratios to the floor, round by round, with the exact order-statistic interval. Only ratios are worth
comparing between machines.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from labkit.stats import median_interval

RESULTS = Path(__file__).parent / "results"
QUICK = "--quick" in sys.argv
PACKAGES = (
    "fastapi",
    "starlette",
    "sqlalchemy",
    "psycopg",
    "redis",
    "hiredis",
    "orjson",
    "httpx",
    "httpx2",
    "pyinstrument",
    "line_profiler",
)
MOST = 10_000  # operations in a batch
MOST_ROUNDS = 60


@dataclass
class Case:
    """Something to measure.

    Attributes:
        name: what the table calls it.
        run: does it so many times; gives the seconds that took in all.
        goal: ratio to the floor that it must not exceed.
    """

    name: str
    run: Callable[[int], float]
    goal: float | None = None


@dataclass
class Row:
    """A line of a table: seconds an operation (median of the rounds) and what they are compared with."""

    name: str
    seconds: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    goal: str = ""
    reached: bool | None = None


@dataclass
class Table:
    """What a benchmark found; ``floor`` says what the ratios are measured against."""

    title: str
    floor: str
    rows: list[Row]
    rounds: int

    def markdown(self) -> str:
        """The table as GitHub shows it, aligned to be read in a terminal too."""
        cells = [["case", "time", "ratio", "95 % interval", "goal", ""]]
        for row in self.rows:
            interval = f"{row.low:.2f}-{row.high:.2f}" if row.low and row.high and row.high < 1e9 else ""
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            word = {True: "reached", False: "MISSED", None: ""}[row.reached]
            cells.append([row.name, duration(row.seconds), ratio, interval, row.goal, word])
        widths = [max(len(line[i]) for line in cells) for i in range(6)]
        lines = [
            "| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        return f"### {self.title}\n\nFloor: {self.floor}. Rounds: {self.rounds}.\n\n" + "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """Three digits and a unit, in English whatever the learner's language."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def repeat(operation: Callable[[], object]) -> Callable[[int], float]:
    """``run`` of a case from a plain function."""

    def run(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            operation()
        return time.perf_counter() - start

    return run


def repeat_async(loop: asyncio.AbstractEventLoop, operation: Callable[[], Awaitable[object]]) -> Callable[[int], float]:
    """``run`` of a case from a coroutine function; the clock runs inside the loop."""

    async def batch(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            await operation()
        return time.perf_counter() - start

    return lambda times: loop.run_until_complete(batch(times))


def rounds(cases: Sequence[Case], *, seconds: float, fewest: int = 6, batch: float = 0.03) -> list[list[float]]:
    """Seconds an operation of every case, round by round, for about ``seconds`` (if quick, a tenth and 2 rounds).

    Args:
        cases: what to run, warmed up first.
        seconds: for all rounds together.
        fewest: rounds at least; an interval needs 6.
        batch: seconds that one batch should take.
    """
    chance, sizes = random.Random(0), []
    for case in cases:
        once = case.run(1)
        if once < 0.2:  # else the first is as good as any, and warming up takes its time
            once = min(case.run(1), case.run(1))
        sizes.append(min(MOST, max(1, int(batch / max(once, 1e-7)))))
    if QUICK:
        seconds, fewest = seconds / 10, 2
    start, found = time.perf_counter(), list[list[float]]()
    while len(found) < fewest or (len(found) < MOST_ROUNDS and time.perf_counter() - start < seconds):
        row = [0.0] * len(cases)
        for i in chance.sample(range(len(cases)), len(cases)):
            row[i] = cases[i].run(sizes[i]) / sizes[i]
        found.append(row)
    return found


def compare(title: str, floor: str, cases: Sequence[Case], **options: Any) -> Table:
    """Measure the cases against the first."""
    found = rounds(cases, **options)
    rows = []
    for i, case in enumerate(cases):
        ratio, low, high = median_interval([row[i] / row[0] for row in found])
        goal, reached = ("", None) if case.goal is None else (f"<= {case.goal:g}", ratio <= case.goal)
        rows.append(Row(case.name, median(row[i] for row in found), ratio, low, high, goal, reached))
    return Table(title, floor, rows, len(found))


def machine() -> dict[str, str]:
    """Where and with what this was measured."""
    import psutil

    found = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()) if hasattr(os, "getloadavg") else "",
    }
    return found | {name: version(name) for name in PACKAGES}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def publish(name: str, introduction: str, tables: Sequence[Table]) -> None:
    """Print the tables; write them to ``results/`` unless this is a quick run."""
    text = "\n".join(table.markdown() for table in tables)
    print(text, flush=True)
    if QUICK:
        return
    here = machine()
    RESULTS.mkdir(exist_ok=True)
    data = {"name": name, "machine": here, "tables": [asdict(table) for table in tables]}
    (RESULTS / f"{name}.json").write_text(
        json.dumps(data, indent=1).replace("Infinity", "null") + "\n", encoding="utf-8"
    )
    about = ", ".join(f"{key} {value}" for key, value in here.items())
    (RESULTS / f"{name}.md").write_text(f"# {name}\n\n{introduction}\n\n{about}.\n\n{text}", encoding="utf-8")
