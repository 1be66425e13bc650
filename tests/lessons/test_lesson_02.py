"""Lesson 02: what holds for every exercise, and each wrong answer told apart, on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from labkit import Lab
from labkit.blog import create_app
from labkit.course.lessons import lesson_02
from labkit.course.lessons._cache import RightClient
from labkit.course.markers import Role
from tests.lessons.judging import Notebook, shows_its_trap

NAMES = {
    "2.1": "worth_caching",
    "2.2": "key_parts",
    "2.3": "generate_cache_key",
    "2.4": "get_user_cached",
    "2.5": "run_once",
    "2.6": "CacheClient",
}
SETUP = ("imports", "client", "decorator", "naive", "parts")
TRAPS: dict[
    str, tuple[str, dict[str, object]]
] = {  # what the untouched starter shows, and counts that must be in its sentence
    "2.1": ("worth_slowest", {"path": "/performance/slow-endpoint"}),
    "2.2": ("parts_session", {"asked": 8, "runs": 8, "keys": 8}),
    "2.3": ("key_first", {"foreign": 2, "asked": 3}),
    "2.4": ("answers_stored", {"stored": 1, "status": 200}),
    "2.5": ("once_stampede", {"asked": 50, "runs": 50}),
    "2.6": ("down_fails", {"down": 5, "frozen": 5, "asked": 5}),
}
Swaps = list[tuple[str, str]]


@pytest.fixture(scope="module")
def notebook(data: Path) -> Iterator[Notebook]:
    """Lesson 02 up to the naive cache, with a Redis of its own."""
    with Lab(create_app(data_folder=data), redis=True, latency=0) as lab:
        made = Notebook("02_cache", lab, NAMES, SETUP)
        made.namespace["endpoints"] = pd.DataFrame(lesson_02.VISIBLE, columns=lesson_02.COLUMNS)
        yield made


# --- every exercise


@pytest.mark.parametrize("id", NAMES)
def test_nothing_handed_in_is_to_do(notebook: Notebook, id: str) -> None:
    assert notebook.judge(id, None).state == ("todo", "course.missing")


@pytest.mark.parametrize("id", TRAPS)
def test_the_untouched_starter_is_to_do_and_measures_its_trap(notebook: Notebook, id: str) -> None:
    shows_its_trap(notebook, id, *TRAPS[id])


@pytest.mark.parametrize("id", TRAPS)
@pytest.mark.parametrize("seed", [None, 977_131])
def test_the_solution_is_done(notebook: Notebook, id: str, seed: int | None) -> None:
    judged = notebook.check(id, notebook.text(id, "solution"), seed)
    assert judged.card.verdict == "done" and judged.card.note == ""


@pytest.mark.parametrize("id", NAMES)
def test_what_labkit_ships_is_not_hers(notebook: Notebook, id: str) -> None:
    assert notebook.judge(id, RightClient).state == ("almost", "course.not_yours")


@pytest.mark.parametrize("id", ["2.1", "2.2", "2.3", "2.5"])
def test_other_parameters_are_told_and_no_fault_of_the_check(notebook: Notebook, id: str) -> None:
    judged = notebook.check(id, f"async def {NAMES[id]}():\n    return 0\n")
    assert judged.state == ("almost", "course.parameters")


@pytest.mark.parametrize("id", NAMES)
def test_there_are_four_rungs_and_a_hint_of_its_own_for_a_verdict(notebook: Notebook, id: str) -> None:
    rungs = [notebook.lesson.hint(id) for _ in range(4)]
    assert len({rung.hint_key for rung in rungs}) == 4 and rungs[3].code


def test_nothing_of_a_check_stays_in_redis(notebook: Notebook) -> None:
    before = {*notebook.lab.redis.command("KEYS", "*")}  # type: ignore[union-attr]
    for id in NAMES:
        notebook.check(id, notebook.text(id, "solution"))
    left = {*notebook.lab.redis.command("KEYS", "*")} - before  # type: ignore[union-attr]
    assert not left


def judge(notebook: Notebook, id: str, key: str, role: Role, swaps: Swaps) -> None:
    """Hand in a version; its verdict is ``almost`` with this key, and it has a hint of its own where there is one."""
    judged = notebook.check(id, notebook.version(id, *swaps, role=role))
    assert judged.state == ("almost", key)
    assert judged.card.verdict == "almost"


# --- 2.1 what is worth caching


CHOICES = {
    "everything": ("worth_personal", "return list(endpoints['path'])"),
    "whatever is not personal": (
        "worth_changes",
        "return list(endpoints[~endpoints['personal'].astype(bool)]['path'])",
    ),
    "dear and not personal": (
        "worth_changes",
        "return list(endpoints[(endpoints.cost_ms > 1) & ~endpoints.personal.astype(bool)]['path'])",
    ),
    "asked more than changed, never mind how often": (
        "worth_cheap",
        "e = endpoints[~endpoints.personal.astype(bool)]\n"
        "    return list(e[e.requests_per_min > e.changes_per_min]['path'])",
    ),
    "does not change": (
        "worth_unasked",
        "e = endpoints[~endpoints.personal.astype(bool)]\n    return list(e[e.changes_per_min < 10]['path'])",
    ),
    "only what is dear": (
        "worth_frequent",
        "e = endpoints[~endpoints.personal.astype(bool)]\n"
        "    e = e[e.requests_per_min > e.changes_per_min]\n    return list(e[e.cost_ms > 2.5]['path'])",
    ),
    "the best one": (
        "worth_dear",
        "e = endpoints[~endpoints.personal.astype(bool)]\n"
        "    return list(e[(e.requests_per_min > 100) & (e.changes_per_min < 20)]['path'])",
    ),
    "by hand": ("worth_remembered", "return ['/users/7', '/posts/latest', '/stats/global']"),
    "rows": ("worth_type", "return endpoints[endpoints.requests_per_min > 100]"),
    "no return": ("worth_type", "pass"),
    "names of its own": ("worth_unknown", "return ['/users']"),
}


@pytest.mark.parametrize(("key", "body"), CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("seed", [0, 5])
def test_each_wrong_choice_has_a_sentence_of_its_own(notebook: Notebook, key: str, body: str, seed: int) -> None:
    if key == "worth_remembered":
        judged = notebook.check("2.1", f"def worth_caching(table):\n    {body}\n", seed)
        assert judged.state in (("almost", "worth_unknown"), ("almost", "worth_remembered"))
        return
    judged = notebook.check("2.1", f"def worth_caching(endpoints):\n    {body}\n", seed)
    assert judged.state == ("almost", key)


@pytest.mark.parametrize(
    "body",
    [
        "e = endpoints[~endpoints.personal.astype(bool)]\n"
        "    return e[(e.requests_per_min - e.changes_per_min) * e.cost_ms >= 100].path",
        "return {r.path for r in endpoints.itertuples() if not r.personal"
        " and r.requests_per_min > r.changes_per_min and r.cost_ms * r.requests_per_min > 100}",
    ],
    ids=["a series", "a set, roughly"],
)
def test_other_right_choices_are_done(notebook: Notebook, body: str) -> None:
    judged = notebook.check("2.1", f"def worth_caching(endpoints):\n    {body}\n")
    assert judged.state == ("done", "worth_done")


def test_the_notebooks_own_table_is_judged_too(notebook: Notebook) -> None:
    source = notebook.version("2.1", (">= 100", ">= 100 if len(endpoints) > 5 else hits > 0"))
    assert notebook.check("2.1", source).state[1] in ("worth_done", "worth_visible")
    row = ("/me/drafts", 20.0, 300, 0.5, True)
    held = notebook.namespace["endpoints"]
    notebook.namespace["endpoints"] = pd.DataFrame([row], columns=lesson_02.COLUMNS)
    try:
        source = notebook.text("2.1", "solution").replace(
            "return list", "return ['/me/drafts'] if len(endpoints) == 1 else list"
        )
        assert notebook.check("2.1", source).state[1] in ("worth_slowest", "worth_visible")
    finally:
        notebook.namespace["endpoints"] = held


# --- 2.2 the session in the key


PARTS: dict[str, tuple[str, Swaps]] = {
    "by its name": ("parts_by_name", [("not isinstance(value, Session)", 'name != "db"')]),
    "the exact class": ("parts_subclass", [("not isinstance(value, Session)", "type(value) is not Session")]),
    "only numbers and texts": ("parts_lost", [("not isinstance(value, Session)", "isinstance(value, (int, str))")]),
    "by its text": ("parts_lost", [("not isinstance(value, Session)", '"Session" not in str(value)')]),
    "nothing that is None": (
        "parts_names",
        [('f"{name}:{value!r}"', 'f"{value!r}"')],
    ),
    "types in place of values": ("parts_shared", [("{value!r}", "{type(value)}")]),
    "not sorted": ("parts_order", [("sorted(kept.items())", "kept.items()")]),
    "one text": ("parts_type", [("return [", 'return ":".join('), ("items())]", "items()))")]),
    "the session's class": ("parts_lost", [("not isinstance(value, Session)", 'hasattr(value, "real")')]),
}


@pytest.mark.parametrize(("key", "swaps"), PARTS.values(), ids=PARTS)
def test_each_wrong_part_has_a_sentence_of_its_own(notebook: Notebook, key: str, swaps: Swaps) -> None:
    judge(notebook, "2.2", key, "solution", swaps)


def test_a_hash_of_the_session_is_the_trap_again(notebook: Notebook) -> None:
    judge(notebook, "2.2", "parts_session", "starter", [("{value}", "{hash(value)}")])


def test_a_text_in_place_of_a_repr_is_done_with_a_remark(notebook: Notebook) -> None:
    judged = notebook.check("2.2", notebook.version("2.2", ("{value!r}", "{value}")))
    assert judged.state == ("done", "parts_done_text")


# --- 2.3 arguments and invalidation


NO_SLICE = [("args[1:]", "args")]
KEYS: dict[str, tuple[str, Role, Swaps]] = {
    "all positional arguments": ("key_invalidate", "starter", NO_SLICE),
    "without None": (
        "key_invalidate",
        "starter",
        [("map(str, args[1:])", "(str(arg) for arg in args if arg is not None)")],
    ),
    "values, one after the other": (
        "key_positional",
        "starter",
        [
            ("map(str, args[1:])", "(str(v) for v in args if type(v) in (int, str))"),
            ("*key_parts(kwargs)", "*(str(v) for k, v in sorted(kwargs.items()) if type(v) in (int, str))"),
        ],
    ),
    "no defaults": ("key_default", "solution", [("    bound.apply_defaults()\n", "")]),
    "by its name": ("key_by_name", "solution", [("parameter.annotation is Session", 'name == "db"')]),
    "all that is injected": (
        "key_depends",
        "solution",
        [("parameter.annotation is Session", 'type(parameter.default).__name__ == "Depends"')],
    ),
    "no name": ("key_function", "solution", [("func.__module__, func.__qualname__, ", "")]),
    "no prefix": ("key_prefix", "solution", [('f"{prefix}:{', 'f"{')]),
    "the first one alone": (
        "key_lost",
        "solution",
        [("asked = {name: value for", "asked = {name: value for"), ("if name not in sessions", 'if name == "user_id"')],
    ),
    "no text": ("key_type", "solution", [("return f", "return None and f")]),
    "bytes": ("key_type", "solution", [('.hexdigest()}"', '.hexdigest()}".encode()')]),
}


@pytest.mark.parametrize(("key", "role", "swaps"), KEYS.values(), ids=KEYS)
def test_each_wrong_key_has_a_sentence_of_its_own(notebook: Notebook, key: str, role: Role, swaps: Swaps) -> None:
    judge(notebook, "2.3", key, role, swaps)


def test_an_invalidation_in_vain_is_told_in_keys(notebook: Notebook) -> None:
    card = notebook.check("2.3", notebook.version("2.3", *NO_SLICE, role="starter")).card
    assert card.counts.items() >= {"before": 17, "after": 17}.items()
    card = notebook.check("2.3", notebook.text("2.3", "solution")).card
    assert card.counts.items() >= {"before": 17, "after": 16}.items()


def test_the_key_is_judged_whether_or_not_the_parts_were_repaired(notebook: Notebook) -> None:
    """The notebook's ``key_parts`` still is the starter's, with the session in it."""
    source = notebook.version("2.3", ("if name not in sessions", 'if name != "db" or True'))
    assert notebook.check("2.3", source).state == ("almost", "key_invalidate")
    assert notebook.check("2.3", notebook.text("2.3", "solution")).card.verdict == "done"


# --- 2.4 errors are no answers


RAISE = 'raise HTTPException(404, "User not found")'
ANSWERS: dict[str, tuple[str, Swaps]] = {
    "returned": ("answers_object", [(RAISE, 'return HTTPException(404, "User not found")')]),
    "a response": (
        "answers_object",
        [(RAISE, 'from fastapi.responses import JSONResponse\n        return JSONResponse({}, 404)')],
    ),
    "None": ("answers_none", [(RAISE, "return None")]),
    "another text": ("answers_stored", [(RAISE, 'return {"error": "User not found", "status": 404}')]),
    "400": ("answers_status", [("404", "400")]),
    "still cached: false": ("answers_frozen", [("user.email}", 'user.email, "cached": False}')]),
    "cached: true": ("answers_frozen", [("user.email}", 'user.email, "cached": True}')]),
    "the time it took": ("answers_frozen", [("user.email}", 'user.email, "execution_time": 0.1}')]),
    "no email": ("answers_body", [(', "email": user.email', "")]),
    "no decorator": ("answers_bare", [('@cached(ttl=600, key_prefix="user")\n', "")]),
}  # fmt: skip


@pytest.mark.parametrize(("key", "swaps"), ANSWERS.values(), ids=ANSWERS)
def test_each_wrong_answer_to_nobody_has_a_sentence_of_its_own(notebook: Notebook, key: str, swaps: Swaps) -> None:
    judge(notebook, "2.4", key, "solution", swaps)


def test_an_exception_of_hers_shows_her_line(notebook: Notebook) -> None:
    judged = notebook.check("2.4", notebook.version("2.4", (RAISE, "user.nobody()")))
    assert judged.state == ("error", "course.endpoint_raised") and "user.nobody()" in judged.card.code


def test_gone_is_an_answer_too(notebook: Notebook) -> None:
    assert notebook.check("2.4", notebook.version("2.4", ("404", "410"))).card.verdict == "done"


# --- 2.5 the stampede


LOCK = """locks = {}
async def run_once(key, run):
    async with locks.setdefault(KEY, asyncio.Lock()):
        return await run()
