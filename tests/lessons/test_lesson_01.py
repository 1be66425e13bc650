"""Lesson 01: what holds for every exercise, and the wrong profilers and searches, each told apart."""

from __future__ import annotations

import cProfile
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from labkit import Lab
from labkit.blog import create_app
from labkit.blog.performance import fast_endpoint as shipped
from labkit.course import checks
from labkit.course.markers import Role
from tests.lessons.judging import NAMES, Notebook, profiling, shows_its_trap

TRAPS = {  # what the untouched starter shows, and counts that must be in its sentence
    "1.1": ("profiler_no_table", {"lines": 1}),
    "1.2": ("nplus1_none", {"found": 0, "expected": 2}),
    "1.3": ("fast_no_counts", {}),
    "1.4": ("index_column", {"scans": 2, "total": 2, "useless": "comments (author_id)"}),
    "1.5": ("improvement_once", {"pairs": 1, "trials": 40}),
}
DIRECT = ("1.1", "1.2", "1.4", "1.5")  # called by their check; 1.3 is asked for
HANG = """import time
while True:
    time.sleep(0.01)
"""


def with_first(notebook: Notebook, id: str, code: str) -> str:
    """The solution with other code as the first in the function that does the work."""
    lines = notebook.version(id).splitlines()
    inner = next(i for i, line in reversed([*enumerate(lines)]) if "def " in line)
    indent = " " * (len(lines[inner]) - len(lines[inner].lstrip()) + 4)
    return "\n".join([*lines[: inner + 1], *(indent + line for line in code.splitlines()), *lines[inner + 1 :]])


# --- every exercise


@pytest.mark.parametrize("id", NAMES)
@pytest.mark.parametrize("nothing", [None, ...])
def test_nothing_handed_in_is_to_do(notebook: Notebook, id: str, nothing: object) -> None:
    assert notebook.judge(id, nothing).state == ("todo", "course.missing")


@pytest.mark.parametrize("id", TRAPS)
def test_the_untouched_starter_is_to_do_and_measures_its_trap(notebook: Notebook, id: str) -> None:
    shows_its_trap(notebook, id, *TRAPS[id])


@pytest.mark.parametrize("id", TRAPS)
def test_the_solution_is_done(notebook: Notebook, id: str) -> None:
    assert notebook.check(id, notebook.text(id, "solution")).card.verdict == "done"


@pytest.mark.parametrize("id", NAMES)
def test_a_function_of_labkit_is_not_hers(notebook: Notebook, id: str) -> None:
    assert notebook.judge(id, shipped).state == ("almost", "course.not_yours")


@pytest.mark.parametrize("id", DIRECT)
def test_an_exception_of_hers_shows_her_line(notebook: Notebook, remembered: None, id: str) -> None:
    judged = notebook.check(id, with_first(notebook, id, "surprise()"))
    assert judged.state == ("error", "course.raised")
    assert "surprise()" in judged.card.code and "NameError" in judged.card.code
    assert "site-packages" not in judged.card.code and "labkit" not in judged.card.code


@pytest.mark.parametrize("id", ["1.2", "1.4", "1.5"])
def test_other_parameters_are_told_and_no_fault_of_the_check(notebook: Notebook, remembered: None, id: str) -> None:
    judged = notebook.check(id, f"def {NAMES[id]}():\n    return 0\n")
    assert judged.state == ("almost", "course.parameters") and f"{NAMES[id]}()" in judged.card.message


@pytest.mark.parametrize("id", DIRECT)
def test_a_body_that_hangs_ends_with_a_sentence(
    notebook: Notebook, remembered: None, monkeypatch: pytest.MonkeyPatch, id: str
) -> None:
    monkeypatch.setattr(checks, "CALL_LIMIT", 0.3)
    out, err = sys.stdout, sys.stderr
    assert notebook.check(id, with_first(notebook, id, HANG)).state == ("error", "course.call_too_long")
    monkeypatch.undo()
    assert notebook.check("1.5", notebook.text("1.5", "solution")).card.verdict == "done"
    assert (sys.stdout, sys.stderr) == (out, err)


@pytest.mark.parametrize("id", ["1.2", "1.4"])
def test_a_slow_endpoint_that_is_no_longer_slow_is_told(data: Path, id: str) -> None:
    with Lab(create_app(data_folder=data), redis=False, latency=0) as lab:
        notebook = profiling(lab)
        notebook.write("1.3", notebook.version("1.3", ("fast-endpoint", "slow-endpoint")))
        assert notebook.check(id, notebook.text(id, "solution")).state == ("almost", "slow_changed")


# --- 1.1 the profiler


