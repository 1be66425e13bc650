"""The delivery: what is written, what is never overwritten, and modules that run by themselves."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import settings, stats
from labkit.comparison import Comparison
from labkit.course import deliverables, quality, report, rubric
from labkit.course.cards import words
from labkit.course.evidence import Evidence
from labkit.course.exercises import Outline, outline_from
from labkit.course.probe import Outcome
from labkit.course.traffic import Strategies, Traffic
from labkit.profiling.nplus1 import Finding

SOURCE = "def total(items):\n    '''Sum of the items.'''\n    return reduce(add, items, START)\n"
NEEDS = ["from functools import reduce", "from operator import add", "START = 0  # so much"]

PLAN = outline_from(
    "01_profiling",
    {
        "minutes": 45,
        "exercises": {
            "1.1": {"cell": "total", "minutes": 5, "functions": {"total": "0"}},
            "1.2": {"cell": "other", "minutes": 5, "functions": {"other": "0"}},
        },
        "parts": [
            {"cell": "given", "file": "profiling/profiler.py", "names": ["given"], "exercise": ""},
            {"cell": "total", "file": "profiling/profiler.py", "names": ["total"], "exercise": "1.1"},
            {"cell": "other", "file": "profiling/performance_test.py", "names": ["other"], "exercise": "1.2"},
        ],
    },
)


def compared(before: float = 0.9, after: float = 0.03, *, same: bool = True, statements: int = 2) -> Comparison:
    wobble = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0, 1.0, 1.01, 0.99]
    timing = stats.Ratio.of([before * w for w in wobble], [after * w for w in reversed(wobble)])
    return Comparison(("/slow", "/fast"), same, None, 1051, statements, timing, 0.5)


def check(evidence: Evidence, exercise: str = "1.1", verdict: str = "done", source: str = SOURCE, **more: Any) -> None:
    values = {"key": "k", "message": f"said {verdict}", "counts": {}, "needs": NEEDS} | more
    evidence.add("check", exercise=exercise, verdict=verdict, source=source, **values)


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    return Evidence(tmp_path / "work" / "progress" / "01_profiling.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "work" / report.FOLDER


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# --- the report


def test_a_lesson_without_evidence_still_gets_a_report_that_says_what_is_missing(
    evidence: Evidence, folder: Path
) -> None:
    made = report.write(PLAN, evidence, folder)
    assert made.report == folder / "profiling" / "optimization_report.md"
    assert "lab.compare" in text(made.report) and text(made.report).count(words("rubric.level_none")) == 4
    assert not list(folder.rglob("*.py"))
    assert text(folder / "README.md").count(words("report.pending")) == 2 + 4 + 4


def test_the_report_holds_table_figures_findings_interval_hints_and_predictions(
    evidence: Evidence, folder: Path
) -> None:
    evidence.keep("comparison", compared())
    found = Finding("n+1", 1000, "/x/app.py", 7, "SELECT", "select(Post)\n.where(...)")
    evidence.add("keep", name="n", values={}, rows=[], picture="", alt="", findings=[])
    evidence.keep("queries", type("Report", (), {"findings": (found,)})())
    check(evidence, verdict="almost")
    check(evidence)
    evidence.add("hint", exercise="1.1", rung=1)
    evidence.add("predict", question="1", values={"queries": 40})
    evidence.add("actual", question="1", values={"queries": 1051})
    evidence.add("reflect", question="1.1", text="Lo que entendí.")
    made = report.write(PLAN, evidence, folder)
    written = text(made.report)
    for expected in (
        f"| {words('report.statements')} | 1.051 | 2 |",
        f"| {words('report.median')} | 900 ms | 30,0 ms |",
        f"| {words('report.same_answer')} |  | {words('report.yes')} |",
        f"| 1.1 | ● {words('course.state_done')} | said done | 2 | 1 |",
        f"| 1 | {words('course.name_queries')} | 40 | 1.051 | 0,038 |",
        words("report.finding", count=1000, place="`/x/app.py:7`", fix="`select(Post) .where(...)`"),
        "Lo que entendí.",
        f"## {words('report.exercises')}\n\n| {words('report.column_exercise')} |",
        words("rubric.level_3"),  # one exercise solved is not several
    ):
        assert expected in written
    assert re.search(r"\| 30 \(2\d,?\d? - 3\d,?\d?\) \|", written)
    for picture in re.findall(r"!\[([^\]]{20,})\]\((figures/[^)]+)\)", written):
        assert (made.report.parent / picture[1]).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"!\[", written)) == 2


def test_too_few_pairs_have_no_interval_and_the_report_says_so(evidence: Evidence, folder: Path) -> None:
    timing = stats.Ratio.of([0.9] * 3, [0.03] * 3)
    evidence.keep("comparison", Comparison(("/slow", "/fast"), True, None, 1051, 2, timing, 0.5))
    written = text(report.write(PLAN, evidence, folder).report)
    assert f"| 1 | 30 ({words('report.no_interval')}) |" in written
    assert f"| {words('report.promised')} |  | 0 % |" in written


def test_the_report_is_written_in_the_language_of_the_lesson(evidence: Evidence, folder: Path) -> None:
    settings.set_language("en")
    evidence.keep("comparison", compared())
    written = text(report.write(PLAN, evidence, folder).report)
    assert f"# {words('report.title_lesson_01', 'en')}" in written
    assert f"| {words('report.statements', 'en')} | 1,051 | 2 |" in written


def test_her_own_words_are_never_overwritten(evidence: Evidence, folder: Path) -> None:
    made = report.write(PLAN, evidence, folder)
    for path in (made.report, folder / "README.md"):
        head, rest = text(path).split(report.BEGIN)
        path.write_text(f"{head}{report.BEGIN}\nMía: \\1 | ñ\n\n{report.END}{rest.split(report.END)[1]}")
    evidence.keep("comparison", compared())
    for _ in range(2):
        again = report.write(PLAN, evidence, folder)
        assert again.backups == [] and "1.051" in text(again.report)
        for path in (again.report, folder / "README.md"):
            assert f"{report.BEGIN}\nMía: \\1 | ñ\n\n{report.END}" in text(path)


def test_what_she_changed_elsewhere_is_kept_as_a_backup(evidence: Evidence, folder: Path) -> None:
    check(evidence)
    made = report.write(PLAN, evidence, folder)
    module = folder / "profiling" / "profiler.py"
    made.report.write_text("all mine")
    module.write_text(text(module) + "# by hand\n")
    again = report.write(PLAN, evidence, folder)
    assert sorted(path.name for path in again.backups) == ["optimization_report.bak-1.md", "profiler.bak-1.py"]
    assert text(made.report.with_name("optimization_report.bak-1.md")) == "all mine"
    assert "# by hand" in text(module.with_name("profiler.bak-1.py")) and "# by hand" not in text(module)
    made.report.write_bytes(b"\xff not text")
    (third,) = report.write(PLAN, evidence, folder).backups
    assert third.name == "optimization_report.bak-2.md" and third.read_bytes() == b"\xff not text"
    assert report.write(PLAN, evidence, folder).backups == []


def test_a_new_version_of_her_code_replaces_the_old_without_a_backup(evidence: Evidence, folder: Path) -> None:
    check(evidence)
    report.write(PLAN, evidence, folder)
    check(evidence, source=SOURCE.replace("START)", "START + 0)"))
    assert report.write(PLAN, evidence, folder).backups == []
    assert "START + 0" in text(folder / "profiling" / "profiler.py")


def test_a_disk_that_fills_up_leaves_the_old_report(
    evidence: Evidence, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = report.write(PLAN, evidence, folder)
    before = text(made.report)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    evidence.keep("comparison", compared())
    monkeypatch.setattr("labkit.course.evidence.os.fsync", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        report.write(PLAN, evidence, folder)
    assert text(made.report) == before


def test_the_last_version_that_passed_is_delivered_else_the_last_tried(evidence: Evidence, folder: Path) -> None:
    module = folder / "profiling" / "profiler.py"
    check(evidence, verdict="todo", source="def total(items): return 'starter'\n")
    report.write(PLAN, evidence, folder)
    assert not module.exists()
    check(evidence, verdict="almost", source="def total(items): return 'tried'\n")
    report.write(PLAN, evidence, folder)
    assert "tried" in text(module)
    check(evidence, source="def total(items): return 'passed'\n")
    check(evidence, verdict="error", source="def total(items): return 'broken'\n")
    report.write(PLAN, evidence, folder)
    assert "passed" in text(module) and "broken" not in text(module)


def test_a_cell_that_was_given_is_delivered_and_not_judged(evidence: Evidence, folder: Path) -> None:
    evidence.add("part", cell="given", source="def given():\n    return l if (l := 1) else None\n", needs=[])
    report.write(PLAN, evidence, folder)
    assert not list(folder.rglob("*.py"))  # nothing of her own yet
    check(evidence)
    made = report.write(PLAN, evidence, folder)
    assert "def given" in text(folder / "profiling" / "profiler.py")
    assert words("rubric.measured", findings=0, documented=1, functions=1, longest=3) in text(made.report)


# --- modules


def test_a_module_runs_by_itself(evidence: Evidence, folder: Path) -> None:
    check(evidence)
    report.write(PLAN, evidence, folder)
    code = "from profiling.profiler import total; raise SystemExit(total([1, 2, 3]))"
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 6
    assert subprocess.run([sys.executable, "-m", "profiling.profiler"], cwd=folder, check=False).returncode == 0


def test_a_cell_brings_what_it_needs_from_the_newest_cells() -> None:
    cells = [
        "import os, json as j\nfrom math import (\n    pi,\n    tau,\n)\nLIMIT = 1\n",
        "LIMIT = base() + 2  # newest\n",
        "import this_is_not_needed\nlab = 1\nlesson.check('1.1', area)",
        "%magic that is no python",
        "def base():\n    return len(j.dumps({}))\n",
        "@decorate\ndef unused(): ...",
    ]
    cell = (
        "import re\ndef area(r, j2=j):\n    x = [LIMIT for _ in range(r)]\n    return pi * r + x[0]\nlesson.ask(area)\n"
    )
    needs = deliverables.requirements(cell, cells)
    assert needs == [
        "import json as j",
        "from math import pi",
        "def base():\n    return len(j.dumps({}))",
        "LIMIT = base() + 2  # newest",
    ]
    made = deliverables.module("Title.", [(cell, needs)])
    assert made.startswith('"""Title."""\n\nimport json as j\nimport re\nfrom math import pi\n\n\n')
    assert "lesson" not in made and "this_is_not_needed" not in made


@pytest.mark.parametrize(
    "cells",
    [
        ["def helper():\n    return 3\n", "SIZE = helper()\n"],
        ["SIZE = helper()\n", "def helper():\n    return 3\n"],  # the helper's cell ran again
        ["SIZE = helper()\ndef helper(n=0):\n    return 3 if n else again()\ndef again():\n    return helper(1)\n"],
    ],
)
def test_each_statement_comes_after_what_it_needs(cells: list[str]) -> None:
    cell = "def f():\n    return SIZE\n"
    namespace: dict[str, Any] = {}
    exec(deliverables.module("T.", [(cell, deliverables.requirements(cell, cells))]), namespace)
    assert namespace["f"]() == 3


def test_cells_of_one_file_share_their_imports_and_do_not_repeat_each_other() -> None:
    one = "def a():\n    return os.name\n"
    two = "import os\ndef b():\n    return a() + os.sep\n"
    made = deliverables.module("T.", [(one, ["import os"]), (two, ["def a():\n    return 'old'"])])
    assert made.count("import os") == 1 and "old" not in made


def test_statements_of_the_session_are_left_out() -> None:
    cell = "router = 1\nlab.app.include_router(router)\nreply = await call()\ndef f(lab):\n    return lab.get('/')\n"
    assert deliverables.own_part(cell) == "router = 1\ndef f(lab):\n    return lab.get('/')"


def test_the_labs_redis_becomes_the_usual_address() -> None:
    setup, made = "lab = Lab()\nsize = lab.size\n", "client = connect(lab.redis.url)\n"
    cell = made + "def f():\n    return client, size, lab\n"
    needs = deliverables.requirements("def g():\n    return client, lab\n", [setup, made])
    assert needs == ['client = connect("redis://127.0.0.1:6379/0")']
    module = deliverables.module("T.", [(cell, [])])
    assert 'client = connect("redis://127.0.0.1:6379/0")' in module and "Lab()" not in module


@given(st.text(max_size=60))
def test_no_cell_breaks_the_search_for_requirements(cell: str) -> None:
    deliverables.requirements(cell, [cell, "x = 1"])
    deliverables.find_cell(["x"], [cell])


# --- rubric and quality


@pytest.mark.parametrize(
    ("after", "solved", "level"),
    [(0.85, 2, 1), (0.55, 2, 2), (0.40, 2, 3), (0.20, 2, 4), (0.20, 1, 3), (0.20, 0, 1)],
)
def test_levels_follow_the_lower_bound_of_the_improvement(
    evidence: Evidence, after: float, solved: int, level: int
) -> None:
    evidence.keep("comparison", compared(0.9, after))
    for n in range(solved):
        check(evidence, exercise=f"1.{n + 1}")
    assert rubric.levels(evidence)[0].level == level


def test_a_level_wants_what_is_proven_and_not_what_was_seen(evidence: Evidence) -> None:
    """The median improves by 51 %, the interval's lower end by less than 50 %."""
    times = [0.9, 0.9, 0.7, 0.9, 0.9, 1.1, 0.9, 0.8]
    timing = stats.Ratio.of(times, [0.441] * 8)
    evidence.keep("comparison", Comparison(("/a", "/b"), True, None, 9, 2, timing))
    check(evidence, exercise="1.1")
    check(evidence, exercise="1.2")
    assert 1 - 1 / timing.ratio > 0.5 and rubric.levels(evidence)[0].level == 2


