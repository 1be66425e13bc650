"""The blog behind a cache: right answers from few statements, true after a change, and without Redis as well."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis as client
from sqlalchemy import insert, select, text

from labkit import Lab
from labkit.blog import Comment, Post, User, create_app
from labkit.blog.database import prepare
from labkit.blog.engines import sqlite_url
from labkit.blog.views import view_latest
from labkit.errors import ServiceError
from labkit.services import postgres

VIEWS = ("/users/7", "/posts/latest", "/posts/latest?limit=3", "/stats/global")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blog")
    prepare(sqlite_url(folder))
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A blog to be changed."""
    for file in written.glob("*.sqlite3"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture
def lab(folder: Path) -> Iterator[Lab]:
    app = create_app(data_folder=folder)
    app.state.cache.timeout = 0.5  # what is asked here is what the cache does, not whether a busy machine is in time
    with Lab(app, latency=0) as lab:
        yield lab


def state(lab: Lab, path: str) -> str:
    """Ask, and tell what the cache did."""
    reply = lab.get(path)
    assert reply.status == 200, reply
    return str(reply.headers["x-cache"])


def rows(lab: Lab, *statements: Any) -> None:
    with lab.engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def test_both_kinds_give_the_same_answer_and_the_cache_asks_once(lab: Lab) -> None:
    for path in VIEWS:
        plain, first, second = lab.get(path), lab.get(f"/cached{path}"), lab.get(f"/cached{path}")
        assert plain.status == 200 and plain.text == first.text == second.text
        assert (plain.queries, first.queries, second.queries) == (1, 1, 0)
        assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "HIT")
        assert "x-cache" not in plain.headers and second.headers["age"] == "0"


def test_a_user_is_what_the_database_says(lab: Lab) -> None:
    with lab.app.state.session_factory() as session:  # type: ignore[union-attr]
        user = session.get(User, 7)
    assert lab.get("/cached/users/7").json == {"id": 7, "username": user.username, "email": user.email}


def test_the_newest_posts_come_first(lab: Lab) -> None:
    for number in (9001, 9002, 9000):  # at the same moment, and later than the others
        rows(lab, insert(Post).values(id=number, title="x", body="x", author_id=1, created_at=datetime(2100, 1, 1)))
    posts = lab.get("/cached/posts/latest?limit=100").json
    with lab.app.state.session_factory() as session:  # type: ignore[union-attr]
        order = session.execute(select(Post.id, Post.author_id).order_by(Post.created_at.desc(), Post.id.desc()))
        assert [(post["id"], post["author_id"]) for post in posts] == [tuple(row) for row in order.fetchmany(100)]
    assert [post["id"] for post in posts[:3]] == [9002, 9001, 9000]
    assert [post["id"] for post in lab.get("/cached/posts/latest").json] == [post["id"] for post in posts[:20]]


def test_the_totals_are_counts_and_no_product(lab: Lab) -> None:
    assert lab.get("/cached/stats/global").json == {"total_users": 300, "total_posts": 6000, "total_comments": 10000}
    rows(lab, text("DELETE FROM comments"))
    assert lab.get("/stats/global").json == {"total_users": 300, "total_posts": 6000, "total_comments": 0}


def test_the_totals_of_an_empty_blog_are_nought(lab: Lab) -> None:
    rows(lab, *(text(f"DELETE FROM {table}") for table in ("comments", "posts", "users")))
    assert lab.get("/cached/stats/global").json == {"total_users": 0, "total_posts": 0, "total_comments": 0}
    assert lab.get("/cached/posts/latest").json == []


def test_counting_is_one_statement_without_a_join(lab: Lab) -> None:
    sql = lab.queries("/stats/global").statements[0].sql
    assert sql.count("count(*)") == 3 and "JOIN" not in sql.upper()


def test_who_is_not_there_is_an_error_each_time_and_no_answer(lab: Lab) -> None:
    for _ in range(2):
        reply = lab.get("/cached/users/99999")
        assert (reply.status, reply.json, reply.queries) == (404, {"detail": "User 99999 not found"}, 1)
    rows(lab, insert(User).values(id=99999, username="nueva", email="nueva@example.org"))
    assert lab.get("/cached/users/99999").json["username"] == "nueva"


