"""The editions builder: markers, limits, translations and byte-identical notebooks."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.course import budget, editions
from labkit.course.exercises import outline_from
from labkit.course.markers import fingerprints, pick, words
from labkit.course.sources import Source, accept_translation, read_source, read_translation
from labkit.errors import CourseError

FIXTURES = Path(__file__).parent / "fixtures"
HEADER = "# ---\n# jupyter:\n#   lesson:\n#     minutes: 10\n# ---\n\n"
GALLERY = HEADER.replace("minutes: 10", "gallery: true")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the sample lesson, its translation accepted."""
    sources = tmp_path / "notebooks" / "source"
    sources.mkdir(parents=True)
    (tmp_path / "labkit" / "course").mkdir(parents=True)
    for file in FIXTURES.glob("97_*"):
        shutil.copy(file, sources)
    accept_translation(sources / "97_sample.en.md", read_source(sources / "97_sample.py"))
    return tmp_path


def lesson(tmp_path: Path, *cells: str, header: str = HEADER) -> Source:
    file = tmp_path / "98_made.py"
    file.write_text(header + "\n".join(cells), encoding="utf-8")
    return read_source(file)


def notebook(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))


# --- markers


def test_each_edition_gets_its_own_lines() -> None:
    cell = "import os\n# starter\nx = 1\n# solution\nx = 2\n# end\ny = 3\n# starter\n# solution\nz = 4\n# end"
    assert pick(cell, "starter") == "import os\nx = 1\ny = 3"
    assert pick(cell, "solution") == "import os\nx = 2\ny = 3\nz = 4"


@pytest.mark.parametrize(
    "cell",
    [
        "# starter\nx\n# end",
        "# solution\nx\n# end",
        "# end",
        "# starter\n# solution\nx",
        "# starter\n# starter",
    ],
)
def test_unpaired_markers_are_refused_with_the_line(cell: str) -> None:
    with pytest.raises(CourseError, match="pair the markers"):
        pick(cell, "starter")


lines = st.lists(st.text("abc =1", min_size=1, max_size=8).map(lambda s: f"v{s}"), max_size=4)


@given(st.lists(st.tuples(lines, lines, lines), max_size=4))
def test_any_paired_cell_splits_into_what_was_put_together(blocks: list[tuple[list[str], ...]]) -> None:
    cell: list[str] = []
    for common, starter, solution in blocks:
        cell += [*common, "# starter", *starter, "  # solution", *solution, "# end"]
    for role, index in (("starter", 1), ("solution", 2)):
        expected = [line for block in blocks for line in (*block[0], *block[index])]
        assert pick("\n".join(cell), role).splitlines() == "\n".join(expected).splitlines()


@given(st.lists(st.sampled_from(["# starter", "# solution", "# end", "x = 1"]), max_size=8))
def test_any_order_of_markers_is_split_or_refused(cell: list[str]) -> None:
    try:
        text = pick("\n".join(cell), "solution")
    except CourseError:
        return
    assert "#" not in text


def test_a_fingerprint_ignores_layout_comments_and_docstrings_only() -> None:
    plain = 'def f(a, b=1):\n    return f"{a}{b}"\n'
    same = "def f(  a, b = 1 ):\n    '''Text.'''\n    # why\n    return (\n        f'{a}{b}'\n    )\n"
    assert fingerprints(plain) == fingerprints(same)
    for other in ("def f(a, b=2):\n    return f'{a}{b}'\n", "async " + plain, "@d\n" + plain):
        assert fingerprints(other) != fingerprints(plain)


def test_fingerprints_are_the_same_on_every_python() -> None:
    """Committed hashes must hold on 3.11, 3.12 and 3.13, whose ``ast.dump`` differ."""
    code = "@d(1)\nasync def f(x: int, *, y=None) -> list:\n    return [f'{i!r:>{x}}' async for i in x if i]\n"
    assert fingerprints(code) == {"f": "2d598cef0faeec9e"}


# --- sources


