"""Lesson 03's health checks (3.5, 3.6): each wrong answer told apart, on a PostgreSQL and a Redis that really break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit import Lab
from labkit.blog import create_app
from labkit.course.lessons._monitor_faults import Scenario, Scenarios, scenarios
from tests.lessons.judging import Notebook
from tests.lessons.test_lesson_03 import NAMES, SETUP, Swaps, judge

ASK = '        connection.execute(text("SELECT 1"))'
WAIT = "await asyncio.wait_for(asyncio.to_thread(ask), 0.5)"
LOG = 'logging.getLogger("labkit.health").warning("%s failed", name, exc_info=True)'
WORD = '"timeout" if isinstance(error, TimeoutError) else "unavailable"'
RETURN = 'return {"status": "healthy", "response_time"'


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    """The lesson up to its health router, on servers of its own."""
    with Lab(create_app(monitored=False), redis=True, postgres=True, latency=0) as lab:
        yield Notebook("03_monitoring", lab, NAMES, SETUP)


@pytest.fixture
def no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """For answers that are told apart before the first fault."""
    monkeypatch.setattr("labkit.course.lessons._monitor_part._live", lambda *words: None)
    monkeypatch.setattr("labkit.course.lessons._monitor_faults.FAULTS", ("",))
    monkeypatch.setattr("labkit.course.lessons._monitor_part.HELD", 1.4)


def with_solution(notebook: Notebook, id: str, swaps: Swaps, role: str = "solution") -> str:
    """The health endpoint in some version, over parts that are right."""
    part = notebook.text("3.5", "solution") if role == "solution" else notebook.text("3.5")
    return f"{part}\n\n\n{notebook.version(id, *swaps)}"


@pytest.mark.parametrize("id", ["3.5", "3.6"])
def test_the_solution_is_done_under_real_faults(notebook: Notebook, id: str) -> None:
    source = with_solution(notebook, id, []) if id == "3.6" else notebook.text(id, "solution")
    judged = notebook.check(id, source)
    assert judged.card.verdict == "done" and judged.card.note == ""
    assert notebook.lab.get("/users/1").status == 200, "what was broken is well again"
    assert notebook.lab.redis.command("PING")  # type: ignore[union-attr]
    routes = notebook.lab.app.router.routes  # type: ignore[attr-defined]
    assert not [route for route in routes if "/check" in getattr(route, "path", "")]


# --- 3.5 one part


UNHEALTHY = 'return {"status": "unhealthy", "error": word}'
EXCEPT = "    except Exception as error:"
ONCE = 'if name == "cache" or ask.__name__ != "ask":\n            ask()'
PARTS: dict[str, tuple[str, Swaps]] = {
    "a bare string": ("part_bare", [('text("SELECT 1")', '"SELECT 1"')]),
    "nothing is asked": ("part_blind", [("with engine.connect() as connection:\n" + ASK, "engine.url")]),
    "not async": ("part_sync", [("async def", "def"), (WAIT, "ask()")]),
    "True": ("part_type", [(RETURN, "return True\n    " + RETURN)]),
    "no time": ("part_shape", [(RETURN, 'return {"status": "healthy"}\n    ' + RETURN)]),
    "always well": ("part_always_well", [(UNHEALTHY, "pass")]),
    "no word": ("part_failed_shape", [(', "error": word', "")]),
    "the text": ("part_leaks", [(WORD, "str(error)")]),
    "the repr": ("part_leaks", [(WORD, "repr(error)")]),
    "the beginning of the text": ("part_leaks", [(WORD, "str(error)[:50]")]),
    "the class": ("part_names", [(WORD, "type(error).__name__")]),
    "nothing in the log": ("part_silent", [(LOG, "pass")]),
    "a log without the reason": ("part_silent", [(", exc_info=True", "")]),
    "in the loop": ("part_blocks", [(WAIT, "ask()")]),
    "a limit in the loop": ("part_blocks", [(WAIT, "async with asyncio.timeout(0.5):\n            ask()")]),
    "no limit": ("part_waits", [(WAIT, "await asyncio.to_thread(ask)")]),
    "five seconds": ("part_waits", [("0.5)", "5)")]),
    "late is well": ("part_late_well", [(EXCEPT, "    except TimeoutError:\n        pass\n" + EXCEPT)]),
    "unasked": ("part_unasked", [(WAIT, ONCE)]),
}
BARE = ("part_sync", "part_type", "part_shape", "part_always_well", "part_failed_shape", "part_unasked")


@pytest.mark.parametrize(("key", "swaps"), PARTS.values(), ids=PARTS)
def test_each_wrong_part_has_a_sentence_of_its_own(notebook: Notebook, key: str, swaps: Swaps, no_faults: None) -> None:
    judged = notebook.check("3.5", notebook.version("3.5", *swaps))
    assert judged.state == ("almost", key)
    assert judged.card.hint or key in BARE


REMEMBERS = """if "SELECT" in str(error) or "connection failed" in str(error):
            check_part.last = {"status": "unhealthy", "error": "unavailable"}
        return {"status": "unhealthy", "error": "unavailable"}"""
CACHED = '    if name == "database" and hasattr(check_part, "last"):\n        return check_part.last\n    start ='
FORGIVING = 'if "refused" in str(error):\n            return {"status": "healthy", "response_time": "0"}\n        '
TELLING = WORD + ' if "refused" not in str(error) else str(error)'
LIVE: dict[str, tuple[str, Swaps]] = {
    "what it said last": ("part_not_back", [("    start =", CACHED), (UNHEALTHY, REMEMBERS)]),
    "a refusal is well": ("part_live_well", [(UNHEALTHY, FORGIVING + UNHEALTHY)]),
    "the text of a refusal": ("part_live_leaks", [(WORD, TELLING)]),
}


@pytest.mark.parametrize(("key", "swaps"), LIVE.values(), ids=LIVE)
def test_each_part_that_is_wrong_under_a_fault_is_told(notebook: Notebook, key: str, swaps: Swaps) -> None:
    judge(notebook, "3.5", key, swaps)
    assert notebook.lab.get("/users/1").status == 200


def test_an_exception_of_hers_in_a_part_shows_her_line(notebook: Notebook, no_faults: None) -> None:
    judged = notebook.check("3.5", notebook.version("3.5", ("    start =", "    name.nothing()\n    start =")))
    assert judged.card.verdict == "error" and "name.nothing()" in judged.card.code


def test_a_part_that_never_ends_is_ended(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.course.checks.CALL_LIMIT", 0.8)
    judged = notebook.check("3.5", notebook.version("3.5", ("    start =", "    while True: pass\n    start =")))
    assert judged.state[0] == "error"
    assert notebook.lab.get("/users/1").status == 200


# --- 3.6 the whole


CPU = "psutil.cpu_percent()"
CACHE = 'check_part("cache", lambda: ask_cache(state.redis_url))'
UNWELL = 'if database["status"] == "unhealthy":\n        status, response.status_code = "unhealthy", 503'
DEGRADED = 'if cache["status"] == "unhealthy" or max(memory, disk) > 90:\n        status = "degraded"'
SET_503 = ('        status = "degraded"', '        status, response.status_code = "degraded", 503')
EITHER = ('if database["status"] == "unhealthy"', 'if "unhealthy" in (database["status"], cache["status"])')
FULL = f"{UNWELL}\n    if disk > 90:\n        status, response.status_code = 'degraded', 200"
WHOLES: dict[str, tuple[str, Swaps]] = {
    "one second": ("whole_blocks", [(CPU, "psutil.cpu_percent(interval=1)")]),
    "one second in a thread": ("whole_slow", [(CPU, "await asyncio.to_thread(psutil.cpu_percent, 1)")]),
    "always 200": ("whole_200", [(UNWELL, UNWELL.replace(", response.status_code", "").replace(", 503", ""))]),
    "500": ("whole_200", [("503", "500")]),
    "503 for degraded": ("whole_503", [SET_503]),
    "Redis is critical": ("whole_cache", [EITHER]),
    "Redis does not count": ("whole_cache", [('cache["status"] == "unhealthy" or ', "")]),
    "the last one wins": ("whole_both", [(UNWELL, "pass"), (DEGRADED, f"{UNWELL}\n    {DEGRADED}")]),
    "the disk wins": ("whole_hidden", [(UNWELL, FULL)]),
    "another disk": ("whole_disk", [('state.disk_usage("/").percent', "50.0")]),
    "no memory": ("whole_memory", [("max(memory, disk)", "disk")]),
    "the database is not critical": ("whole_database", [('"unhealthy", 503', '"degraded", 200')]),
    "never well": ("whole_well", [('status = "healthy"', 'status = "degraded"')]),
    "no timestamp": ("whole_shape", [('"timestamp": time.time(), ', "")]),
    "its own question": ("whole_own", [(CACHE, 'asyncio.sleep(0, {"status": "healthy"})')]),
    "no system": ("whole_parts", [(', "system": system', "")]),
    "no processor": ("whole_system", [(', "cpu_usage": f"{cpu:.1f}%"', "")]),
    "a parameter": ("whole_parameters", [("response: Response", "response: Response, secret: str")]),
}
PLAIN = ("whole_well", "whole_shape", "whole_parts", "whole_system", "whole_parameters")


@pytest.mark.parametrize(("key", "swaps"), WHOLES.values(), ids=WHOLES)
def test_each_wrong_whole_has_a_sentence_of_its_own(
    notebook: Notebook, key: str, swaps: Swaps, no_faults: None
) -> None:
    judged = notebook.check("3.6", with_solution(notebook, "3.6", swaps))
    assert judged.state == ("almost", key)
    assert judged.card.hint or key in PLAIN


MACHINE = 'psutil.virtual_memory().percent, state.disk_usage("/").percent'
PROCESSOR = "psutil.cpu_percent()"
BOTH = """await asyncio.gather(
        check_part("database", lambda: ask_database(state.engine)),
        check_part("cache", lambda: ask_cache(state.redis_url)),
    )"""
ASYNC = f"async def ask_both(state):\n    return {BOTH}\n\n\n"
ROUTE = '@router.get("/detailed")'
SESSION = "from fastapi import Depends\nfrom labkit.blog import get_db\nfrom sqlalchemy.orm import Session\n\n\n"
HELPERS: dict[str, Swaps] = {
    "the machine": [
        (f"memory, disk = {MACHINE}\n    cpu = {PROCESSOR}", "memory, disk, cpu = usage(state)"),
        (ROUTE, f"def usage(state):\n    return {MACHINE}, {PROCESSOR}\n\n\n{ROUTE}"),
    ],
    "the parts": [(BOTH, "await ask_both(state)"), (ROUTE, ASYNC + ROUTE)],
    "the session of the course": [
        ("response: Response)", "response: Response, db: Session = Depends(get_db))"),
        ("lambda: ask_database(state.engine)", 'lambda: db.execute(text("SELECT 1"))'),
        (ROUTE, SESSION + ROUTE),
    ],
    "names of psutil": [
        ("psutil.virtual_memory()", "virtual_memory()"),
        (ROUTE, f"from psutil import virtual_memory\n\n\n{ROUTE}"),
    ],
}


@pytest.mark.parametrize("swaps", HELPERS.values(), ids=HELPERS)
def test_helpers_of_hers_see_the_same_parts_and_machine(notebook: Notebook, swaps: Swaps, no_faults: None) -> None:
    endpoint = notebook.write("3.6", with_solution(notebook, "3.6", swaps))
    before = dict(endpoint.__globals__)
    assert notebook.judge("3.6", endpoint).card.verdict == "done"
    assert endpoint.__globals__ == before, "what the check has put there is gone"


def test_a_right_whole_over_wrong_parts_is_told_so(notebook: Notebook) -> None:
    judged = notebook.check("3.6", with_solution(notebook, "3.6", [], "starter"))
    assert judged.state == ("almost", "live_status") and "3.5" in judged.card.message


def test_an_exception_of_hers_in_the_whole_shows_her_line(notebook: Notebook) -> None:
    judged = notebook.check(
        "3.6", with_solution(notebook, "3.6", [('status = "healthy"\n', "status = state.nothing\n")])
    )
    assert judged.card.verdict == "error" and "state.nothing" in judged.card.code


def test_the_untouched_parts_are_seen_through_without_a_freeze(notebook: Notebook) -> None:
    """While all is well and it says otherwise, nothing is frozen: the untouched notebook waits for nobody."""
    app = notebook.lab.app
    endpoint = notebook.write("3.6", f"{notebook.text('3.5')}\n\n\n{notebook.text('3.6', 'solution')}")
    app.add_api_route("/seen", endpoint, response_model=None)  # type: ignore[attr-defined]
    found = scenarios(notebook.lab, "/seen")
    assert [row.fault for row in found.rows] == ["", "database_down", "redis_down", "disk_full"]
    assert {row.wrong for row in found.rows} == {"status", "leaks"} or {row.says for row in found.rows} == {"unhealthy"}


# --- on a SQLite file, where there is no PostgreSQL


def test_the_solutions_are_done_on_sqlite(data: Path) -> None:
    with Lab(create_app(data_folder=data, monitored=False), redis=True, latency=0) as lab:
        notebook = Notebook("03_monitoring", lab, NAMES, SETUP)
        assert notebook.check("3.5", notebook.text("3.5", "solution")).state == ("done", "part_done")
        assert notebook.check("3.6", with_solution(notebook, "3.6", [])).state == ("done", "whole_done")
        kept = notebook.lesson.evidence.kept()["health"]
        assert [row["HTTP"] for row in kept["rows"]] == [200, 503, 200, 200, 200]


# --- what a probe is found to be


@pytest.mark.parametrize(
    ("wrong", "scenario"),
    [
        ("", Scenario("", "healthy", 200, 0.1)),
        ("", Scenario("", "degraded", 200, 0.1)),
        ("", Scenario("database_down", "unhealthy", 503, 0.1)),
        ("", Scenario("redis_frozen", "degraded", 200, 0.6)),
        ("status", Scenario("redis_down", "unhealthy", 503, 0.1)),
        ("status", Scenario("", "unhealthy", 503, 0.1)),
        ("code", Scenario("database_down", "unhealthy", 200, 0.1)),
        ("leaks", Scenario("database_down", "unhealthy", 503, 0.1, ("host",))),
        ("waits", Scenario("database_frozen", "unhealthy", 503, 1.4)),
        ("waits", Scenario("database_frozen", "", 0, 3.0)),
        ("failed", Scenario("database_down", "", 500, 0.1)),
    ],
)
def test_a_probe_is_right_or_wrong_in_one_word(wrong: str, scenario: Scenario) -> None:
    assert scenario.wrong == wrong
    assert (Scenarios((scenario,)).worst is None) == (wrong == "")
