"""The checks of lesson 01: what the learner wrote is judged by its effects, in counts."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections import Counter
from collections.abc import Callable
from numbers import Real
from typing import Any

from sqlalchemy import Engine
from sqlalchemy import inspect as inspect_database
from sqlalchemy.exc import DBAPIError

from labkit._frames import Site
from labkit.blog import hidden, indexes
from labkit.course.checks import Context, Verdict, almost, done
from labkit.course.lessons import _feed
from labkit.course.lessons._profiling import CALLS, after_an_exception, heard, profiling_ended
from labkit.course.lessons._simulated import SimulatedLab
from labkit.profiling.plans import Plan, explain
from labkit.profiling.queries import QueryReport

BUDGET = 3
"""Statements that the fast endpoint may run."""

ROWS = 10
"""Rows that it may read for each row of its answer: beyond that whole tables travel."""

BATCH = 500
"""Keys that SQLAlchemy's ``selectinload`` puts into one statement (``SelectInLoader._chunksize``)."""

TIMED = 6.0
"""Seconds that comparing times may take; of a fast answer on the small hidden data it takes less than one."""

LEAST_PAIRS = 6
"""With fewer pairs there is no exact 95 % interval."""

LEAST = 5
"""How often a statement must run from one place to be an N+1."""


def _slow(ctx: Context) -> QueryReport:
    """The slow endpoint's statements, provided that it still is the slow one."""
    report: QueryReport = ctx.lab.queries(_feed.SLOW)
    ctx.require(len(_repeated(report.statements)) == 2, "slow_changed", count=report.count)
    return report


# --- 1.1 the profiling decorator


def check_1_1(ctx: Context, profile_endpoint: Callable[..., Any]) -> Verdict:
    """Return value and signature, then the table, then what is left behind by an exception."""

    async def answer(number: int = 20) -> int:
        return sum(range(number))

    async def broken() -> None:
        raise LookupError("on purpose")

    with profiling_ended(), heard() as (out, err):
        profiled, failing = ctx.call(profile_endpoint, answer), ctx.call(profile_endpoint, broken)
        ctx.require(callable(profiled), "profiler_no_wrapper", what=repr(profiled)[:60])
        wrapped = getattr(profiled, "__name__", "") == "answer"
        ctx.require(wrapped and [*inspect.signature(profiled).parameters] == ["number"], "profiler_no_wraps")
        ctx.require(inspect.iscoroutinefunction(profiled), "profiler_sync")
        ctx.require(_takes_any(profiled), "profiler_arguments")
        got = ctx.run(profiled, number=10)
        lines, aside = out.lines(), err.lines()
        if inspect.iscoroutine(got):
            got.close()  # else Python warns of it in the notebook
            raise almost("profiler_not_awaited")
        ctx.require(got != sum(range(20)), "profiler_arguments")
        ctx.require(got == 45, "profiler_body", got=repr(got)[:60], expected=45)
        after = ctx.run(after_an_exception, failing, profiled)
    if not _has(lines, "ncalls"):
        ctx.require(not _has(aside, "ncalls"), "profiler_stderr", lines=len(aside))
        raise almost("profiler_no_table", lines=len(lines))
    ctx.require(_has(lines, "(answer)"), "profiler_outside", lines=len(lines))
    ctx.require(after.arrived, "profiler_swallows")
    ctx.require(not after.failed and not after.still_on, "profiler_stays_on", failed=after.failed, calls=CALLS)
    return done("profiler_done", calls=CALLS)


def _takes_any(profiled: Callable[..., Any]) -> bool:
    """Whether it itself, and not only what it wraps, can be called by name as FastAPI does."""
    try:
        inspect.signature(profiled, follow_wrapped=False).bind(number=10)
    except TypeError:
        return False
    return True


def _has(lines: list[str], text: str) -> bool:
    return any(text in line for line in lines)


# --- 1.2 find the N+1


