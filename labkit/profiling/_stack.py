"""Who asked: the user's frames that led to a statement, found as cheaply as Python allows."""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any

import greenlet  # type: ignore[import-untyped]

from labkit._frames import is_user_frame

DEEPEST = 32  # frames noted
MOST = 1000  # statements whose place is remembered
_LIBRARY, _USER, _BORDER = 0, 1, 2
# Where a framework calls an endpoint: what lies further out (middleware) did not ask for the statement.
_BORDERS = ("/fastapi/routing.py", "/starlette/routing.py", "/labkit/asgi.py")

_kinds: dict[str, int] = {}  # by file
_places: dict[str, tuple[int, CodeType, int]] = {}  # by statement: how deep the user's frame lay, where it stood


def stack(sql: str, depth: int) -> tuple[list[Any], Any]:
    """The user's frames from the inside out, as far as the framework that called the endpoint.

    Args:
        sql: what they ask; the same instruction asks it again as a rule.
        depth: of the first frame that may be the user's, seen from here.

    Returns:
        Code objects and positions by turns (few objects for the garbage collector to visit), and the Jinja template
        that the first frame belongs to.
    """
    found: list[Any] = []
    kinds, template, here = _kinds, None, None
    frame, known = _start(sql, depth)
    while True:
        while frame is not None:
            own = frame.f_code
            kind = kinds.get(own.co_filename)
            if kind is None:
                kind = _kind(own.co_filename, frame.f_globals.get("__name__"))
            if kind:
                if kind == _BORDER or len(found) == 2 * DEEPEST:
                    return found, template
                if not found:
                    template = frame.f_globals.get("__jinja_template__")
                    if not known and here is None:
                        if len(_places) >= MOST:
                            _places.clear()
                        _places[sql] = depth, own, frame.f_lasti
                found.append(own)
                found.append(frame.f_lasti)
            frame = frame.f_back
            depth += 1
        # An async engine runs in a greenlet of its own: go on in the coroutine that is waiting for it.
        here = (here or greenlet.getcurrent()).parent
        if here is None:
            return found, template
        frame = here.gr_frame


def _start(sql: str, depth: int) -> tuple[FrameType | None, bool]:
    """The frame to begin with, and whether it is the place that is known to run this statement.

    Each frame that Python shows costs time, so step over a library in one go where the same instruction runs the
    statement again from the same depth.
    """
    if (place := _places.get(sql)) is not None:
        try:
            frame = sys._getframe(place[0] + 1)
        except ValueError:  # called from less deep this time
            pass
        else:
            if frame.f_code is place[1] and frame.f_lasti == place[2]:
                return frame, True
    try:
        return sys._getframe(depth + 1), False
    except ValueError:  # a greenlet's stack ends here
        return None, False


def _kind(filename: str, module: str | None) -> int:
    border = filename.replace("\\", "/").endswith(_BORDERS)
    kind = _BORDER if border else _USER if is_user_frame(filename, module) else _LIBRARY
    if filename != "<string>":  # it depends on the module as well
        _kinds[filename] = kind
    return kind
