"""The checks of lesson 02: a cache is judged piece by piece, in executions, keys and whose answer it is."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd
from fastapi import FastAPI

from labkit._text import duration, number
from labkit.blog import User, get_db, hidden
from labkit.course import report
from labkit.course.cards import words
from labkit.course.checks import Context, Verdict, almost, done
from labkit.course.evidence import Event
from labkit.course.lessons import _cache
from labkit.course.lessons._keyed import check_2_2, check_2_3
from labkit.course.lessons._under_load import check_2_5, check_2_6
from labkit.lab import Lab

__all__ = ["check_2_1", "check_2_2", "check_2_3", "check_2_4", "check_2_5", "check_2_6", "report_sections"]

LEAST_MS = 100
"""Milliseconds of work a minute from which a cache is worth its trouble."""

PATH = "/check/users"

COLUMNS = ("path", "cost_ms", "requests_per_min", "changes_per_min", "personal")
VISIBLE: tuple[tuple[Any, ...], ...] = (
    ("/users/7", 3.0, 600, 0.1, False),
    ("/posts/latest", 12.0, 900, 6, False),
    ("/stats/global", 8.0, 120, 9, False),
    ("/me/drafts", 20.0, 300, 0.5, True),
    ("/performance/slow-endpoint", 3000.0, 0.1, 6, False),
)
"""The lesson's table where the notebook's own is gone."""

CASES: tuple[tuple[str, tuple[Any, ...]], ...] = (  # what must not be cached, from the gravest on; then what must
    ("worth_personal", ("/me/messages", 90.0, 600, 0.0, True)),
    ("worth_changes", ("/stock/price", 200.0, 12, 90, False)),
    ("worth_unasked", ("/report/2019", 5000.0, 0.0, 0.0, False)),
    ("worth_cheap", ("/version", 0.2, 2, 0.0, False)),
    ("worth_frequent", ("/menu", 1.5, 4000, 1, False)),
    ("worth_dear", ("/ranking", 800.0, 30, 2, False)),
)


# --- 2.1 what is worth caching


def check_2_1(ctx: Context, worth_caching: Callable[..., Any]) -> Verdict:
    """The notebook's own table, then one that she has not seen, whose rows leave no doubt."""
    own = getattr(worth_caching, "__globals__", {}).get("endpoints")
    usable = isinstance(own, pd.DataFrame) and {*COLUMNS} <= {*own.columns} and len(own)
    visible = own if usable and isinstance(own, pd.DataFrame) else pd.DataFrame(VISIBLE, columns=COLUMNS)
    chosen = _chosen(ctx, worth_caching, visible)
    slowest = visible.sort_values("cost_ms").iloc[-1]
    if chosen == {slowest["path"]}:
        seen = {name: slowest[f"{name}_per_min"] for name in ("requests", "changes")}
        raise almost("worth_slowest", path=slowest["path"], cost=slowest["cost_ms"], **seen)
    rows = [(key, row, key in ("worth_frequent", "worth_dear")) for key, row in CASES]
    hidden_table = pd.DataFrame([row for _, row, _ in rows], columns=COLUMNS).sample(frac=1, random_state=ctx.seed)
    again = _chosen(ctx, worth_caching, hidden_table)
    ctx.require(not again & {*visible["path"]}, "worth_remembered", paths=", ".join(sorted(again)))
    for key, row, worth in rows:
        told = dict(zip(("path", "cost", "requests", "changes"), row, strict=False))
        ctx.require((row[0] in again) == worth, key, **told, saved=row[1] * (row[2] - row[3]), least=LEAST_MS)
    own_rows: list[dict[Any, Any]] = visible.to_dict("records")
    for one in own_rows:
        saved = one["cost_ms"] * (one["requests_per_min"] - one["changes_per_min"])
        clear = one["personal"] or not LEAST_MS / 2 < saved < LEAST_MS * 2  # nobody is judged on a measurement's noise
        right = (one["path"] in chosen) == (saved >= LEAST_MS and not one["personal"])
        ctx.require(right or not clear, "worth_visible", path=one["path"], saved=saved, least=LEAST_MS)
    return done("worth_done", count=len(chosen), paths=", ".join(sorted(chosen)))


def _chosen(ctx: Context, worth_caching: Callable[..., Any], table: pd.DataFrame) -> set[str]:
    found = ctx.call(worth_caching, table.copy())
    if isinstance(found, pd.Series | pd.Index):
        found = found.tolist()
    good = isinstance(found, list | tuple | set) and all(isinstance(path, str) for path in found)
    ctx.require(good, "worth_type", what=type(found).__name__)
    ctx.require({*found} <= {*table["path"]}, "worth_unknown", what=repr(next(iter({*found} - {*table["path"]}), "")))
    return {*found}


# --- 2.4 errors are no answers