@pytest.mark.parametrize("number", ["0", "-1", "x", str(2**31), "9" * 30])
def test_what_is_no_id_is_refused_before_the_database_is_asked(lab: Lab, number: str) -> None:
    for method, path in (("GET", "users"), ("GET", "cached/users"), ("DELETE", "cached/cache/user")):
        reply = lab.request(method, f"/{path}/{number}")
        assert (reply.status, reply.queries) == (422, 0)


@pytest.mark.parametrize("limit", [0, 101, -5, "x"])
def test_a_list_has_its_limits(lab: Lab, limit: object) -> None:
    assert lab.get(f"/posts/latest?limit={limit}").status == 422
    assert lab.get(f"/cached/posts/latest?limit={limit}").status == 422


def test_the_keys_can_be_read_and_live_as_long_as_was_said(lab: Lab) -> None:
    for path in VIEWS:
        lab.get(f"/cached{path}")
    assert lab.redis is not None
    with client.Redis.from_url(lab.redis.url, decode_responses=True) as connection:
        lives = {key.split(":")[0]: connection.ttl(key) for key in connection.scan_iter("*:get_*")}
    assert 590 <= lives["user"] <= 600
    assert 50 <= lives["posts"] <= 60
    assert 900 + 86_000 <= lives["stats"] <= 900 + 86_400


# Changes


def test_forgetting_a_user_forgets_no_other(lab: Lab) -> None:
    for user in (1, 2):
        lab.get(f"/cached/users/{user}")
    reply = lab.delete("/cached/cache/user/1")
    assert reply.json == {"message": "Cache invalidated for user 1", "confirmed": True}
    assert (state(lab, "/cached/users/1"), state(lab, "/cached/users/2")) == ("MISS", "HIT")


def test_a_change_is_seen_at_once_wherever_the_user_is(lab: Lab) -> None:
    posts = lab.get("/cached/posts/latest").json
    author, others = posts[0]["author_id"], {post["author_id"] for post in posts}
    stranger = next(number for number in range(1, 301) if number not in others)
    for path in (f"/cached/users/{author}", f"/cached/users/{stranger}", "/cached/stats/global"):
        lab.get(path)
    reply = lab.put(f"/cached/users/{author}", json={"username": " nuevo nombre "})
    assert (reply.status, reply.json["username"], reply.queries) == (200, "nuevo nombre", 2)
    assert state(lab, "/cached/stats/global") == "HIT"
    assert state(lab, f"/cached/users/{stranger}") == "HIT"
    assert lab.get("/cached/posts/latest").json[0]["author"] == "nuevo nombre"
    assert lab.get(f"/cached/users/{author}").json == reply.json == lab.get(f"/users/{author}").json
    assert state(lab, "/cached/posts/latest") == "HIT"
    lab.put(f"/cached/users/{stranger}", json={"email": "otra@example.org"})
    assert state(lab, "/cached/posts/latest") == "HIT", "a list without her stays"
    assert lab.get(f"/cached/users/{stranger}").json["email"] == "otra@example.org"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"username": ""},
        {"username": "   "},
        {"username": "x" * 51},
        {"email": "nobody"},
        {"email": "a@" + "b" * 120},
    ],
)
def test_an_unusable_change_changes_nothing(lab: Lab, change: dict[str, str]) -> None:
    before = lab.get("/cached/users/7").json
    assert lab.put("/cached/users/7", json=change).status == 422
    assert lab.get("/users/7").json == before and state(lab, "/cached/users/7") == "HIT"


def test_a_name_that_is_taken_is_a_conflict(lab: Lab) -> None:
    taken = lab.get("/users/8").json
    for part in ("username", "email"):
        assert lab.put("/cached/users/7", json={part: taken[part]}).status == 409
    assert lab.put("/cached/users/99999", json={"username": "x"}).status == 404
    assert lab.get("/users/7").json["username"] != taken["username"]


