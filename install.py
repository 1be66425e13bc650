"""Make the environment in ``.venv`` from ``requirements.lock``: ``make .venv`` or ``python install.py``.

It needs nothing but a Python, and is written so that one too old can still read it and say so. While it works
``.venv/.making`` stands in the folder; ``.venv/.ready`` holds what it was made from once it is complete.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
MAKING, READY, LOG = VENV / ".making", VENV / ".ready", VENV / "install.log"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST = (3, 11)
# "Collecting rich==15.0.0 (from ...)", "Processing /a/folder/rich-15.0.0-py3-none-any.whl (from ...)"
PACKAGE = re.compile(
    r"^(?:Collecting|Processing|Requirement already satisfied:) (?:\S*/)?([A-Za-z][\w.]*(?:-[A-Za-z][\w.]*)*)"
    r"[^\n]*\(from -r requirements\.lock", re.MULTILINE)  # fmt: skip


class Stop(Exception):
    """A sentence that says what to do; nothing else can be done here."""


class Words:
    """The sentences of labkit/messages/install.toml, read without tomllib, which an old Python lacks."""

    def __init__(self, language: str, goal: str) -> None:
        self.goal = goal
        self.entries: dict[str, str] = {}
        name = ""
        for line in (ROOT / "labkit/messages/install.toml").read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                name = line.strip("[]")
            elif line.startswith(language + " = "):
                self.entries[name] = json.loads(line.split(" = ", 1)[1])

    def __call__(self, key: str, **values: object) -> str:
        return self.entries[key].format(goal=self.goal, **values)


def main(argv: "list[str] | None" = None) -> int:
    """Make or complete the environment; return the exit status. A failure says in one line what to do."""
    parser = argparse.ArgumentParser(description="Make the environment in .venv from requirements.lock.")
    parser.add_argument("--language", choices=["es", "en"], default=os.environ.get("LABKIT_LANG", "es"))
    parser.add_argument("--goal", default="lab", help="the make target to name in messages")
    parser.add_argument("--any", action="store_true", help="a ready .venv of another Python version will do")
    options = parser.parse_args(argv)
    say = Words(options.language, options.goal or "lab")
    try:
        make(say, any_version=options.any)
    except Stop as stop:
        print(stop, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n" + say("interrupted"), file=sys.stderr)
        return 130
    return 0


def make(say: Words, any_version: bool) -> None:
    """Bring .venv to what the lock says. Raises Stop with a sentence where that cannot be done."""
    key = wanted()
    made = READY.read_text(encoding="utf-8").split() if READY.exists() and PYTHON.exists() else []
    same_python = any_version or made[:1] == [version()]
    if made[1:] == [key] and same_python:
        return
    if not (made and same_python):
        check_interpreter(say)
    if MAKING.exists() or (VENV.exists() and not PYTHON.exists()):
        print(say("half_made"), flush=True)
        shutil.rmtree(str(VENV))
    elif made and not same_python:
        print(say("other_version", old=made[0], new=version()), flush=True)
        shutil.rmtree(str(VENV))
    began = time.monotonic()
    if not VENV.exists():
        print(say("create", version=version()), flush=True)
        VENV.mkdir()
        MAKING.touch()
        import venv

        venv.create(str(VENV), with_pip=True)
    install(say)
    probe = [str(PYTHON), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    READY.write_text(subprocess.check_output(probe, universal_newlines=True).strip() + " " + key, encoding="utf-8")
    if MAKING.exists():
        MAKING.unlink()
    print(say("ready", seconds=round(time.monotonic() - began)), flush=True)


def wanted() -> str:
    """A hash of the lock and of pyproject.toml up to its tool settings, which need no new install."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("\n[tool.")[0]
    return hashlib.sha256((project + (ROOT / "requirements.lock").read_text(encoding="utf-8")).encode()).hexdigest()


def version() -> str:
    """The version of the Python that runs this, as ``3.11``."""
    return "{}.{}".format(*sys.version_info[:2])


def check_interpreter(say: Words) -> None:
    """Raise Stop if this Python is too old or cannot make an environment."""
    if sys.version_info < OLDEST:
        newer = [name for name in ("python3.13", "python3.12", "python3.11") if shutil.which(name)]
        key, better = ("too_old_newer", newer[0]) if newer else ("too_old", "python3.12")
        raise Stop(say(key, python=sys.executable, version=version(), better=better))
    for module in ("venv", "ensurepip"):
        try:
            __import__(module)
        except ImportError as error:
            raise Stop(say("no_venv", module=module, version=version())) from error


def install(say: Words) -> None:
    """Run pip with its output in a log and a live count on the screen."""
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
    ]
    command += ["-r", "requirements.lock", "-e", "."]
    environment = dict(os.environ, PYTHONUNBUFFERED="1", LC_ALL="C.UTF-8")
    with LOG.open("wb") as log:
        pip = subprocess.Popen(command, cwd=str(ROOT), env=environment, stdout=log, stderr=subprocess.STDOUT)
    counter = Counter(say)
    try:
        while pip.poll() is None:
            time.sleep(0.2)
            counter.show(LOG.read_text(encoding="utf-8", errors="replace"))
    except KeyboardInterrupt:
        pip.wait()  # it got the same Ctrl-C and cleans up its temporary folders
        raise
    counter.end(LOG.read_text(encoding="utf-8", errors="replace"))
    if pip.returncode:
        raise Stop(diagnosis(say, LOG.read_text(encoding="utf-8", errors="replace")))


