"""The data gets into the database whole and once, whatever interrupts it and whoever else tries."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from labkit.blog import Comment, Post, User, generator, indexes, loading
from labkit.blog.database import prepare
from labkit.blog.engines import make_engine, sqlite_url
from labkit.errors import AppError, LabkitError

SIZES = {User: 300, Post: 6_000, Comment: 10_000}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "blog-1x.sqlite3"


@contextlib.contextmanager
def opened(file: Path) -> Any:
    engine = make_engine(f"sqlite:///{file}")
    try:
        yield engine
    finally:
        engine.dispose()


def count(engine: Engine) -> dict[type, int]:
    with Session(engine) as session:
        return {model: len(session.scalars(select(model.id)).all()) for model in SIZES}


def leftovers(file: Path) -> set[str]:
    return {path.name for path in file.parent.iterdir()} - {f"{file.name}.lock"}


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_the_data_is_written_in_chunks_with_progress_and_then_reused(file: Path) -> None:
    calls: list[tuple[int, int]] = []
    prepare(f"sqlite:///{file}", 1, lambda done, total: calls.append((done, total)))
    assert calls == [(300, 16_300), (5_300, 16_300), (6_300, 16_300), (11_300, 16_300), (16_300, 16_300)]
    assert leftovers(file) == {file.name}
    with opened(file) as engine:
        assert count(engine) == SIZES
        assert indexes.present(engine) == ()
    before = file.stat()
    prepare(f"sqlite:///{file}", 1, lambda done, total: calls.append((done, total)))
    assert len(calls) == 5
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_stored_rows_are_the_generated_ones(file: Path) -> None:
    prepare(f"sqlite:///{file}")
    data = generator.generate()
    with opened(file) as engine, engine.connect() as connection:
        for model in SIZES:
            table = model.__table__
            stored = connection.execute(select(table).order_by(table.c.id))
            assert [tuple(row) for row in stored] == list(data.rows(table.name))
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"


def test_stale_data_is_made_anew_also_under_an_open_engine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(file) as engine:
        prepare(engine)
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM comments"))
        prepare(engine)
        assert count(engine)[Comment] == 0, "current data is left as it is"
        monkeypatch.setattr(generator, "VERSION", generator.VERSION + 1)
        prepare(engine)
        assert count(engine) == SIZES


@pytest.mark.parametrize("chunk", [0, 1, 4])
def test_an_interrupted_build_leaves_nothing(file: Path, chunk: int) -> None:
    def interrupt(done: int, total: int, calls: list[int] = []) -> None:  # noqa: B006
        calls.append(done)
        if len(calls) > chunk:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(f"sqlite:///{file}", 1, interrupt)
    assert leftovers(file) == set()
    prepare(f"sqlite:///{file}")
    assert leftovers(file) == {file.name}


def test_a_killed_build_is_swept_away_by_the_next(file: Path) -> None:
    code = """if True:
        import os, signal, sys
        from labkit.blog.database import prepare
        def die(done, total):
            if done > 6_000:
                os.kill(os.getpid(), signal.SIGKILL)
        prepare("sqlite:///" + sys.argv[1], 1, die)
    """
    with child(code, file) as process:
        assert process.wait(60) == -signal.SIGKILL
    assert not file.exists()
    (left,) = (file.parent / name for name in leftovers(file))
    left.write_bytes(b"half a page")  # what a crash of the machine may leave of it
    prepare(f"sqlite:///{file}")
    assert leftovers(file) == {file.name}


def test_of_several_processes_one_writes_and_all_find_the_data(file: Path) -> None:
    code = """if True:
        import sys
        from labkit.blog.database import prepare
        calls = []
        sys.stdin.readline()
        prepare("sqlite:///" + sys.argv[1], 1, lambda done, total: calls.append(done))
        import sqlite3
        print(len(calls), sqlite3.connect(sys.argv[1]).execute("SELECT count(*) FROM comments").fetchone()[0])
    """
    processes = [subprocess.Popen([sys.executable, "-c", code, file], stdin=-1, stdout=-1, text=True) for _ in range(3)]
    for process in processes:  # let them all import first
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert answers == ["0 10000", "0 10000", "5 10000"]
    assert leftovers(file) == {file.name}


def test_of_several_threads_one_writes(file: Path) -> None:
    calls: list[int] = []
    threads = [
        threading.Thread(target=prepare, args=(f"sqlite:///{file}", 1, lambda done, total: calls.append(done)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 5


def test_waiting_for_another_build_ends(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PATIENCE", 0.0)
    with sqlite3.connect(f"{file}.lock", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(AppError, match=r"blog-1x\.sqlite3: database is locked"):
            prepare(f"sqlite:///{file}")
    other.close()


def test_a_full_disk_is_told_and_leaves_nothing(file: Path) -> None:
    code = """if True:
        import resource, sys
        from labkit.blog.database import prepare
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            prepare("sqlite:///" + sys.argv[1])
        except Exception as error:
            print(type(error).__name__, error)
    """
    with child(code, file) as process:
        said = process.communicate(timeout=60)[0]
    assert said.startswith("AppError")
    assert str(file) in said
    assert "espacio" in said
    assert leftovers(file) == set()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file")
    with pytest.raises(AppError, match="LABKIT_WORK"):
        prepare(sqlite_url(tmp_path / "occupied" / "data"))


def test_the_folder_is_made(tmp_path: Path) -> None:
    prepare(sqlite_url(tmp_path / "new" / "data"))
    assert (tmp_path / "new" / "data" / "blog-1x.sqlite3").is_file()


def test_a_damaged_file_is_told_and_kept(file: Path) -> None:
    file.write_bytes(b"this is no database" * 1_000)
    with pytest.raises(AppError, match="not a database"):
        prepare(f"sqlite:///{file}")
    assert file.read_bytes() == b"this is no database" * 1_000


@pytest.mark.parametrize("table", ["orders", "users"])
def test_tables_of_others_stay_untouched(file: Path, table: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"CREATE TABLE {table} (id INTEGER)")
    with pytest.raises(AppError, match=table):
        prepare(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [(table,)]


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://user:secret@host/name",
        "sqlite+aiosqlite:///blog.db",
        "postgresql+asyncpg://user:secret@host/name",
    ],
)
def test_a_database_the_blog_cannot_use_is_named_without_its_password(url: str) -> None:
    with pytest.raises(AppError) as raised:
        make_engine(url)
    assert "secret" not in str(raised.value)
    assert url.split(":")[0] in str(raised.value)


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(AppError, match="DATABASE_URL") as raised:
        prepare("postgresql://somebody:secret@127.0.0.1:1/blog")
    assert "127.0.0.1:1/blog" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_an_unknown_scale_is_refused_before_anything_is_written(file: Path) -> None:
    with pytest.raises(LabkitError, match="scale=0"):
        prepare(f"sqlite:///{file}", 0)
    assert not leftovers(file)


class TestModels:
    @pytest.fixture
    def session(self, tmp_path: Path) -> Any:
        with opened(tmp_path / "empty.sqlite3") as engine:
            User.metadata.create_all(engine)
            with Session(engine) as session:
                session.add(User(username="ana", email="a@example.org", posts=[Post(title="Uno", body="")]))
                session.commit()
                yield session

    @pytest.mark.parametrize(
        "row",
        [
            User(username="ana", email="b@example.org"),
            User(username="eva", email="a@example.org"),
            Post(title="", body="x", author_id=1),
            Post(title="x", body="x", author_id=99),
            Comment(body="x", post_id=99, author_id=1),
            Comment(body="", post_id=1, author_id=1),
        ],
    )
    def test_the_database_refuses(self, session: Session, row: User | Post | Comment) -> None:
        session.add(row)
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        session.expunge_all()

    def test_relationships(self, session: Session) -> None:
        user = session.scalars(select(User)).one()
        post = user.posts[0]
        post.comments.append(Comment(body="¿?", author=user))
        session.commit()
        comment = session.scalars(select(Comment)).one()
        assert (post.author, comment.post, comment.author) == (user, post, user)
        assert comment.created_at.tzinfo is None
        session.delete(user)
        session.commit()
        assert session.scalars(select(Comment)).all() == []

    def test_deleting_in_sql_cascades(self, session: Session) -> None:
        session.execute(insert(Comment).values(body="¿?", post_id=1, author_id=1))
        session.execute(text("DELETE FROM users"))
        assert session.scalars(select(Comment.id)).all() == []


class TestIndexes:
    @pytest.fixture
    def engine(self, file: Path) -> Any:
        with opened(file) as engine:
            prepare(engine)
            yield engine

    def plan(self, engine: Engine, sql: str) -> str:
        with engine.connect() as connection:
            return " ".join(row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {sql}")))

    def test_made_and_dropped_by_a_call_any_number_of_times(self, engine: Engine) -> None:
        names = ("ix_comments_author_id", "ix_comments_post_id", "ix_posts_author_id")
        assert indexes.create(engine) == indexes.create(engine) == indexes.present(engine) == names
        indexes.drop(engine)
        indexes.drop(engine)
        assert indexes.present(engine) == ()

    def test_the_learners_own_index_is_seen_and_dropped(self, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text('CREATE INDEX "Mi índice" ON comments (post_id)'))
        assert indexes.present(engine) == ("Mi índice",)
        indexes.drop(engine)
        assert indexes.present(engine) == ()

    def test_they_turn_scans_into_searches(self, engine: Engine) -> None:
        comments = "SELECT count(*) FROM comments WHERE post_id = 7"
        posts = "SELECT id, title FROM posts WHERE author_id = 7 ORDER BY id"
        assert self.plan(engine, comments) == "SCAN comments"
        assert "SCAN posts" in self.plan(engine, posts)
        indexes.create(engine)
        assert "SEARCH comments USING COVERING INDEX" in self.plan(engine, comments)
        assert self.plan(engine, posts) == "SEARCH posts USING COVERING INDEX ix_posts_author_id (author_id=?)"

    def test_constraints_survive(self, engine: Engine) -> None:
        indexes.create(engine)
        indexes.drop(engine)
        with engine.connect() as connection, pytest.raises(IntegrityError):
            name = connection.scalar(select(User.username))
            connection.execute(insert(User).values(username=name, email="new@example.org"))


def test_a_read_only_file_can_be_read(file: Path) -> None:
    """Why the blog keeps SQLite's rollback journal: a write-ahead log needs a folder it can write to."""
    prepare(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    engine = create_engine(f"sqlite:///file:{file}?mode=ro&uri=true")
    assert count(engine) == SIZES
    with pytest.raises(OperationalError, match="readonly"):
        indexes.create(engine)
    engine.dispose()