def test_a_change_during_a_fill_wins(lab: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old row has been read and is not stored yet when another process' change is acknowledged."""
    read, changed = threading.Event(), threading.Event()

    def hold(*arguments: Any) -> Any:
        posts = view_latest(*arguments)
        if not read.is_set():
            read.set()
            assert changed.wait(20)
        return posts

    monkeypatch.setattr("labkit.blog.cached.view_latest", hold)
    assert lab.redis is not None
    with Lab(create_app(data_folder=folder, redis_url=lab.redis.url), latency=0) as other:
        slow = threading.Thread(target=lab.get, args=("/cached/posts/latest",))
        slow.start()
        assert read.wait(20)
        author = other.get("/posts/latest").json[0]["author_id"]
        assert other.put(f"/cached/users/{author}", json={"username": "despues"}).status == 200
        changed.set()
        slow.join(20)
        for each in (lab, other):
            assert each.get("/cached/posts/latest").json[0]["author"] == "despues"


# Without Redis


@pytest.mark.parametrize("fault", ["redis_down", "redis_frozen"])
def test_while_redis_is_away_it_answers_from_the_database(lab: Lab, fault: str) -> None:
    assert state(lab, "/cached/users/7") == "MISS"
    with lab.fault(fault):
        assert [state(lab, f"/cached{path}") for path in VIEWS] == ["BYPASS"] * 4
        assert lab.put("/cached/users/7", json={"username": "sin redis"}).status == 200
        assert lab.delete("/cached/cache/user/8").json["confirmed"] is False
        assert lab.get("/cached/users/7").json["username"] == "sin redis"
    for _ in range(100):
        assert lab.get("/cached/users/7").json["username"] == "sin redis", "what was missed is made up for first"
        if state(lab, "/cached/users/7") == "HIT":
            break
        threading.Event().wait(0.05)
    else:
        pytest.fail("it did not come back")


def test_without_any_redis_nothing_is_cached_and_nothing_fails(folder: Path) -> None:
    with Lab(create_app(data_folder=folder), redis=False, latency=0) as lab:
        for path in VIEWS:
            for _ in range(2):
                reply = lab.get(f"/cached{path}")
                assert (reply.status, reply.headers["x-cache"], reply.queries) == (200, "BYPASS", 1)
        assert lab.put("/cached/users/7", json={"username": "sola"}).status == 200
        assert lab.delete("/cached/cache/user/7").json["confirmed"] is False


def test_redis_is_looked_for_in_the_environment(lab: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab.redis is not None
    monkeypatch.setenv("REDIS_URL", lab.redis.url)
    with Lab(create_app(data_folder=folder), latency=0) as other:
        assert state(lab, "/cached/users/7") == "MISS"
        assert state(other, "/cached/users/7") == "HIT", "the same function of another application"


def test_an_application_may_have_one_lab_after_another(folder: Path) -> None:
    app = create_app(data_folder=folder)
    for _ in range(2):
        with Lab(app, latency=0) as lab:
            assert [state(lab, "/cached/users/7") for _ in range(2)] == ["MISS", "HIT"]
            assert lab.app.state.cache.breaker.state == "closed"  # type: ignore[union-attr]


def test_its_end_closes_its_connections(lab: Lab, folder: Path) -> None:
    assert lab.redis is not None
    with client.Redis.from_url(lab.redis.url) as connection:
        before = len(connection.client_list())
        other = create_app(data_folder=folder, redis_url=lab.redis.url)  # kept: what is collected closes by itself
        with Lab(other, latency=0) as second:
            state(second, "/cached/users/7")
            assert len(connection.client_list()) > before
        assert len(connection.client_list()) == before
        assert other.state.cache is not None


# PostgreSQL


def test_the_same_on_postgresql() -> None:
    try:
        server = postgres.start()
    except ServiceError as error:
        pytest.skip(str(error))
    with server, Lab(create_app(database_url=server.url)) as lab:
        for path in VIEWS:
            assert lab.get(path).text == lab.get(f"/cached{path}").text
        assert lab.get("/cached/stats/global").json == {
            "total_users": 300,
            "total_posts": 6000,
            "total_comments": 10000,
        }
        taken = lab.get("/users/8").json["username"]
        assert lab.put("/cached/users/7", json={"username": taken}).status == 409
        assert lab.put("/cached/users/7", json={"username": "otra"}).status == 200
        assert lab.get("/cached/users/7").json["username"] == "otra"
        with lab.app.state.session_factory() as session:  # type: ignore[union-attr]
            assert session.scalar(select(Comment.id).limit(1)) is not None


def test_where_there_is_no_wheel_the_cache_works_on_fakeredis(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_FAKE_REDIS", "1")
    with Lab(create_app(data_folder=folder)) as lab:
        assert lab.redis is not None and lab.redis.fake
        assert [lab.get("/cached/users/7").headers["x-cache"] for _ in range(3)] == ["MISS", "HIT", "HIT"]
        assert lab.put("/cached/users/7", json={"email": "fake@example.org"}).status == 200
        assert lab.get("/cached/users/7").headers["x-cache"] == "MISS"
