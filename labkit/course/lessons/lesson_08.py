"""The trap gallery: how each trap is measured, and where the traps that have no card here are met."""

from __future__ import annotations

from labkit.course.gallery import Measure
from labkit.course.lessons import (
    _traps_1_database,
    _traps_1_loop,
    _traps_1_profiler,
    _traps_2_keys,
    _traps_2_values,
    _traps_2_waiting,
    _traps_3_middleware,
    _traps_3_probes,
    _traps_3_workers,
)

MODULES = (
    _traps_1_profiler,
    _traps_1_loop,
    _traps_1_database,
    _traps_2_keys,
    _traps_2_values,
    _traps_2_waiting,
    _traps_3_middleware,
    _traps_3_probes,
    _traps_3_workers,
)
"""Each has a function a trap, by the trap's id in small letters: ``t12(ctx, trap, cure) -> Found``."""

PLACES: dict[int, dict[str, str]] = {
    1: {f"T{number:02}": "" for number in (*range(1, 22), 59, 60, 63)},
    2: {f"T{number:02}": "" for number in (*range(22, 43), 61, 62)},
    3: {f"T{number:02}": "" for number in range(43, 59)},
}
"""The traps of the course text by exercise, and the lesson on whose path each lies: empty for those that need none.

T63 is in no exercise: textbooks say that eager loading is always the cure.
"""

for _exercise, _lesson, _ids in (
    (1, "01", "T02 T04 T06 T09 T10 T11 T15 T20"),
    (1, "03", "T07"),
    (2, "02", "T23 T24 T25 T26 T33 T35 T36 T39 T62"),
    (3, "03", "T44 T45 T46 T47 T48 T52 T54 T57"),
):
    PLACES[_exercise] |= dict.fromkeys(_ids.split(), _lesson)


def measures() -> dict[str, Measure]:
    """The measurement of each trap, by its id."""
    return {
        name.upper(): function
        for module in MODULES
        for name, function in vars(module).items()
        if name.upper() in {id for traps in PLACES.values() for id in traps}
    }
