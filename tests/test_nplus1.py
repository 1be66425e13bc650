"""A corpus of requests that have an N+1 and of such that only look like it, on a shop that labkit never saw.

In a positive case ``# n+1`` stands above the guilty line, followed by what the fix must contain; several marks
are several findings. A negative case has no mark and must stay without a finding.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from sqlalchemy import ForeignKey, create_engine, delete, exists, func, insert, or_, select, text, tuple_, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    immediateload,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
    undefer,
)

from labkit import asgi
from labkit.profiling._shapes import shape
from labkit.profiling.nplus1 import Finding
from labkit.profiling.queries import QueryReport, record

AUTHORS, BOOKS = 600, 3000


class Base(AsyncAttrs, DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    mentor_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))
    books: Mapped[list[Book]] = relationship(back_populates="author", order_by="Book.id")
    mentor: Mapped[Author | None] = relationship(remote_side=[id], back_populates="pupils")
    pupils: Mapped[list[Author]] = relationship(back_populates="mentor")

    @property
    def titles(self) -> list[str]:
        # n+1: selectinload(Author.books)
        return [book.title for book in self.books]


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    title: Mapped[str]
    pages: Mapped[int]
    printed: Mapped[datetime]
    blurb: Mapped[str] = mapped_column(default="…", deferred=True)
    author: Mapped[Author] = relationship(back_populates="books")
    reviews: Mapped[list[Review]] = relationship(back_populates="book")


class Review(Base):
    __tablename__ = "reviews"
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"))
    stars: Mapped[int] = mapped_column("n_stars")
    book: Mapped[Book] = relationship(back_populates="reviews")


class Shelf(Base):
    __tablename__ = "shelf"
    name: Mapped[str] = mapped_column(primary_key=True)
    copies: Mapped[int] = mapped_column(default=0)


authors, books = Author.__table__, Book.__table__


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("shop") / "shop.sqlite3"
    engine = create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    day = datetime(2026, 1, 1)
    with Session(engine) as connection, connection.begin():
        connection.execute(
            insert(Author),
            [{"id": i, "name": f"a{i}", "mentor_id": i // 2 or None} for i in range(1, AUTHORS + 1)],
        )
        rows = [
            {
                "id": i,
                "author_id": i % AUTHORS + 1,
                "title": f"b{i}",
                "pages": i % 7,
                "printed": day + timedelta(hours=i // 2),
            }
            for i in range(1, BOOKS + 1)
        ]
        connection.execute(insert(Book), rows)
        connection.execute(insert(Review), [{"book_id": i, "stars": i % 5} for i in range(1, 2 * AUTHORS)])
        connection.execute(insert(Shelf), [{"name": f"s{i}"} for i in range(20)])
    engine.dispose()
    return file


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Shop:
    """What a case is given."""

    def __init__(self, file: Path) -> None:
        self.engine = create_engine(f"sqlite:///{file}")
        self.other = create_engine(f"sqlite:///{file}?timeout=5")
        self.aengine: AsyncEngine = create_async_engine(f"sqlite+aiosqlite:///{file}")
        self.db = Session(self.engine, expire_on_commit=False)

    async def close(self) -> None:
        self.db.rollback()
        self.db.close()
        self.engine.dispose()
        self.other.dispose()
        await self.aengine.dispose()


Case = Callable[[Shop], Any]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def few(db: Session, n: int = 12) -> list[Author]:
    return list(db.scalars(select(Author).order_by(Author.id).limit(n)))


# Positive, synchronous


@case
def query_in_a_loop(shop: Shop) -> None:
    for author in few(shop.db):
        # n+1: select(Book).where(Book.author_id.in_(ids))
        shop.db.query(Book).filter(Book.author_id == author.id).all()


@case
def query_count_in_a_loop(shop: Shop) -> None:
    for book in shop.db.query(Book).limit(8):
        # n+1: select(Review.book_id, func.count()).where(Review.book_id.in_(ids)).group_by(Review.book_id)
        shop.db.query(Review).filter(Review.book_id == book.id).count()


@case
def scalar_count_in_a_loop(shop: Shop) -> None:
    for book in shop.db.query(Book).limit(8):
        # n+1: select(Review.book_id, func.count())
        shop.db.scalar(select(func.count(Review.id)).where(Review.book_id == book.id))


@case
def average_in_a_loop(shop: Shop) -> None:
    for book in shop.db.query(Book).limit(8):
        # n+1: select(Review.book_id, func.avg(Review.stars))
        shop.db.scalar(select(func.avg(Review.stars)).where(Review.book_id == book.id))


@case
def exists_in_a_loop(shop: Shop) -> None:
    for book in shop.db.query(Book).limit(8):
        # n+1: Review.book_id.in_(ids)
        shop.db.scalar(select(exists().where(Review.book_id == book.id)))


@case
def lazy_collection(shop: Shop) -> None:
    for author in few(shop.db):
        # n+1: selectinload(Author.books)
        len(author.books)


@case
def lazy_parent(shop: Shop) -> None:
    for book in shop.db.scalars(select(Book).limit(9)).all():
        # n+1: selectinload(Book.author)
        str(book.author.name)


@case
def lazy_on_two_levels(shop: Shop) -> None:
    for author in few(shop.db):
        # n+1: selectinload(Author.books)
        for book in author.books:
            # n+1: selectinload(Author.books).selectinload(Book.reviews)
            len(book.reviews)


@case
def lazy_in_a_property_of_the_model(shop: Shop) -> None:
    for author in few(shop.db):
        author.titles  # noqa: B018


CASES["lazy_in_a_property_of_the_model"].marks = Author.titles.fget  # type: ignore[attr-defined]


@case
def lazy_self_reference(shop: Shop) -> None:
    def walk(author: Author, depth: int = 0) -> int:
        # n+1: selectinload(Author.pupils)
        return 1 + sum(walk(pupil, depth + 1) for pupil in author.pupils if depth < 3)

    walk(few(shop.db, 1)[0])


@case
def immediate_load(shop: Shop) -> None:
    # n+1: selectinload(Author.books)
    shop.db.scalars(select(Author).options(immediateload(Author.books)).limit(8)).all()


@case
def deferred_column(shop: Shop) -> None:
    for book in shop.db.scalars(select(Book).limit(9)).all():
        # n+1: undefer(Book.blurb)
        str(book.blurb)


@case
def expired_after_commit(shop: Shop) -> None:
    found = few(shop.db)
    shop.db.expire_all()
    # n+1: select(Author).where(Author.id.in_(ids))
    [author.name for author in found]


@case
def get_in_a_loop(shop: Shop) -> None:
    for key in range(1, 9):
        # n+1: select(Author).where(Author.id.in_(ids))
        shop.db.get(Author, key)


@case
def few_distinct_values(shop: Shop) -> None:
    for key in (1, 2, 1, 2, 1, 2):
        # n+1: select(Author.id, Author.name)
        shop.db.scalar(select(Author.name).where(Author.id == key))


@case
def columns_with_aliases(shop: Shop) -> None:
    writer = aliased(Author)
    for key in range(8):
        # n+1: Author.id.in_(ids)
        shop.db.execute(select(writer.name).where(writer.id == key)).all()


@case
def one_element_lists(shop: Shop) -> None:
    for key in range(1, 9):
        # n+1: select(Book).where(Book.author_id.in_(ids))
        shop.db.scalars(select(Book).where(Book.author_id.in_([key]))).all()


@case
def a_list_for_each_parent(shop: Shop) -> None:
    for author in shop.db.scalars(select(Author).options(selectinload(Author.books)).limit(8)).all():
        ids = [book.id for book in author.books][: author.id % 4 + 1]
        # n+1: Review.book_id.in_(ids)
        shop.db.scalars(select(Review.stars).where(Review.book_id.in_(ids))).all()


@case
def a_constant_list_beside(shop: Shop) -> None:
    for author in few(shop.db):
        # n+1: Book.author_id.in_(ids)
        shop.db.scalars(select(Book).where(Book.author_id == author.id, Book.pages.in_([1, 2, 3]))).all()


@case
def latest_of_each_parent(shop: Shop) -> None:
    for author in few(shop.db):
        # n+1: Book.author_id.in_(ids)
        shop.db.scalars(select(Book).where(Book.author_id == author.id).order_by(Book.id.desc()).limit(3)).all()


@case
def next_one_after_each(shop: Shop) -> None:
    for book in shop.db.scalars(select(Book).order_by(Book.id).limit(8)).all():
        # n+1
        shop.db.scalars(select(Book.title).where(Book.id > book.id).order_by(Book.id).limit(1)).first()


@case
def two_keys(shop: Shop) -> None:
    for book in shop.db.scalars(select(Book).limit(8)).all():
        # n+1: tuple_(Book.author_id, Book.pages).in_(keys)
        shop.db.scalar(select(func.count()).where(Book.author_id == book.author_id, Book.pages == book.pages))


@case
def core_select(shop: Shop) -> None:
    with shop.engine.connect() as connection:
        for key in range(1, 9):
            # n+1: select(books.c.author_id, func.count()).where(books.c.author_id.in_(ids))
            connection.execute(select(func.count()).where(books.c.author_id == key)).scalar()


@case
def raw_sql_with_parameters(shop: Shop) -> None:
    for key in range(1, 9):
        # n+1: SELECT author_id, count(*) FROM books WHERE author_id IN (…) GROUP BY author_id
        shop.db.execute(text("SELECT count(*) FROM books WHERE author_id = :key"), {"key": key})


@case
def raw_sql_with_literals(shop: Shop) -> None:
    for key in range(1, 9):
        # n+1: b.author_id IN (…)
        shop.db.execute(text(f"SELECT title FROM books b WHERE b.author_id={key} AND title <> 'it''s {key}'"))


@case
def driver_sql(shop: Shop) -> None:
    with shop.engine.connect() as connection:
        for key in range(1, 9):
            # n+1: author_id IN (…)
            connection.exec_driver_sql("SELECT * FROM books WHERE author_id = ?", (key,)).fetchall()


@case
def search_in_a_loop(shop: Shop) -> None:
    for word in "abcdefg":
        # n+1
        shop.db.scalars(select(Book).where(Book.title.like(f"%{word}%"))).all()


@case
def helper_in_a_loop(shop: Shop) -> None:
    def reviews_of(key: int) -> list[Review]:
        statement = select(Review).where(Review.book_id == key)
        # n+1: select(Review).where(Review.book_id.in_(ids))
        return list(shop.db.scalars(statement))

    for book in shop.db.scalars(select(Book).limit(8)).all():
        if book.id % 2:
            reviews_of(book.id)
        else:
            reviews_of(book.id)


@case
def generator(shop: Shop) -> None:
    def feed() -> Iterator[int | None]:
        for key in range(1, 9):
            # n+1: func.sum(Book.pages)
            yield shop.db.scalar(select(func.sum(Book.pages)).where(Book.author_id == key))

    sum(filter(None, feed()))


@case
def comprehension(shop: Shop) -> None:
    # n+1: Book.author_id.in_(ids)
    {a.id: shop.db.scalars(select(Book).filter_by(author_id=a.id)).all() for a in few(shop.db)}


@case
def in_a_sort_key(shop: Shop) -> None:
    # n+1: selectinload(Author.books)
    sorted(few(shop.db), key=lambda author: len(author.books))


@case
def second_engine(shop: Shop) -> None:
    with Session(shop.other) as db:
        for author in few(shop.db):
            # n+1: Book.author_id.in_(ids)
            db.scalars(select(Book.id).where(Book.author_id == author.id)).all()


@case
def two_engines_in_turn(shop: Shop) -> None:
    with Session(shop.other) as db:
        for author in few(shop.db, 8):
            # n+1
            (db, shop.db)[author.id % 2].scalars(select(Book).where(Book.author_id == author.id)).all()


@case
def inserts_one_by_one(shop: Shop) -> None:
    for number in range(8):
        # n+1: execute(insert(Shelf), rows)
        shop.db.execute(insert(Shelf).values(name=f"new{number}", copies=number))


@case
def updates_one_by_one(shop: Shop) -> None:
    for number in range(8):
        # n+1: execute(update(Shelf), rows)
        shop.db.execute(update(Shelf).where(Shelf.name == f"s{number}").values(copies=number))


@case
def deletes_one_by_one(shop: Shop) -> None:
    for number in range(8):
        # n+1: delete(Shelf).where(Shelf.name.in_(ids))
        shop.db.execute(delete(Shelf).where(Shelf.name == f"s{number}"))


@case
def flush_in_a_loop(shop: Shop) -> None:
    for number in range(8):
        shop.db.add(Shelf(name=f"new{number}"))
        # n+1: execute(insert(shelf), rows)
        shop.db.flush()


@case
def some_fail(shop: Shop) -> None:
    for number in range(10):
        try:
            with shop.db.begin_nested():
                # n+1
                shop.db.execute(insert(Shelf).values(name=f"s{15 + number}"))
        except IntegrityError:
            continue


@case
def template_from_a_string(shop: Shop) -> None:
    page = jinja2.Template("{% for a in authors %}\n{{ a.books | length }}\n{% endfor %}")
    # n+1: selectinload(Author.books)
    page.render(authors=few(shop.db))


# Positive, asynchronous and through FastAPI


@case
async def async_query_in_a_loop(shop: Shop) -> None:
    async with AsyncSession(shop.aengine) as db:
        for author in (await db.scalars(select(Author).limit(8))).all():
            # n+1: select(Book).where(Book.author_id.in_(ids))
            await db.scalars(select(Book).where(Book.author_id == author.id))


@case
async def async_lazy(shop: Shop) -> None:
    async with AsyncSession(shop.aengine) as db:
        for author in (await db.scalars(select(Author).limit(8))).all():
            # n+1: selectinload(Author.books)
            len(await author.awaitable_attrs.books)


@case
async def async_run_sync(shop: Shop) -> None:
    def visit(db: Session) -> None:
        for author in few(db):
            # n+1: selectinload(Author.books)
            len(author.books)

    async with AsyncSession(shop.aengine) as db:
        await db.run_sync(visit)


@case
async def async_helper_and_core(shop: Shop) -> None:
    async def pages_of(connection: Any, key: int) -> int:
        # n+1: func.sum(books.c.pages)
        return (await connection.execute(select(func.sum(books.c.pages)).where(books.c.author_id == key))).scalar()

    async with shop.aengine.connect() as connection:
        for key in range(1, 9):
            await pages_of(connection, key)


@case
async def async_driver_sql(shop: Shop) -> None:
    async with shop.aengine.connect() as connection:
        for key in range(1, 9):
            # n+1: author_id IN (…)
            await connection.exec_driver_sql("SELECT * FROM books WHERE author_id = ?", (key,))


@case
async def async_gather(shop: Shop) -> None:
    async def books_of(key: int) -> Any:
        async with AsyncSession(shop.aengine) as db:
            # n+1: Book.author_id.in_(ids)
            return (await db.scalars(select(Book).where(Book.author_id == key))).all()

    await asyncio.gather(*(books_of(key) for key in range(1, 9)))


@case
async def async_generator(shop: Shop) -> None:
    async def feed() -> Any:
        async with AsyncSession(shop.aengine) as db:
            for key in range(1, 9):
                # n+1: Author.id.in_(ids)
                yield await db.get(Author, key)

    [author async for author in feed()]


@case
async def in_worker_threads(shop: Shop) -> None:
    def books_of(key: int) -> Any:
        with Session(shop.engine) as db:
            # n+1: Book.author_id.in_(ids)
            return db.scalars(select(Book).where(Book.author_id == key)).all()

    await asyncio.gather(*(asyncio.to_thread(books_of, key) for key in range(1, 9)))


class BookOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    title: str


class AuthorOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    books: list[BookOut]


def serve(endpoint: Callable[..., Any], model: Any = None, middleware: Any = None) -> FastAPI:
    app = FastAPI()
    app.get("/", response_model=model)(endpoint)
    if middleware:
        app.add_middleware(middleware)
    return app


@case
async def endpoint_in_the_threadpool(shop: Shop) -> None:
    def session() -> Iterator[Session]:
        with Session(shop.engine) as db:
            yield db

    def endpoint(db: Session = Depends(session)) -> int:
        # n+1: selectinload(Author.books)
        return sum(len(author.books) for author in few(db))

    assert (await asgi.call(serve(endpoint), "GET", "/")).status == 200


@case
async def endpoint_that_is_async(shop: Shop) -> None:
    async def endpoint() -> int:
        # n+1: selectinload(Author.books)
        return sum(len(author.books) for author in few(shop.db))

    assert (await asgi.call(serve(endpoint), "GET", "/")).status == 200


@case
async def background_task(shop: Shop) -> None:
    def later() -> None:
        # n+1: selectinload(Author.books)
        [author.books for author in few(shop.db)]

    async def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(later)

    assert (await asgi.call(serve(endpoint), "GET", "/")).status == 200


# Negative


@case
def eager_joined(shop: Shop) -> None:
    found = shop.db.scalars(select(Author).options(joinedload(Author.books)).limit(50)).unique().all()
    assert sum(len(author.books) for author in found)


@case
def eager_subquery(shop: Shop) -> None:
    statement = select(Author).options(subqueryload(Author.books).subqueryload(Book.reviews))
    assert sum(len(book.reviews) for author in shop.db.scalars(statement).all() for book in author.books)


@case
def eager_selectin_in_many_pieces(shop: Shop) -> None:
    for book in shop.db.scalars(select(Book).options(selectinload(Book.reviews))).all():
        len(book.reviews)


@case
def eager_selectin_of_parents(shop: Shop) -> None:
    for book in shop.db.scalars(select(Book).options(selectinload(Book.author), undefer(Book.blurb))).all():
        str(book.author.name)


@case
def eager_selectin_on_each_page(shop: Shop) -> None:
    for page in range(7):
        statement = select(Author).order_by(Author.id).options(selectinload(Author.books))
        shop.db.scalars(statement.limit(10).offset(10 * page)).all()


@case
def eager_on_two_levels_on_each_page(shop: Shop) -> None:
    for page in range(7):
        options = selectinload(Author.pupils).selectinload(Author.books)
        shop.db.scalars(select(Author).options(options).order_by(Author.id).limit(10).offset(10 * page)).all()


@case
async def pieces_at_the_same_time(shop: Shop) -> None:
    async def piece(ids: list[int]) -> Any:
        async with AsyncSession(shop.aengine) as db:
            return (await db.scalars(select(Book).where(Book.author_id.in_(ids)))).all()

    ids = list(range(1, 103))
    await asyncio.gather(*(piece(ids[start : start + 20]) for start in (100, 80, 60, 40, 20, 0)))


@case
def list_in_pieces(shop: Shop) -> None:
    ids = list(range(1, 108))
    for start in range(0, len(ids), 15):
        shop.db.scalars(select(Book).where(Book.author_id.in_(ids[start : start + 15]))).all()


@case
def list_in_small_pieces(shop: Shop) -> None:
    ids = list(range(1, 30))
    for start in range(0, len(ids), 3):
        shop.db.scalars(select(Book).where(Book.author_id.in_(ids[start : start + 3]), Book.pages > 1)).all()


@case
def pairs_in_pieces(shop: Shop) -> None:
    pairs = [(i, i % 7) for i in range(1, 100)]
    for start in range(0, len(pairs), 10):
        shop.db.scalars(select(Book).where(tuple_(Book.id, Book.pages).in_(pairs[start : start + 10]))).all()


@case
def raw_list_in_pieces(shop: Shop) -> None:
    for start in range(1, 90, 10):
        ids = ", ".join(map(str, range(start, start + 10)))
        shop.db.execute(text(f"SELECT * FROM books WHERE author_id IN ({ids})"))


@case
def pages_by_offset(shop: Shop) -> None:
    page = 0
    while shop.db.scalars(select(Author).order_by(Author.id).limit(70).offset(70 * page)).all():
        page += 1


@case
def pages_by_key(shop: Shop) -> None:
    last = 0
    while page := shop.db.scalars(select(Author).where(Author.id > last).order_by(Author.id).limit(70)).all():
        last = page[-1].id


@case
def pages_by_key_downwards_in_raw_sql(shop: Shop) -> None:
    last, statement = 10**9, text("SELECT id FROM books WHERE id < :last ORDER BY id DESC LIMIT 500")
    while rows := shop.db.execute(statement, {"last": last}).all():
        last = rows[-1].id


@case
def pages_from_an_optional_key(shop: Shop) -> None:
    last, statement = None, text("SELECT id FROM books WHERE :last IS NULL OR id > :last ORDER BY id LIMIT 450")
    while rows := shop.db.execute(statement, {"last": last}).all():
        last = rows[-1].id


@case
def pages_by_two_keys(shop: Shop) -> None:
    printed, last = datetime(2000, 1, 1), 0
    while True:
        after = or_(Book.printed > printed, (Book.printed == printed) & (Book.id > last))
        page = shop.db.scalars(select(Book).where(after).order_by(Book.printed, Book.id).limit(401)).all()
        if len(page) < 401:
            break
        printed, last = page[-1].printed, page[-1].id


@case
def pages_by_a_pair(shop: Shop) -> None:
    key = (0, 0)
    while True:
        statement = select(Book).where(tuple_(Book.pages, Book.id) > key).order_by(Book.pages, Book.id)
        page = shop.db.scalars(statement.limit(400)).all()
        if not page:
            break
        key = (page[-1].pages, page[-1].id)


@case
def pages_of_one_parent(shop: Shop) -> None:
    last = 0
    statement = select(Book.id).where(Book.pages == 3).order_by(Book.id).limit(50)
    while page := shop.db.scalars(statement.where(Book.id > last)).all():
        last = page[-1]


@case
def rows_in_parts(shop: Shop) -> None:
    for part in shop.db.execute(select(Book.id).execution_options(yield_per=100)).partitions():
        len(part)


@case
def executemany(shop: Shop) -> None:
    for part in range(6):
        shop.db.execute(insert(Shelf), [{"name": f"p{part}-{i}", "copies": i} for i in range(4)])
        shop.db.execute(update(Shelf), [{"name": f"s{i}", "copies": part + i} for i in range(9)])


@case
def add_all(shop: Shop) -> None:
    shop.db.add_all([Shelf(name=f"new{i}", copies=i) for i in range(50)])
    shop.db.add_all([Author(name=f"new{i}") for i in range(50)])
    shop.db.flush()


@case
def change_many_objects(shop: Shop) -> None:
    for shelf in shop.db.scalars(select(Shelf)).all():
        shelf.copies += 1
    shop.db.flush()


@case
def many_rows_in_one_insert(shop: Shop) -> None:
    for part in range(6):
        shop.db.execute(insert(Shelf).values([{"name": f"q{part}-{i}", "copies": i} for i in range(4)]))


@case
def retry_with_the_same_parameters(shop: Shop) -> None:
    for _ in range(8):
        if shop.db.scalar(select(Shelf.copies).where(Shelf.name == "s1")):
            break


@case
def retry_after_errors(shop: Shop) -> None:
    for number in range(8):
        with pytest.raises(OperationalError):
            shop.db.execute(text("SELECT nothing FROM books WHERE id = :id"), {"id": number})


@case
def savepoints(shop: Shop) -> None:
    for _ in range(8):
        with shop.db.begin_nested():
            shop.db.scalar(select(func.count()).select_from(Shelf))


@case
def five_lines(shop: Shop) -> None:
    shop.db.get(Author, 1)
    shop.db.get(Author, 2)
    shop.db.get(Author, 3)
    shop.db.get(Author, 4)
    shop.db.get(Author, 5), shop.db.get(Author, 6)


@case
def helper_called_from_five_lines(shop: Shop) -> None:
    def copies(name: str) -> int:
        return shop.db.scalar(select(Shelf.copies).where(Shelf.name == name)) or 0

    copies("s1")
    copies("s2")
    copies("s3")
    copies("s4") + copies("s5") + copies("s6")


@case
def four_times(shop: Shop) -> None:
    for author in few(shop.db, 4):
        len(author.books)


@case
def different_statements(shop: Shop) -> None:
    for table in Base.metadata.sorted_tables * 2:
        shop.db.scalar(select(func.count()).select_from(table))


@case
def identity_map(shop: Shop) -> None:
    kept = shop.db.scalars(select(Author)).all()
    for key in range(1, len(kept)):
        shop.db.get(Author, key)


@case
async def async_eager(shop: Shop) -> None:
    async with AsyncSession(shop.aengine) as db:
        found = (await db.scalars(select(Book).options(selectinload(Book.reviews)))).all()
        assert sum(len(book.reviews) for book in found)


@case
async def async_stream(shop: Shop) -> None:
    async with AsyncSession(shop.aengine) as db:
        async for _ in await db.stream(select(Book.id).execution_options(yield_per=50)):
            pass


@case
async def async_five_lines(shop: Shop) -> None:
    async with AsyncSession(shop.aengine) as db:
        await db.get(Author, 1)
        await db.get(Author, 2)
        await db.get(Author, 3)
        await db.get(Author, 4)
        await db.get(Author, 5)


def marks(function: Callable[..., Any]) -> list[tuple[int, str]]:
    """The marked lines of a case and what their fixes must contain."""
    lines, first = inspect.getsourcelines(getattr(function, "marks", function))
    found = [(first + i, re.search(r"# n\+1(?:: (.*))?$", line.rstrip())) for i, line in enumerate(lines)]
    return [(line, match[1] or "") for line, match in found if match]


async def run(function: Case, file: Path) -> QueryReport:
    shop = Shop(file)
    try:
        with record() as recorder:
            waiting = function(shop)
            if isinstance(waiting, Awaitable):
                await waiting
        return recorder.report(function.__name__)
    finally:
        await shop.close()


@pytest.mark.parametrize("name", CASES)
def test_findings(name: str, file: Path) -> None:
    expected = marks(CASES[name])
    report = asyncio.run(run(CASES[name], file))
    above = [max((line for line, _ in expected if line < f.line <= line + 5), default=None) for f in report.findings]
    assert above == [line for line, _ in expected], report
    assert {(f.kind, f.file) for f in report.findings} <= {("n+1", __file__)}
    for finding, (_, fix) in zip(report.findings, expected, strict=True):
        assert fix in finding.fix
        assert finding.count >= 5
        assert finding.sql == shape(finding.sql).fingerprint


@pytest.mark.anyio
async def test_a_lazy_load_of_the_serialiser_is_charged_to_the_endpoint(file: Path) -> None:
    shop = Shop(file)

    def endpoint() -> Any:
        return few(shop.db, 8)

    class Passing:  # a middleware of the user's own must not be blamed
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

    for handler in (endpoint, _awaiting(endpoint)):
        shop.db.expunge_all()
        with record() as recorder:
            reply = await asgi.call(serve(handler, list[AuthorOut], Passing), "GET", "/")
        assert reply.status == 200, reply.text
        (finding,) = recorder.report(endpoint=handler).findings
        assert finding.count == 8 and finding.fix == "selectinload(Author.books)"
        assert finding.line == handler.__code__.co_firstlineno
        assert [f.file for f in recorder.report().findings] == [""]  # unknown, but found
    await shop.close()


def _awaiting(function: Callable[[], Any]) -> Callable[..., Any]:
    async def endpoint() -> Any:
        return function()

    return endpoint


@pytest.mark.anyio
async def test_concurrent_requests_are_not_added_up(file: Path) -> None:
    async def four(key: int) -> QueryReport:
        async with AsyncSession(shop.aengine) as db:
            with record() as recorder:
                for i in range(4):
                    await db.get(Author, 4 * key + i + 1)
        return recorder.report()

    shop = Shop(file)
    reports = await asyncio.gather(*map(four, range(6)))
    assert [(report.count, report.findings) for report in reports] == [(4, ())] * 6
    await shop.close()


def test_template_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<ul>\n{% for a in authors %}\n<li>{{ a.books | length }}\n{% endfor %}")
    shop = Shop(file)
    with record() as recorder:
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(tmp_path))
        environment.get_template("page.html").render(authors=few(shop.db))
    (finding,) = recorder.report().findings
    assert (Path(finding.file).name, finding.line) == ("page.html", 3)
    asyncio.run(shop.close())


def test_says_what_a_person_needs(file: Path) -> None:
    finding = Finding("n+1", 1000, __file__, 12, "SELECT 1", "selectinload(Author.books)")
    assert finding.says == "La misma consulta corrió 1.000 veces desde tests/test_nplus1.py:12."
    assert str(finding) == "n+1 ×1.000 en tests/test_nplus1.py:12 → selectinload(Author.books)"


@pytest.mark.parametrize(
    ("sql", "fingerprint"),
    [
        ("SELECT  a\nFROM t -- why\nWHERE b = 5", "SELECT a FROM t WHERE b = ?"),
        ("SELECT 'it''s' /* x */, a1 FROM t2", "SELECT ? , a1 FROM t2"),
        ("x IN (?, ?, ?) AND (a, b) IN ((?, ?), (?, ?))", "x IN (…) AND (a, b) IN (…)"),
        ("x IN (%(x_1)s::INTEGER, %(x_2)s::INTEGER)", "x IN (…)"),
        ("a = ANY($1) AND b = :name AND c::int = 3", "a = ANY (…) AND b = ? AND c::int = ?"),
        ("INSERT INTO t VALUES (?, ?), (?, ?)", "INSERT INTO t VALUES (…)"),
        ("x IN (SELECT y FROM z WHERE w = 1)", "x IN (SELECT y FROM z WHERE w = ?)"),
    ],
)
def test_fingerprint(sql: str, fingerprint: str) -> None:
    assert shape(sql).fingerprint == fingerprint


@given(st.text())
def test_any_text_has_a_fingerprint(sql: str) -> None:
    assert shape(shape(sql).fingerprint).slots is not None


@given(st.integers(), st.text("ab'c", max_size=5))
def test_values_do_not_change_the_fingerprint(number: int, word: str) -> None:
    literal = word.replace("'", "''")
    sql = f"SELECT * FROM t WHERE a = {abs(number)} AND b = '{literal}'"
    assert shape(sql).fingerprint == "SELECT * FROM t WHERE a = ? AND b = ?"
