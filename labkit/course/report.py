"""The delivery folder of the course text, written from the evidence: report, figures, modules and README.

Everything is written anew each time but the learner's own words, which stand between two markers and are
carried over. A file that she changed elsewhere is not lost either: it is kept beside as a backup.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit._text import duration, number
from labkit.course import deliverables, predictions, quality, rubric
from labkit.course.cards import LOOK, has, words
from labkit.course.evidence import Event, Evidence, write_atomically
from labkit.course.exercises import Outline
from labkit.course.progress import progress

FOLDER = "ejercicios-semana7"
BEGIN, END = "<!-- interpretation: begin -->", "<!-- interpretation: end -->"

# The course text's tree: what each lesson delivers.
TREE = {
    "lesson_01": (
        "profiling/profiler.py",
        "profiling/performance_test.py",
        "profiling/optimization_report.md",
    ),
    "lesson_02": (
        "cache/redis_setup.py",
        "cache/decorators.py",
        "cache/cached_endpoints.py",
        "cache/cache_performance_report.md",
    ),
    "lesson_03": (
        "monitoring/metrics.py",
        "monitoring/monitoring_middleware.py",
        "monitoring/health_checks.py",
        "monitoring/monitoring_report.md",
    ),
}

Sections = Callable[[dict[str, Event]], Iterable[str]]
"""What is particular to a lesson's report: Markdown lines from its measurements by name. Those that it takes out of
the dictionary are told; of the others the report still shows the pictures."""

_OWN = re.compile(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", re.DOTALL)


@dataclass
class Delivery:
    """What a report wrote: its path, every file, and the backups of files that were changed by hand."""

    report: Path
    files: list[Path] = field(default_factory=list)
    backups: list[Path] = field(default_factory=list)


def write(plan: Outline, evidence: Evidence, folder: Path, sections: Sections | None = None) -> Delivery:
    """Write what a lesson delivers into ``folder`` (``work/ejercicios-semana7``).

    Args:
        plan: the lesson.
        evidence: what was found in it.
        folder: where to.
        sections: of this lesson; by default what changed and what was found (``before_after``).

    Raises:
        OSError: if the folder cannot be written; the learner's words are untouched then.
        KeyError: if the lesson delivers no report.
    """
    target = next(path for path in TREE[plan.room] if path.endswith(".md"))
    delivery = Delivery(folder / target)
    modules = dict(_modules(plan, evidence))
    judged = [text for _, text in _modules(plan, evidence, own=True)]
    grades = rubric.levels(evidence, quality.measure(judged) if judged else None, room=plan.room)
    pictures = {event["picture"]: evidence.picture(event["picture"]) for event in evidence.kept().values()}
    found = predictions.predictions(evidence)
    if any(item.factor is not None for item in found):
        pictures["predictions.png"] = predictions.calibration(found, plan.room).png()
    hashes: dict[str, str] = {}
    for name, data in pictures.items():
        if data:
            write_atomically(delivery.report.parent / "figures" / name, data)
            delivery.files.append(delivery.report.parent / "figures" / name)
    shown = {name for name, data in pictures.items() if data}
    texts = modules | {target: "\n".join(_report(plan, evidence, grades, shown, sections or before_after))}
    for relative, text in texts.items():
        hashes[relative] = _write(delivery, folder / relative, text, evidence, relative)
    hashes["README.md"] = _write(delivery, folder / "README.md", "\n".join(_readme(folder)), evidence, "README.md")
    evidence.add("report", files=hashes)
    return delivery


def _write(delivery: Delivery, path: Path, text: str, evidence: Evidence, relative: str) -> str:
    """Put a text in place, the learner's words carried over, other changes backed up; returns its hash."""
    known = {event["files"].get(relative) for event in evidence.of("report")}
    if path.exists():
        old = path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
        if own := _OWN.search(old):
            text = _OWN.sub(lambda _: f"{BEGIN}\n{own[1]}{END}", text)
        if old != text and _skeleton(old) not in known:
            backup = next(
                p for n in range(1, 10_000) if not (p := path.with_name(f"{path.stem}.bak-{n}{path.suffix}")).exists()
            )
            path.replace(backup)
            delivery.backups.append(backup)
    write_atomically(path, text.encode())
    delivery.files.append(path)
    return _skeleton(text)


def _skeleton(text: str) -> str:
    return hashlib.sha256(_OWN.sub("", text).encode()).hexdigest()[:16]


def _modules(plan: Outline, evidence: Evidence, *, own: bool = False) -> Iterator[tuple[str, str]]:
    """Each module that the learner has written something of; with ``own``, without the cells she was given."""
    for file in dict.fromkeys(part.file for part in plan.parts):
        parts = [part for part in plan.parts if part.file == file and (part.exercise or not own)]
        cells = [_cell(evidence, part.cell, part.exercise) for part in parts]
        written = [(event["source"], event["needs"]) for event in cells if event]
        if any(event and event["kind"] == "check" for event in cells):
            yield file, deliverables.module(words("report.module", file=file, lesson=plan.name), written)


def _cell(evidence: Evidence, cell: str, exercise: str) -> Event | None:
    """The best version of a cell: the last one that passed, else the last one the learner worked on."""
    if not exercise:
        return next(reversed(evidence.of("part", cell=cell)), None)
    checks = [event for event in evidence.of("check", exercise=exercise) if event["source"]]
    passed = [event for event in checks if event["verdict"] == "done"]
    tried = [event for event in checks if event["verdict"] != "todo"]
    return next(reversed(passed or tried), None)