OFF = "waiting = func(*args, **kwargs); profiler.disable(); return await waiting"
PROFILERS: list[tuple[str, str, Role, list[tuple[str, str]]]] = [
    (
        "the table, and no finally",
        "profiler_stays_on",
        "starter",
        [("        return result", "        print(stream.getvalue())\n        return result")],
    ),
    ("finally, and no table", "profiler_no_table", "solution", [("print(stream.getvalue())", "pass")]),
    (
        "the exception is swallowed",
        "profiler_swallows",
        "solution",
        [("        finally:", "        except Exception as error:\n            print(error)\n        finally:")],
    ),
    (
        "return in finally",
        "profiler_swallows",
        "solution",
        [
            ("return await func", "result = await func"),
            ("        try:", "        result = None\n        try:"),
            ("            print(stream.getvalue())", "            print(stream.getvalue())\n            return result"),
        ],
    ),
    ("no wraps", "profiler_no_wraps", "solution", [("    @wraps(func)\n", "")]),
    ("no result", "profiler_body", "solution", [("return await", "await")]),
    ("no await", "profiler_not_awaited", "solution", [("return await", "return")]),
    ("named arguments lost", "profiler_arguments", "solution", [("func(*args, **kwargs)", "func(*args)")]),
    (
        "one argument of its own",
        "profiler_arguments",
        "solution",
        [("wrapper(*args, **kwargs)", "wrapper(db)"), ("func(*args, **kwargs)", "func(db)")],
    ),
    ("called at once", "profiler_no_wrapper", "solution", [("return wrapper", "return wrapper().close()")]),
    (
        "to stderr",
        "profiler_stderr",
        "solution",
        [("stream.getvalue())", "stream.getvalue(), file=__import__('sys').stderr)")],
    ),
    ("no wrapper", "profiler_no_wrapper", "solution", [("    return wrapper", "")]),
    (
        "sync",
        "profiler_sync",
        "solution",
        [
            ("async def", "def"),
            ("await func(*args", "__import__('asyncio').run(func(*args"),
            ("**kwargs)\n        finally", "**kwargs))\n        finally"),
        ],
    ),
    (
        "off while it waits",
        "profiler_outside",
        "solution",
        [("            return await func(*args, **kwargs)", f"            {OFF}")],
    ),
]


@pytest.mark.parametrize(("key", "role", "swaps"), [pytest.param(*p[1:], id=p[0]) for p in PROFILERS])
def test_each_wrong_profiler_has_a_sentence_of_its_own(
    notebook: Notebook, capsys: pytest.CaptureFixture[str], key: str, role: Role, swaps: list[tuple[str, str]]
) -> None:
    judged = notebook.check("1.1", notebook.version("1.1", *swaps, role=role))
    assert judged.state == ("almost", key)
    assert capsys.readouterr() == ("", ""), "what the check makes it print is not for the notebook"
    assert notebook.check("1.1", notebook.text("1.1", "solution")).card.verdict == "done", "nothing is left on"


def test_other_ways_to_a_right_profiler_are_done(notebook: Notebook) -> None:
    straight = [
        ("            stream = io.StringIO()\n", ""),
        ("pstats.Stats(profiler, stream=stream)", "pstats.Stats(profiler)"),
        ("            print(stream.getvalue())\n", ""),
    ]
    assert notebook.check("1.1", notebook.version("1.1", *straight)).card.verdict == "done"


def test_a_profiler_left_on_by_an_earlier_cell_is_not_held_against_her(notebook: Notebook) -> None:
    left = cProfile.Profile()
    left.enable()
    try:
        assert notebook.check("1.1", notebook.text("1.1", "solution")).card.verdict == "done"
    finally:
        with suppress(ValueError):  # from Python 3.12 on the check has ended it
            left.disable()


# --- 1.2 the N+1


SEARCHES = {
    "by SQL alone, with its texts": ("nplus1_sql_keys", "return Counter(s.sql for s in statements)"),
    "by SQL alone": (
        "nplus1_by_sql",
        "times = Counter(s.sql for s in statements)\n"
        "    return {s.site: times[s.sql] for s in statements if times[s.sql] >= least}",
    ),
    "by place alone": (
        "nplus1_by_site",
        "return {site: n for site, n in Counter(s.site for s in statements).items() if n >= least}",
    ),
    "a list": ("nplus1_not_dict", "return [s.site for s in statements]"),
    "lines": (
        "nplus1_keys",
        "return {s.site.line: 1 for s in statements}",
    ),
    "one short": (
        "nplus1_counts",
        "return {k[0]: n - 1 for k, n in Counter((s.site, s.sql) for s in statements).items() if n >= least}",
    ),
    "more, not as often": (
        "nplus1_limit",
        "return {k[0]: n for k, n in Counter((s.site, s.sql) for s in statements).items() if n > least}",
    ),
    "written by hand": (
        "nplus1_constant",
        "return {s.site: n for s, n in zip(statements[1:3], (50, 1000))}",
    ),
    "all of them": ("nplus1_extra", "return dict(Counter(s.site for s in statements))"),
    "one level": (
        "nplus1_missing",
        "return {s.site: n for s, n in Counter((s) for s in statements[2:3]).items()}",
    ),
    "nothing": ("nplus1_none", "return {}"),
    "only the first level": (
        "nplus1_missing",
        "return {k[0]: n for k, n in Counter((s.site, s.sql) for s in statements).items() if n > 99}",
    ),
    "place and SQL": (
        "nplus1_keys",
        "return {k: n for k, n in Counter((s.site, s.sql) for s in statements).items() if n >= least}",
    ),
    "no return": ("nplus1_no_return", "times = Counter()"),
}


@pytest.mark.parametrize(("key", "body"), SEARCHES.values(), ids=SEARCHES)
def test_each_wrong_search_has_a_sentence_of_its_own(notebook: Notebook, remembered: None, key: str, body: str) -> None:
    judged = notebook.check("1.2", f"def find_n_plus_one(statements, least=5):\n    {body}\n")
    assert judged.state == ("almost", key)


def test_a_search_in_the_notebooks_own_report_is_not_general(notebook: Notebook, remembered: None) -> None:
    judged = notebook.check("1.2", notebook.version("1.2", ("for s in statements", "for s in report.statements")))
    assert judged.state == ("almost", "nplus1_constant")
