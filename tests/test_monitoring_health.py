"""Health: what a probe may do to us, and how often it is asked."""

from __future__ import annotations

import asyncio
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import pytest

from labkit.errors import MonitoringError
from labkit.monitoring.health import Check, Health, HealthReport, Result
from labkit.monitoring.ids import request_id
from labkit.monitoring.logs import Journal

pytestmark = pytest.mark.anyio
AT_MOST = 1.0  # seconds, which the issue promises


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    limit = time.monotonic() + 5.0
    while threads() and time.monotonic() < limit:
        time.sleep(0.005)
    assert not threads()


@pytest.fixture
def journal() -> Iterator[Journal]:
    with Journal() as journal:
        yield journal


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What a probe may wait for in vain; set at the end."""
    event = threading.Event()
    yield event
    event.set()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("labkit health")]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Counted:
    """A probe that counts how often it was asked, and fails with what it is told to."""

    def __init__(self, **details: Any) -> None:
        self.runs, self.error, self.details = 0, None, details
        self.wait: threading.Event | None = None

    async def __call__(self) -> Mapping[str, Any]:
        self.runs += 1
        if self.wait is not None:
            self.wait.wait()
        if self.error is not None:
            raise self.error
        return self.details


def raising(error: BaseException) -> Callable[[], Any]:
    async def probe() -> None:
        raise error

    return probe


async def only(check: Check) -> Result:
    """What is found of a single check, in time."""
    begun = time.monotonic()
    report = await Health([check]).run()
    assert time.monotonic() - begun <= AT_MOST
    (result,) = report.results
    return result


# --- the verdict -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({}, "healthy"),
        ({"database!": "healthy", "cache": "healthy"}, "healthy"),
        ({"database!": "unhealthy", "cache": "healthy"}, "unhealthy"),
        ({"database!": "healthy", "cache": "unhealthy"}, "degraded"),
        ({"database!": "healthy", "disk": "degraded"}, "degraded"),
        ({"database!": "degraded"}, "degraded"),
        ({"database!": "unhealthy", "cache": "unhealthy", "disk": "degraded"}, "unhealthy"),
    ],
)
async def test_what_is_critical_decides(found: dict[str, str], status: str) -> None:
    health = Health(
        Check(name.rstrip("!"), lambda said=said: {"status": said}, critical=name.endswith("!"))
        for name, said in found.items()
    )
    assert (await health.run()).status == status


async def test_the_answer_is_the_one_of_the_course() -> None:
    checks = [
        Check("database", raising(OSError("no"))),
        Check("cache", Counted(), critical=False),
        Check("disk", Counted(disk_usage="97.0%", status="degraded"), critical=False),
        Check("memory", Counted(memory_usage="12.5%"), critical=False),
    ]
    before = time.time()
    report = await Health(checks).run()
    body = report.body
    assert before <= body["timestamp"] <= time.time()
    assert body["status"] == report.status == "unhealthy"
    took = {
        name: float(body["checks"][name].pop("response_time").removesuffix("s"))
        for name in body["checks"].keys() - {"system"}
    }
    assert all(0 <= seconds < 0.5 for seconds in took.values())
    assert body["checks"] == {
        "database": {"status": "unhealthy", "error": "unavailable"},
        "cache": {"status": "healthy"},
        "disk": {"status": "degraded", "disk_usage": "97.0%"},
        "memory": {"status": "healthy", "memory_usage": "12.5%"},
        "system": {"disk_usage": "97.0%", "memory_usage": "12.5%"},
    }
    assert body == report.body | {"checks": body["checks"]}
    assert [*report.df["status"]] == ["unhealthy", "healthy", "degraded", "healthy"]
    assert [*report.df["error"]] == ["unavailable", "", "", ""]
    assert repr(report).splitlines()[:2] == ["HealthReport: unhealthy", "  database: unhealthy unavailable"]


def test_a_report_is_shown_and_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    report = HealthReport((Result("<b>", True, "unhealthy", 0.5, "timeout", {"a": "<i>"}),), 0.0)
    assert "con fallas" in report._repr_html_() and "500 ms" in report._repr_html_()
    monkeypatch.setenv("LABKIT_LANG", "en")
    page = HealthReport((Result("<b>", False, "degraded", 0.5, "", {"a": "<i>"}),), 0.0)._repr_html_()
    assert "Health: degraded" in page and "&lt;b&gt;" in page and "a: &lt;i&gt;" in page and "<i>" not in page


# --- what a probe may do -----------------------------------------------------------------------------------------


async def test_a_probe_is_a_coroutine_or_a_plain_function() -> None:
    async def later() -> Mapping[str, int]:
        await asyncio.sleep(0)
        return {"n": 1}

    assert (await only(Check("a", later))).details == {"n": 1}
    assert (await only(Check("a", lambda: {"n": 2}))).details == {"n": 2}
    assert (await only(Check("a", lambda: None))).status == "healthy"
    assert (await only(Check("a", lambda: later()))).details == {"n": 1}


async def test_what_it_returns_is_taken_as_it_was_then() -> None:
    kept: dict[Any, Any] = {"list": [1], 7: "seven", "text": "\ud800"}
    result = await only(Check("a", lambda: kept))
    kept["list"].append(2)
    assert result.details == {"list": [1], "7": "seven", "text": "\ud800"}


class Hostile(dict[str, Any]):
    def keys(self) -> Any:
        raise SystemExit(3)

    def __iter__(self) -> Any:
        raise SystemExit(3)


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "found",
    [
        [("a", 1)],
        "healthy",
        True,
        0,
        object(),
        {"a": math.nan},
        {"a": math.inf},
        {"a": object()},
        {"a": {1}},
        {"a": b"x"},
        {"a": LOOP},
        {(1, 2): 3},
        {"status": "fine"},
        {"status": None},
        {"status": ["healthy"]},
        Hostile(a=1),
    ],
    ids=repr,
)
async def test_nonsense_is_invalid(found: Any, journal: Journal) -> None:
    result = await only(Check("odd", lambda: found))
    assert (result.status, result.error, result.details) == ("unhealthy", "invalid", {})
    assert [*journal.df["error"].str.startswith("Traceback")] == [True]


class Odd(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(2),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(),
        StopAsyncIteration(),
        BaseExceptionGroup("several", [KeyboardInterrupt()]),
        Odd(),
        RecursionError(),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_it_raises_the_part_is_unavailable(error: BaseException, journal: Journal) -> None:
    def plain() -> None:
        raise error

    for probe in (raising(error), plain):
        health = Health([Check("odd", probe), Check("other", Counted())], keep=0)
        for _ in range(2):  # its thread has not died of it
            odd, other = (await health.run()).results
            assert (odd.status, odd.error, other.status) == ("unhealthy", "unavailable", "healthy")
    assert len(journal.df) == 4 and set(journal.df["level"]) == {"ERROR"}


@pytest.mark.parametrize("error", [TimeoutError("at 10.0.0.7"), type("ConnectionTimeout", (OSError,), {})()])
async def test_a_client_s_own_time_limit_is_a_timeout(error: Exception) -> None:
    assert (await only(Check("a", raising(error)))).error == "timeout"


async def test_who_hangs_is_left_behind_and_never_asked_twice(stuck: threading.Event, journal: Journal) -> None:
    """Threads blocked for ever, in a coroutine or not, and one that ignores that it is cancelled."""
    runs = {"plain": 0, "blocking": 0, "deaf": 0, "well": 0}

    def plain() -> None:
        runs["plain"] += 1
        stuck.wait()

    async def blocking() -> None:
        runs["blocking"] += 1
        stuck.wait()  # the whole loop, which is its own

    async def deaf() -> None:
        runs["deaf"] += 1
        while not stuck.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    async def well() -> None:
        runs["well"] += 1

    probes = {"plain": plain, "blocking": blocking, "deaf": deaf, "well": well}
    limits = dict.fromkeys(probes, 0.1) | {"well": 0.7}
    health = Health([Check(name, probe, limit=limits[name]) for name, probe in probes.items()], keep=0)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    task = asyncio.create_task(tick())
    for _ in range(4):
        begun = time.monotonic()
        report = await health.run()
        assert time.monotonic() - begun <= AT_MOST
        assert [one.error for one in report.results] == ["timeout", "timeout", "timeout", ""]
        assert report.results[0].seconds == 0.1
        assert sorted(threads())[:3] == ["labkit health blocking", "labkit health deaf", "labkit health plain"]
    task.cancel()
    assert ticks > 4  # nobody else was held up
    assert runs == {"plain": 1, "blocking": 1, "deaf": 1, "well": 4}
    stacks = journal.df[journal.df["check"] == "plain"]["stack"]
    assert all("in plain" in stack and "stuck.wait()" in stack for stack in stacks)
    stuck.set()
    report = await health.run()  # at once, without waiting for a further round
    assert [one.status for one in report.results] == ["healthy"] * 4
    assert runs == {"plain": 2, "blocking": 2, "deaf": 2, "well": 5}


async def test_a_slow_one_is_a_timeout_even_if_somebody_else_is_waited_for() -> None:
    async def slow() -> None:
        await asyncio.sleep(0.15)

    def slow_too() -> None:
        time.sleep(0.15)

    checks = [Check("a", slow, limit=0.05), Check("b", slow_too, limit=0.05), Check("c", slow, limit=0.8)]
    report = await Health(checks).run()
    assert [one.error for one in report.results] == ["timeout", "timeout", ""]


async def test_what_comes_too_late_is_in_the_log(stuck: threading.Event, journal: Journal) -> None:
    def probe() -> None:
        stuck.wait()
        raise OSError("connection to 10.0.0.7 lost")

    token = request_id.set("a-request")
    await Health([Check("database", probe, limit=0.05)]).run()
    request_id.reset(token)
    stuck.set()
    while threads():
        await asyncio.sleep(0.005)
    first, late = journal.entries
    assert (first.request_id, late.request_id) == ("a-request", "a-request")
    assert "late" in late.message and late.error.endswith("OSError: connection to 10.0.0.7 lost")


async def test_a_probe_belongs_to_no_request_but_knows_its_id() -> None:
    own = ContextVar("own", default="nothing")
    seen: list[tuple[str, str]] = []
    own.set("of the request")
    token = request_id.set("a-request")
    await only(Check("a", lambda: seen.append((own.get(), request_id.get()))))
    request_id.reset(token)
    assert seen == [("nothing", "a-request")]


async def test_where_there_is_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health([Check("a", Counted())], keep=0)

    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        begun = time.monotonic()
        (result,) = (await health.run()).results
        assert result.error == "unavailable" and time.monotonic() - begun < 0.5
    assert (await health.run()).status == "healthy"


async def test_somebody_s_broken_log_handler_breaks_no_check(
    stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the disk of the log is full")

    def probe() -> None:
        stuck.wait()
        raise OSError

    monkeypatch.setattr(logging.getLogger("labkit.health"), "handlers", [Broken()])
    health = Health([Check("a", probe, limit=0.05)], keep=0)
    assert (await health.run()).status == "unhealthy"
    stuck.set()  # the thread logs that it is late
    while threads():
        await asyncio.sleep(0.005)
    assert (await health.run()).results[0].error == "unavailable"


# --- how often ---------------------------------------------------------------------------------------------------


async def test_those_who_ask_at_once_share_an_answer(journal: Journal) -> None:
    probe = Counted()
    probe.error = OSError()
    health = Health([Check("a", probe)])
    first, *others = await asyncio.gather(*(health.run() for _ in range(50)))
    assert probe.runs == 1
    assert all(other is first for other in others)
    assert len(journal.df) == 1  # and it is logged once


async def test_two_hundred_in_a_second_ask_once() -> None:
    probe, clock = Counted(), Clock()
    health = Health([Check("a", probe)], keep=1.0, clock=clock)
    for n in range(200):
        clock.now = n / 200
        await health.run()
    assert probe.runs == 1
    for n in range(1, 4):
        clock.now = n * 1.0
        await health.run()
        assert probe.runs == n + 1


async def test_it_recovers_within_the_time_a_result_is_kept() -> None:
    probe, clock = Counted(), Clock()
    health = Health([Check("a", probe)], keep=1.0, clock=clock)
    probe.error = OSError()
    assert (await health.run()).status == "unhealthy"
    probe.error = None
    clock.now = 0.99
    assert (await health.run()).status == "unhealthy"
    clock.now = 1.0
    assert (await health.run()).status == "healthy"


async def test_one_who_stops_waiting_stops_nobody_else(stuck: threading.Event) -> None:
    probe = Counted()
    probe.wait = stuck
    health = Health([Check("a", probe)])
    first, second = asyncio.create_task(health.run()), asyncio.create_task(health.run())
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    stuck.set()
    assert (await second).status == "healthy"
    assert first.cancelled() and probe.runs == 1


async def test_where_nobody_waited_to_the_end_it_is_asked_anew(stuck: threading.Event) -> None:
    probe = Counted()
    probe.wait = stuck
    health = Health([Check("a", probe, limit=0.05)])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(health.run(), 0.01)
    stuck.set()
    await asyncio.sleep(0.15)
    assert (await health.run()).status == "healthy"
    assert probe.runs == 2


def test_a_loop_that_went_away_meanwhile_harms_nobody(stuck: threading.Event, journal: Journal) -> None:
    probe = Counted()
    probe.wait = stuck
    health = Health([Check("a", probe)])
    loop = asyncio.new_event_loop()
    task = loop.create_task(health.run())
    loop.run_until_complete(asyncio.sleep(0.01))

    async def in_time() -> HealthReport:
        return await asyncio.wait_for(health.run(), AT_MOST)

    async def then() -> HealthReport:
        waiting = asyncio.create_task(in_time())
        await asyncio.sleep(0.01)
        stuck.set()
        return await waiting

    assert asyncio.run(then()).status == "healthy"
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    assert probe.runs == 1 and journal.df.empty


def test_several_loops_share_a_round(stuck: threading.Event) -> None:
    probe = Counted()
    probe.wait = stuck
    health = Health([Check("a", probe)])
    found: list[HealthReport] = []
    asking = [threading.Thread(target=lambda: found.append(asyncio.run(health.run()))) for _ in range(8)]
    for thread in asking:
        thread.start()
    stuck.set()
    for thread in asking:
        thread.join()
    assert len(found) == 8 and {id(report) for report in found} == {id(found[0])} and probe.runs == 1


# --- the log, the arguments, the end -----------------------------------------------------------------------------


async def test_the_log_has_the_whole_error_under_the_request(journal: Journal) -> None:
    checks = [
        Check("database", raising(OSError("no route to db.internal:5432")), target=lambda: "db.internal"),
        Check("cache", raising(OSError("nobody at 10.0.0.7")), critical=False, target=lambda: 1 / 0),
        Check("disk", lambda: {"status": "degraded", "disk_usage": "97.0%"}, critical=False),
        Check("memory", lambda: None),
    ]
    token = request_id.set("a-request")
    report = await Health(checks).run()
    request_id.reset(token)
    assert report.request_id == "a-request"
    df = journal.df.set_index("check")
    assert [*df.index] == ["database", "cache", "disk"]
    assert [*df["level"]] == ["ERROR", "WARNING", "WARNING"]
    assert set(df["request_id"]) == {"a-request"} and set(df["component"]) == {"health"}
    assert df.loc["database", "message"] == "check database: unhealthy unavailable db.internal"
    assert "no route to db.internal:5432" in df.loc["database", "error"]
    assert "ZeroDivisionError" in df.loc["cache", "target"]
    assert "10.0.0.7" not in str(report.body) and "db.internal" not in str(report.body)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Check("", Counted()), ["Check('')"]),
        (lambda: Check(None, Counted()), ["Check(None)"]),  # type: ignore[arg-type]
        (lambda: Check("a", None), ["'a'", "None"]),  # type: ignore[arg-type]
        (lambda: Check("a", Counted(), limit=0), ["'a'", "limit=0", "0"]),
        (lambda: Check("a", Counted(), limit=5), ["'a'", "limit=5", "1 s"]),
        (lambda: Check("a", Counted(), limit=math.nan), ["limit=nan"]),
        (lambda: Check("a", Counted(), limit=True), ["limit=True"]),
        (lambda: Check("a", Counted(), limit="1"), ["limit='1'"]),  # type: ignore[arg-type]
        (lambda: Health([Check("a", Counted()), Check("a", Counted())]), ["'a'", "name="]),
        (lambda: Health(keep=-1), ["keep=-1"]),
        (lambda: Health(keep=math.inf), ["keep=inf"]),
    ],
)
@pytest.mark.parametrize("lang", ["es", "en"])
def test_what_makes_no_check_is_refused(
    make: Callable[[], Any], words: list[str], lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_LANG", lang)
    with pytest.raises(MonitoringError) as refused:
        make()
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_process_ends_although_probes_hang() -> None:
    program = """
import asyncio, threading
from labkit.monitoring.health import Check, Health
def plain():
    threading.Event().wait()
async def blocking():
    threading.Event().wait()
report = asyncio.run(Health([Check("a", plain, limit=0.05), Check("b", blocking, limit=0.05)]).run())
assert report.status == "unhealthy"
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert done.stderr == ""  # unless somebody configures logging