def test_the_sample_is_read() -> None:
    source = read_source(FIXTURES / "97_sample.py")
    assert (source.name, source.minutes, source.running) == ("97_sample", 10, 0.2)
    assert [cell.name for cell in source.cells] == ["objectives", "setup", "total", "check-1-1"]
    exercise = source.cells[2]
    assert (exercise.exercise, exercise.file, exercise.minutes) == ("1.1", "sample/totals.py", 5)


EXERCISE = '# %% name="a" tags=["exercise"] exercise="1.1" minutes=1\n'


@pytest.mark.parametrize(
    ("cells", "header", "what"),
    [
        (['# %% name="1.3"\nx = 1\n'], HEADER, "ASCII"),
        (["# %%\nx = 1\n"], HEADER, "cell 1"),
        (['# %% name="a"\nx = 1\n', '# %% name="a"\nx = 2\n'], HEADER, "unique"),
        (['# %% name="a" tags=["nope"]\nx = 1\n'], HEADER, "unknown tags"),
        (['# %% name="a"\nx = 1\n'], "", "minutes"),
        ([EXERCISE + "x = 1\n"], HEADER, "paired markers"),
        ([EXERCISE + "# starter\nx = 1\n# solution\nx = 1\n# end\n"], HEADER, "are the same"),
        ([EXERCISE + "# starter\nx = 1\n# end\n"], HEADER, "cell a: line 3"),
        (['# %% name="a" exercise="1.1"\nx = 1\n'], HEADER, "without tags"),
        (['# %% name="T01" tags=["trap"]\nx = 1\n'], GALLERY, "needs its cure"),
    ],
)
def test_a_bad_header_is_refused_by_name(tmp_path: Path, cells: list[str], header: str, what: str) -> None:
    with pytest.raises(CourseError, match=what) as error:
        lesson(tmp_path, *cells, header=header)
    assert "98_made.py" in str(error.value)


# --- limits


def code(name: str, lines: int) -> str:
    return f'# %% name="{name}"\n' + "x = 1\n" * lines


def test_every_limit_names_the_cell(tmp_path: Path) -> None:
    long = '# %% [markdown] name="{}"\n# ' + "palabra " * 80
    starter = "x = 1\n" * 31
    source = lesson(
        tmp_path,
        code("short", 15),
        code("long", 16),
        f'# %% [markdown] name="talk"\n# {"palabra " * 81}',
        *(long.format(f"t{i}") + "\n" for i in range(15)),
        f'# %% name="ex" tags=["exercise"] exercise="1.1" minutes=3\n# starter\n{starter}# solution\ny = 2\n# end\n',
        *(code(f"c{i}", 1) for i in range(30)),
    )
    found = "\n".join(budget.problems(source))
    assert "cell long: 16 lines, at most 15" in found
    assert "cell short" not in found
    assert "cell talk: 81 words, at most 80" in found
    assert "1281 words, at most 1200" in found
    assert "cell ex: 31 lines, at most 30" in found
    assert "49 cells in the starter edition, at most 40" in found


def test_minutes_are_reading_writing_and_running(tmp_path: Path) -> None:
    text = '# %% [markdown] name="t{}"\n# ' + "palabra " * 60 + "\n"
    write = '# %% name="ex" tags=["exercise"] exercise="1.1" minutes=6\n# starter\nx = 1\n# solution\nx = 2\n# end\n'
    source = lesson(tmp_path, *(text.format(i) for i in range(9)), write)
    assert budget.minutes(source) == pytest.approx(3 + 6)
    assert budget.minutes(source, running=0.5) == pytest.approx(9.5)
    assert not list(budget.problems(source, running=0.9))
    assert "takes 10.5 minutes and promises 10" in "\n".join(budget.problems(source, running=1.5))


