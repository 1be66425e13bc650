"""Traps of Exercise 1 that lie in the database: rows in no order, whole rows, beliefs about COUNT and GROUP BY."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from labkit.blog.database import prepare
from labkit.course.checks import Context
from labkit.course.trapcard import Found, judged
from labkit.services import postgres

PAGE = 50


def t12(ctx: Context, trap: Any, cure: Any) -> Found:
    """LIMIT without ORDER BY, on PostgreSQL: users that the slow and the fast query have in common."""
    with postgres.start() as server:
        engine = create_engine(server.url)
        try:
            prepare(engine)
            with Session(engine) as session:
                found, cured = (_in_common(ctx, session, pair) for pair in (trap, cure))
        finally:
            engine.dispose()
    return judged(found, cured, bad=lambda n: n < PAGE)


def _in_common(ctx: Context, session: Session, queries: tuple[Callable[..., Any], ...]) -> int:
    slow, fast = ({user.id for user in ctx.call(query, session)} for query in queries)
    return len(slow & fast)
