"""The checks of the metrics of lesson 03: where they live (3.1) and who tells them anything (3.2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from sqlalchemy import Engine, StaticPool, create_engine, event, text

from labkit.cache.events import Event
from labkit.course.checks import Context, Verdict, almost, done
from labkit.monitoring.samples import Snapshot

REQUESTS, SECONDS = "app_requests_total", "app_request_duration_seconds"
USERS, QUERIES, CACHE = "app_active_users", "app_database_queries_total", "app_cache_operations_total"
WANTED = (REQUESTS, f"{SECONDS}_bucket", QUERIES, CACHE, USERS, "app_info")
METHODS = ("track_request", "track_database_query", "track_cache_operation")
HOOKS = ("on_statement", "on_cache", "saw")
WINDOW = 300.0
"""Seconds for which a user counts as active."""


@contextmanager
def clean_default_registry() -> Iterator[None]:
    """prometheus_client's global registry without the notebook's metrics, and afterwards as it was."""
    held = [each for each in _registered() if any(name.startswith("app_") for name in _names(each))]
    for each in held:
        REGISTRY.unregister(each)
    before = {*_registered()}
    try:
        yield
    finally:
        for each in {*_registered()} - before:
            REGISTRY.unregister(each)
        for each in held:
            REGISTRY.register(each)


def _registered() -> list[Any]:
    return list(getattr(REGISTRY, "_collector_to_names", {}))


def _names(collector: Any) -> Iterable[str]:
    names: Iterable[str] = getattr(REGISTRY, "_collector_to_names", {}).get(collector, ())
    return names


# --- 3.1 a registry that is handed in (T48)


def check_3_1(ctx: Context, collector: Callable[..., Any]) -> Verdict:
    """Two collectors of one process, each on a registry of its own, each counting for itself."""
    with clean_default_registry():
        first, second = CollectorRegistry(), CollectorRegistry()
        one = ctx.call(collector, first)
        lacking = [name for name in METHODS if not callable(getattr(one, name, None))]
        ctx.require(not lacking, "metrics_methods", names=", ".join(lacking))
        _use(ctx, one)
        try:
            two = ctx.call(collector, second)
        except ValueError as error:
            if "uplicated" not in str(error):
                raise
            there = _there(first)
            key = "metrics_some" if there else "metrics_twice"
            raise almost(
                key,
                count=len(there),
                wanted=len(WANTED),
                names=_listed({*WANTED} - there),
                error="Duplicated timeseries",
            ) from None
        try:
            _use(ctx, two)
        except AttributeError as error:
            raise almost("metrics_half", what=str(error)) from None
        elsewhere = _there(REGISTRY) - _there(second)
        ctx.require(not elsewhere, "metrics_elsewhere", names=_listed(elsewhere), count=len(elsewhere))
        missing = {*WANTED} - _there(second)
        if missing == {"app_info"} and "app_info_info" in Snapshot.of(second).values:
            raise almost("metrics_info")
        ctx.require(len(missing) < len(WANTED), "metrics_nowhere", wanted=len(WANTED))
        ctx.require(not missing, "metrics_names", names=_listed(missing))
        ctx.require(getattr(one, "registry", None) is first, "metrics_attribute")
    seen = [Snapshot.of(each).total(REQUESTS) for each in (first, second)]
    ctx.require(seen == [1.0, 1.0], "metrics_shared", first=seen[0], second=seen[1])
    _labelled(ctx, Snapshot.of(first))
    return done("metrics_done", count=len(WANTED))


def _use(ctx: Context, made: Any) -> None:
    ctx.call(made.track_request, "GET", "/users/{user_id}", 200, 0.25)
    ctx.call(made.track_database_query, "SELECT")
    ctx.call(made.track_cache_operation, "get", "hit")


def _there(registry: CollectorRegistry) -> set[str]:
    return {*WANTED} & Snapshot.of(registry).values.keys()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(name.removesuffix("_bucket") for name in names)) or "-"


def _labelled(ctx: Context, seen: Snapshot) -> None:
    """What was counted once is one, under the labels that the panel and the queries of the course look for."""
    for name, labels in (
        (REQUESTS, {"method": "GET", "endpoint": "/users/{user_id}", "status": "200"}),
        (f"{SECONDS}_count", {"method": "GET", "endpoint": "/users/{user_id}"}),
        (QUERIES, {"operation": "SELECT"}),
        (CACHE, {"operation": "get", "result": "hit"}),
    ):
        got = seen.total(name, **labels)
        ctx.require(got == 1, "metrics_counts", name=name.removesuffix("_count"), got=got, labels=", ".join(labels))
    took = seen.total(f"{SECONDS}_sum")
    ctx.require(took == 0.25, "metrics_seconds", got=took)


# --- 3.2 metrics that live (T57)


STATEMENTS = (
    "SELECT {}",
    "select {} as answer",
    "\n        SELECT {}",
    "INSERT INTO seen VALUES ({})",
    "INSERT INTO seen VALUES ({} + 1)",
    "UPDATE seen SET id = {}",
    "DELETE FROM seen WHERE id = {}",
)
OPERATIONS = {"SELECT": 3, "INSERT": 2, "UPDATE": 1, "DELETE": 1}
KINDS = {"hit": 7, "miss": 4, "stale": 2}


def check_3_2(ctx: Context, live: Callable[..., Any]) -> Verdict:
    """Statements of a real engine, events of the cache, visits under a clock that the check moves."""
    now = [1_000.0]
    asked = [0]

    def clock() -> float:
        asked[0] += 1
        return now[0]

    with clean_default_registry():
        made = ctx.call(live, CollectorRegistry(), clock)
        registry = getattr(made, "registry", None)
        lacking = [name for name in HOOKS if not callable(getattr(made, name, None))]
        ctx.require(not lacking, "live_methods", names=", ".join(lacking))
        ctx.require(hasattr(registry, "collect"), "live_registry")
        _statements(ctx, made)
        for kind, times in KINDS.items():
            for n in range(times):
                ctx.call(made.on_cache, _event(kind, n))
        visits = [f"user-{n % 3}" for n in range(12)]
        for user in visits:
            ctx.call(made.saw, user)
        seen = _look(ctx, registry)
        fed = {
            "statements": seen.total(QUERIES),
            "cache": seen.total(CACHE),
            "users": seen.total(USERS),
        }
        if not any(fed.values()):
            raise almost("live_empty", **fed, ran=len(STATEMENTS), events=sum(KINDS.values()), people=3)
        for name in fed:
            ctx.require(fed[name], f"live_no_{name}", ran=len(STATEMENTS), events=sum(KINDS.values()), people=3)
        _operations(ctx, seen)
        _results(ctx, seen)
        ctx.call(made.on_cache, Event("breaker", "", "", 0.0, "open ConnectionError"))
        reads = {*_by(seen, CACHE, "operation")}  # under an operation of its own it is no read
        after = [dict(labels) for labels, _ in _look(ctx, registry).series(CACHE)]
        told = {one.get("result", "") for one in after if one.get("operation") in reads} - {*KINDS}
        ctx.require(not told, "live_breaker", what=", ".join(told))
        _users(ctx, made, registry, now, asked, fed["users"], len(visits))
    return done("live_done", ran=len(STATEMENTS), events=sum(KINDS.values()), people=3)


def _event(kind: Any, n: int) -> Event:
    return Event(kind, "get_user_cached", f"user:{n}", 0.001)


def _look(ctx: Context, registry: Any) -> Snapshot:
    with ctx.limited():  # a gauge may ask a function of hers
        return Snapshot.of(registry)


def _by(seen: Snapshot, name: str, label: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for labels, value in seen.series(name):
        key = dict(labels).get(label, "")
        found[key] = found.get(key, 0.0) + value
    return found


def _statements(ctx: Context, made: Any) -> None:
    """Run SQL on an engine that tells her method of each statement."""
    engine: Engine = create_engine("sqlite://", poolclass=StaticPool)
    try:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE seen (id INTEGER)"))
        event.listen(engine, "before_cursor_execute", made.on_statement)
        numbers = random.Random(ctx.seed).sample(range(1_000), len(STATEMENTS))
        with ctx.limited(), engine.begin() as connection:
            for statement, number in zip(STATEMENTS, numbers, strict=True):
                connection.execute(text(statement.format(number)))
    finally:
        engine.dispose()


def _operations(ctx: Context, seen: Snapshot) -> None:
    found = _by(seen, QUERIES, "operation")
    total = sum(found.values())
    ctx.require(total == len(STATEMENTS), "live_statements_count", got=total, ran=len(STATEMENTS))
    if found != OPERATIONS:
        shown = ", ".join(repr(name)[:40] for name in list(found)[:3])
        folded: dict[str, float] = {}
        for name, value in found.items():
            folded[name.strip().upper()] = folded.get(name.strip().upper(), 0) + value
        long = any(len(name.split()) > 1 for name in found)
        key = "live_sql" if long else "live_case" if folded == OPERATIONS else "live_operations"
        raise almost(key, series=len(found), wanted=len(OPERATIONS), ran=len(STATEMENTS), shown=shown)


def _results(ctx: Context, seen: Snapshot) -> None:
    found, series = _by(seen, CACHE, "result"), len(list(seen.series(CACHE)))
    ctx.require(series <= len(KINDS), "live_cache_series", series=series, wanted=len(KINDS))
    if found != KINDS:
        pairs = ", ".join(f"{name}: {value:g}" for name, value in found.items())
        raise almost("live_results", got=pairs, wanted=", ".join(f"{k}: {n}" for k, n in KINDS.items()))


def _users(
    ctx: Context, made: Any, registry: Any, now: list[float], asked: list[int], first: float, visits: int
) -> None:
    """Three who come again and again are three; who has not come for five minutes is none of them any more."""
    ctx.require(first != visits, "live_visits", got=first, visits=visits, people=3)
    ctx.require(first == 3, "live_people", got=first, people=3)
    now[0] += 200
    for user in ("user-0", "user-9"):
        ctx.call(made.saw, user)
    counted = list[float]()
    for later in (0, WINDOW - 199, 200, 10 * WINDOW):  # all four; only those two; nobody
        now[0] += later
        counted.append(_look(ctx, registry).total(USERS))
    ctx.require(asked[0], "live_clock", got=counted[-1])
    ctx.require(len({*counted}) > 1, "live_stuck", got=counted[-1])
    ctx.require(counted[:3] != [4, 1, 0], "live_first", got=counted[1])
    told = ", ".join(f"{n:g}" for n in counted[:3])
    ctx.require(counted == [4, 2, 0, 0], "live_window", got=told, wanted="4, 2, 0")
