"""What a frozen and a killed Redis cost each cache a call, and how often many callers at once compute the same."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from redis import Redis

from benchmarks._cache_child import Child
from benchmarks._caches import CACHES, CROWD, Cache
from benchmarks._measure import QUICK, duration, publish
from labkit.services import redis

LIMIT = 0.5 if QUICK else 5.0  # seconds after which a call is given up
WORK = 0.3 if QUICK else 1.0  # seconds that the function takes in a crowd
PROCESSES, CALLERS, ALONE = (4, 10, 50) if QUICK else (4, 50, 200)
LATER = 5  # calls after the first
START = 30.0  # seconds that a child may take to be there
FIRST, REST = 0.060, 0.001  # goals: our time limit is 50 ms, and the machine has other things to do
MOST = 50  # goal: commands for one run


@dataclass
class Words:
    """A table whose cells are words."""

    title: str
    about: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As GitHub shows it, aligned to be read in a terminal too."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        lines.insert(1, ["-" * width for width in widths])
        shown = ("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
        return f"### {self.title}\n\n{self.about}\n\n" + "\n".join(shown) + "\n"


def fault(cache: Cache) -> list[str]:
    """A row: seconds of the first call and of later ones, with Redis killed and with Redis frozen."""
    if cache.missing:
        return [cache.name, *["not installed"] * 4, ""]
    server = redis.start()
    child = Child([cache.name], server.url, LIMIT)
    try:
        _well(child, cache.name, START)
        server.kill()
        killed = _calls(child, cache.name)
        server.restart()
        _well(child, cache.name, 5.0)
        server.freeze()
        frozen = _calls(child, cache.name)
    finally:
        child.end()
        server.stop()
    reached = all(first <= FIRST and later <= REST for (first, _), (later, _) in (frozen, killed))
    words = [f"> {duration(LIMIT)}" if took >= 0.99 * LIMIT else duration(took) + why for took, why in frozen + killed]
    return [cache.title, *words, "" if cache.distribution else _verdict(reached)]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def _calls(child: Child, name: str) -> list[tuple[float, str]]:
    """Seconds of the first call and the median of later ones, and what they raised.

    The later ones begin no longer after the first than one call may take."""
    first, later = child.call(name), list[tuple[float, str, bool]]()
    until = time.monotonic() + LIMIT
    while len(later) < LATER and time.monotonic() < until:
        later.append(child.call(name))
    return [_summary([first]), _summary(later)]


def _summary(calls: list[tuple[float, str, bool]]) -> tuple[float, str]:
    failed = {failed for _, failed, _ in calls} - {"", "TimeoutError"}
    return median(took for took, _, _ in calls), "".join(f", {name}" for name in sorted(failed))


def _well(child: Child, name: str, seconds: float) -> None:
    """Wait until calls are hits again."""
    child.tell("call", name)
    child.answer(seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(hit for _, _, hit in (child.call(name) for _ in range(3))):
            return
        time.sleep(0.05)


def crowds() -> list[list[str]]:
    """Rows: runs for many callers in one process, and in several, with the commands that Redis got for these."""
    there = [cache.name for cache in CROWD if not cache.missing]
    server = redis.start()
    children = [Child(there, server.url, LIMIT) for _ in range(PROCESSES)]
    try:
        with Redis.from_url(server.url) as connection:
            return [_crowd(children, cache, 10 * i, connection) for i, cache in enumerate(CROWD)]
    finally:
        for child in children:
            child.end()
        server.stop()


def _crowd(children: list[Child], cache: Cache, user_id: int, connection: Any) -> list[str]:
    if cache.missing:
        return [cache.name, *["not installed"] * 3, ""]
    for child in children:  # so that connections and scripts are there
        child.tell("crowd", cache.name, user_id, 2, 0.0, 0.0)
        child.answer(START)
    children[0].tell("crowd", cache.name, user_id + 1, ALONE, WORK, 0.0)
    alone, before, moment = children[0].answer(), _commands(connection), time.time() + 0.1
    for child in children:
        child.tell("crowd", cache.name, user_id + 2, CALLERS, WORK, moment)
    runs = sum(child.answer() for child in children)
    commands = _commands(connection) - before
    reached = alone == runs == 1 and commands <= MOST
    return [cache.title, str(alone), str(runs), f"{commands:,}", "" if cache.distribution else _verdict(reached)]


def _commands(connection: Any) -> int:
    """Commands that Redis has carried out, also inside scripts, this question apart."""
    stats = connection.info("commandstats")
    return int(sum(row["calls"] for name, row in stats.items() if name != "cmdstat_info"))


def main() -> None:
    """The faults all at once, for they mostly wait; then the crowds, one after the other."""
    with ThreadPoolExecutor(len(CACHES)) as pool:
        rows = list(pool.map(fault, CACHES))
    faults = Words(
        "A call while Redis does not answer",
        f"A call is given up after {duration(LIMIT)}. Later: the median of {LATER} calls at most. An exception that "
        f"reached the caller is named. Goal: the first <= {duration(FIRST)}, later ones <= {duration(REST)}.",
        ["cache", "frozen, first", "frozen, later", "killed, first", "killed, later", ""],
        rows,
    )
    crowd = Words(
        "Many callers of a key that is not there",
        f"The function takes {duration(WORK)}. Commands are what Redis carried out, also inside scripts. Goal: 1 run, "
        f"<= {MOST} commands.",
        ["cache", f"runs, {ALONE} callers", f"runs, {PROCESSES} processes of {CALLERS}", "commands for these", ""],
        crowds(),
    )
    introduction = "With a real Valkey on this machine, each cache in processes of its own, set up as it is by default."
    publish("cache_faults", introduction, [faults, crowd])


if __name__ == "__main__":
    main()