def check_2_4(ctx: Context, get_user_cached: Callable[..., Any]) -> Verdict:
    """A user who does not exist, before and after she does; then what a hit says of itself."""
    endpoint = inspect.unwrap(get_user_cached)
    ctx.require(endpoint is not get_user_cached and hasattr(get_user_cached, "invalidate"), "answers_bare")
    with _asked(ctx, endpoint) as (lab, client, blog, mark):
        with blog() as session:
            known = session.query(User).first()
            assert known is not None
            right = {"id": known.id, "username": known.username, "email": known.email}
        absent = max(right["id"], 900_000) + 1
        before = _reply(lab, absent)
        _told_as_error(ctx, before, client, stored=len(client.keys(mark)))
        with blog() as session:
            session.add(User(id=absent, username="nadia.check", email="nadia@example.org"))
            session.commit()
        later = _reply(lab, absent)
        ctx.require(later.status == 200, "answers_later", status=later.status)
        first, second = _reply(lab, right["id"]), _reply(lab, right["id"])
    ctx.require(first.status == second.status == 200, "answers_known", status=first.status)
    body = second.json
    lacking = [name for name, value in right.items() if not isinstance(body, dict) or body.get(name) != value]
    ctx.require(not lacking, "answers_body", names=", ".join(lacking))
    frozen = [name for name in ("cached", "execution_time") if name in body]
    ctx.require(not frozen, "answers_frozen", names=", ".join(frozen))
    return done("answers_done", status=before.status)


@contextmanager
def _asked(ctx: Context, endpoint: Callable[..., Any]) -> Iterator[tuple[Lab, _cache.RightClient, Any, str]]:
    """Her endpoint under the right decorator, on a database that she has never seen."""
    mark = f"check:{secrets.token_hex(4)}"

    def key(func: Any, args: Any, kwargs: Mapping[str, Any], prefix: str) -> str:
        return ":".join([mark, *_cache.right_parts(kwargs)])

    app = FastAPI()
    with _cache.right_client(ctx) as client, hidden.make_session_factory(ctx.seed) as blog:
        app.dependency_overrides[get_db] = blog.get_db
        app.add_api_route(PATH + "/{user_id}", _cache.composed(client, key)(endpoint), response_model=None)
        try:
            with Lab(app, latency=0, time_limit=10) as lab:
                yield lab, client, blog, mark
        finally:
            for name in client.keys(mark):
                client.delete(name)


def _reply(lab: Lab, user_id: int) -> Any:
    reply = lab.get(f"{PATH}/{user_id}")
    if reply.error:
        raise Verdict("error", "course.endpoint_raised", path=f"{PATH}/{user_id}", code=str(reply.error))
    return reply


def _told_as_error(ctx: Context, reply: Any, client: _cache.RightClient, stored: int) -> None:
    if client.refused:
        raise almost("answers_object", what=client.refused[0], status=reply.status)
    if reply.status == 200:
        raise almost("answers_none" if reply.json is None else "answers_stored", stored=stored, status=200)
    ctx.require(not stored, "answers_stored", stored=stored, status=reply.status)
    ctx.require(reply.status in (404, 410), "answers_status", status=reply.status)


# --- the report


def report_sections(kept: dict[str, Event]) -> Iterable[str]:
    """Impact, the standard traffic, strategies, and how long one waits."""
    yield from ["## " + words("lesson_02.section_first"), ""]
    if event := kept.pop("first", None):
        header = [words(f"lesson_02.report_{name}") for name in ("load", "median", "p99", "rate", "saved")]
        yield from report.table(header, map(_load_row, event["rows"]))
        yield from report.picture(event)
    else:
        yield from [words("lesson_02.not_measured"), ""]
    yield from ["## " + words("lesson_02.section_traffic"), ""]
    if event := kept.pop("traffic", None):
        values = event["values"]
        saved = values["requests"] - values["runs"]
        rate = number(100 * values["hit_rate"], ".1f")
        yield words(
            "lesson_02.report_traffic", rate=rate, saved=saved, requests=values["requests"], runs=values["runs"]
        )
        yield ""
        yield from report.picture(event)
    else:
        yield from [words("lesson_02.not_measured"), ""]
    if event := kept.pop("strategies", None):
        yield from ["## " + words("lesson_02.section_strategies"), ""]
        yield from report.table(event["rows"][0], (row.values() for row in event["rows"]))
        yield from report.picture(event)
    if event := kept.pop("waiting", None):
        yield from ["## " + words("lesson_02.section_waiting"), ""]
        header = [words(f"lesson_02.report_{name}") for name in ("load", "median", "p99", "rate", "saved")]
        yield from report.table(header, map(_load_row, event["rows"]))
        yield from report.picture(event)


def _load_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    rate = row.get("hit_rate")
    known = isinstance(rate, float) and rate == rate  # nothing was said: NaN, or null from JSON
    times = (duration(row[name]) for name in ("p50_s", "p99_s"))
    return (
        row["name"],
        *times,
        f"{number(100 * rate, '.1f')} %" if known and rate is not None else "-",
        number(row["saved"]),
    )
