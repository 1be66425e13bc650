"""Fold thousands of call stacks into a picture: the user's functions by name, each library one box."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from labkit import plots
from labkit._frames import is_user_frame
from labkit._text import number, say
from labkit.settings import language

Frame = tuple[str, str]  # file and function; "" is the file of what is not written in Python
Stack = tuple[Sequence[Frame], float]  # outermost frame first, and the seconds spent in the innermost
AWAIT: Frame = ("", "[await]")

_OURS = str(Path(plots.__file__).parent)
_PACKAGE = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+?)(?:\.py)?(?:[/\\]|$)")
_BORDER = re.compile(
    r"(asyncio[/\\]events|labkit[/\\]profiling[/\\](calls|_endpoints))\.py:"
    r"|fastapi[/\\]routing\.py:(run_endpoint_function|_run_sync_endpoint)$"
)
_FRAMEWORK = {"fastapi", "starlette", "anyio", "uvicorn", "click"}
_LEADING = ("python", "labkit")  # no box where they come first
_NAMED = {"asyncio", "json", "sqlite3"}  # worth a box of their own; the rest of the library is "python"


@lru_cache(maxsize=8192)
def is_border(frame: Frame) -> bool:
    """Whether what lies above this frame is machinery: of the loop, of labkit, of FastAPI around an
    endpoint."""
    return bool(_BORDER.search(":".join(frame)))


@lru_cache(maxsize=8192)
def _box(frame: Frame, lang: str) -> tuple[str, bool] | None:
    """Name of the box that a frame belongs to and whether it is the user's; None: to that of its caller."""
    file, function = frame
    if frame == AWAIT:
        return say("profiling.waiting", lang), False
    if not file or file.startswith("<"):
        return ("sleep", False) if not file and function.endswith("sleep") else None
    if is_user_frame(file):
        name = function.rpartition("<locals>.")[2]
        return None if name.startswith("<") else (name, True)
    if file.startswith(_OURS):
        return (say("profiling.latency", lang) if file.endswith("faults.py") else "labkit"), False
    package, folder = _PACKAGE.search(file), re.split(r"[/\\]", file)[-2]
    name = package[1] if package else folder if folder in _NAMED else "python"
    return ("fastapi" if name in _FRAMEWORK else name), False


@dataclass
class _Box:
    own: bool = False
    value: float = 0.0
    inner: dict[str, _Box] = field(default_factory=dict)

    def node(self, name: str, least: float) -> plots.Node:
        inner = [box.node(key, least) for key, box in self.inner.items() if box.value > least]
        inner.sort(key=lambda node: -node.value)
        return plots.Node(name, self.value, tuple(inner), self.own)


class Pictured:
    """Something with a ``label`` and ``stacks`` that can be drawn."""

    label: str
    stacks: Sequence[Stack]

    @cached_property
    def tree(self) -> plots.Node:
        """Calls as boxes in boxes. Neighbours of one library are one box, FastAPI counts as one library
        with the packages it stands on, machinery outside of the request is cut off, and so is what takes
        under 0.2 %."""
        root, lang = _Box(), language()
        # Latency is simulated by sleeping: that is not a sleep of the user's.
        hides: dict[object, object] = {(say("profiling.latency", lang), False): ("sleep", False)}
        for stack, seconds in self.stacks:
            box, last = root, None
            root.value += seconds
            start = max((i for i, frame in enumerate(stack, 1) if is_border(frame)), default=0)
            for label in (_box(frame, lang) for frame in stack[start:]):
                if label and label not in (last, hides.get(last)) and (box is not root or label[0] not in _LEADING):
                    last, box = label, box.inner.setdefault(label[0], _Box(label[1]))
                    box.value += seconds
        return root.node(self.label, 0.002 * root.value)

    def plot(self) -> plots.Figure:
        """The calls as an icicle: callers above, what they call below, width for time, your code in
        colour."""
        return plots.icicle(self.tree, finding(self.tree), say("profiling.icicle_alt", label=self.label))


def finding(root: plots.Node) -> str:
    """In one line, where the time goes: the deepest function of the user's with half of it, and what it
    calls."""
    path, node = [root], root
    while node.children and node.children[0].value > root.value / 2:
        node = node.children[0]
        path = [node] if node.own or not path[0].own else path
    if path[0].children and path[0].children[0].value > root.value / 4:
        path.append(path[0].children[0])
    share = number(path[-1].value / (root.value or 1), ".0%")
    return say("profiling.finding", share=share, path=" → ".join(node.name for node in path))
