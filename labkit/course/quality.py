"""The quality of the learner's own code, measured: ruff's findings, docstrings, size."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.course.markers import definitions

# Errors, undefined and unused names, naming, likely bugs, needless complexity.
RULES = "E,F,W,N,B,C4,SIM,C901"


@dataclass(frozen=True)
class Quality:
    """What was measured on some modules.

    Attributes:
        findings: ruff's findings as ``"E711 message"``; None if ruff is not installed.
        functions: how many functions and classes there are.
        documented: how many of them have a docstring.
        longest: lines of the longest function.
    """

    findings: tuple[str, ...] | None
    functions: int
    documented: int
    longest: int


def measure(modules: Sequence[str]) -> Quality:
    """Measure modules given as text."""
    lint = [ruff(text) for text in modules]
    outer = [node for text in modules for node in definitions(text).values()]
    public = [node for node in outer if not node.name.startswith("_")]
    return Quality(
        findings=None if None in lint else tuple(found for each in lint for found in each or ()),
        functions=len(public),
        documented=sum(ast.get_docstring(node) is not None for node in public),
        longest=max(((node.end_lineno or node.lineno) - node.lineno + 1 for node in outer), default=0),
    )


def ruff(text: str) -> list[str] | None:
    """Ruff's findings on a module; None if it is not installed or gives no answer."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--output-format", "json"]
    command += [
        "--select",
        RULES,
        "--ignore",
        "B008",
        "--line-length",
        "110",
        "--stdin-filename",
        "module.py",
        "-",
    ]
    try:
        ran = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
        return [f"{found['code']} {found['message']}" for found in json.loads(ran.stdout)]
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