@pytest.mark.parametrize("wrong", [{"same": False}, {"statements": 4}])
def test_no_level_without_the_same_answer_and_the_budget(evidence: Evidence, wrong: dict[str, Any]) -> None:
    evidence.keep("comparison", compared(**wrong))
    check(evidence, exercise="1.1")
    check(evidence, exercise="1.2")
    assert rubric.levels(evidence)[0].level == 1


def cached(evidence: Evidence, rate: float, compared: int = 3, foreign: int = 0) -> rubric.Level:
    """The cache's level for a hit rate on 1,000 requests."""
    hits = round(1000 * rate)
    counts: dict[Outcome, int] = {"hit": hits, "miss": 1000 - hits - foreign, "foreign": foreign}
    outcomes = [outcome for outcome, count in counts.items() for _ in range(count)]
    one = Traffic("x", 1000 - hits, 10, tuple(outcomes))
    evidence.keep("traffic", one)
    if compared:
        evidence.keep("strategies", Strategies((one,) * compared))
    return rubric.levels(evidence, room="lesson_02")[1]


@pytest.mark.parametrize(
    ("rate", "compared", "level"), [(0.39, 3, 1), (0.4, 3, 2), (0.6, 3, 3), (0.8, 3, 4), (0.87, 1, 3), (0.87, 0, 3)]
)
def test_the_level_of_the_cache_follows_the_hit_rate(
    evidence: Evidence, rate: float, compared: int, level: int
) -> None:
    found = cached(evidence, rate, compared)
    assert (found.criterion, found.level) == ("cache", level)
    assert rubric.levels(evidence, room="lesson_01")[1].level is None, "each lesson has its own criterion"


