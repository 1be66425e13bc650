"""Traps of Exercise 1 that lie in the decorator that profiles and times."""

from __future__ import annotations

import asyncio
import cProfile
import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import FunctionType, SimpleNamespace
from typing import Any

from fastapi import Depends
from sqlalchemy import select
from sqlalchemy.orm import Session

from labkit.blog import Comment, Post, User, get_db
from labkit.course.checks import Context
from labkit.course.lessons._copies import copy_of
from labkit.course.lessons._mounting import PATH, mounted
from labkit.course.trapcard import Found, judged
from labkit.stats import Ratio, compare, times

REQUESTS, STEPS = 10, 10
FOREIGN = 200
STEP_BACK = 2.0
ROUNDS = 10

Report = Callable[[Mapping[str, int]], None]
Decorator = Callable[..., Callable[..., Any]]


def t03(ctx: Context, trap: Decorator, cure: Decorator) -> Found:
    """Ten requests side by side, each profiled: how many profiles hold their own calls and no others."""
    (right, failed, foreign), (cured, _, _) = (ctx.run(_side_by_side, decorator) for decorator in (trap, cure))
    says = "effect" if right == REQUESTS or failed else "mixed"
    return judged(right, cured, bad=lambda n: n < REQUESTS, says=says, failed=failed, foreign=foreign)


async def _side_by_side(decorator: Decorator) -> tuple[int, int, int]:
    """Profiles that are right, requests that failed, and calls of others in the profiles that there are."""
    steps = {f"step_{n}": _named(_nothing, f"step_{n}") for n in range(REQUESTS)}
    reports: dict[str, Mapping[str, int]] = {}

    def request(name: str) -> Callable[[], Any]:
        async def work() -> None:
            for _ in range(STEPS):
                steps[name]()
                await asyncio.sleep(0)

        return decorator(work, lambda calls: reports.__setitem__(name, calls))

    answers = await asyncio.gather(*(request(name)() for name in steps), return_exceptions=True)
    seen = {name: {step: calls[step] for step in steps if calls.get(step)} for name, calls in reports.items()}
    right = sum(calls == {name: STEPS} for name, calls in seen.items())
    foreign = sum(count for name, calls in seen.items() for step, count in calls.items() if step != name)
    return right, sum(isinstance(answer, Exception) for answer in answers), foreign


