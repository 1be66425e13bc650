"""Lesson 01, exercises 1.4 and 1.5: each wrong index and each wrong promise is told apart, whatever the luck."""

from __future__ import annotations

import pytest

from labkit.blog import indexes
from labkit.course.lessons._simulated import SimulatedLab
from tests.lessons.judging import Notebook

# --- 1.4 the index


def created(*statements: str) -> str:
    lines = [f"    connection.execute(text({statement!r}))" for statement in statements]
    return "\n".join(["def create_indexes(connection):", *(lines or ["    pass"])])


POSTS, COMMENTS = "CREATE INDEX a ON posts (author_id)", "CREATE INDEX b ON comments (post_id)"
INDEXES = {
    "only posts": ("index_one", created(POSTS)),
    "only comments": ("index_one", created(COMMENTS)),
    "one right, one wrong": ("index_column", created(POSTS, "CREATE INDEX b ON comments (author_id)")),
    "wrong column": ("index_column", created("CREATE INDEX a ON posts (title)", "CREATE INDEX b ON comments (id)")),
    "wrong order": ("index_column", created("CREATE INDEX a ON posts (id, author_id)", COMMENTS)),
    "another table": ("index_table", created("CREATE INDEX a ON users (username)")),
    "none": ("index_none", created()),
    "SQL that does not parse": ("index_sql", created("CREATE INDEX ON posts author_id")),
    "a column that is not there": ("index_sql", created("CREATE INDEX a ON posts (user_id)")),
}


@pytest.mark.parametrize(("key", "source"), INDEXES.values(), ids=INDEXES)
def test_each_wrong_index_has_a_sentence_of_its_own(
    notebook: Notebook, remembered: None, key: str, source: str
) -> None:
    judged = notebook.check("1.4", source)
    assert judged.state == ("almost", key)


def test_what_is_still_scanned_is_named(notebook: Notebook, remembered: None) -> None:
    card = notebook.check("1.4", INDEXES["only posts"][1]).card
    assert card.counts == {"scans": 1, "total": 2, "tables": "comments"}
    card = notebook.check("1.4", INDEXES["wrong order"][1]).card
    assert card.counts["tables"] == "posts" and card.counts["useless"] == "posts (id, author_id)"


@pytest.mark.parametrize(
    "source",
    [
        created(POSTS, COMMENTS),
        created("CREATE INDEX a ON posts (author_id, id, title)", "CREATE INDEX b ON comments (post_id, id)"),
        created(POSTS, COMMENTS) + "\n    connection.commit()",
        created(POSTS) + "\n    connection.commit()\n" + created(COMMENTS).partition("\n")[2],
    ],
    ids=["plain", "covering", "her own commit", "two commits"],
)
def test_other_right_indexes_are_done(notebook: Notebook, remembered: None, source: str) -> None:
    assert notebook.check("1.4", source).state == ("done", "index_done")
    assert indexes.present(notebook.lab.engine) == ("a", "b"), "they stay in her database"


def test_text_without_text_is_her_own_line(notebook: Notebook, remembered: None) -> None:
    judged = notebook.check("1.4", f"def create_indexes(connection):\n    connection.execute({POSTS!r})\n")
    assert judged.state == ("error", "course.raised") and "connection.execute" in judged.card.code


# --- 1.5 the promise


