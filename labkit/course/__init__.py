"""The lessons' side of labkit: editions, checks, hints, predictions, evidence, rubric and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.course.lesson import open_lesson

__all__ = ["open_lesson"]


def __getattr__(name: str) -> Any:
    """Load a lesson's figures and tables when a lesson is opened: the launcher need not wait for them."""
    if name != "open_lesson":
        raise AttributeError(f"module 'labkit.course' has no attribute {name!r}")
    from labkit.course.lesson import open_lesson

    return open_lesson


def __dir__() -> list[str]:
    return sorted(__all__)
