"""The rubric of the course text: four criteria, levels 1 to 4, from the evidence alone.

Thresholds are applied to what is proven (the lower end of an interval), and a level is granted only with the
same answer and within the statement budget. Where nothing was measured the level is None, said as "without
evidence".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from labkit._text import number
from labkit.course.cards import words
from labkit.course.evidence import Evidence
from labkit.course.quality import Quality

Criterion = Literal["profiling", "cache", "monitoring", "quality"]
CRITERIA: tuple[Criterion, ...] = ("profiling", "cache", "monitoring", "quality")

IMPROVEMENT = (0.30, 0.50, 0.70)  # of the waiting time: satisfactory, good, excellent
HIT_RATE = (0.40, 0.60, 0.80)  # on the standard traffic
STATEMENTS = 3  # that the optimised endpoint may run
SEVERAL = 2  # problems solved that make "several", and strategies that make "multiple"
MONITORED = {"metrics": ("3.1", "3.2"), "middleware": ("3.3", "3.4"), "health": ("3.5", "3.6"), "alert": ("3.7",)}


@dataclass(frozen=True)
class Level:
    """One criterion: its level (1 to 4, None without evidence) and why."""

    criterion: Criterion
    level: int | None
    reason: str

    @property
    def name(self) -> str:
        """The criterion as the course text calls it."""
        return words(f"rubric.{self.criterion}")

    @property
    def grade(self) -> str:
        """The level in words: "Excelente (4)"."""
        return words(f"rubric.level_{self.level or 'none'}")


def reached(value: float, thresholds: Sequence[float]) -> int:
    """The level that a value earns: 1 below the first threshold, one more from each on."""
    return 1 + sum(value >= threshold for threshold in thresholds)


def levels(evidence: Evidence, quality: Quality | None = None, *, room: str = "lesson_01") -> list[Level]:
    """All four criteria for the evidence of one lesson and the quality of its modules.

    Args:
        evidence: of the lesson.
        quality: of the modules that the learner wrote in it.
        room: the lesson's; each of the first three criteria is that of one lesson.
    """
    found = {"quality": _quality(quality)}
    if room == "lesson_01":
        found["profiling"] = _profiling(evidence)
    if room == "lesson_02":
        found["cache"] = _cache(evidence)
    if room == "lesson_03":
        found["monitoring"] = _monitoring(evidence)
    nothing = words("rubric.no_evidence")
    return [found.get(criterion) or Level(criterion, None, nothing) for criterion in CRITERIA]


def _profiling(evidence: Evidence) -> Level | None:
    kept = evidence.kept().get("comparison")
    if kept is None:
        return None
    values = kept["values"]
    low = float(values.get("low") or 0.0)
    saved = max(0.0, 1 - 1 / low) if low > 0 else 0.0
    statements = int(values["statements_b"])
    solved = len({event["exercise"] for event in evidence.of("check", verdict="done")})
    if not values["same_body"]:
        return Level("profiling", 1, words("rubric.other_answer"))
    if statements > STATEMENTS:
        return Level("profiling", 1, words("rubric.too_many", count=statements, budget=STATEMENTS))
    level = reached(saved, IMPROVEMENT)
    level = min(level, 1 if not solved else 3 if solved < SEVERAL else 4)
    reason = words("rubric.improvement", saved=number(100 * saved, ".0f"), statements=statements, solved=solved)
    return Level("profiling", level, reason)


def _cache(evidence: Evidence) -> Level | None:
    """From what is kept as ``traffic`` (of the learner's own decorator) and as ``strategies``."""
    kept = evidence.kept()
    if (traffic := kept.get("traffic")) is None:
        return None
    values, compared = traffic["values"], len(kept["strategies"]["rows"]) if "strategies" in kept else 0
    if values["foreign"] or values["failed"]:
        return Level("cache", 1, words("rubric.wrong_answers", foreign=values["foreign"], failed=values["failed"]))
    rate = float(values["hit_rate"])
    level = min(reached(rate, HIT_RATE), 4 if compared >= SEVERAL else 3)
    rate_text = number(100 * rate, ".1f")
    reason = words("rubric.hit_rate", rate=rate_text, requests=values["requests"], strategies=compared)
    return Level("cache", level, reason)


def _monitoring(evidence: Evidence) -> Level | None:
    """By the parts of the system that are whole: metrics, which the middleware feeds, health checks, then the rest.

    The best level is for all of it, with a panel that has watched requests.
    """
    tried = {event["exercise"] for event in evidence.of("check") if event["verdict"] != "todo"}
    if not tried:
        return None
    solved = {event["exercise"] for event in evidence.of("check", verdict="done")}
    done: dict[str, Any] = {part: sum(id in solved for id in ids) for part, ids in MONITORED.items()}
    rows = evidence.kept().get("panel", {}).get("rows", [])
    panel = any((row.get("status_2xx") or 0) > 0 for row in rows)
    metrics, middleware, health, alert = (done[part] == len(ids) for part, ids in MONITORED.items())
    level = 1 + metrics * (middleware + health)
    level += level == 3 and alert and panel
    said = words(f"rubric.panel_{'yes' if panel else 'no'}")
    return Level("monitoring", level, words("rubric.monitored", **done, panel=said))


def _quality(quality: Quality | None) -> Level | None:
    if quality is None or quality.findings is None or not quality.functions:
        return None
    findings, share = len(quality.findings), quality.documented / quality.functions
    if findings == 0 and share == 1 and quality.longest <= 40:
        level = 4
    elif findings <= 3 and share >= 0.5 and quality.longest <= 60:
        level = 3
    else:
        level = 2 if findings <= 10 else 1
    reason = words(
        "rubric.measured",
        findings=findings,
        documented=quality.documented,
        functions=quality.functions,
        longest=quality.longest,
    )
    return Level("quality", level, reason)
