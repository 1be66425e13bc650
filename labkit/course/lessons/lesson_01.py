"""The checks of lesson 01: what the learner wrote is judged by its effects, in counts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import io
import itertools
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from labkit._frames import Site
from labkit.asgi import Reply
from labkit.blog import get_db, hidden, indexes
from labkit.comparison import Comparison, difference
from labkit.course.cards import words
from labkit.course.checks import Context, Verdict, almost, done
from labkit.lab import Lab
from labkit.profiling.plans import explain
from labkit.stats import Ratio

CALLS = 5
"""How many calls after a failed one must work."""

BUDGET = 3
"""Statements that the fast endpoint may run."""

HIDDEN_LIMIT = 10.0
"""Seconds that an answer on the small hidden data may take."""

LEAST_PAIRS = 6
"""With fewer pairs there is no exact 95 % interval."""


# --- 1.1 the profiling decorator


def check_1_1(ctx: Context, profile_endpoint: Callable[..., Any]) -> Verdict:
    """Return value and signature, then the table, then what is left behind by an exception."""

    async def answer(number: int = 20) -> int:
        return sum(range(number))

    async def broken() -> None:
        raise LookupError("on purpose")

    profiled = profile_endpoint(answer)
    parameters = list(inspect.signature(profiled).parameters)
    ctx.require(profiled.__name__ == "answer" and parameters == ["number"], "profiler_no_wraps")
    with _profiling_ended():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            got = asyncio.run(profiled(number=20))
        with contextlib.redirect_stdout(io.StringIO()):
            raised, failed, still_on = _after_an_exception(profile_endpoint(broken), profiled)
    ctx.require(got == 190, "profiler_body", got=repr(got), expected=190)
    lines = [line for line in printed.getvalue().splitlines() if line.strip()]
    has_table = any("ncalls" in line for line in lines) and any("answer" in line for line in lines)
    ctx.require(has_table, "profiler_no_table", lines=len(lines))
    ctx.require(raised, "profiler_swallows")
    ctx.require(not failed and not still_on, "profiler_stays_on", failed=failed, calls=CALLS)
    return done("profiler_done", calls=CALLS)


def _after_an_exception(broken: Callable[..., Any], good: Callable[..., Any]) -> tuple[bool, int, bool]:
    """Whether the exception arrived, how many calls fail afterwards, whether Python still profiles."""
    kept: list[BaseException] = []  # alive, so that the profiler of the failed call is not ended by luck
    failed, still_on = 0, False

    async def run() -> None:
        nonlocal failed, still_on
        try:
            await broken()
        except LookupError as error:
            kept.append(error)
        still_on = _is_profiling()
        for _ in range(CALLS):
            try:
                await good()
            except ValueError as error:  # "Another profiling tool is already active"
                kept.append(error)
                failed += 1

    asyncio.run(run())
    return bool(kept) and isinstance(kept[0], LookupError), failed, still_on


def _is_profiling() -> bool:
    """Whether cProfile is on: a profile function before Python 3.12, a monitoring tool since."""
    if sys.version_info >= (3, 12):
        return sys.monitoring.get_tool(sys.monitoring.PROFILER_ID) is not None
    return sys.getprofile() is not None


@contextlib.contextmanager
def _profiling_ended() -> Iterator[None]:
    """Switch off what a faulty decorator leaves on, or the rest of the lesson would be profiled."""
    try:
        yield
    finally:
        sys.setprofile(None)
        if sys.version_info >= (3, 12) and _is_profiling():
            sys.monitoring.set_events(sys.monitoring.PROFILER_ID, 0)
            sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)


# --- 1.2 find the N+1


def check_1_2(ctx: Context, find_n_plus_one: Callable[..., Any]) -> Verdict:
    """On the slow endpoint's statements, then on others that a careless grouping gets wrong."""
    report = ctx.lab.queries("/performance/slow-endpoint", params={"sleep_ms": 0})
    expected = _repeated(report.statements)
    found = _sites(ctx, find_n_plus_one(report.statements))
    right = len(found.keys() & expected.keys())
    if len(found) > len(expected):
        return almost("nplus1_extra", found=len(found), expected=len(expected), least=5)
    ctx.require(found, "nplus1_none", found=0, expected=len(expected), count=report.count)
    ctx.require(right == len(expected), "nplus1_missing", found=right, expected=len(expected))
    for site, times in expected.items():
        ctx.require(found[site] == times, "nplus1_counts", got=found[site], expected=times)
    tricky = _tricky(report.statements)
    ctx.require(_sites(ctx, find_n_plus_one(tricky)) == _repeated(tricky), "nplus1_merged")
    ctx.keep("n_plus_one", report)
    (first, one), (second, two) = sorted(((times, site) for site, times in expected.items()), key=lambda pair: pair[0])
    return done("nplus1_done", first=first, place_first=one.place, second=second, place_second=two.place)


