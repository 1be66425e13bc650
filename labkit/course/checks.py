"""The verdict engine: runs a check on what the learner wrote, answers with a card, never raises, never hangs.

A lesson's checks are plain functions ``check_1_3(ctx, thing) -> Verdict`` in
``labkit/course/lessons/lesson_01.py``. They return or raise a verdict made with ``done``, ``almost``,
``todo`` or ``inconclusive``; its key names a sentence of the lesson's catalogue
(``labkit/course/messages/lesson_01.toml``), and ``<key>_hint`` the hint for that very answer. Keys of another
catalogue are written with their room (``"course.wrong_type"``).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import linecache
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from labkit import _frames
from labkit._threads import Stopped, stop
from labkit.course.cards import Card, State, has, words
from labkit.course.exercises import Exercise, Outline
from labkit.course.markers import fingerprints
from labkit.errors import LabkitError

T = TypeVar("T")

CALL_LIMIT = 8.0
"""Seconds that one call of what the learner wrote may take; those that are right take a small part of one."""

TICK = 0.1
"""Seconds between two looks at a check. A look that comes late counts for two: a machine that stood still (asleep,
busy with others) is not held against the learner."""


class Verdict(Exception):
    """What a check found; may be returned or raised."""

    def __init__(self, state: State, key: str, **counts: Any) -> None:
        super().__init__(key)
        self.state, self.key, self.counts = state, key, counts


def done(key: str, **counts: Any) -> Verdict:
    """Solved."""
    return Verdict("done", key, **counts)


def almost(key: str, **counts: Any) -> Verdict:
    """Runs and is not right yet: the sentence says what is left, in counts."""
    return Verdict("almost", key, **counts)


def todo(key: str, **counts: Any) -> Verdict:
    """Not begun (the engine tells an untouched starter by itself)."""
    return Verdict("todo", key, **counts)


Check = Callable[["Context", Any], Verdict]


@dataclass
class Context:
    """What a check may use.

    Attributes:
        room: the lesson's catalogue, ``"lesson_01"``.
        exercise: the exercise under check.
        lab: the Lab of the lesson; a check that needs one may rely on it.
        seed: for hidden data, new at each check, shown when the check is not passed.
        written: the learner's cell, if the thing is a function or class of hers.
        untouched: whether that still is the starter.
        calling: the call of the learner's code that is under way, another object each time; None outside of one.
    """

    room: str
    exercise: Exercise
    _lab: Any = None
    _seed: int = 0
    seed_used: bool = False
    kept: dict[str, Any] = field(default_factory=dict)
    written: str = ""
    untouched: bool = False
    calling: object = None

    @property
    def lab(self) -> Any:
        if self._lab is None:
            raise LabkitError(words("course.no_lab"))
        return self._lab

    @property
    def seed(self) -> int:
        self.seed_used = True
        return self._seed

    def words(self, key: str, **values: Any) -> str:
        """A sentence of the lesson's catalogue, to be put into another."""
        return words(key if "." in key else f"{self.room}.{key}", **values)

    def keep(self, name: str, result: Any) -> None:
        """Put a measurement into the evidence: the report and the rubric read it (see ``Lesson.keep``)."""
        self.kept[name] = result

    def require(self, condition: object, key: str, **counts: Any) -> None:
        """Raise ``almost(key)`` unless the condition holds."""
        if not condition:
            raise almost(key, **counts)

    def answer(self, path: str, method: str = "GET", **kwargs: Any) -> Any:
        """The Lab's reply; an endpoint that raised becomes a verdict ``error`` with the learner's line."""
        reply = self.lab.request(method, path, **kwargs)
        if error := getattr(reply, "error", None):
            raise Verdict("error", "course.endpoint_raised", path=path, code=str(error))
        return reply

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what the learner wrote; parameters that do not fit are her mistake and no fault of the check."""
        signature = inspect.signature(function)
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            given = len(args) + len(kwargs)
            raise almost("course.parameters", name=function.__name__, wanted=str(signature), given=given) from None
        with self.limited():
            return function(*args, **kwargs)

    def run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Run a coroutine function of the learner to its end, in a loop of its own."""
        with self.limited():
            return asyncio.run(function(*args, **kwargs))

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Code of the learner runs here: past ``CALL_LIMIT`` seconds it is ended, long before the check would be."""
        self.calling = object()
        try:
            yield
        finally:
            self.calling = None

    def source(self, thing: Any) -> str:
        """The whole cell or file in which the learner wrote a function or class; empty if unknown."""
        return source_of(thing)

    def is_starter(self, thing: Any) -> bool:
        """Whether the exercise's functions still are the starter's, whatever their layout and comments."""
        if not self.exercise.functions:
            return False
        try:
            written = fingerprints(self.source(thing))
        except SyntaxError:
            return False
        return all(written.get(name) == print_ for name, print_ in self.exercise.functions.items())

    def is_learners(self, thing: Any) -> bool:
        """Whether the learner wrote it: a function or class of the notebook itself."""
        return getattr(inspect.unwrap(thing) if callable(thing) else thing, "__module__", None) == "__main__"


def source_of(thing: Any) -> str:
    """The text of the cell or file that defines a function or class; empty if unknown."""
    if inspect.isclass(thing):
        thing = next((item for item in vars(thing).values() if inspect.isfunction(item)), thing)
    code = getattr(inspect.unwrap(thing), "__code__", None) if callable(thing) else None
    return "".join(linecache.getlines(code.co_filename)) if code else ""


@dataclass(frozen=True)
class Outcome:
    """A verdict with what the evidence keeps of it."""

    card: Card
    key: str
    source: str = ""
    kept: Mapping[str, Any] = field(default_factory=dict)


def run_check(
    check: Check | None,
    outline: Outline,
    exercise: Exercise,
    thing: Any,
    *,
    lab: Any = None,
    limit: float = 60.0,
    seed: int | None = None,
) -> Outcome:
    """Judge ``thing`` and say it in a card.

    The check runs in a thread of its own (so that it may start an event loop where the notebook's runs) and
    is ended after ``limit`` seconds, one call of the learner's after ``CALL_LIMIT``. Nothing is raised but
    ``KeyboardInterrupt``.
    """
    ctx = Context(outline.room, exercise, lab, secrets.randbelow(1_000_000) if seed is None else seed)
    verdict = _in_thread(ctx, lambda: _judge(ctx, check, thing), limit)
    try:
        card = _card(ctx, verdict)
    except Exception as error:  # a sentence that does not fit its values must not stop a lesson either
        card = _card(ctx, _from_exception(error))
    return Outcome(card, verdict.key, ctx.written, ctx.kept)


def _judge(ctx: Context, check: Check | None, thing: Any) -> Verdict:
    if check is None:
        return Verdict("error", "course.no_check", id=ctx.exercise.id)
    if (verdict := _first_look(ctx, thing)) is not None:
        return verdict
    if callable(thing) and ctx.is_learners(thing):
        ctx.written, ctx.untouched = ctx.source(thing), ctx.is_starter(thing)
    return check(ctx, thing)


def _first_look(ctx: Context, thing: Any) -> Verdict | None:
    """Missing, of the wrong type, or not the learner's own."""
    if thing is None or thing is ...:
        return todo("course.missing")
    if not ctx.exercise.functions:
        return None
    if not callable(thing):
        return almost("course.wrong_type", type=type(thing).__name__, name=", ".join(ctx.exercise.functions))
    return None if ctx.is_learners(thing) else almost("course.not_yours")


def _in_thread(ctx: Context, work: Callable[[], Verdict], limit: float) -> Verdict:
    box: list[Verdict] = []
    over = threading.Event()  # not the thread's own join and is_alive: on Python 3.11 an interrupt makes these lie

    def target() -> None:
        try:
            box.append(work())
        except Stopped:
            pass
        except BaseException as error:  # a learner's sys.exit() must not pass as silence
            box.append(error if isinstance(error, Verdict) else _from_exception(error))
        finally:
            over.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(target,), daemon=True, name="labkit-check")
    thread.start()
    try:
        late = _watch(ctx, over, limit)
    finally:
        if not over.is_set() and thread.ident:  # a loop in Python code is ended; a blocked C call is left behind
            stop(thread.ident)
    if not box:
        return late
    return box[0] if isinstance(box[0], Verdict) else _from_exception(TypeError(f"no verdict: {box[0]!r}"))


