"""The checks of lesson 03: metrics, middleware, health checks and an alert, judged by what they tell under faults."""

from __future__ import annotations

from collections.abc import Iterable

from labkit.course import report
from labkit.course.cards import words
from labkit.course.evidence import Event
from labkit.course.lessons._monitor_alert import check_3_7
from labkit.course.lessons._monitor_buckets import buckets
from labkit.course.lessons._monitor_counted import hang_up, inventory, statuses
from labkit.course.lessons._monitor_faults import has_postgres, scenarios, storm
from labkit.course.lessons._monitor_metrics import check_3_1, check_3_2
from labkit.course.lessons._monitor_middleware import check_3_3, check_3_4
from labkit.course.lessons._monitor_part import check_3_5
from labkit.course.lessons._monitor_whole import check_3_6

__all__ = [
    "buckets",
    "check_3_1",
    "check_3_2",
    "check_3_3",
    "check_3_4",
    "check_3_5",
    "check_3_6",
    "check_3_7",
    "hang_up",
    "has_postgres",
    "inventory",
    "report_sections",
    "scenarios",
    "statuses",
    "storm",
]


def report_sections(kept: dict[str, Event]) -> Iterable[str]:
    """The metrics, health under each fault, and the panel with its alert."""
    yield from _section(kept, "metrics", ("metric", "type", "series", "total"))
    yield from _section(kept, "health")
    yield from _section(kept, "panel", table=False)
    yield from _section(kept, "alert", table=False)


def _section(kept: dict[str, Event], name: str, columns: tuple[str, ...] = (), table: bool = True) -> Iterable[str]:
    yield from ["## " + words(f"lesson_03.section_{name}"), ""]
    if (event := kept.pop(name, None)) is None:
        yield from [words("lesson_03.not_measured"), ""]
        return
    if table and event["rows"]:
        names = columns or tuple(event["rows"][0])
        header = [words(f"lesson_03.column_{each}") for each in names] if columns else names
        yield from report.table(header, ([row[each] for each in names] for row in event["rows"]))
    yield from report.picture(event)
