"""Evidence: nothing is lost, whatever happens to the disk, the file or a second kernel."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import plots
from labkit.course import evidence as module
from labkit.course.evidence import Evidence, plain, write_atomically
from labkit.errors import MeasurementError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress" / "01_profiling.json"


def ticking() -> Callable[[], float]:
    """A clock that goes on by a second at each look."""
    seconds = iter(range(1, 10**6))
    return lambda: float(next(seconds))


def exercises(evidence: Evidence) -> list[str]:
    return [event["exercise"] for event in evidence.of("hint")]


def hint(evidence: Evidence, exercise: str) -> None:
    evidence.add("hint", exercise=exercise, rung=1)


def test_what_is_recorded_is_there_for_the_next_kernel(path: Path) -> None:
    first = Evidence(path, ticking())
    for exercise in ("1.1", "1.2"):
        hint(first, exercise)
    again = Evidence(path)
    assert list(again) == list(first) and exercises(again) == ["1.1", "1.2"]
    assert first.problem == "" and json.loads(path.read_text())["version"] == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_events_stay_in_order_when_the_clock_stands_still_or_goes_back(path: Path) -> None:
    clock = iter([5.0, 5.0, 5.0, 2.0])
    evidence = Evidence(path, lambda: next(clock))
    for exercise in ("1.1", "1.2", "1.3", "1.4"):
        hint(evidence, exercise)
    assert exercises(Evidence(path)) == ["1.1", "1.2", "1.3", "1.4"]


def test_two_kernels_on_one_lesson_lose_nothing(path: Path) -> None:
    one, two = Evidence(path), Evidence(path)
    hint(one, "1.1")
    hint(two, "1.2")
    hint(one, "1.3")
    assert sorted(exercises(one)) == ["1.1", "1.2", "1.3"] == sorted(exercises(Evidence(path)))


def test_many_processes_writing_at_once_leave_a_whole_file_with_every_last_word(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from labkit.course.evidence import Evidence\n"
        "e = Evidence(Path(sys.argv[1]))\n"
        "for i in range(15): e.add('hint', exercise=f'{sys.argv[2]}.{i}', rung=1)\n"
        "print('written', flush=True); sys.stdin.read(); e.save()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    kernels = [subprocess.Popen([*command, str(n)], **pipes) for n in range(3)]
    assert [kernel.stdout.readline() for kernel in kernels] == [b"written\n"] * 3
    assert len(exercises(Evidence(path))) >= 15  # a whole file, at any time
    for kernel in kernels:  # each saves once more, alone
        kernel.communicate(b"", timeout=60)
        assert kernel.returncode == 0
    assert len(exercises(Evidence(path))) == 45


names = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(names, values), max_size=5))
def test_any_value_makes_the_round_trip(events: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        written = Evidence(path, ticking())
        for name, value in events:
            written.add("other", name=name, value=value)
        assert written.problem == ""
        read = [(event["name"], event["value"]) for event in Evidence(path).of("other")]
    assert read == events == [(event["name"], event["value"]) for event in written.of("other")]


def test_half_a_surrogate_pair_and_strange_objects_are_recorded_too(path: Path) -> None:
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    evidence = Evidence(path)
    evidence.add("other", text="\ud83d", value=plain(Mute()), keys={(1, 2): 3}, when=Path("x"))
    (event,) = Evidence(path).of("other")
    assert (event["text"], event["value"], event["keys"], event["when"]) == ("\ud83d", "Mute", {}, "x")
    assert plain(float("nan")) == "nan" and plain(7) == 7 and len(plain([1] * 999)) == 200


# --- a disk that does not play along


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["os.fdopen", "os.fsync", "tempfile.mkstemp"])
def test_a_full_disk_is_told_and_made_good_at_the_next_chance(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    evidence = Evidence(path)
    hint(evidence, "1.1")
    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(f"labkit.course.evidence.{call}", full)
        hint(evidence, "1.2")
    assert str(path) in evidence.problem and os.strerror(errno.ENOSPC) in evidence.problem
    assert exercises(evidence) == ["1.1", "1.2"]
    assert path.read_text() == before and [file.name for file in path.parent.iterdir()] == [path.name]
    hint(evidence, "1.3")
    assert evidence.problem == "" and exercises(Evidence(path)) == ["1.1", "1.2", "1.3"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_really_full_device_is_an_oserror() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder in which not even root can make a file."""
    if os.geteuid() == 0 and Path("/proc/self/fd").exists():
        yield Path("/proc/self/fd")  # a read-only file system, permissions or not
        return
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def test_a_read_only_folder_is_told_and_nothing_is_lost(unwritable: Path) -> None:
    evidence = Evidence(unwritable / "01_profiling.json")
    hint(evidence, "1.1")
    assert str(unwritable) in evidence.problem and exercises(evidence) == ["1.1"]


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "progress").write_text("a file")
    evidence = Evidence(tmp_path / "progress" / "x.json")
    hint(evidence, "1.1")
    assert "progress" in evidence.problem and exercises(evidence) == ["1.1"]


