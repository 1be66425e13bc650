"""What everybody installs: the lock, the environment that make and conda build from it, and what it says."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

LOCK = "requirements.lock"


@pytest.fixture(scope="module")
def pyproject(project: Path) -> dict[str, Any]:
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def locked(project: Path) -> list[Requirement]:
    lines = (project / LOCK).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip()]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- what everybody installs -------------------------------------------------------------------------------


def test_the_lock_is_exact_pins_only(project: Path, locked: list[Requirement]) -> None:
    for pin in locked:
        assert re.fullmatch(r"==[\w.!+]+", str(pin.specifier)), f"{pin} is not pinned exactly"
        assert pin.url is None
    assert not re.search(r"://|--hash|--index|^-", (project / LOCK).read_text(encoding="utf-8"), re.MULTILINE)
    assert len({(pin.name, str(pin.marker)) for pin in locked}) == len(locked)


def test_the_lock_pins_every_dependency_within_its_range(pyproject: dict[str, Any], locked: list[Requirement]) -> None:
    project = pyproject["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        pins = [pin for pin in locked if canonical(pin.name) == canonical(requirement.name)]
        assert pins, f"{requirement.name} is not in the lock: make lock"
        for pin in pins:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version, prereleases=True), f"{pin} breaks {requirement}"


def test_conda_and_binder_get_the_same_lock_and_no_second_list(project: Path) -> None:
    environment = yaml.safe_load((project / "environment.yml").read_text(encoding="utf-8"))
    *plain, pip = environment["dependencies"]
    assert plain == ["python", "pip"]
    assert pip == {"pip": [f"-r {LOCK}", "-e ."]}
    assert set(environment) == {"name", "channels", "dependencies"}


# --- make, and what it says where it cannot ----------------------------------------------------------------


@pytest.fixture
def bare(project: Path, tmp_path: Path) -> Path:
    """A bare checkout's files that make an environment."""
    for name in (
        "Makefile",
        "install.py",
        LOCK,
        "pyproject.toml",
        "README.md",
        "labkit/messages/install.toml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "LANG_", "PYTHON"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


NO_NETWORK = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_NO_CACHE_DIR": "1",
    "PIP_RETRIES": "1",
}


@pytest.mark.parametrize("goal", ["lab", "test", "check", "format", "bench", "notebooks", ".venv", "clean"])
def test_make_knows_the_goal(project: Path, goal: str) -> None:
    assert make(project, "--dry-run", goal).returncode == 0


def test_make_lab_opens_the_language_and_port_asked_for(project: Path) -> None:
    assert "labkit lab --language es --port 8888" in make(project, "--dry-run").stdout
    assert "labkit lab --language en --port 9000" in make(project, "-n", "lab", "LANG_=en", "PORT=9000").stdout


def test_a_python_that_is_not_there_is_named(bare: Path) -> None:
    done = make(bare, "lab", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no-such-python" in done.stderr and "make lab PYTHON=python3.12" in done.stderr


def test_a_python_too_old_is_told_what_to_do(bare: Path) -> None:
    """The script itself is run by the old Python: so it must be readable to one, and judge by the version."""
    source = (bare / "install.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__ import annotations" not in source
    (bare / "install.py").write_text(source.replace("OLDEST = (3, 11)", "OLDEST = (99, 0)"), encoding="utf-8")
    done = make(bare, "lab", f"PYTHON={sys.executable}")
    assert done.returncode != 0
    assert sum("Python 3.11 o posterior" in line for line in done.stderr.splitlines()) == 1
    assert "make lab PYTHON=python3" in done.stderr
    assert not (bare / ".venv").exists()


def test_a_python_without_venv_is_told_what_to_do(bare: Path) -> None:
    """As Debian ships it: the module is a package of its own."""
    (bare / "ensurepip.py").write_text("raise ImportError('no ensurepip')", encoding="utf-8")
    done = make(bare, "test", "LANG_=en", f"PYTHON={sys.executable}")
    assert done.returncode != 0
    assert re.search(r"lacks ensurepip.*apt install python3\.\d+-venv.*make test PYTHON=", done.stderr)
    assert not (bare / ".venv").exists()


def test_no_network_is_one_line_and_the_next_try_starts_afresh(bare: Path) -> None:
    done = make(bare, ".venv", f"PYTHON={sys.executable}", **NO_NETWORK)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(told) == 1 and "no hay red" in told[0] and "make .venv" in told[0]
    assert (bare / ".venv/install.log").exists() and not (bare / ".venv/.ready").exists()

    (bare / ".venv/lib/left-over").mkdir()
    again = make(bare, ".venv", "LANG_=en", f"PYTHON={sys.executable}", **NO_NETWORK)
    assert "left half-made" in again.stdout and again.returncode != 0
    assert not (bare / ".venv/lib/left-over").exists()


def test_an_environment_that_is_ready_is_not_made_again(bare: Path) -> None:
    sys.path.insert(0, str(bare))
    try:
        import install
    finally:
        sys.path.remove(str(bare))
        sys.modules.pop("install", None)
    assert Path(install.__file__).parent == bare
    (bare / ".venv/bin").mkdir(parents=True)
    (bare / ".venv/bin/python").symlink_to(sys.executable)
    (bare / ".venv/.ready").write_text(f"{install.version()} {install.wanted()}", encoding="utf-8")
    done = make(bare, ".venv", f"PYTHON={sys.executable}", **NO_NETWORK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    (bare / ".venv/.ready").write_text(f"3.99 {install.wanted()}", encoding="utf-8")
    assert make(bare, ".venv", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}").stdout == ""
    (bare / "venv.py").write_text("def create(*_, **__): raise SystemExit('made anew')", encoding="utf-8")  # saves 6 s
    done = make(bare, ".venv", f"PYTHON={sys.executable}", **NO_NETWORK)
    assert "Python 3.99" in done.stdout, "the interpreter that was asked for by name is the one that is used"
    assert "made anew" in done.stderr and not (bare / ".venv/bin").exists()


@pytest.mark.parametrize(
    ("log", "key"),
    [
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken\nERROR: Could not find a version",
            "no_network",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", "no_space"),
        ("ERROR: No matching distribution found for pywinpty==3.1.2", "no_package"),
        ("/x/.venv/bin/python: No module named pip", "no_pip"),
        ("ERROR: something new\n", "failed"),
        ("", "failed"),
    ],
)
def test_of_pips_many_lines_one_sentence(project: Path, log: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project))
    import install

    for language in ("es", "en"):
        words = install.Words(language, "lab")
        start = words.entries[key].split("{")[0]
        sentence = install.diagnosis(words, log)
        assert sentence.startswith(start) and "make lab" in sentence and "\n" not in sentence
