"""The application: it starts anywhere, and its three feeds give one answer from 1,051, 2 and 1 statements."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, select

from labkit import Lab
from labkit.blog import User, create_app, get_db, indexes
from labkit.blog.database import prepare
from labkit.blog.engines import make_engine, sqlite_url
from labkit.blog.hidden import HiddenBlog, expected, make_session_factory
from labkit.blog.performance import fast_endpoint, slow_endpoint
from labkit.errors import AppError, LabkitError

SLOW, FAST, FASTEST = (
    "/performance/slow-endpoint?sleep_ms=0",
    "/performance/fast-endpoint",
    "/performance/fastest-endpoint",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blog")
    prepare(sqlite_url(folder))
    return folder


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://blog") as client,
    ):
        yield client


class Counter:
    """Counts the statements of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        event.listen(engine, "before_cursor_execute", self)

    def __call__(self, *_: Any) -> None:
        self.count += 1

    async def get(self, client: AsyncClient, path: str) -> tuple[int, Response]:
        before = self.count
        response = await client.get(path)
        return self.count - before, response


def run(test: Callable[[], Any]) -> Any:
    return anyio.run(test)


def test_the_feeds_give_one_answer_from_1051_2_and_1_statements(folder: Path) -> None:
    app = create_app(data_folder=folder)

    async def check() -> None:
        async with running(app) as client:
            counter = Counter(app.state.engine)
            answers = {path: await counter.get(client, path) for path in (SLOW, FAST, FASTEST)}
            assert [count for count, _ in answers.values()] == [1_051, 2, 1]
            assert {response.status_code for _, response in answers.values()} == {200}
            assert {response.headers["content-type"] for _, response in answers.values()} == {"application/json"}
            assert len({response.content for _, response in answers.values()}) == 1
            with app.state.session_factory() as session:
                assert answers[SLOW][1].json() == expected(session)
            indexes.create(app.state.engine)
            again = [(await client.get(path)).content for path in (FAST, FASTEST)]
            indexes.drop(app.state.engine)
            assert again == [answers[SLOW][1].content] * 2

    run(check)


def test_the_answer_has_the_shape_of_the_course(folder: Path) -> None:
    async def check() -> dict[str, Any]:
        async with running(create_app(data_folder=folder)) as client:
            answer: dict[str, Any] = (await client.get(FAST)).json()
            return answer

    answer = run(check)
    assert list(answer) == ["users", "total"]
    assert answer["total"] == len(answer["users"]) == 50
    assert [user["id"] for user in answer["users"]] == list(range(1, 51))
    posts = [post for user in answer["users"] for post in user["posts"]]
    assert len(posts) == 1_000
    assert {tuple(post) for post in posts} == {("id", "title", "comments_count")}
    assert any(not user["posts"] for user in answer["users"])
    assert any(post["comments_count"] == 0 for post in posts)
    for user in answer["users"]:
        assert list(user) == ["id", "username", "posts"]
        ids = [post["id"] for post in user["posts"]]
        assert ids == sorted(ids)


def test_an_endpoint_replaced_in_one_application_stays_in_the_next(folder: Path) -> None:
    with (
        Lab(create_app(data_folder=folder), redis=False) as one,
        Lab(create_app(data_folder=folder), redis=False) as two,
    ):

        @one.app.get("/performance/fast-endpoint")
        async def mine() -> str:
            return "mine"

        assert one.get("/performance/fast-endpoint").json == "mine"
        assert two.get("/performance/fast-endpoint").queries == 2
        with Lab(create_app(data_folder=folder), redis=False) as three:
            assert three.get("/performance/fast-endpoint").queries == 2


def test_forty_at_once_do_not_wait_for_each_other_s_connections(folder: Path) -> None:
    # Who waits for one inside the loop stops those who would give theirs back: 30 s of silence, with a pool of 15.
    with Lab(create_app(data_folder=folder), redis=True, latency=1, time_limit=10) as lab:
        mix = {"/users/{id}": 1, "/cached/users/{id}": 1, "/posts/latest": 1}
        load = lab.load(mix, ids=range(1, 300), requests=300, concurrency=40)
        assert (load.requests, load.errors) == (300, 0)