def test_a_cache_that_hands_out_the_data_of_others_needs_work(evidence: Evidence) -> None:
    found = cached(evidence, 0.9, foreign=1)
    assert found.level == 1 and "ajenas: 1" in found.reason


def test_a_comparison_of_another_lesson_is_no_profiling(evidence: Evidence) -> None:
    evidence.keep("comparison", compared())
    assert rubric.levels(evidence, room="lesson_02")[0].level is None


def test_a_lesson_may_have_sections_of_its_own(evidence: Evidence, folder: Path) -> None:
    """What it tells it takes out; the other pictures follow, and the tree has a place for each lesson's report."""

    def sections(kept: dict[str, Any]) -> list[str]:
        event = kept.pop("traffic")
        return ["## Tráfico", str(event["values"]["requests"]), *report.picture(event)]

    cached(evidence, 0.9)
    plan = Outline("02_cache", 50, {})
    made = report.write(plan, evidence, folder, sections)
    assert made.report == folder / "cache" / "cache_performance_report.md"
    assert "## Tráfico\n1000\n![" in text(made.report) and text(made.report).count("-traffic.png") == 1
    assert text(made.report).count("-strategies.png") == 1 and words("report.before_after") not in text(made.report)


@pytest.mark.parametrize(("value", "level"), [(-1, 1), (0.3, 2), (0.4999, 2), (0.5, 3), (0.7, 4), (1, 4)])
def test_thresholds(value: float, level: int) -> None:
    assert rubric.reached(value, rubric.IMPROVEMENT) == level


