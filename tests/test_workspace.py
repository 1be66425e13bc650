"""The learner's copies: made once, followed while untouched, never overwritten once edited."""

from __future__ import annotations

import errno
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from labkit import settings
from labkit.course import workspace
from labkit.errors import CourseError, WorkFolderError
from tests.conftest import write_notebook


def edit(notebook: Path, source: str = "mine = 1") -> None:
    body = json.loads(notebook.read_text())
    body["cells"][0]["source"] = source
    notebook.write_text(json.dumps(body))


def ship(workbook: Path, lesson: str = "00_start", source: str = "print('second edition')") -> None:
    write_notebook(workbook / f"notebooks/es/{lesson}.ipynb", [source])


def source_of(notebook: Path) -> str:
    return str(json.loads(notebook.read_text())["cells"][0]["source"])


def test_first_start_copies_the_language_asked_for(workbook: Path, work: Path) -> None:
    done = workspace.sync("es")
    assert done.copied == ("00_start", "01_second")
    assert sorted(path.name for path in (work / "es").iterdir()) == ["00_start.ipynb", "01_second.ipynb"]
    assert not (work / "en").exists()
    assert (work / "es/00_start.ipynb").read_bytes() == (workbook / "notebooks/es/00_start.ipynb").read_bytes()


def test_second_start_changes_and_says_nothing(workbook: Path, work: Path) -> None:
    workspace.sync("es")
    before = {path: path.stat().st_mtime_ns for path in (work / "es").iterdir()}
    assert workspace.sync("es").lines() == []
    assert before == {path: path.stat().st_mtime_ns for path in (work / "es").iterdir()}


def test_an_untouched_copy_follows_a_new_edition(workbook: Path, work: Path) -> None:
    workspace.sync("es")
    ship(workbook)
    done = workspace.sync("es")
    assert (done.updated, done.kept) == (("00_start",), ())
    assert source_of(work / "es/00_start.ipynb") == "print('second edition')"


def test_an_edited_copy_stays_and_a_line_says_so(workbook: Path, work: Path) -> None:
    workspace.sync("es")
    edit(work / "es/00_start.ipynb")
    assert workspace.sync("es").lines() == []  # nothing new was shipped: nothing to say
    ship(workbook)
    for _ in range(2):  # every start, until she resets or goes on without
        done = workspace.sync("es")
        assert done.kept == ("00_start",)
        assert "python -m labkit reset 00_start" in done.lines()[0]
        assert source_of(work / "es/00_start.ipynb") == "mine = 1"


def test_opening_is_no_edit_but_outputs_are(workbook: Path, work: Path) -> None:
    workspace.sync("es")
    opened, ran = work / "es/00_start.ipynb", work / "es/01_second.ipynb"
    body: dict[str, Any] = json.loads(opened.read_text())
    body["metadata"]["language_info"] = {"name": "python"}
    body["cells"][0]["execution_count"] = 3
    opened.write_text(json.dumps(body, indent=1))
    body = json.loads(ran.read_text())
    body["cells"][1]["outputs"] = [{"output_type": "execute_result", "data": {"text/plain": "42"}}]
    ran.write_text(json.dumps(body))
    ship(workbook, "00_start")
    ship(workbook, "01_second")
    done = workspace.sync("es")
    assert (done.updated, done.kept) == (("00_start",), ("01_second",))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"cells": [1]}', '{"es/00_start.ipynb": 5}'])
def test_a_damaged_manifest_loses_no_work(workbook: Path, work: Path, damage: str) -> None:
    workspace.sync("es")
    edit(work / "es/00_start.ipynb")
    (work / workspace.MANIFEST).write_text(damage)
    ship(workbook)
    assert workspace.sync("es").kept == ("00_start",)
    assert source_of(work / "es/00_start.ipynb") == "mine = 1"


@pytest.mark.parametrize("damage", ["", "{", '{"cells": 3}', '{"cells": [{}]}'])
def test_a_damaged_copy_counts_as_edited(workbook: Path, work: Path, damage: str) -> None:
    workspace.sync("es")
    (work / "es/00_start.ipynb").write_text(damage)
    ship(workbook)
    assert workspace.sync("es").kept == ("00_start",)
    assert (work / "es/00_start.ipynb").read_text() == damage


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["start", "edit", "ship", "delete"]), max_size=12))
def test_whatever_happens_an_edit_is_never_lost(workbook: Path, work: Path, steps: list[str]) -> None:
    """Any order of starts, edits, new editions and deletions: what the learner typed last is still there."""
    mine = work / "es/00_start.ipynb"
    workspace.reset("00_start", "es")
    typed: str | None = None
    for number, step in enumerate(steps):
        if step == "start":
            workspace.sync("es")
        elif step == "edit" and mine.exists():
            typed = f"typed = {number}"
            edit(mine, typed)
        elif step == "ship":
            ship(workbook, source=f"edition = {number}")
        elif step == "delete":
            mine.unlink(missing_ok=True)
            typed = None
        if typed is not None:
            assert source_of(mine) == typed