def test_the_slow_endpoint_sleeps_for_each_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr("labkit.blog.performance.time.sleep", naps.append)

    async def check() -> None:
        async with running(create_app(data_folder=folder)) as client:
            await client.get("/performance/slow-endpoint")
            assert naps == [0.01] * 50
            await client.get("/performance/slow-endpoint?sleep_ms=2.5")
            assert naps[50:] == [0.0025] * 50
            assert (await client.get("/performance/slow-endpoint?sleep_ms=x")).status_code == 422

    run(check)


def test_the_endpoints_are_written_as_in_the_course() -> None:
    assert inspect.iscoroutinefunction(slow_endpoint)
    assert inspect.iscoroutinefunction(fast_endpoint)
    assert list(inspect.signature(slow_endpoint).parameters) == ["db", "sleep_ms"]
    assert list(inspect.signature(fast_endpoint).parameters) == ["db"]


def test_starting_opens_and_ending_closes_any_number_of_times(folder: Path) -> None:
    app = create_app(data_folder=folder)
    assert app.state.factory == "labkit.blog:create_app"
    assert app.state.database_url is app.state.redis_url is app.state.engine is None

    async def check() -> None:
        for _ in range(2):
            async with running(app) as client:
                assert (await client.get("/health/")).json()["status"] == "healthy"
                await client.get(FAST)
                engine = app.state.engine
                assert engine.pool.checkedout() == 0, "the session of a request is closed with it"
                assert engine.pool.checkedin() == 1
            assert app.state.engine is None
            assert engine.pool.checkedin() == 0

    run(check)


def test_the_data_lie_in_the_work_folder_by_default(work: Path) -> None:
    app = create_app()
    app.state.prepare()
    assert (work / "blog-1x.sqlite3").is_file()


def test_starting_writes_the_data_if_nobody_did(tmp_path: Path) -> None:
    async def check() -> None:
        async with running(create_app(data_folder=tmp_path)) as client:
            assert (await client.get(FAST)).status_code == 200

    run(check)


def test_the_addresses_may_be_set_until_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Lab fills ``app.state.database_url``; what was given goes before ``DATABASE_URL``."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@127.0.0.1:1/unreachable")
    app = create_app()
    with pytest.raises(AppError, match="unreachable"):
        app.state.prepare()
    app.state.database_url = f"sqlite:///{tmp_path / 'own.sqlite3'}"
    calls: list[int] = []
    app.state.prepare(lambda done, total: calls.append(done))
    assert calls[-1] == 16_300
    assert (tmp_path / "own.sqlite3").is_file()


def test_starting_without_its_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with running(create_app(database_url="postgresql://user:secret@127.0.0.1:1/none")):
            pass

    with pytest.raises(AppError, match=r"127\.0\.0\.1:1/none") as raised:
        run(check)
    assert "secret" not in str(raised.value)


def test_wrong_arguments_are_refused_at_once() -> None:
    with pytest.raises(LabkitError, match="scale=0"):
        create_app(scale=0)
    with pytest.raises(AppError, match="mysql"):
        create_app(database_url="mysql://host/name")


def test_a_request_before_the_start_says_what_is_missing(folder: Path) -> None:
    async def check() -> None:
        transport = ASGITransport(create_app(data_folder=folder))
        async with AsyncClient(transport=transport, base_url="http://blog") as client:
            await client.get(FAST)

    with pytest.raises(AppError, match="Lab"):
        run(check)


def test_the_engine_serves_many_threads(folder: Path) -> None:
    """An endpoint that is a plain ``def`` runs in a thread, its session comes from another."""
    app = create_app(data_folder=folder)

    async def read() -> None:
        with app.state.session_factory() as session:
            assert await anyio.to_thread.run_sync(lambda: len(session.scalars(select(User)).all())) == 300

    async def check() -> None:
        async with running(app), anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(read)

    run(check)