def test_a_gallery_has_limits_of_its_own(tmp_path: Path) -> None:
    """It is leafed through: many cells and words, no minutes promised; but each card short, and all of it run soon."""
    text = '# %% [markdown] name="t{}"\n# ' + "palabra " * 60 + "\n"
    trap = '# %% name="T{:02}" tags=["trap"]\n# starter\nx = 1\n# solution\n' + "y = 2\n" * 14 + "# end\nlast = 1\n"
    cells = [*(text.format(i) for i in range(30)), *(trap.format(i) for i in range(30))]
    source = lesson(tmp_path, *cells, header=GALLERY)
    assert (source.gallery, source.minutes) == (True, 0)
    assert not list(budget.problems(source, running=1.0))
    assert "runs 66 s, at most 60" in "\n".join(budget.problems(source, running=1.1))
    assert "no running time" in "\n".join(budget.problems(source))
    long = '# %% [markdown] name="long"\n# ' + "palabra " * 61 + "\n"
    found = "\n".join(
        budget.problems(lesson(tmp_path, long, trap.format(1).replace("x = 1\n", "x = 1\n" * 15), header=GALLERY))
    )
    assert "cell long: 61 words, at most 60" in found
    assert "cell T01: 16 lines, at most 15" in found


def test_a_running_time_is_wanted_and_can_be_measured(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = root / "notebooks" / "source"
    for file in sources.iterdir():
        file.unlink()
    monkeypatch.setenv("LABKIT_WORK", str(root / "her-work"))
    cell = 'import os\nassert "her-work" not in os.environ["LABKIT_WORK"]\n'
    (sources / "98_made.py").write_text(HEADER + f'# %% name="a"\n{cell}')
    assert editions.main(["--root", str(root)]) == 1 and "--measure" in capsys.readouterr().err
    assert editions.main(["--root", str(root), "--measure"]) == 0
    measured = json.loads((root / editions.RUNNING).read_text())
    assert list(measured) == ["98_made"] and measured["98_made"] > 0
    assert editions.main(["--root", str(root), "--check"]) == 0


@pytest.mark.parametrize(
    ("line", "is_prose"),
    [
        ('print("Aquí ves la respuesta")', True),
        ('x = f"hay {n} consultas en la tabla"', True),
        ("# Cambia esta línea por la tuya", True),
        ('def f():\n    """Suma de los usuarios que hay."""', True),
        ('def f():\n    """Sum of the users."""', False),
        ('x = "/performance/slow-endpoint"', False),
        ('return_ = {"message": f"Hola, {name}"}', False),
        ('text("CREATE INDEX ix_comments_post_id ON comments (post_id)")', False),
        ("%matplotlib inline", False),
    ],
)
def test_code_cells_carry_no_spanish_sentences(line: str, is_prose: bool) -> None:
    assert bool(budget.spanish(line)) is is_prose


def test_words_are_what_is_read() -> None:
    assert words(["# Uno, dos", "- [ ] tres · cuatro"]) == 4


# --- editions


def test_four_notebooks_and_the_starters_are_built(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert editions.main(["--root", str(root)]) == 0
    assert editions.main(["--root", str(root), "--check"]) == 0
    learner, solution = notebook(root, "es/97_sample"), notebook(root, "es/solutions/97_sample")
    english = notebook(root, "en/97_sample")
    assert [cell["id"] for cell in learner["cells"]] == ["objectives", "setup", "total", "check-1-1"]
    assert "".join(learner["cells"][2]["source"]) == "def total(items):\n    return 0"
    assert "return sum(items)" in "".join(solution["cells"][2]["source"])
    assert "starter" not in json.dumps(learner) and "return 0" not in json.dumps(solution)
    assert learner["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language": "es",
        "edition": "learner",
    }
    assert learner["cells"][2]["metadata"] == {"tags": ["exercise"]}
    assert "".join(english["cells"][0]["source"]).startswith("# A sample")
    pairs = list(zip(learner["cells"], english["cells"], strict=True))
    differ = [a["id"] for a, b in pairs if a["source"] != b["source"]]
    assert differ == ["objectives", "setup"]
    assert 'language="en"' in "".join(english["cells"][1]["source"])
    for file in (root / "notebooks").rglob("*.ipynb"):
        nbformat.validate(nbformat.reads(file.read_text(encoding="utf-8"), as_version=4))
    plan = outline_from("97_sample", json.loads((root / editions.STARTERS).read_text())["97_sample"])
    assert plan.exercises["1.1"].functions == fingerprints("def total(items): return 0")
    assert (plan.room, plan.parts[0].names, plan.parts[0].exercise) == ("lesson_97", ("total",), "1.1")


def test_building_again_changes_no_byte(root: Path) -> None:
    first, second = editions.build(root), editions.build(root)
    assert first.files == second.files and not first.problems and not first.warnings
    editions.main(["--root", str(root)])
    assert editions.stale(root, second) == []


def test_check_lists_what_is_stale_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert editions.main(["--root", str(root), "--check"]) == 1
    assert not (root / "notebooks" / "es").exists()
    editions.main(["--root", str(root)])
    changed = root / "notebooks" / "es" / "97_sample.ipynb"
    changed.write_text(changed.read_text() + " ")
    (root / "notebooks" / "es" / "96_gone.ipynb").write_text("{}")
    capsys.readouterr()
    assert editions.main(["--root", str(root), "--check"]) == 1
    told = capsys.readouterr().err
    assert "es/97_sample.ipynb" in told and "96_gone" in told and "solutions" not in told


def test_solution_and_instructor_cells_stay_out_of_the_learners_edition(tmp_path: Path) -> None:
    source = lesson(tmp_path, '# %% name="a" tags=["instructor"]\nx = 1\n', '# %% name="b"\ny = 1\n')
    learner = json.loads(editions.render(source, "es", "starter", {}))
    assert [cell["id"] for cell in learner["cells"]] == ["b"]
    assert len(json.loads(editions.render(source, "es", "solution", {}))["cells"]) == 2


# --- translations


def test_a_stale_translation_warns_and_fails_once_marked_translated(root: Path) -> None:
    source = root / "notebooks" / "source" / "97_sample.py"
    source.write_text(source.read_text().replace("Una muestra", "Otra muestra"))
    made = editions.build(root)
    assert len(made.problems) == 1 and "cell objectives is stale" in made.problems[0]
    english = source.with_suffix(".en.md")
    english.write_text(english.read_text().replace("translated: true", "translated: false"))
    made = editions.build(root)
    assert made.problems == [] and "cell objectives is stale" in made.warnings[0]
    assert editions.main(["--root", str(root), "--accept-translation", "97_sample"]) == 0
    assert not editions.build(root).warnings


def test_missing_and_unknown_cells_are_told(root: Path) -> None:
    english = root / "notebooks" / "source" / "97_sample.en.md"
    english.write_text(english.read_text().replace("cell: objectives", "cell: other"))
    assert [p.partition(": ")[2] for p in editions.build(root).problems] == [
        "cell objectives is missing",
        "no cell 'other' in the source",
    ]


def test_without_english_text_there_is_no_english_edition(root: Path) -> None:
    (root / "notebooks" / "source" / "97_sample.en.md").unlink()
    assert not [path for path in editions.build(root).files if "en" in path.parts]


def test_accepting_a_translation_that_is_not_there_is_an_error_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert editions.main(["--root", str(root), "--accept-translation", "96_none"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_broken_translation_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.en.md"
    assert read_translation(file) is None
    file.write_text("# Text before\n")
    with pytest.raises(CourseError, match="before the first"):
        read_translation(file)
    file.write_text("<!-- cell: a hash: 00000000 -->\nx\n<!-- cell: a hash: 00000000 -->\ny\n")
    with pytest.raises(CourseError, match="twice"):
        read_translation(file)


def test_english_text_is_held_to_the_limits_too(root: Path) -> None:
    english = root / "notebooks" / "source" / "97_sample.en.md"
    english.write_text(english.read_text() + "word " * 90)
    assert any("en: 97_sample, cell objectives" in problem for problem in editions.build(root).problems)


# --- the real lessons


def test_the_projects_sources_are_python_and_committed_editions_are_fresh(project: Path) -> None:
    for file in (project / "notebooks" / "source").glob("*.py"):
        for cell in read_source(file).cells:
            if cell.kind == "code":
                ast.parse("\n".join(line for line in cell.text.splitlines() if not line.startswith("%")))
    made = editions.build(project)
    assert made.problems == []
    assert editions.stale(project, made) == []