def _nothing() -> None:
    pass


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same function under another name, which is how a profile tells functions apart."""
    return FunctionType(function.__code__.replace(co_name=name, co_qualname=name), {}, name)


def t05(ctx: Context, trap: Callable[..., float], cure: Callable[..., float]) -> Found:
    """What the decorator reports against the same work without a profiler; what it cannot see of a request."""
    with copy_of(ctx.lab.engine) as db:

        def work() -> None:
            db.expunge_all()
            for user in db.scalars(select(User).limit(2)).all():
                for post in db.scalars(select(Post).where(Post.author_id == user.id)).all():
                    db.query(Comment).filter(Comment.post_id == post.id).count()

        found, cured = (_inflation(ctx, timed, work) for timed in (trap, cure))
    return judged(found, cured, bad=lambda ratio: ratio > 1.15, unseen=_unseen(ctx))


def _inflation(ctx: Context, timed: Callable[..., float], work: Callable[[], None]) -> float:
    """Reported seconds over real ones, in turns."""

    def plain() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    plain()
    reported, real = [], []
    for number in range(ROUNDS):
        if number % 2:  # each order as often as the other
            real.append(plain())
        reported.append(float(ctx.call(timed, work)))
        if not number % 2:
            real.append(plain())
    return float(Ratio.of(reported, real).ratio)


def _unseen(ctx: Context) -> float:
    """The share of what a client waits that passes outside of the endpoint: the answer becomes JSON there."""
    inside: list[float] = []

    async def posts(db: Session = Depends(get_db)) -> Any:
        start = time.perf_counter()
        rows = db.execute(select(Post.id, Post.title, Post.author_id, Post.body).limit(1000)).mappings().all()
        inside.append(time.perf_counter() - start)
        return rows

    with mounted(ctx.lab.app, posts):
        waited = [ctx.lab.get(PATH).elapsed for _ in range(5)]
    return float(1 - sorted(inside)[2] / sorted(waited)[2])


def t17(ctx: Context, trap: Decorator, cure: Decorator) -> Found:
    """The decorator on an ``async def`` and on a plain ``def``: requests that fail, of ten."""
    found, cured = (_failures(ctx, decorator) for decorator in (trap, cure))
    return judged(found, cured, bad=lambda n: n > 0)


def _failures(ctx: Context, decorator: Decorator) -> int:
    async def waiting() -> dict[str, bool]:
        return {"ok": True}

    def plain() -> dict[str, bool]:
        return {"ok": True}

    failed = 0
    for endpoint in (waiting, plain):
        with ctx.limited(), mounted(ctx.lab.app, decorator(endpoint, Counter())):
            failed += sum(ctx.lab.get(PATH).status != 200 for _ in range(REQUESTS // 2))
    return failed


def t18(ctx: Context, trap: Callable[..., Any], cure: Callable[..., Any]) -> Found:
    """Profiling while another thread works: how many of its calls are in the profile."""
    found, cured = (_foreign_calls(ctx, profile) for profile in (trap, cure))
    there, version = sys.version_info >= (3, 12), ".".join(map(str, sys.version_info[:2]))
    return judged(
        found, cured, bad=lambda n: n > 0, says="effect" if there else "absent", foreign=FOREIGN, version=version
    )


def _foreign_calls(ctx: Context, profile: Callable[..., Any]) -> int:
    begin, over = threading.Event(), threading.Event()
    theirs, mine = _named(_nothing, "theirs"), _named(_nothing, "mine")

    def other() -> None:
        begin.wait()
        for _ in range(FOREIGN):
            theirs()
        over.set()

    def work() -> None:
        begin.set()
        over.wait()
        mine()

    thread = threading.Thread(target=other, name="labkit-foreign", daemon=True)
    thread.start()
    try:
        calls = ctx.call(profile, work)
    finally:
        begin.set()
        thread.join()
    return int(calls.get("theirs", 0))


class _Clocks(SimpleNamespace):
    """The module ``time`` of a machine whose wall clock is put back while something runs."""

    def __init__(self) -> None:
        super().__init__(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
        self.back = 0.0
        self.time = lambda: time.time() - self.back
        self.time_ns = lambda: time.time_ns() - int(self.back * 1e9)


def t19(ctx: Context, trap: Callable[..., Any], cure: Callable[..., Any]) -> Found:
    """What a stopwatch reports when the clock is put back meanwhile: a clock of ours, the machine's is left alone."""
    found, cured = (_across_a_step(ctx, stopwatch) for stopwatch in (trap, cure))
    return judged(found, cured, bad=lambda seconds: seconds < 0, back=STEP_BACK)


def _across_a_step(ctx: Context, stopwatch: Any) -> float:
    clocks = _Clocks()

    def work() -> None:
        time.sleep(0.01)
        clocks.back = STEP_BACK

    return float(ctx.call(_with(stopwatch, time=clocks), work))


def _with(function: Any, **names: Any) -> Any:
    """The same function where some global names mean something else."""
    code, known = function.__code__, {**function.__globals__, **names}
    return FunctionType(code, known, function.__name__, function.__defaults__, function.__closure__)


def t59(ctx: Context, trap: Callable[..., Any], cure: Callable[..., Any]) -> Found:
    """Characters that are formatted and shown to nobody, and how much longer that takes."""
    with copy_of(ctx.lab.engine) as db:
        profiler = cProfile.Profile()
        profiler.runcall(lambda: db.scalars(select(User).limit(20)).all())
    found, cured = (_unread(ctx, report, profiler) for report in (trap, cure))
    quiet = [_with(report, print=lambda *said: None) for report in (trap, cure)]
    ratio = compare(*(lambda f=f: ctx.call(f, profiler) for f in quiet), limit=0.5).ratio
    return judged(found, cured, bad=lambda n: n > 0, ratio=times(ratio)[0])


def _unread(ctx: Context, report: Any, profiler: cProfile.Profile) -> int:
    streams: list[io.StringIO] = []
    shown: list[str] = []

    def stream(*given: Any) -> io.StringIO:
        streams.append(io.StringIO(*given))
        return streams[-1]

    fakes = {"io": SimpleNamespace(StringIO=stream), "print": lambda *said, **_: shown.extend(map(str, said))}
    answer = ctx.call(_with(report, **fakes), profiler)
    read = "\n".join([*shown, answer if isinstance(answer, str) else ""])
    return sum(len(text) for one in streams if (text := one.getvalue()) not in read)