class Counter:
    """The live line: packages found so far, then packages unpacked; on a screen in place, else every 10 s."""

    def __init__(self, say: Words) -> None:
        lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        self.say, self.most = say, sum("==" in line for line in lines)
        self.before, self.phase, self.last = self.unpacked(), "", 0.0
        self.live = sys.stdout.isatty()

    @staticmethod
    def unpacked() -> int:
        return sum(1 for _ in VENV.glob("lib/python*/site-packages/*.dist-info")) + sum(
            1 for _ in VENV.glob("Lib/site-packages/*.dist-info")
        )

    def show(self, log: str) -> None:
        """Read off pip's output where it is; of the packages unpacked the folder itself tells."""
        found = PACKAGE.findall(log)
        _, unpacking, names = log.partition("\nInstalling collected packages: ")
        if unpacking:
            most = len(names.splitlines()[0].split(", "))
            self.step("unpack", f"{min(self.unpacked() - self.before, most)} / {most}")
        elif found:
            last = log.rstrip().splitlines()[-1]
            what = self.say("retrying") if "Retrying (" in last else found[-1]
            most = max(self.most - log.count("\nIgnoring "), len(found))
            self.step("download", f"{len(found)} / {most}  {what}")

    def step(self, phase: str, text: str) -> None:
        if phase != self.phase:
            self.end("")
            print(self.say(phase), flush=True)
            self.phase, self.last = phase, time.monotonic() if not self.live else 0.0
        if self.live:
            print(f"\r      {text:<70.70}", end="", flush=True)
        elif time.monotonic() - self.last > 10:
            self.last = time.monotonic()
            print("      " + text, flush=True)

    def end(self, log: str) -> None:
        if log:
            self.show(log)
        if self.live and self.phase:
            print(flush=True)


def diagnosis(say: Words, log: str) -> str:
    """Of pip's many lines the one sentence that helps."""
    errors = re.findall(r"^(?:ERROR|error): (.*)$", log, re.MULTILINE)
    line = (errors or log.strip().splitlines() or ["pip"])[-1].rstrip(".") + "."
    short = LOG.relative_to(ROOT)
    if "No module named pip" in log:
        return say("no_pip", line=line)
    if "No space left" in log or "Disk quota exceeded" in log:
        return say("no_space", folder=VENV)
    if re.search(r"Retrying \(|NewConnectionError|ConnectionError|ConnectTimeout|ReadTimeout|ProxyError", log):
        return say("no_network", log=short)
    if "No matching distribution" in log or "Failed building wheel" in log or "requires a different Python" in log:
        return say("no_package", line=line, log=short)
    return say("failed", line=line.rstrip("."), log=short)


if __name__ == "__main__":
    sys.exit(main())