def _report(
    plan: Outline, evidence: Evidence, grades: list[rubric.Level], pictures: set[str], sections: Sections
) -> Iterator[str]:
    kept = {name: e | {"picture": e["picture"] * (e["picture"] in pictures)} for name, e in evidence.kept().items()}
    yield from [f"# {words(f'report.title_{plan.room}')}", "", words("report.made", lesson=plan.name), ""]
    yield from sections(kept)
    for event in kept.values():
        yield from picture(event)
    yield from _exercises(plan, evidence)
    yield from _predictions(plan, evidence, pictures)
    yield from _reflections(evidence)
    yield from ["## " + words("report.rubric"), ""]
    rows = [(level.name, level.grade, level.reason) for level in grades]
    yield from table((words("report.criterion"), words("report.level"), words("report.reason")), rows)
    invitation = f"{plan.room}.write_here" if has(f"{plan.room}.write_here") else "report.write_here"
    yield from ["## " + words("report.interpretation"), "", *_own_words(words(invitation))]


def before_after(kept: dict[str, Event]) -> Iterator[str]:
    """The sections of lesson 01: both endpoints side by side, then the findings."""
    yield from ["## " + words("report.before_after"), ""]
    if comparison := kept.pop("comparison", None):
        yield from _comparison(comparison)
        yield from picture(comparison)
    else:
        yield from [words("report.no_comparison"), ""]
    yield from ["## " + words("report.findings"), ""]
    yield from _findings(kept.values())


def _comparison(event: Event) -> Iterator[str]:
    values, rows = event["values"], event["rows"]
    medians = [row.get("median_s") for row in rows]
    times = [duration(m) if isinstance(m, float) and math.isfinite(m) else "-" for m in medians]
    before, after = [*times, "-", "-"][:2]
    ratio, low, high = (number(values[n], ",.3g") if n in values else "-" for n in ("ratio", "low", "high"))
    interval = f"{low} - {high}" if "high" in values else words("report.no_interval")  # it has no end: too few pairs
    rows = [
        (words("report.statements"), number(values["statements_a"]), number(values["statements_b"])),
        (words("report.median"), before, after),
        (words("report.same_answer"), "", words("report.yes" if values["same_body"] else "report.no")),
        (words("report.ratio"), "1", f"{ratio} ({interval})"),
        (words("report.promised"), "", f"{number(100 * values.get('improvement', 0.0), '.0f')} %"),
        (words("report.latency"), *[f"{number(values.get('latency_ms', 0.0), 'g')} ms"] * 2),
    ]
    yield from table(("", words("report.before"), words("report.after")), rows)


def _findings(events: Iterable[Event]) -> Iterator[str]:
    found = {(f["count"], f["place"], f["fix"]): None for event in events for f in event["findings"]}
    for count, place, fix in found:
        yield words("report.finding", count=count or 0, place=f"`{place}`", fix=f"`{' '.join(fix.split())}`")
    yield from [""] if found else []


def _exercises(plan: Outline, evidence: Evidence) -> Iterator[str]:
    rows = []
    for step in progress(plan, evidence).steps:
        checks = [e for e in evidence.of("check", exercise=step.id) if e["verdict"] == step.state]
        last = next(reversed(checks), None)
        state = f"{LOOK[step.state][0]} {words(f'course.state_{step.state}')}"
        rows.append((step.id, state, last["message"] if last else "-", str(step.checks), str(step.hints)))
    names = ("exercise", "state", "found", "checks", "hints")
    if rows:
        yield from ["## " + words("report.exercises"), ""]
        yield from table(tuple(words(f"report.column_{name}") for name in names), rows)


def _predictions(plan: Outline, evidence: Evidence, pictures: set[str]) -> Iterator[str]:
    found = predictions.predictions(evidence)
    if found:
        frame = predictions.frame(found, plan.room)
        yield from ["## " + words("report.predictions"), ""]
        yield from table(tuple(frame.columns), frame.to_numpy().tolist())
        if "predictions.png" in pictures:
            yield from picture({"picture": "predictions.png", "alt": words("report.calibration")})


def _reflections(evidence: Evidence) -> Iterator[str]:
    texts = {event["question"]: event["text"] for event in evidence.of("reflect")}
    if texts:
        yield from ["## " + words("report.reflections"), ""]
        for question, text in texts.items():
            yield from [f"**{question}**", "", text, ""]


def _readme(folder: Path) -> Iterator[str]:
    """The tree of the course text, with what is there and what is not yet."""
    yield from ["# " + words("report.readme_title"), "", words("report.readme_how"), "", "```", f"{FOLDER}/"]
    for paths in TREE.values():
        room = paths[0].partition("/")[0]
        yield f"├── {room}/"
        for path in paths:
            branch = "└──" if path == paths[-1] else "├──"
            here = (folder / path).exists()
            yield f"│   {branch} {path.partition('/')[2]}" + ("" if here else f"   ({words('report.pending')})")
    yield from ["└── README.md", "```", "", "## " + words("report.notes"), ""]
    yield from _own_words(words("report.notes_here"))


def _own_words(invitation: str) -> list[str]:
    return [BEGIN, "", invitation, "", END, ""]


def picture(event: Event | dict[str, Any]) -> list[str]:
    """The figure of a measurement, if it has one."""
    if not event["picture"]:
        return []
    alt = re.sub(r"[\[\]\n]", " ", event["alt"])
    return [f"![{alt}](figures/{event['picture']})", ""]


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """A Markdown table."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    header = list(header)
    yield line(header)
    yield line("---" for _ in header)
    yield from map(line, rows)
    yield ""
