"""Traps of Exercise 1 that lie in what is asked of the database, and two beliefs about COUNT and GROUP BY."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.orm import Session

from labkit.blog import Comment, Post, User
from labkit.blog.database import prepare
from labkit.course.cards import words
from labkit.course.checks import Context
from labkit.course.lessons._copies import copy_of, popular, steps, values_read
from labkit.course.trapcard import Found, judged
from labkit.services import postgres
from labkit.stats import compare, times

PAGE = 50
TIMED = 0.5
"""Seconds for a comparison of times: enough to tell twice as slow from equal."""

Query = Callable[..., Any]

_ACTIVITY = """
SELECT state, query FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY backend_start
"""


def t12(ctx: Context, trap: Any, cure: Any) -> Found:
    """LIMIT without ORDER BY, on PostgreSQL: users that the slow and the fast query have in common."""
    with postgres.start() as server:
        engine = create_engine(server.url)
        try:
            prepare(engine)
            found, said = _in_common(ctx, engine, trap)
            cured, _ = _in_common(ctx, engine, cure)
        finally:
            engine.dispose()
    return judged(found, cured, bad=lambda n: n < PAGE, table=said)


def _in_common(ctx: Context, engine: Any, queries: tuple[Query, Query]) -> tuple[int, pd.DataFrame]:
    """How many ids both have, and what the server says that the two sessions ran."""
    with Session(engine) as one, Session(engine) as other, engine.connect() as watcher:
        slow, fast = ({row.id for row in ctx.call(q, db)} for q, db in zip(queries, (one, other), strict=True))
        rows = [(state, " ".join(query.split())) for state, query in watcher.execute(text(_ACTIVITY))]
    return len(slow & fast), pd.DataFrame(
        rows, columns=[words(f"lesson_08_1.t12_{name}") for name in ("state", "query")]
    )


def t13(ctx: Context, trap: Query, cure: Query) -> Found:
    """A joinedload that nobody needs: values that come from the database, and how much longer it takes."""
    with copy_of(ctx.lab.engine) as db:
        run = _fresh(ctx, db)
        counts = [values_read(db, run(query)) for query in (trap, cure)]
        ratio = compare(run(trap), run(cure), limit=TIMED).ratio
    return judged(*counts, bad=lambda n: n > 2 * counts[1], ratio=times(ratio)[0])


def t14(ctx: Context, trap: Query, cure: Query) -> Found:
    """Query.count() against select(count()): steps of the database, and time with Python's part."""
    with copy_of(ctx.lab.engine) as db:
        run = _fresh(ctx, db)
        inside = steps(db, run(trap)) / steps(db, run(cure))
        ratio = compare(run(trap), run(cure), limit=TIMED).ratio
    return Found(inside, ratio, inside > 1.5, True, says="effect" if inside > 1.5 else "myth")


def t16(ctx: Context, trap: Query, cure: Query) -> Found:
    """GROUP BY before LIMIT: how many times the steps of LIMIT first; and how many times its own without an index."""
    with copy_of(ctx.lab.engine) as db:
        run = _fresh(ctx, db)
        own = steps(db, run(trap))
        order = own / steps(db, run(cure))
    with copy_of(ctx.lab.engine, indexed=False) as db:
        index = steps(db, _fresh(ctx, db)(trap)) / own
    return Found(order, index, order > 1.5, True, says="effect" if order > 1.5 else "myth")


def t60(ctx: Context, trap: Query, cure: Query) -> Found:
    """What a page says of the total."""
    with copy_of(ctx.lab.engine) as db:
        users = db.scalar(select(func.count()).select_from(User)) or 0
        totals = [ctx.call(query, db)["total"] for query in (trap, cure)]
    return judged(*totals, bad=lambda n: n != users, users=users)


def t63(ctx: Context, trap: Query, cure: Query) -> Found:
    """Eager loading where each post has many comments: values read, and time against the N+1's."""
    with popular() as db:
        run = _fresh(ctx, db)
        counts = [values_read(db, run(query)) for query in (trap, cure)]
        slower = compare(run(trap), run(_n_plus_one), limit=2 * TIMED).ratio
        faster = compare(run(_n_plus_one), run(cure), limit=TIMED).ratio
        return judged(*counts, bad=lambda n: n > 2 * counts[1], slower=times(slower)[0], faster=times(faster)[0])


def _n_plus_one(db: Session) -> dict[int, int]:
    """What eager loading is to cure: one statement a post."""
    return {
        post: db.query(Comment).filter(Comment.post_id == post).count()
        for user in db.scalars(select(User.id)).all()
        for post in db.scalars(select(Post.id).where(Post.author_id == user)).all()
    }


def _fresh(ctx: Context, db: Session) -> Callable[[Query], Callable[[], Any]]:
    """Makes of a query something to run: each time in a session that remembers no row."""

    def run(query: Query) -> Callable[[], Any]:
        def once() -> Any:
            db.expunge_all()
            return ctx.call(query, db)

        return once

    return run
