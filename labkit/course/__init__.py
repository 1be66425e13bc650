"""The lessons' side of labkit: editions, checks, hints, predictions, evidence, rubric and reports."""

from labkit.course.lesson import open_lesson

__all__ = ["open_lesson"]