def test_uvicorn_serves_the_factory(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ["-m", "uvicorn", "--factory", "labkit.blog:create_app", "--port", "0"]
    with (
        log.open("w") as file,
        subprocess.Popen([sys.executable, *arguments], stderr=file, env={"LABKIT_WORK": str(folder)}) as process,
    ):
        try:
            while not (found := re.search(r"running on (http://127.0.0.1:\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            for path, key in (("/health/", "status"), (FAST, "users")):
                with urllib.request.urlopen(found[1] + path, timeout=20) as response:
                    assert key in json.load(response)
        finally:
            process.terminate()
            process.wait(20)
    assert "Application shutdown complete" in log.read_text()
    assert "Error" not in log.read_text()


class TestHidden:
    """Small awkward blogs."""

    async def answers(self, hidden: HiddenBlog) -> list[tuple[int, Response]]:
        app = create_app(data_folder=Path("unused"))
        app.dependency_overrides[get_db] = hidden.get_db
        counter = Counter(hidden.engine)
        async with AsyncClient(transport=ASGITransport(app), base_url="http://blog") as client:
            return [await counter.get(client, path) for path in (SLOW, FAST, FASTEST)]

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(seed=st.integers(0, 2**63), users=st.sampled_from([5, 6, 20, 60]))
    def test_the_feeds_are_right_on_each(self, seed: int, users: int) -> None:
        with make_session_factory(seed, users) as hidden:
            with hidden() as session:
                right = expected(session)
            (slow, _), (fast, _), (fastest, _) = answers = anyio.run(self.answers, hidden)
            posts = sum(len(user["posts"]) for user in right["users"])
            assert (slow, fast, fastest) == (1 + min(users, 50) + posts, 2, 1)
            for _, response in answers:
                assert response.json() == right
                assert response.content == answers[0][1].content

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(seed=st.integers(0, 2**63), users=st.sampled_from([5, 8, 20, 60]))
    def test_each_holds_every_awkward_case(self, seed: int, users: int) -> None:
        with make_session_factory(seed, users) as hidden, hidden() as session:
            answer = expected(session)
            ids = session.scalars(select(User.id)).all()
        assert len(ids) == users
        assert max(ids) > users, "ids have gaps"
        assert answer["total"] == min(users, 50)
        feeds = [user["posts"] for user in answer["users"]]
        counts = [[post["comments_count"] for post in posts] for posts in feeds]
        assert [] in feeds
        assert any(posts and not any(posts) for posts in counts), "a user whose posts nobody comments"
        assert any(0 in posts and max(posts) == 40 for posts in counts)
        titles = [post["title"] for posts in feeds for post in posts]
        assert len(set(titles)) < len(titles)
        assert {"'", '"', "\\", "<", "%", "日"} <= set("".join(titles))

    def test_rows_are_not_written_in_the_order_of_their_ids(self) -> None:
        written: list[int] = []

        def note(*arguments: Any) -> None:
            if "INSERT INTO posts" in arguments[2]:
                written.extend(row[0] for row in arguments[3])

        event.listen(Engine, "before_cursor_execute", note)
        try:
            make_session_factory(1).close()
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        assert len(written) > 20
        assert written != sorted(written)

    def test_a_seed_repeats_a_blog(self) -> None:
        answers = []
        for seed in (4, 4, 5):
            with make_session_factory(seed) as hidden, hidden() as session:
                answers.append(expected(session))
        assert answers[0] == answers[1] != answers[2]
        assert repr(hidden) == "HiddenBlog(seed=5, users=20)"

    def test_closing_removes_the_file_and_twice_is_fine(self) -> None:
        hidden = make_session_factory(1)
        file = Path(str(hidden.engine.url.database))
        assert file.is_file()
        hidden.close()
        hidden.close()
        assert not file.parent.exists()

    def test_one_that_is_forgotten_removes_its_file(self) -> None:
        file = Path(str(make_session_factory(1).engine.url.database))
        assert not file.parent.exists()

    @pytest.mark.parametrize("users", [4, 0, -1, 5.0, True, "20"])
    def test_too_few_users_are_refused(self, users: Any) -> None:
        with pytest.raises(LabkitError, match="users="):
            make_session_factory(1, users)

    def test_expected_sees_what_a_wrong_answer_misses(self, folder: Path) -> None:
        """It counts from rows alone: a comment more is one more."""
        with make_session_factory(9) as hidden, hidden() as session:
            before = expected(session)
            post = next(user["posts"][0] for user in before["users"] if user["posts"])
            session.connection().exec_driver_sql(
                "INSERT INTO comments SELECT max(id) + 1, ?, author_id, 'x', created_at FROM comments",
                (post["id"],),
            )
            after = expected(session)
            post["comments_count"] += 1
            assert after == before
            assert expected(session, users=3)["total"] == 3


def test_engines_enforce_foreign_keys(tmp_path: Path) -> None:
    engine = make_engine(sqlite_url(tmp_path))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()