"""
RECHECK = LOCK.replace("        return await", """        if (found := cache_client.get(key)) is not None:
            return found
        return await""")  # fmt: skip
EVENT = """waiting = {}
async def run_once(key, run):
    if key in waiting:
        event, box = waiting[key]
        await event.wait()
        return box[0]
    event, box = waiting[key] = asyncio.Event(), []
    box.append(await run())
    event.set()
    del waiting[key]
    return box[0]
"""
FINALLY = EVENT.replace(
    """    box.append(await run())
    event.set()
    del waiting[key]
    return""",
    """    try:
        box.append(await run())
    finally:
        event.set()
        del waiting[key]
    return""",
)
FLIGHTS: dict[str, tuple[str, str]] = {
    "a lock a key": ("once_queue", LOCK.replace("KEY", "key")),
    "a lock for all": ("once_serial", RECHECK.replace("KEY", "0")),
    "no return": ("once_value", "async def run_once(key, run):\n    await run()\n"),
    "no await": ("once_value", "async def run_once(key, run):\n    return run()\n"),
    "not async": ("once_sync", "def run_once(key, run):\n    return 1\n"),
    "an event, never set on failure": ("once_hangs", EVENT),
    "an event, nothing in the box": ("once_swallows", FINALLY),
}
CALLBACK = "add_done_callback(lambda task: under_way.pop(key, None))"
TASKS: dict[str, tuple[str, Swaps]] = {
    "never removed": ("once_forever", [(CALLBACK, "done()")]),
    "not shielded": ("once_leaves", [("asyncio.shield(under_way[key])", "under_way[key]")]),
    "one for all": ("once_mixed", [("[key]", "[0]"), ("if key not", "if 0 not"), (".pop(key", ".pop(0")]),
    "noted too late": (
        "once_stampede",
        [("    if key not", "    busy = key in under_way\n    await asyncio.sleep(0.001)\n    if not busy or key not")],
    ),
    "removed on success alone": (
        "once_poison",
        [("lambda task: under_way.pop", "lambda task: task.exception() or under_way.pop")],
    ),
}


@pytest.mark.parametrize(("key", "source"), FLIGHTS.values(), ids=FLIGHTS)
def test_each_other_protection_has_a_sentence_of_its_own(notebook: Notebook, key: str, source: str) -> None:
    assert notebook.check("2.5", source).state == ("almost", key)


@pytest.mark.parametrize(("key", "swaps"), TASKS.values(), ids=TASKS)
def test_each_wrong_task_has_a_sentence_of_its_own(notebook: Notebook, key: str, swaps: Swaps) -> None:
    judge(notebook, "2.5", key, "solution", swaps)


def test_a_lock_a_key_that_looks_again_is_done(notebook: Notebook) -> None:
    assert notebook.check("2.5", RECHECK.replace("KEY", "key")).state == ("done", "once_done")


# --- 2.6 Redis is down


BACK = "            return None\n"
CLIENTS: dict[str, tuple[str, Swaps]] = {
    "only refused connections": ("down_frozen", [("redis.RedisError", "redis.ConnectionError")]),
    "Python's own exception": ("down_fails", [("redis.RedisError", "ConnectionError")]),
    "get alone": (
        "down_some",
        [('self._ask("set", key', "self.client.set(key"), ('self._ask("delete", key)', "self.client.delete(key)")],
    ),
    "delete is forgotten": ("down_some", [('self._ask("delete", key)', "self.client.delete(key)")]),
    "False for nothing": (
        "down_value",
        [
            (
                'json.loads(self._ask("get", key) or "null")',
                'self._ask("get", key) and json.loads(self._ask("get", key))',
            ),
            (BACK, "            return False\n"),
        ],
    ),
    "off": ("down_no_hits", [('self._ask("get", key) or', "None or")]),
    "delete does nothing": ("down_keeps", [('bool(self._ask("delete", key))', "False")]),
    "no time limit": ("down_patience", [("socket_timeout=0.2, ", "")]),
    "an empty dictionary for nothing": ("down_absent", [('or "null"', 'or "{}"')]),
    "no delete": ("down_methods", [("def delete", "def remove")]),
    "away for ever": (
        "down_forever",
        [
            ("        try:\n", "        if getattr(self, 'away', False):\n            return None\n        try:\n"),
            ("        except redis.RedisError:\n", "        except redis.RedisError:\n            self.away = True\n"),
        ],
    ),
}


@pytest.mark.parametrize(("key", "swaps"), CLIENTS.values(), ids=CLIENTS)
def test_each_wrong_client_has_a_sentence_of_its_own(notebook: Notebook, key: str, swaps: Swaps) -> None:
    judge(notebook, "2.6", key, "solution", swaps)
    assert notebook.lab.redis.command("PING"), "what was broken is well again"  # type: ignore[union-attr]
