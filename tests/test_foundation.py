"""The house itself: what installs it, what its files may say, who may know whom, how large it may grow."""

from __future__ import annotations

import ast
import os
import re
import shutil
import string
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

LOCK = "requirements.lock"
MOST_LINES, MOST_IN_A_TOOL, MOST_IN_ALL = 300, 800, 6000


@pytest.fixture(scope="module")
def pyproject(project: Path) -> dict[str, Any]:
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def locked(project: Path) -> list[Requirement]:
    lines = (project / LOCK).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def files(project: Path) -> list[Path]:
    """What git would carry: tracked files and those not yet added, but none that it ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.check_output(command, cwd=project, text=True).splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout: only git tells which files belong to the project")
    return [project / name for name in sorted(names) if (project / name).is_file()]


# --- what everybody installs -------------------------------------------------------------------------------


def test_the_lock_is_exact_pins_only(project: Path, locked: list[Requirement]) -> None:
    for pin in locked:
        assert re.fullmatch(r"==[\w.!+]+", str(pin.specifier)), f"{pin} is not pinned exactly"
        assert pin.url is None
    assert not re.search(r"://|--hash|--index|^-", (project / LOCK).read_text(encoding="utf-8"), re.MULTILINE)
    assert len({(pin.name, str(pin.marker)) for pin in locked}) == len(locked)


def test_the_lock_pins_every_dependency_within_its_range(
    pyproject: dict[str, Any], locked: list[Requirement]
) -> None:
    project = pyproject["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        pins = [pin for pin in locked if canonical(pin.name) == canonical(requirement.name)]
        assert pins, f"{requirement.name} is not in the lock: make lock"
        for pin in pins:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version, prereleases=True), f"{pin} breaks {requirement}"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_conda_and_binder_get_the_same_lock_and_no_second_list(project: Path) -> None:
    environment = yaml.safe_load((project / "environment.yml").read_text(encoding="utf-8"))
    *plain, pip = environment["dependencies"]
    assert plain == ["python", "pip"]
    assert pip == {"pip": [f"-r {LOCK}", "-e ."]}
    assert set(environment) == {"name", "channels", "dependencies"}


def test_every_third_party_import_is_a_declared_dependency(
    files: list[Path], project: Path, pyproject: dict[str, Any]
) -> None:
    """What labkit imports is promised by pyproject.toml, not brought in by chance by something else."""
    declared = {canonical(Requirement(line).name) for line in pyproject["project"]["dependencies"]}
    of_package = {"py_spy": "py-spy", "pydantic": "fastapi", "starlette": "fastapi", "anyio": "fastapi"}
    of_package |= {"greenlet": "sqlalchemy", "IPython": "ipykernel", "jupyter_server": "jupyterlab"}
    for path in files:
        if path.suffix != ".py" or "labkit" not in path.relative_to(project).parts[:1]:
            continue
        for name in imported(path):
            if name in sys.stdlib_module_names or name in ("labkit", "__future__"):
                continue
            assert canonical(of_package.get(name, name)) in declared, f"{path.name} imports {name}"


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


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
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "LANG_", "PYTHON"))
    }
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
    assert (
        "labkit lab --language en --port 9000" in make(project, "-n", "lab", "LANG_=en", "PORT=9000").stdout
    )


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
    done = make(bare, ".venv", f"PYTHON={sys.executable}", **NO_NETWORK)
    assert "Python 3.99" in done.stdout, "the interpreter that was asked for by name is the one that is used"


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
def test_of_pips_many_lines_one_sentence(
    project: Path, log: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(project))
    import install

    for language in ("es", "en"):
        words = install.Words(language, "lab")
        start = words.entries[key].split("{")[0]
        sentence = install.diagnosis(words, log)
        assert sentence.startswith(start) and "make lab" in sentence and "\n" not in sentence


# --- what the files say ------------------------------------------------------------------------------------


def messages(project: Path) -> list[Path]:
    found = sorted((project / "labkit").rglob("messages/*.toml"))
    assert found
    return found


def test_both_languages_say_the_same_with_the_same_values(project: Path) -> None:
    for path in messages(project):
        for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
            where = f"{path.relative_to(project)} [{name}]"
            assert set(entry) == {"es", "en"}, f"{where} needs both languages and nothing else"
            assert all(isinstance(text, str) and text.strip() for text in entry.values()), where
            assert placeholders(entry["es"]) == placeholders(entry["en"]), where


def placeholders(text: str) -> set[str]:
    return {
        re.split(r"[.\[!:]", name)[0] for _, name, _, _ in string.Formatter().parse(text) if name is not None
    }


def test_no_exclamation_and_no_emoji_in_what_a_person_reads(project: Path) -> None:
    for path in messages(project):
        for entry in tomllib.loads(path.read_text(encoding="utf-8")).values():
            for text in entry.values():
                bare_text = re.sub(r"\{[^}]*\}|!=", "", text)
                assert not re.search(r"[!¡\U0001F300-\U0001FAFF]", bare_text), f"{path.name}: {text}"


def test_no_registry_host_and_no_path_of_one_machine(files: list[Path], project: Path) -> None:
    hosts = "|".join(("pypi" + r"\.org", "python" + "hosted", "deb" + r"\.debian", "registry" + r"\.npm"))
    paths = r"(?<![\w.{}~])/(?:" + "|".join(("work", "root", "farm", "home/\\w+", "Users/\\w+")) + ")/"
    for path in files:
        if path.suffix in (".png", ".csv"):
            continue
        text = path.read_text(encoding="utf-8")
        found = re.search(f"{hosts}|{paths}", text)
        assert found is None, f"{path.relative_to(project)} says {found[0]!r}"


@pytest.mark.parametrize("name", ["README.md", "README.es.md"])
def test_a_readme_promises_no_measured_number(project: Path, name: str) -> None:
    """Durations and factors differ on every machine: they stand in benchmarks/results, never in prose."""
    text = (project / name).read_text(encoding="utf-8")
    assert "make lab" in text and "make test" in text
    found = re.search(r"\d[\d.,]*\s?(?:ms|µs|us|s|segundos|seconds|x|×|veces|times|%)(?!\w)", text)
    assert found is None, f"{name} says {found[0]!r}"


@pytest.mark.parametrize("name", ["README.md", "README.es.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_of_a_document_leads_somewhere(project: Path, name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (project / name).read_text(encoding="utf-8")):
        if "://" not in target:
            assert (project / target).exists(), f"{name} links to {target}"


# --- who may know whom, and how large ----------------------------------------------------------------------


def test_the_floors_hold(project: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def modules(project: Path) -> list[Path]:
    return sorted((project / "labkit").rglob("*.py"))


def test_no_file_outgrows_the_screen(files: list[Path], project: Path) -> None:
    long = {
        str(path.relative_to(project)): lines
        for path in files
        if path.suffix == ".py" and "source" not in path.parts
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) >= MOST_LINES
    }
    assert not long, "split what does more than one thing"


def test_labkit_stays_small(project: Path) -> None:
    sizes = {path: code_lines(path) for path in modules(project)}
    assert sum(sizes.values()) < MOST_IN_ALL
    tools: dict[str, int] = {}
    for path, lines in sizes.items():
        room = path.relative_to(project / "labkit").parts
        if len(room) > 1 and room[0] not in ("course",):
            tools[room[0]] = tools.get(room[0], 0) + lines
    assert {name: lines for name, lines in tools.items() if lines >= MOST_IN_A_TOOL} == {}


def code_lines(path: Path) -> int:
    """Lines of a file with code on them: no blanks, no comments, no docstrings."""
    with tokenize.open(path) as file:
        source = file.read()
    skip = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    used: set[int] = set()
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type not in skip:
            used.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                used.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(used)


def test_code_lines_are_counted_right(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(
        '"""Doc\n\nmore."""\n\n# why\nx = [\n    1,  # one\n]\n\n\ndef f():\n    """Doc."""\n    return x\n'
    )
    assert code_lines(sample) == 5


def test_labkit_never_prints_and_keeps_no_figure_alive(project: Path) -> None:
    for path in modules(project):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(project)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                assert path.name == "__main__.py", f"{where} prints; return a value that shows itself"
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "pyplot" not in ast.unparse(node), (
                    f"{where} uses pyplot, which keeps every figure alive"
                )


def test_labkit_never_asserts_what_a_person_gave_it(project: Path) -> None:
    """python -O drops an assert: it may only tell mypy what is not None or of which class."""
    for path in modules(project):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                text = ast.unparse(node.test)
                where = f"{path.relative_to(project)}:{node.lineno}"
                assert node.msg is None and re.search(r"is not None$|^isinstance\(", text), f"{where}: {text}"