def test_without_evidence_no_criterion_has_a_level(evidence: Evidence) -> None:
    found = rubric.levels(evidence)
    assert [level.criterion for level in found] == list(rubric.CRITERIA)
    assert {(level.level, level.grade) for level in found} == {(None, words("rubric.level_none"))}


def test_quality_is_ruff_docstrings_and_size(evidence: Evidence) -> None:
    good = quality.measure(
        [f'"""M."""\n\nfrom functools import reduce\nfrom operator import add\n\nSTART = 0\n\n\n{SOURCE}']
    )
    assert good == quality.Quality((), 1, 1, 3)
    assert rubric.levels(evidence, good)[3].level == 4
    sloppy = quality.measure(["import os\ndef f(a,b):\n  if a == None: return undefined\n  l = 1\n"])
    assert sloppy.findings is not None and len(sloppy.findings) >= 4 and sloppy.documented == 0
    assert rubric.levels(evidence, sloppy)[3].level == 2
    awful = quality.Quality(tuple("x" * 11), 1, 0, 9)
    fair = quality.Quality(("x",), 2, 1, 60)
    assert [rubric.levels(evidence, q)[3].level for q in (awful, fair)] == [1, 3]


def test_without_ruff_quality_has_no_evidence(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality.sys, "executable", "/nowhere/python")
    measured = quality.measure([SOURCE])
    assert measured.findings is None and rubric.levels(evidence, measured)[3].level is None


def test_a_lesson_without_parts_is_fine(evidence: Evidence, folder: Path) -> None:
    assert report.write(Outline("01_x", 1, {}), evidence, folder).report.exists()