def _repeated(statements: Any) -> dict[Any, int]:
    """The rule itself: one statement, one place, five times or more."""
    times = Counter((statement.site, statement.sql) for statement in statements)
    return {site: count for (site, _), count in times.items() if count >= 5}


def _sites(ctx: Context, found: Any) -> dict[Any, int]:
    ctx.require(isinstance(found, dict), "nplus1_not_dict", what=type(found).__name__)
    strange = [key for key in found if not isinstance(key, Site)]
    ctx.require(not strange, "nplus1_keys", what=repr(strange[:1])[1:-1][:60])
    return dict(found)


def _tricky(statements: Any) -> list[Any]:
    """Statements that never repeat though a place or a text does: 3 + 3 of one text, 4 + 4 in one place."""
    by_text: dict[str, list[Any]] = {}
    for statement in statements:
        by_text.setdefault(statement.sql, []).append(statement)
    posts, comments = sorted(by_text.values(), key=len)[-2:]
    moved = [_changed(statement, site=posts[0].site) for statement in comments[:4]]
    return [*posts[:4], *moved, *comments[4:8]]


def _changed(statement: Any, **values: Any) -> Any:
    return dataclasses.replace(statement, **values)


# --- 1.3 the same answer, fast


def check_1_3(ctx: Context, fast_endpoint: Callable[..., Any]) -> Verdict:
    """The learner's own data, hidden data, statements, whether they grow, and at last the time."""
    lab = ctx.lab
    before = lab.get("/performance/slow-endpoint", params={"sleep_ms": 0}).queries
    with lab.app.state.session_factory() as session:
        expected = hidden.expected(session)
    with _mounted(lab.app, fast_endpoint) as path:
        reply = ctx.answer(path)
        _same_answer(ctx, expected, reply.json)
        few, many, _ = (_on_hidden_data(ctx, fast_endpoint, users) for users in (5, 20, 60))
        if reply.queries > BUDGET:
            left = "two_lookups" if reply.queries > 500 else "one_lookup" if reply.queries >= 50 else "some_left"
            rest = words(f"lesson_01.fast_{left}")
            return almost("fast_statements", before=before, statements=reply.queries, budget=BUDGET, rest=rest)
        ctx.require(few == many, "fast_grows", few=few, many=many)
        compared = lab.compare("/performance/slow-endpoint?sleep_ms=0", path, seconds=8)
    if compared.verdict in ("slower", "equivalent"):
        return almost("fast_slower", statements=reply.queries, ratio=compared.ratio)
    return done("fast_done", before=before, statements=reply.queries)


@contextlib.contextmanager
def _mounted(app: Any, endpoint: Callable[..., Any]) -> Iterator[str]:
    """The learner's function under a path of its own, wherever (and whether) she has put it."""
    path = "/performance/check-1-3"
    app.add_api_route(path, endpoint, response_model=None)
    route = app.router.routes[-1]
    try:
        yield path
    finally:
        app.router.routes.remove(route)


def _on_hidden_data(ctx: Context, endpoint: Callable[..., Any], users: int) -> int:
    """Judge the answer on a database that the learner has never seen; return its statements."""
    app = FastAPI()
    with hidden.make_session_factory(ctx.seed, users=users) as blog:
        app.dependency_overrides[get_db] = blog.get_db
        with blog() as session:
            expected = hidden.expected(session)
        with _mounted(app, endpoint) as path, Lab(app, latency=0, time_limit=HIDDEN_LIMIT) as lab:
            reply = lab.get(path)
    if reply.error:
        raise Verdict("error", "course.endpoint_raised", path=path, code=str(reply.error))
    _same_answer(ctx, expected, reply.json, hidden=True)
    return reply.queries


def _same_answer(ctx: Context, expected: dict[str, Any], got: Any, *, hidden: bool = False) -> None:
    """Raise the verdict that names the likeliest cause where two answers differ."""
    found = difference(expected, got)
    if found is None:
        return
    users = got.get("users") if isinstance(got, dict) else None
    if isinstance(users, list) and all(isinstance(user, dict) for user in users):
        _name_the_cause(ctx, expected["users"], users, found)
    if hidden:
        raise almost("fast_hidden", difference=found, seed=ctx.seed)
    raise almost("fast_body", difference=found)