def test_a_copy_in_the_other_language_is_its_own(workbook: Path, work: Path) -> None:
    workspace.sync("es")
    assert workspace.sync("en").copied == ("00_start",)
    assert source_of(work / "en/00_start.ipynb") == "print('en/00_start')"


@pytest.mark.parametrize("name", ["00_start", "00", "00_start.ipynb", "work/es/00_start.ipynb"])
def test_reset_brings_one_lesson_back_and_keeps_mine(workbook: Path, work: Path, name: str) -> None:
    workspace.sync("es")
    edit(work / "es/00_start.ipynb")
    edit(work / "es/01_second.ipynb")
    backup = workspace.reset(name, "es", now=datetime(2026, 11, 22, 9, 30))
    assert backup == work / "backup/es/00_start-20261122-093000-000000.ipynb"
    assert source_of(backup) == "mine = 1"
    assert source_of(work / "es/00_start.ipynb") == "print('es/00_start')"
    assert source_of(work / "es/01_second.ipynb") == "mine = 1"


def test_reset_twice_keeps_both_versions(workbook: Path, work: Path) -> None:
    for text in ("first = 1", "second = 2"):
        workspace.sync("es")
        edit(work / "es/00_start.ipynb", text)
        workspace.reset("00_start", "es")
    kept = sorted((work / "backup/es").iterdir())
    assert [source_of(path) for path in kept] == ["first = 1", "second = 2"]


def test_reset_of_an_untouched_or_missing_copy_makes_no_backup(workbook: Path, work: Path) -> None:
    assert workspace.reset("00", "es") is None
    assert workspace.reset("00", "es") is None
    assert (work / "es/00_start.ipynb").exists() and not (work / "backup").exists()


def test_after_a_reset_the_lesson_follows_new_editions_again(workbook: Path, work: Path) -> None:
    workspace.sync("es")
    edit(work / "es/00_start.ipynb")
    workspace.reset("00", "es")
    ship(workbook)
    assert workspace.sync("es").updated == ("00_start",)


@pytest.mark.parametrize("name", ["99", "", "../00_start/x", "start"])
def test_an_unknown_lesson_is_named_with_those_there_are(workbook: Path, name: str) -> None:
    with pytest.raises(CourseError, match=r"00_start, 01_second"):
        workspace.reset(name, "es")


def test_a_lesson_opened_from_notebooks_finds_the_root_and_the_same_work(
    workbook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABKIT_WORK")
    monkeypatch.chdir(workbook / "notebooks/es")
    assert workspace.root() == workbook
    assert settings.work_folder() == workbook / "work"
    workspace.sync("es")
    monkeypatch.chdir(workbook / "work/es")
    assert settings.work_folder() == workbook / "work"


def test_outside_of_every_project_the_package_itself_leads_home(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert workspace.root() == project


def test_no_notebooks_is_a_sentence_with_the_remedy(workbook: Path) -> None:
    with pytest.raises(CourseError, match="make notebooks"):
        workspace.sync("fr")


def test_a_work_folder_that_cannot_be_made_is_named(
    tmp_path: Path, workbook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("LABKIT_WORK", str(blocked / "work"))
    with pytest.raises(WorkFolderError, match="LABKIT_WORK") as caught:
        workspace.sync("es")
    assert str(blocked / "work") in str(caught.value)


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses_loses_nothing(
    workbook: Path, work: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    workspace.sync("es")
    before = {path: path.read_bytes() for path in work.rglob("*.ipynb")}
    ship(workbook)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, "the disk says no")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(WorkFolderError, match="the disk says no") as caught:
        workspace.sync("es")
    assert "LABKIT_WORK" in str(caught.value)
    assert {path: path.read_bytes() for path in work.rglob("*.ipynb")} == before
    assert not list(work.rglob(".*.ipynb.*")), "no half-written file may stay behind"


def test_the_sentences_follow_the_language(workbook: Path) -> None:
    settings.set_language("en")
    assert workspace.sync("es").lines()[0].startswith("New notebooks")