def _watch(ctx: Context, over: threading.Event, limit: float) -> Verdict:
    """Wait for a check until its time, or that of a call within it, is up; what to say in that case."""
    spent, within, call, last = 0.0, 0.0, ctx.calling, time.monotonic()
    while True:
        over.wait(min(TICK, limit))
        now = time.monotonic()
        passed, last = min(now - last, 2 * TICK), now
        spent += passed
        within, call = (within + passed if call is ctx.calling else 0.0), ctx.calling
        if over.is_set() or spent > limit:
            return Verdict("error", "course.too_long", limit=limit)
        if call is not None and within > CALL_LIMIT:
            return Verdict("error", "course.call_too_long", limit=CALL_LIMIT)


def _from_exception(error: BaseException) -> Verdict:
    if _frames.user_traceback(error) is not None:
        return Verdict("error", "course.raised", type=type(error).__name__, code=_frames.describe(error))
    if isinstance(error, LabkitError):
        return Verdict("error", "course.told", text=str(error))
    return Verdict("inconclusive", "course.check_failed", error=f"{type(error).__name__}: {error}")


def _card(ctx: Context, verdict: Verdict) -> Card:
    state: State = "todo" if ctx.untouched else verdict.state
    key = verdict.key if "." in verdict.key else f"{ctx.room}.{verdict.key}"
    message = words(key, **verdict.counts)
    message = words("course.untouched", measured=message) if ctx.untouched else message
    hint_key = f"{key}_hint" if state in ("almost", "error") and has(f"{key}_hint") else ""
    return Card(
        verdict=state,
        message=message,
        hint_key=hint_key,
        counts={name: value for name, value in verdict.counts.items() if name != "code"},
        title=words("course.exercise", id=ctx.exercise.id),
        hint=words(hint_key, **verdict.counts) if hint_key else "",
        note=words("course.seed", seed=ctx._seed) if ctx.seed_used and state != "done" else "",
        code=str(verdict.counts.get("code", "")),
    )
