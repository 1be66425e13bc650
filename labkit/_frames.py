"""Whose line is it: tell the learner's own frames from those of libraries, and name them as she would.

A frame is the user's unless its file belongs to the standard library, to an installed package or to labkit
itself (the application in ``labkit.blog`` counts as the user's). In a notebook a place reads
"celda [5], línea 6".
"""

from __future__ import annotations

import linecache
import os
import re
import sys
import sysconfig
import traceback
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import NamedTuple

from labkit._text import say

_HERE = str(Path(__file__).resolve().parent) + os.sep
_BLOG = f"{_HERE}blog{os.sep}"
_FOREIGN = tuple(
    str(Path(path).resolve()) + os.sep
    for path in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")}
    if path
)
_PACKAGES = re.compile(r"[/\\](site|dist)-packages[/\\]")
_TYPED = ("<stdin>", "<ipython-input", "<cell", "<doctest")


class Site(NamedTuple):
    """A line of the user's code: its file, its number and the function that it stands in."""

    file: str
    line: int
    function: str

    @property
    def place(self) -> str:
        """The site as a person reads it: ``celda [5], línea 6`` or ``app/routers/users.py:12``."""
        return place(self.file, self.line)


@lru_cache(maxsize=4096)
def is_user_frame(filename: str, module: str | None = None) -> bool:
    """Whether code from ``filename`` (in the module of this name) was written by the user. Cached: 0.1 µs."""
    if filename.startswith("<"):
        return filename.startswith(_TYPED) or (filename == "<string>" and module == "__main__")
    paths = (str(Path(filename).absolute()), str(Path(filename).resolve()))  # links may lead out and in
    if any(path.startswith(_BLOG) for path in paths):
        return True
    return not any(path.startswith((_HERE, *_FOREIGN)) or _PACKAGES.search(path) for path in paths)


def user_site(frame: FrameType | None) -> Site | None:
    """The innermost line of the user's in this frame and its callers, or None."""
    while frame is not None:
        code = frame.f_code
        if is_user_frame(code.co_filename, frame.f_globals.get("__name__")):
            return Site(code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    return None


def cell_number(filename: str) -> str | None:
    """The number of the notebook cell that was compiled as ``filename``, or None if it is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    name = shell.compile.format_code_name(filename) if shell is not None else None
    return name[1].removeprefix("In[").removesuffix("]") if name else None


def place(where: FrameType | CodeType | str, line: int | None = None) -> str:
    """Name a line as its author knows it.

    Args:
        where: a frame, a code object or a file name.
        line: the line number; default: the current one of a frame, the first one of a code object.
    """
    if isinstance(where, FrameType):
        file, line = where.f_code.co_filename, line or where.f_lineno
    elif isinstance(where, CodeType):
        file, line = where.co_filename, line or where.co_firstlineno
    else:
        file = where
    if (cell := cell_number(file)) is not None:
        return say("core.cell_line", cell=cell, line=line) if line else say("core.cell", cell=cell)
    for base in (Path.cwd(), Path(_HERE).parent):
        if Path(file).is_relative_to(base):
            file = str(Path(file).relative_to(base))
            break
    return f"{file}:{line}" if line else file


def user_traceback(error: BaseException) -> TracebackType | None:
    """The traceback of ``error`` with the user's frames alone, or None if it never passed her code."""
    own, step = [], error.__traceback__
    while step is not None:
        frame = step.tb_frame
        if is_user_frame(frame.f_code.co_filename, frame.f_globals.get("__name__")):
            own.append(step)
        step = step.tb_next
    kept: TracebackType | None = None
    for step in reversed(own):
        kept = TracebackType(kept, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return kept


def lines(error: BaseException) -> list[str]:
    """The user's lines that an exception passed, outermost first: the place of each, then its source."""
    found, step = [], user_traceback(error)
    while step is not None:
        code = step.tb_frame.f_code
        found.append(say("core.frame", place=place(code, step.tb_lineno), function=code.co_name))
        if source := linecache.getline(code.co_filename, step.tb_lineno).strip():
            found.append(f"    {source}")
        step = step.tb_next
    return found


def describe(error: BaseException) -> str:
    """What a learner needs of an exception: her own lines, outermost first, then its type and message.

    An explicit cause (``raise ... from ...``) comes first; a group of one is opened.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    cause = [describe(error.__cause__), ""] if error.__cause__ is not None else []
    return "\n".join([*cause, *lines(error), "".join(traceback.format_exception_only(error)).rstrip()])
