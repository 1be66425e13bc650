"""Fold thousands of call stacks into a picture: the user's functions by name, each library one box."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from labkit import plots
from labkit._frames import is_user_frame
from labkit._text import number, say

Frame = tuple[str, str]  # file and function; "" is the file of what is not written in Python
Stack = tuple[Sequence[Frame], float]  # outermost frame first, and the seconds spent in the innermost
AWAIT: Frame = ("", "[await]")

_PACKAGE = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+?)(?:\.py)?(?:[/\\]|$)")
BORDER = re.compile(r"asyncio[/\\]events\.py$|labkit[/\\]profiling[/\\]calls\.py$")
_FRAMEWORK = {"fastapi", "starlette", "anyio", "uvicorn"}
_STDLIB, _OURS = "python", "labkit"


@lru_cache(maxsize=8192)
def _box(file: str, function: str) -> tuple[str, bool] | None:
    """Name of the box that a frame belongs to and whether it is the user's; None: to that of its caller."""
    if (file, function) == AWAIT:
        return say("profiling.waiting"), False
    if not file or file.startswith("<") or file.endswith("_endpoints.py"):
        return ("sleep", False) if function.endswith("sleep") and not file else None
    if is_user_frame(file):
        name = function.rpartition("<locals>.")[2]
        return None if name.startswith("<") else (name, True)
    package = _PACKAGE.search(file)
    if package is None:
        folder = re.split(r"[/\\]", file)[-2:]
        name = (
            _OURS if _OURS in file else folder[0] if folder[0] in {"asyncio", "sqlite3", "json"} else _STDLIB
        )
    else:
        name = package[1]
    return ("fastapi" if name in _FRAMEWORK else name), False


class _Box:
    def __init__(self) -> None:
        self.value, self.own, self.inner = 0.0, False, dict[str, _Box]()

    def node(self, name: str, least: float) -> plots.Node:
        inner = [box.node(key, least) for key, box in self.inner.items() if box.value > least]
        inner.sort(key=lambda node: -node.value)
        return plots.Node(name, self.value, tuple(inner), self.own)


def fold(stacks: Iterable[Stack], name: str) -> plots.Node:
    """The tree of the stacks under a root called ``name``.

    What comes before the request (thread and loop machinery, labkit itself) is cut off, neighbours of one library
    are one box, FastAPI with the packages it stands on counts as one library, and boxes under 0.2 % are left out.
    """
    root = _Box()
    for stack, seconds in stacks:
        box, last = root, None
        root.value += seconds
        start = max((i for i, (file, _) in enumerate(stack, 1) if BORDER.search(file)), default=0)
        for label in (_box(*frame) for frame in stack[start:]):
            if label is None or label == last or (box is root and label[0] in (_STDLIB, _OURS)):
                continue
            last = label
            box = box.inner.setdefault(label[0], _Box())
            box.own = label[1]
            box.value += seconds
    return root.node(name, 0.002 * root.value)


def finding(root: plots.Node) -> str:
    """In one line, where the time goes: the deepest function of the user's with half of it, and what it calls."""
    node, user = root, None
    while node.children and (heaviest := max(node.children, key=lambda child: child.value)):
        if heaviest.value < root.value / 2:
            break
        node = heaviest
        user = node if node.own else user
    path = [user or node]
    if path[0].children and (callee := max(path[0].children, key=lambda child: child.value)):
        path += [callee] if callee.value > root.value / 4 else []
    share = number(path[-1].value / (root.value or 1), ".0%").replace("%", " %")
    return say("profiling.finding", share=share, path=" → ".join(node.name for node in path))