def test_a_file_that_cannot_be_read_is_not_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hint(Evidence(path), "1.1")

    def denied(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", denied)
        evidence = Evidence(path)
        hint(evidence, "1.2")
        assert os.strerror(errno.EACCES) in evidence.problem
    assert exercises(Evidence(path)) == ["1.1"]
    hint(evidence, "1.3")
    assert exercises(Evidence(path)) == ["1.1", "1.2", "1.3"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"events": 3}',
        '{"events": [{}]}',
        '{"events": [{"id": [], "at": 1, "kind": "open"}]}',
        '{"events": [{"id": "a", "at": "x", "kind": "open"}]}',
        '{"events": [{"id": "a", "at": 1, "kind": "check"}]}',
        "\udcff",
    ],
)
def test_a_damaged_file_is_put_aside_and_said(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    evidence = Evidence(path)
    hint(evidence, "1.1")
    (backup,) = [file for file in path.parent.iterdir() if file != path]
    assert backup.read_bytes() == text.encode("utf-8", "surrogateescape")
    assert backup.name in evidence.notice and evidence.problem == ""
    assert exercises(Evidence(path)) == ["1.1"]


def test_damage_that_cannot_be_put_aside_is_not_overwritten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    path.write_text("{")
    monkeypatch.setattr(Path, "replace", full)
    evidence = Evidence(path)
    hint(evidence, "1.1")
    assert path.read_text() == "{" and str(path) in evidence.problem and exercises(evidence) == ["1.1"]


def test_reset_keeps_a_backup(path: Path) -> None:
    evidence = Evidence(path)
    hint(evidence, "1.1")
    backup = evidence.reset()
    assert backup is not None and exercises(Evidence(backup)) == ["1.1"]
    assert list(evidence) == [] and not path.exists() and Evidence(path).reset() is None


def test_an_atomic_write_leaves_the_old_file_when_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    write_atomically(file, b"old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


# --- measurements


@dataclass(frozen=True)
class Measured:
    """As the tools' results are: a frozen dataclass with properties, a table, findings and a picture."""

    count: int
    ratio: float
    name: str
    inner: tuple[int, ...] = (1,)

    @property
    def low(self) -> float:
        return self.ratio / 2

    @property
    def broken(self) -> float:
        raise MeasurementError("cannot tell")

    @property
    def findings(self) -> tuple[Any, ...]:
        return ()

    @property
    def df(self) -> pd.DataFrame:
        return pd.DataFrame({"path": [f"/{i}" for i in range(40)], "seconds": [0.5] * 40})

    def plot(self) -> plots.Figure:
        return plots.figure(lambda axes: axes.plot([1, 2]), title="x", alt="a line of two points rising")


def test_a_measurement_is_kept_with_numbers_table_and_picture(path: Path) -> None:
    Evidence(path).keep("comparison", Measured(2, float("nan"), "x"))
    evidence = Evidence(path)
    evidence.keep("comparison", Measured(3, 4.0, "x"))
    event = Evidence(path).kept()["comparison"]
    assert event["values"] == {"count": 3, "ratio": 4.0, "name": "x", "low": 2.0}
    assert len(event["rows"]) == 12 and event["alt"] == "a line of two points rising"
    assert Evidence(path).picture(event["picture"]).startswith(b"\x89PNG")


def test_a_picture_waits_in_memory_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = Evidence(path)
    with monkeypatch.context() as patch:
        patch.setattr("labkit.course.evidence.os.fsync", full)
        evidence.keep("it", Measured(1, 1.0, "x"))
    name = evidence.kept()["it"]["picture"]
    assert evidence.problem and evidence.picture(name) and not (path.parent / name).exists()
    assert evidence.save() and (path.parent / name).exists()
    assert evidence.picture("none.png") == b""


def test_anything_else_is_kept_as_far_as_it_goes(path: Path) -> None:
    evidence = Evidence(path)
    evidence.keep("text", "just text")
    assert evidence.kept()["text"]["values"] == {} and evidence.kept()["text"]["picture"] == ""