PAIRED = "pairs = [(lab.get(before).elapsed, lab.get(after).elapsed) for _ in range({n})]\n    "
PROMISES = {
    "one shot": ("improvement_once", "a = lab.get(before).elapsed\n    return 1 - lab.get(after).elapsed / a"),
    "few pairs": ("improvement_few", PAIRED.format(n=3) + "return min(1 - b / a for a, b in pairs)"),
    "blocks": (
        "improvement_blocks",
        "a = sorted(lab.get(before).elapsed for _ in range(20))\n"
        "    b = sorted(lab.get(after).elapsed for _ in range(20))\n"
        "    return 1 - b[15] / a[5]",
    ),
    "blocks by turns": (
        "improvement_blocks",
        "a, b = [], []\n"
        "    for _ in range(4):\n"
        "        a += [lab.get(before).elapsed for _ in range(5)]\n"
        "        b += [lab.get(after).elapsed for _ in range(5)]\n"
        "    return 1 - sorted(b)[15] / sorted(a)[5]",
    ),
    "two loads": (
        "improvement_blocks",
        "a, b = lab.load(before, requests=50), lab.load(after, requests=50)\n"
        "    return 1 - b.percentiles['p50'] / a.percentiles['p50']",
    ),
    "the median": ("improvement_optimist", "return 1 - 1 / lab.compare(before, after).ratio"),
    "the high end": ("improvement_optimist", "return 1 - 1 / lab.compare(before, after).high"),
    "the mean of pairs": (
        "improvement_optimist",
        PAIRED.format(n=10) + "return 1 - sum(b for _, b in pairs) / sum(a for a, _ in pairs)",
    ),
    "the best of pairs": (
        "improvement_optimist",
        PAIRED.format(n=10) + "return 1 - min(b for _, b in pairs) / min(a for a, _ in pairs)",
    ),
    "the ratio": ("improvement_scale", "return lab.compare(before, after).low"),
    "in percent": ("improvement_scale", "return 100 * (1 - 1 / lab.compare(before, after).low)"),
    "the wrong way round": ("improvement_negative", "return 1 - 1 / lab.compare(after, before).low"),
    "other paths": ("improvement_nothing", "return 1 - 1 / lab.compare('/slow', '/fast').low"),
    "upside down": ("improvement_negative", "return 1 - lab.compare(before, after).low"),
    "text": ("improvement_not_number", "return f'{1 - 1 / lab.compare(before, after).low:.0%}'"),
    "no return": ("improvement_not_number", "lab.compare(before, after)"),
    "the comparison": ("improvement_not_number", "return lab.compare(before, after)"),
    "written by hand": ("improvement_nothing", "return 0.9"),
    "a clock": (
        "improvement_clock",
        "a = b = 0.0\n"
        "    for _ in range(10):\n"
        "        start = time.perf_counter(); lab.get(before); middle = time.perf_counter(); lab.get(after)\n"
        "        a += middle - start; b += time.perf_counter() - middle\n"
        "    return 1 - b / a",
    ),
    "a lucky clock": (
        "improvement_clock",
        PAIRED.format(n=10) + "return 0.6 + 0.3 * (time.perf_counter() % 1)",
    ),
}


@pytest.mark.parametrize(("key", "body"), PROMISES.values(), ids=PROMISES)
def test_each_wrong_promise_has_a_sentence_of_its_own(notebook: Notebook, key: str, body: str) -> None:
    source = f"def improvement(lab, before, after):\n    {body}\n"
    first, again = notebook.check("1.5", source, seed=1), notebook.check("1.5", source, seed=2)
    assert first.state == again.state == ("almost", key)
    if key != "improvement_clock":
        assert first.card.counts == again.card.counts, "times are drawn from seeds that never change"


@pytest.mark.parametrize(
    "body",
    [
        "return lab.compare(before, after, seconds=5).improvement",
        PAIRED.format(n=12) + "return 1 - 1 / sorted(a / b for a, b in pairs)[2]",
        "return min(1 - 1 / lab.compare(before, after).low for _ in range(3))",
    ],
    ids=["property", "by hand", "thrice"],
)
def test_other_right_promises_are_done(notebook: Notebook, body: str) -> None:
    source = f"def improvement(lab, before, after):\n    {body}\n"
    assert notebook.check("1.5", source).state == ("done", "improvement_done")


def test_a_tool_that_is_not_simulated_is_told(notebook: Notebook) -> None:
    judged = notebook.check("1.5", "def improvement(lab, before, after):\n    return lab.profile(before).wall\n")
    assert judged.card.verdict == "error" and "lab.profile" in judged.card.code


def test_the_simulated_times_are_those_of_a_noisy_machine() -> None:
    """As on a real one, most identical runs differ by more than 10 %, and an honest interval holds the truth."""
    ratios = [SimulatedLab(seed, 1.0).compare("/before", "/after").timing for seed in range(200)]
    shots = [a / b for ratio in ratios for a, b in zip(ratio.times_a, ratio.times_b, strict=True)]
    assert sum(max(shot, 1 / shot) > 1.1 for shot in shots) > len(shots) / 4
    assert sum(ratio.low <= 1 <= ratio.high for ratio in ratios) >= 185