def check_1_2(ctx: Context, find_n_plus_one: Callable[..., Any]) -> Verdict:
    """On the slow endpoint's statements, then on others that a careless grouping gets wrong."""
    report = _slow(ctx)
    statements = report.statements

    def found_in(some: Any) -> dict[Any, int]:
        return _sites(ctx, ctx.call(find_n_plus_one, some), some)

    expected, found = _repeated(statements), found_in(statements)
    right = len(found.keys() & expected.keys())
    if len(found) > len(expected):
        return almost("nplus1_extra", found=len(found), expected=len(expected), least=LEAST)
    ctx.require(found, "nplus1_none", found=0, expected=len(expected), count=report.count)
    ctx.require(right == len(expected), "nplus1_missing", found=right, expected=len(expected))
    for site, times in expected.items():
        ctx.require(found[site] == times, "nplus1_counts", got=found[site], expected=times)

    half = statements[: len(statements) // 2]
    again = found_in(half)
    ctx.require(again != found, "nplus1_constant", count=len(half))
    ctx.require(again == _repeated(half), "nplus1_counts", got=[*again.values()], expected=[*_repeated(half).values()])
    posts, comments = _by_text(statements)
    moved = [_changed(statement, site=posts[0].site) for statement in comments]
    ctx.require(not found_in([*comments[:3], *moved[:3]]), "nplus1_by_sql", times=3)
    ctx.require(not found_in([*posts[:4], *moved[:4]]), "nplus1_by_site", times=4)
    ctx.require(found_in(posts[:LEAST]) == {posts[0].site: LEAST}, "nplus1_limit", least=LEAST)
    (first, one), (second, two) = sorted(((times, site) for site, times in expected.items()), key=lambda pair: pair[0])
    return done("nplus1_done", first=first, place_first=one.place, second=second, place_second=two.place)


def _repeated(statements: Any) -> dict[Any, int]:
    """The rule itself: one statement, one place, five times or more."""
    times = Counter((statement.site, statement.sql) for statement in statements)
    return {site: count for (site, _), count in times.items() if count >= LEAST}


def _sites(ctx: Context, found: Any, statements: Any) -> dict[Any, int]:
    ctx.require(found is not None, "nplus1_no_return")
    ctx.require(isinstance(found, dict), "nplus1_not_dict", what=type(found).__name__)
    ctx.require(not found.keys() & {statement.sql for statement in statements}, "nplus1_sql_keys", found=len(found))
    strange = [key for key in found if not isinstance(key, Site)]
    ctx.require(not strange, "nplus1_keys", what=repr(strange[:1])[1:-1][:60])
    return dict(found)


def _by_text(statements: Any) -> list[list[Any]]:
    """The statements of the two texts that ran most often."""
    by_text: dict[str, list[Any]] = {}
    for statement in statements:
        by_text.setdefault(statement.sql, []).append(statement)
    return sorted(by_text.values(), key=len)[-2:]


def _changed(statement: Any, **values: Any) -> Any:
    return dataclasses.replace(statement, **values)


# --- 1.3 the same answer, fast


def check_1_3(ctx: Context, fast_endpoint: Callable[..., Any]) -> Verdict:
    """The learner's own data, hidden data, statements, whether they grow, rows, and at last the time."""
    lab = ctx.lab
    with lab.app.state.session_factory() as session:
        expected = hidden.expected(session)
    with lab.latency(0), _feed.mounted(lab.app, fast_endpoint):
        reply, rows = _feed.ask(ctx, lab)
    _feed.same_answer(expected, reply.json)
    few, many, _ = (_hidden_statements(ctx, fast_endpoint, users, expected) for users in (5, 20, 60))
    with lab.latency(0):
        before = lab.get(_feed.SLOW).queries
    counts = {"before": before, "statements": reply.queries, "budget": BUDGET, "few": few, "many": many}
    if few != many:
        grown = many - few  # for 15 users more
        return almost("fast_per_user" if grown == 15 else "fast_per_post" if grown > 15 else "fast_grows", **counts)
    posts = sum(len(user["posts"]) for user in expected["users"])
    if reply.queries > BUDGET:
        lots = {"posts": posts, "lots": math.ceil(posts / BATCH)}
        return (
            almost("fast_statements", **counts) if reply.queries == many else almost("fast_batches", **counts, **lots)
        )
    ctx.require(not _feed.sleeps(fast_endpoint), "fast_sleeps", **counts)
    needed = posts + len(expected["users"])
    ctx.require(rows <= ROWS * needed, "fast_rows", rows=rows, needed=needed, **counts)
    with lab.latency(0):
        ctx.require(_feed.in_place(lab, fast_endpoint), "fast_path", path=_feed.OWN, **counts)
    with _feed.hidden_lab(ctx, fast_endpoint, 20) as (small, _):
        compared = small.compare(_feed.SLOW, _feed.PATH, seconds=TIMED)
    if compared.verdict in ("slower", "equivalent"):
        return almost("fast_slower", ratio=compared.ratio, **counts)
    return done("fast_done", **counts)


def _hidden_statements(ctx: Context, endpoint: Callable[..., Any], users: int, visible: dict[str, Any]) -> int:
    """Judge the answer on a database that the learner has never seen; return its statements."""
    with _feed.hidden_lab(ctx, endpoint, users) as (lab, expected):
        reply, _ = _feed.ask(ctx, lab)
    ctx.require(reply.json != visible, "fast_remembered", seed=ctx.seed)
    _feed.same_answer(expected, reply.json, seed=ctx.seed)
    return reply.queries


# --- 1.4 the index


def check_1_4(ctx: Context, create_indexes: Callable[..., Any]) -> Verdict:
    """Run it on the application's database without any index; then read the plans of what repeats."""
    engine: Engine = ctx.lab.engine
    with ctx.lab.latency(0):
        report = _slow(ctx)
    indexes.drop(engine)
    try:
        with engine.connect() as connection:  # and not begin(): she may commit herself
            ctx.call(create_indexes, connection)
            connection.commit()
    except DBAPIError as error:
        return almost("index_sql", error=str(error.orig).splitlines()[0])
    made = indexes.present(engine)
    ctx.require(made, "index_none")
    repeated = {(s.site, s.sql): s for s in report.statements if s.site in _repeated(report.statements)}
    plans = [explain(engine, statement) for statement in repeated.values()]
    if scanned := list(filter(None, map(_read_whole, plans))):
        raise _what_is_scanned(engine, scanned, len(plans))
    return done("index_done", indexes=", ".join(made))


def _read_whole(plan: Plan) -> set[str]:
    """The tables that a look-up reads from end to end, directly or along an index."""
    return {*plan.scans, *plan.walks}


def _what_is_scanned(engine: Engine, scanned: list[set[str]], total: int) -> Verdict:
    """Tell an index on another column from one on another table and from one that is missing."""
    tables = sorted(set().union(*scanned))
    counts = {"scans": len(scanned), "total": total, "tables": ", ".join(tables)}
    database = inspect_database(engine)
    useless = [
        f"{table} ({', '.join(map(str, index['column_names']))})"
        for table in tables
        for index in database.get_indexes(table)
        if not index.get("duplicates_constraint")
    ]
    if useless:
        return almost("index_column", useless="; ".join(useless), **counts)
    return almost("index_one" if len(scanned) < total else "index_table", **counts)


# --- 1.5 an improvement one can promise


def check_1_5(ctx: Context, improvement: Callable[..., Any]) -> Verdict:
    """How many pairs, in which order, and what it promises of a thing against itself and of a real gain."""
    trials, factor = 40, 10.0

    def claim(seed: int, factor: float) -> tuple[SimulatedLab, float]:
        lab = SimulatedLab(seed, factor)
        value = ctx.call(improvement, lab, "/before", "/after")
        number = isinstance(value, Real) and not isinstance(value, bool)
        ctx.require(number, "improvement_not_number", what=repr(value)[:60])
        return lab, float(value)

    same = [claim(seed, 1.0) for seed in range(trials)]
    lab, (_, gain) = same[0][0], claim(trials, factor)
    optimistic = sum(value > 0.05 for _, value in same)
    counts = {"pairs": lab.pairs, "least": LEAST_PAIRS, "times": optimistic, "trials": trials}
    ctx.require(lab.pairs, "improvement_nothing")
    ctx.require(lab.pairs > 1, "improvement_once", **counts)
    ctx.require(lab.pairs >= LEAST_PAIRS, "improvement_few", **counts)
    ctx.require(not lab.in_blocks, "improvement_blocks", **counts)
    timed = {"perf_counter", "monotonic", "time"} & {*getattr(improvement, "__code__", claim.__code__).co_names}
    wrong = not 0.5 < gain < 1
    # A clock may be right by luck, but not twice by the same number, as what is reckoned from the Lab's answers is.
    clock = timed and (wrong or claim(trials, factor)[1] != gain)
    ctx.require(not clock, "improvement_clock")
    if wrong:
        raise almost("improvement_negative" if gain < 0 else "improvement_scale", value=gain, ratio=factor)
    ctx.require(optimistic <= trials * 0.05, "improvement_optimist", **counts)
    return done("improvement_done", ratio=factor, claim=100 * gain, **counts)
