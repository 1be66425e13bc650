"""What recording its SQL costs a request, statement by statement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from benchmarks._measure import Case, Row, Table, duration, publish, rounds
from labkit.profiling.queries import record
from labkit.stats import median_interval

GOAL = 8e-6  # seconds a statement


class Base(DeclarativeBase):
    """What the table is mapped from."""


class Item(Base):
    """A row to be looked up."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@contextmanager
def nothing() -> Iterator[None]:
    """No recorder."""
    yield


def main() -> None:
    """Core and ORM statements, with and without recorder."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Item(id=i, name=f"item {i}") for i in range(1000))
        session.commit()
    statement, by_id = text("SELECT name FROM item WHERE id = :id"), select(Item.name).where(Item.id == 7)

    def core(n: int) -> None:
        with engine.connect() as connection:
            for i in range(n):
                connection.execute(statement, {"id": i % 1000}).scalar()

    def orm(n: int) -> None:
        with Session(engine) as session:
            for _ in range(n):
                session.scalar(by_id)

    def legacy(n: int) -> None:
        with Session(engine) as session:
            for i in range(n):
                session.query(Item).filter(Item.id == i % 1000).count()

    tables = [
        _table("Core, a textual statement", core),
        _table("ORM session, a select()", orm),
        _table("ORM session, query(...).count()", legacy),
    ]
    introduction = "Microseconds that recording adds to each statement (SQLite in memory)."
    publish("recorder", introduction, tables)


def _table(title: str, work: Callable[[int], None]) -> Table:
    def under(recorder: Callable[[], Any]) -> Callable[[int], float]:
        def run(n: int) -> float:
            start = time.thread_time()
            with recorder():
                work(n)
            return time.thread_time() - start

        return run

    cases = [Case("no recorder", under(nothing)), Case("record()", under(record))]
    found = rounds(cases, seconds=12, batch=0.02)
    added, low, high = median_interval([recorded - plain for plain, recorded in found])
    name = f"added by record(), 95 % interval {duration(low)} to {duration(high)}"
    rows = [
        Row("a statement", median(plain for plain, _ in found)),
        Row(name, added, goal=f"<= {duration(GOAL)}", reached=added <= GOAL),
    ]
    return Table(title, "the same statements without a recorder; CPU time", rows, len(found))


if __name__ == "__main__":
    main()