def _name_the_cause(ctx: Context, expected: list[Any], got: list[Any], found: object) -> None:
    if len(got) < len(expected):
        raise almost("fast_lost_users", got=len(got), expected=len(expected), seed=ctx.seed)
    right, mine = _posts(expected), _posts(got)
    if len(mine) < len(right) and mine.keys() <= right.keys():
        raise almost("fast_lost_posts", got=len(mine), expected=len(right), seed=ctx.seed)
    counted = {key: count for key, count in mine.items() if key in right and isinstance(count, int)}
    if any(count > right[key] > 0 for key, count in counted.items()):
        raise almost("fast_multiplied", difference=found)
    if counted == right or {user.get("id") for user in got} != {user["id"] for user in expected}:
        raise almost("fast_order", difference=found)


def _posts(users: list[Any]) -> dict[tuple[Any, Any], Any]:
    """The comments of each post, by user and post."""
    return {
        (user.get("id"), post.get("id")): post.get("comments_count")
        for user in users
        for post in user.get("posts") or []
        if isinstance(post, dict)
    }


# --- 1.4 the index


def check_1_4(ctx: Context, create_indexes: Callable[..., Any]) -> Verdict:
    """Run it on the application's database without any index; then read the plans of what repeats."""
    engine: Engine = ctx.lab.engine
    indexes.drop(engine)
    try:
        with engine.begin() as connection:
            create_indexes(connection)
    except SQLAlchemyError as error:
        return almost("index_sql", error=str(getattr(error, "orig", error)).splitlines()[0])
    made = indexes.present(engine)
    ctx.require(made, "index_none")
    report = ctx.lab.queries("/performance/slow-endpoint", params={"sleep_ms": 0})
    repeated = {(s.site, s.sql): s for s in report.statements if s.site in _repeated(report.statements)}
    plans = [explain(engine, statement) for statement in repeated.values()]
    scanned = [plan for plan in plans if plan.scans]
    tables = ", ".join(sorted({table for plan in scanned for table in plan.scans}))
    ctx.require(not scanned, "index_scans", scans=len(scanned), total=len(plans), tables=tables)
    return done("index_done", indexes=", ".join(made))


# --- 1.5 an improvement one can promise


class _SimulatedLab:
    """Answers like a Lab with durations drawn from a seed: the judgement must not hang on luck.

    ``after`` takes ``1 / factor`` of the time of ``before``; both scatter as on a noisy laptop.
    """

    def __init__(self, seed: int, factor: float) -> None:
        self._random = random.Random(seed)
        self._factor = factor
        self.order: list[str] = []

    def get(self, path: str, **_: Any) -> Reply:
        self.order.append(path)
        seconds = 0.02 * self._random.lognormvariate(0, 0.15) / (self._factor if path == "/after" else 1)
        return Reply(200, b"{}", (), seconds)

    def compare(self, before: str, after: str, **_: Any) -> Comparison:
        pairs = [(self.get(before).elapsed, self.get(after).elapsed) for _ in range(15)]
        timing = Ratio.of([a for a, _ in pairs], [b for _, b in pairs])
        return Comparison((before, after), True, None, 0, 0, timing)

    @property
    def pairs(self) -> int:
        return min(self.order.count("/before"), self.order.count("/after"))

    @property
    def in_blocks(self) -> bool:
        """Whether all of one side came first."""
        return sum(a != b for a, b in itertools.pairwise(self.order)) == 1


def check_1_5(ctx: Context, improvement: Callable[..., Any]) -> Verdict:
    """How many pairs, in which order, and what it promises of a thing against itself and of a real gain."""
    trials, factor = 20, 10.0

    def claim(seed: int, factor: float) -> tuple[_SimulatedLab, float]:
        lab = _SimulatedLab(seed, factor)
        value = improvement(lab, "/before", "/after")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        ctx.require(number, "improvement_not_number", what=repr(value)[:60])
        return lab, float(value)

    same = [claim(seed, 1.0) for seed in range(trials)]
    lab = same[0][0]
    optimistic = sum(value > 0.05 for _, value in same)
    ctx.require(
        lab.pairs >= LEAST_PAIRS,
        "improvement_few",
        pairs=lab.pairs,
        least=LEAST_PAIRS,
        times=optimistic,
        trials=trials,
    )
    ctx.require(not lab.in_blocks, "improvement_blocks")
    _, gain = claim(trials, factor)
    ctx.require(0.5 < gain < 1, "improvement_scale", value=gain, ratio=factor)
    ctx.require(optimistic <= 1, "improvement_optimist", times=optimistic, trials=trials)
    return done("improvement_done", pairs=lab.pairs, trials=trials, ratio=factor, claim=100 * gain)
