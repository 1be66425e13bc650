"""Sampling from outside: a real uvicorn, a real py-spy, and what is said where they cannot."""

from __future__ import annotations

import stat
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest

from labkit.errors import MeasurementError
from labkit.profiling import sampling
from labkit.profiling.sampling import sample

APP = """
import os, time
from fastapi import FastAPI

def spin():
    total = 0
    for i in range(100_000):
        total += i
    return total

def asleep():
    time.sleep(0.005)

def make():
    app = FastAPI()

    @app.get("/plain")
    def plain():
        asleep()
        return spin()

    @app.get("/waits")
    async def waits():
        return spin()

    @app.get("/variable")
    def variable():
        if os.environ["TOLD"] != "yes":
            raise RuntimeError
        return spin()

    return app

app = make()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny_sampled.py").write_text(APP, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def children() -> set[int]:
    return {one.pid for one in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("path", ["/plain", "/waits"])
def test_samples_show_the_endpoint(folder: Path, path: str) -> None:
    before = children()
    try:
        report = sample("tiny_sampled:app", path=path, seconds=1)
    except MeasurementError as error:
        pytest.skip(str(error))  # where the system forbids ptrace
    assert report.requests > 0 and report.errors == 0
    frames = {(Path(file).name, name.split(".")[-1]) for stack, _ in report.stacks for file, name in stack}
    assert {path[1:], "spin"} <= {name for _, name in frames}
    assert ("queue.py", "get") not in frames  # by `put` the loop hands a request to a worker, which is no idling
    assert "selectors.py" not in {Path(stack[-1][0]).name for stack, _ in report.stacks}
    assert report.tree.value == pytest.approx(report.df.seconds.sum())
    assert f"GET {path}" in repr(report) and "<img" in report._repr_html_()
    assert children() <= before


def test_factory_environment_and_errors(folder: Path) -> None:
    options = {"path": "/variable", "seconds": 1, "factory": True, "clients": 2}
    try:
        good = sample("tiny_sampled:make", env={"TOLD": "yes"}, **options)
        bad = sample("tiny_sampled:make", env={"TOLD": "no"}, **options)
    except MeasurementError as error:
        pytest.skip(str(error))
    assert good.errors == 0 < good.requests
    assert bad.errors == bad.requests > 0 and "errores" in repr(bad)


def test_an_application_that_does_not_start_is_named(folder: Path) -> None:
    before = children()
    with pytest.raises(MeasurementError, match=r"tiny_sampled:nothing.*nothing") as caught:
        sample("tiny_sampled:nothing", seconds=1)
    assert len(str(caught.value)) < 300
    assert children() <= before


def spy(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a py-spy of ours beside a link to this interpreter."""
    fake = folder / "py-spy"
    fake.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sampling, "_spy", lambda: fake)


def test_a_system_that_forbids_ptrace_is_explained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = "import sys\nsys.exit('Permission Denied: try again as root\\nStack backtrace: x')"
    spy(folder, monkeypatch, refuse)
    with pytest.raises(MeasurementError, match=r"Permission Denied.*SYS_PTRACE") as caught:
        sample("tiny_sampled:app", path="/waits", seconds=1)
    assert "backtrace" not in str(caught.value)


def test_a_missing_py_spy_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    with pytest.raises(MeasurementError, match="pip install py-spy"):
        sample("tiny_sampled:app")


def test_idle_threads_are_left_out() -> None:
    lib, mine = sysconfig.get_path("stdlib"), f"home ({Path.cwd()}/me.py:3)"
    loop = f"run (/x/site-packages/uvicorn/main.py:1);run_forever ({lib}/asyncio/base_events.py:607)"
    raw = "\n".join(
        [
            f"{loop};select ({lib}/selectors.py:468) 90",
            f"{loop};_run_once ({lib}/asyncio/base_events.py:1906) 3",
            f"{loop};Handle._run ({lib}/asyncio/events.py:80);{mine} 20",
            f"run ({lib}/threading.py:9);get ({lib}/queue.py:171) 100",
            f"run ({lib}/threading.py:9);{mine};wait ({lib}/threading.py:320) 10",
            "",
        ]
    )
    assert [seconds for _, seconds in sampling._stacks(raw)] == [0.2, 0.1]
