"""A learner's endpoint in an application for as long as a trap is measured, and not a moment longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labkit.course.checks import Verdict

PATH = "/check/trap"


@contextmanager
def mounted(app: Any, endpoint: Callable[..., Any]) -> Iterator[None]:
    """The application with a function under ``PATH``; what FastAPI refuses becomes a verdict in its words."""
    try:
        app.add_api_route(PATH, endpoint, response_model=None)
    except Exception as error:  # FastAPI's own: a parameter without Depends, say
        raise Verdict("error", "course.told", text=str(error).split(". ")[0]) from None
    route = app.router.routes[-1]
    try:
        yield
    finally:
        app.router.routes.remove(route)
