"""``@cached`` on endpoints: the uncached bytes, true headers, nobody else's answer, and nothing private kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from labkit import asgi
from labkit.cache import CacheClient, StaleWhileRevalidate, cached, writes
from labkit.errors import CacheError
from tests.caching import Kitchen, calls, command, start, the_kitchen, the_server  # noqa: F401 (the fixtures)


def get_db() -> Iterator[Session]:
    with Session() as session:
        yield session


async def marked() -> AsyncIterator[Session]:
    session = Session()
    yield session
    session.info["closed"] = True


class User(BaseModel):
    id: int
    user_name: str = Field(serialization_alias="userName")
    born: datetime | None = None


class Paging(BaseModel):
    size: int = 10
    page: int = Field(1, alias="p")


def seen(reply: asgi.Reply) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """What a client gets, without what the cache adds."""
    headers = [(name, value) for name, value in reply.raw_headers if name not in (b"x-cache", b"age")]
    return reply.status, reply.body, sorted(headers)


def labels(*replies: asgi.Reply) -> list[str]:
    return [reply.headers.get("x-cache", "") for reply in replies]


def handlers() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    async def plain(n: int = 3) -> Any:
        return {"n": n, "when": datetime(2026, 1, 2, tzinfo=UTC), "ñ": {1, 2}}

    async def model(n: int = 3) -> User:
        return User(id=n, user_name="Ana")

    async def hidden(n: int = 3) -> Any:
        return {"id": n, "user_name": "Ana", "secret": "s3cret"}

    def sync(n: int = 3) -> Any:
        return [n, None, 1.5]

    async def nothing() -> None:
        return None

    async def own(response: Response) -> Any:
        response.headers["X-Total"] = "50"
        response.status_code = 203
        return {"a": 1}

    async def raw() -> Any:
        return JSONResponse({"a": [1]}, 201, {"X-Own": "ñ".encode().decode("latin-1"), "Link": "</2>; rel=next"})

    async def html() -> Any:
        return "<p>hola</p>"

    same = Response(b"\x00\xff", media_type="application/octet-stream")

    async def constant() -> Any:
        return same

    return {
        "plain": (plain, {}),
        "model": (model, {}),
        "unset": (model, {"response_model_exclude_unset": True, "response_model_by_alias": False}),
        "hidden": (hidden, {"response_model": User}),
        "created": (hidden, {"response_model": User, "status_code": 201}),
        "sync": (sync, {}),
        "nothing": (nothing, {}),
        "empty": (nothing, {"status_code": 204}),
        "own": (own, {}),
        "raw": (raw, {}),
        "html": (html, {"response_class": HTMLResponse}),
        "text": (html, {"response_class": PlainTextResponse}),
        "json": (sync, {"response_class": JSONResponse, "response_model": list[Any]}),
        "constant": (constant, {}),
    }


@pytest.mark.parametrize("name", handlers())
def test_the_answer_is_the_uncached_one_byte_for_byte(kitchen: Kitchen, name: str) -> None:
    handler, options = handlers()[name]
    app, router = FastAPI(), APIRouter()
    app.get("/bare", **options)(handler)
    router.get("/kept", **options)(cached(client=kitchen.client)(handler))
    app.include_router(router, prefix="/v1")

    async def work() -> list[asgi.Reply]:
        return [await kitchen.get(app, path) for path in ("/bare", "/v1/kept", "/v1/kept", "/v1/kept")]

    bare, *kept = kitchen(work)
    assert not bare.error and [seen(reply) for reply in kept] == [seen(bare)] * 3
    assert labels(bare, *kept) == ["", "MISS", "HIT", "HIT"]
    assert "secret" not in kept[-1].body.decode("latin-1")


def test_only_what_the_endpoint_takes_is_in_the_key_and_the_schema_is_its_own(kitchen: Kitchen) -> None:
    app = FastAPI()

    @app.get("/users/{user_id}")
    @cached(ttl=60, key_prefix="user", client=kitchen.client)
    async def get_user(user_id: int, lang: str = "es", db: Session = Depends(get_db)) -> dict[str, Any]:
        kitchen.runs[user_id, lang] += 1
        return {"id": user_id, "lang": lang}

    async def work() -> list[asgi.Reply]:
        paths = ["/users/1", "/users/1?lang=es&x=9", "/users/1?lang=en", "/users/2", "/users/a", "/users/1"]
        return [await kitchen.get(app, path) for path in paths]

    replies = kitchen(work)
    assert labels(*replies) == ["MISS", "HIT", "MISS", "MISS", "", "HIT"]
    assert replies[4].status == 422 and set(kitchen.runs.values()) == {1}
    assert command(kitchen.server, "EXISTS", get_user.key(1), get_user.key(1, "en", None), get_user.key(user_id=2)) == 3
    names = [one["name"] for one in app.openapi()["paths"]["/users/{user_id}"]["get"]["parameters"]]
    assert names == ["user_id", "lang"]


def test_invalidation_by_the_same_arguments(kitchen: Kitchen) -> None:
    app = FastAPI()

    @app.get("/users/{user_id}")
    @cached(client=kitchen.client, key_prefix="user", tags=["user:{user_id}"])
    async def get_user_cached(user_id: int, db: Session = Depends(get_db)) -> dict[str, int]:
        kitchen.runs[user_id] += 1
        return {"id": user_id, "run": kitchen.runs[user_id]}

    @app.delete("/cache/user/{user_id}")
    async def invalidate_user_cache(user_id: int) -> dict[str, bool]:
        return {"confirmed": await get_user_cached.invalidate(user_id, None)}

    async def work() -> None:
        for user_id in (1, 1, 2):
            await kitchen.get(app, f"/users/{user_id}")
        assert (await asgi.call(app, "DELETE", "/cache/user/1")).json == {"confirmed": True}
        assert (await kitchen.get(app, "/users/1")).json == {"id": 1, "run": 2}
        assert (await kitchen.get(app, "/users/2")).json == {"id": 2, "run": 1}
        assert await get_user_cached.invalidate_tag("user:2")
        assert (await kitchen.get(app, "/users/2")).json == {"id": 2, "run": 2}

    kitchen(work)


def test_age_is_true_and_old_answers_say_so(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    app, now = FastAPI(), 1_800_000_000.0
    monkeypatch.setattr("labkit.cache.engine.time.time", lambda: now)

    @app.get("/")
    @cached(ttl=10, client=kitchen.client, strategy=StaleWhileRevalidate(window=100))
    async def read(db: Session = Depends(get_db)) -> dict[str, float]:
        return {"at": now}

    async def work() -> None:
        nonlocal now
        replies = [await kitchen.get(app, "/")]
        for age in (3.9, 9.9, 25.0):
            now = 1_800_000_000.0 + age
            replies.append(await kitchen.get(app, "/"))
        assert labels(*replies) == ["MISS", "HIT", "HIT", "STALE"]
        assert [reply.headers.get("age") for reply in replies] == [None, "3", "9", "25"]
        deadline = asyncio.get_running_loop().time() + 10
        while (reply := await kitchen.get(app, "/")).headers["x-cache"] != "HIT":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
        assert reply.json == {"at": now} and reply.headers["age"] == "0"
        now -= 3600  # a clock that was set back
        assert (await kitchen.get(app, "/")).headers["age"] == "0"

    kitchen(work)


def test_a_refresh_behind_has_a_session_of_its_own(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished request's session is closed while the refresh runs; 30 that come meanwhile make one refresh."""
    app, now, used = FastAPI(), 1_800_000_000.0, list[Session]()
    monkeypatch.setattr("labkit.cache.engine.time.time", lambda: now)

    @app.get("/{n}")
    @cached(ttl=10, client=kitchen.client, strategy=StaleWhileRevalidate(window=100))
    async def read(n: int, db: Annotated[Session, Depends(marked)]) -> int:
        used.append(db)
        await asyncio.sleep(0.05)
        assert not db.info
        return len(used)

    async def work() -> None:
        nonlocal now
        assert (await kitchen.get(app, "/1")).json == 1
        now += 15
        replies = await asyncio.gather(*(kitchen.get(app, "/1") for _ in range(30)))
        assert set(labels(*replies)) == {"STALE"} and {reply.json for reply in replies} == {1}
        while len(used) < 2 or (await kitchen.get(app, "/1")).json != 2:
            await asyncio.sleep(0.02)
        assert len(used) == 2 and used[0] is not used[1]

    kitchen(work)


def test_what_must_not_be_kept_is_not(kitchen: Kitchen) -> None:
    app = FastAPI()

    def cookie(response: Response) -> Any:
        response.set_cookie("sid", "1")
        return 1

    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    answers: dict[str, Callable[..., Any]] = {
        "private": lambda: JSONResponse(1, headers={"Cache-Control": "max-age=5, Private"}),
        "nostore": lambda: JSONResponse(1, headers={"cache-control": "no-store"}),
        "vary": lambda: JSONResponse(1, headers={"Vary": "Accept-Language"}),
        "stream": lambda: StreamingResponse(parts()),
        "bad": lambda: JSONResponse({"error": "no"}, 400),
        "gone": lambda: JSONResponse({"error": "no"}, 404),
        "down": lambda: JSONResponse({"error": "no"}, 503),
    }

    def add(name: str, answer: Callable[..., Any]) -> None:
        async def handler() -> Any:
            kitchen.runs[name] += 1
            return answer()

        handler.__name__ = handler.__qualname__ = name
        app.get(f"/{name}")(cached(client=kitchen.client)(handler))

    for name, answer in answers.items():
        add(name, answer)

    @app.get("/cookie")
    @cached(client=kitchen.client)
    async def setting(response: Response) -> Any:
        kitchen.runs["cookie"] += 1
        return cookie(response)

    @app.get("/raises")
    @cached(client=kitchen.client)
    async def raises() -> Any:
        kitchen.runs["raises"] += 1
        raise HTTPException(404, "no such user")

    async def work() -> None:
        for name in (*answers, "cookie", "raises"):
            replies = [await kitchen.get(app, f"/{name}") for _ in range(2)]
            replies += await asyncio.gather(*(kitchen.get(app, f"/{name}") for _ in range(3)))
            assert len({reply.body for reply in replies}) == 1 and not set(labels(*replies)) & {"HIT", "STALE"}, name

    kitchen(work)
    assert kitchen.runs.pop("raises") == 3  # who waits shares what was raised
    assert set(kitchen.runs.values()) == {5}
    assert command(kitchen.server, "KEYS", "*fill*") == []


def test_not_found_is_kept_for_its_own_time_if_asked_for(kitchen: Kitchen) -> None:
    app = FastAPI()

    @app.get("/{status}")
    @cached(client=kitchen.client, negative_ttl=5)
    async def read(status: int, quiet: bool = False) -> Any:
        kitchen.runs[status] += 1
        if quiet:
            return JSONResponse({"detail": "no"}, status)
        raise HTTPException(status, "no", {"X-Why": "none"})

    async def work() -> None:
        for path in ("/404", "/410?quiet=1"):
            first, second = [await kitchen.get(app, path) for _ in range(2)]
            assert seen(first) == seen(second) and second.headers["x-cache"] == "HIT" and second.headers["age"] == "0"
        for _ in range(2):
            assert (await kitchen.get(app, "/409")).status == 409
        assert 0 < await kitchen.client.call("TTL", read.key(404)) <= 5

    kitchen(work)
    assert kitchen.runs == {404: 1, 410: 1, 409: 2}


def test_headers_of_a_dependency_are_of_each_request_alone(kitchen: Kitchen) -> None:
    app = FastAPI()

    def stamp(response: Response) -> None:
        kitchen.runs["stamp"] += 1
        response.headers["X-Request"] = str(kitchen.runs["stamp"])
        response.set_cookie("visit", str(kitchen.runs["stamp"]))

    @app.get("/", dependencies=[Depends(stamp)])
    @cached(client=kitchen.client)
    async def read(response: Response) -> int:
        response.headers["X-Own"] = "1"
        return 1

    async def work() -> list[asgi.Reply]:
        return [await kitchen.get(app, "/") for _ in range(3)]

    replies = kitchen(work)
    assert labels(*replies) == ["MISS", "HIT", "HIT"]
    assert [(reply.headers["x-request"], reply.headers["x-own"]) for reply in replies] == [
        ("1", "1"),
        ("2", "1"),
        ("3", "1"),
    ]
    assert "visit=3" in replies[2].headers["set-cookie"] and "visit=1" not in replies[2].headers["set-cookie"]


def test_two_routes_of_one_function_never_share_a_rendering(kitchen: Kitchen) -> None:
    class Public(BaseModel):
        id: int

    app = FastAPI()

    @cached(client=kitchen.client)
    async def read(n: int) -> Any:
        return {"id": n, "salary": 100}

    app.get("/staff/{n}")(read)
    app.get("/public/{n}", response_model=Public)(read)

    async def work() -> None:
        for _ in range(2):
            assert (await kitchen.get(app, "/staff/1")).json == {"id": 1, "salary": 100}
            assert (await kitchen.get(app, "/public/1")).json == {"id": 1}
            assert await read(1) == {"id": 1, "salary": 100}
        for n in range(2, 12):
            paths = [f"/{kind}/{n}" for kind in ("staff", "public") * 5]
            replies = await asyncio.gather(*(kitchen.get(app, path) for path in paths))
            assert [reply.json for reply in replies] == [{"id": n, "salary": 100}, {"id": n}] * 5

    kitchen(work)


def test_the_endpoint_is_still_a_function(kitchen: Kitchen) -> None:
    app = FastAPI()

    @app.get("/{n}")
    @cached(client=kitchen.client)
    async def read(n: int, db: Session = Depends(get_db)) -> dict[str, int]:
        kitchen.runs[n] += 1
        return {"n": n}

    async def work() -> None:
        assert await read(1, None) == {"n": 1} == await read(1, None)
        reply = await kitchen.get(app, "/1")  # and what it left there is rendered for the route
        assert (reply.json, reply.headers["x-cache"]) == ({"n": 1}, "HIT")

    kitchen(work)
    assert kitchen.runs == {1: 1}


def test_who_is_asking_gets_an_answer_of_his_own(kitchen: Kitchen) -> None:
    app = FastAPI()

    def me(authorization: str = Header()) -> str:
        return authorization

    def read(user: str = Depends(me)) -> str:
        return f"for {user}"

    with pytest.raises(CacheError, match="who"):
        cached(client=kitchen.client)(read)
    app.get("/who")(cached(client=kitchen.client, who=lambda user: user)(read))

    @app.get("/raw")
    @cached(client=kitchen.client)
    async def raw(request: Request) -> str:
        kitchen.runs["raw"] += 1
        return f"for {request.headers.get('authorization')}"

    @app.get("/request")
    @cached(client=kitchen.client, who=lambda request: request.headers.get("authorization"))
    async def by_request(request: Request) -> str:
        return f"for {request.headers.get('authorization')}"

    async def work() -> None:
        for path, expected in (
            ("/who", ["MISS", "MISS", "HIT", "HIT"]),
            ("/request", ["MISS", "MISS", "HIT", "HIT"]),
            ("/raw", ["BYPASS"] * 4),
        ):
            found = []
            for name in ("ana", "bob", "ana", "bob"):
                reply = await kitchen.get(app, path, headers={"Authorization": name})
                assert reply.json == f"for {name}"
                found.append(reply)
            assert labels(*found) == expected, path
        anonymous = [await kitchen.get(app, "/raw") for _ in range(2)]
        assert labels(*anonymous) == ["MISS", "HIT"]

    kitchen(work)


def test_what_reads_a_request_is_not_kept_for_another_that_tells_more(kitchen: Kitchen) -> None:
    """Alice's page, tenant or body is never Bob's, though no parameter takes it."""
    app = FastAPI()

    def base(request: Request) -> None:
        kitchen.runs["base"] += 1

    @app.api_route("/{tenant}/items", methods=["GET", "POST"])
    @cached(client=kitchen.client)
    async def items(request: Request) -> Any:
        return [request.path_params["tenant"], request.query_params.get("page"), (await request.body()).decode()]

    @app.get("/{tenant}/declared")
    @cached(client=kitchen.client)
    async def declared(tenant: str, paging: Annotated[Paging, Query()], base: None = Depends(base)) -> Any:
        return [tenant, paging.page, paging.size]

    @app.get("/{tenant}/public")
    @cached(client=kitchen.client, public=True)
    async def public(request: Request) -> int:
        return 1

    async def work() -> None:
        for tenant, page in (("a", "1"), ("a", "2"), ("b", "1")):
            assert (await kitchen.get(app, f"/{tenant}/items?page={page}")).json == [tenant, page, ""]
            assert (await asgi.call(app, "POST", f"/{tenant}/items", json=page)).json == [tenant, None, f'"{page}"']
            replies = [await kitchen.get(app, f"/{tenant}/declared?p={page}&size=3") for _ in range(2)]
            assert replies[1].json == [tenant, int(page), 3] and labels(*replies) == ["MISS", "HIT"]
            assert labels(await kitchen.get(app, f"/{tenant}/declared?x=1")) == ["BYPASS"]
        assert labels(*[await kitchen.get(app, f"/{name}/public?x={name}") for name in "ab"]) == ["MISS", "HIT"]

    kitchen(work)


def test_conditional_requests_and_head_are_left_alone(kitchen: Kitchen) -> None:
    app = FastAPI()

    @app.api_route("/", methods=["GET", "HEAD"])
    @cached(client=kitchen.client)
    async def read() -> Any:
        return JSONResponse({"a": 1}, headers={"ETag": '"1"'})

    async def work() -> None:
        first = await kitchen.get(app, "/")
        again = await kitchen.get(app, "/", headers={"If-None-Match": '"1"', "Cache-Control": "no-cache"})
        head = await asgi.call(app, "HEAD", "/")
        assert seen(first) == seen(again) == seen(head) and labels(again, head) == ["HIT", "HIT"]

    kitchen(work)


def test_an_update_through_an_endpoint_is_served_at_once(kitchen: Kitchen) -> None:
    app = FastAPI()

    @app.get("/users/{user_id}", response_model=User)
    @cached(client=kitchen.client)
    async def read(user_id: int, db: Session = Depends(get_db)) -> Any:
        kitchen.runs["read"] += 1
        return {"id": user_id, "user_name": "old"}

    @app.put("/users/{user_id}")
    @writes(to=read)
    async def update(user_id: int, name: Annotated[str, Body()], db: Session = Depends(get_db)) -> Any:
        return {"id": user_id, "user_name": name}

    async def work() -> None:
        await kitchen.get(app, "/users/1")
        reply = await asgi.call(app, "PUT", "/users/1", json="new")
        assert reply.json == {"id": 1, "user_name": "new"}
        reply = await kitchen.get(app, "/users/1")
        assert (reply.json, reply.headers["x-cache"]) == ({"id": 1, "userName": "new", "born": None}, "HIT")

    kitchen(work)
    assert kitchen.runs == {"read": 1}


def test_200_requests_at_once_are_one_run_and_background_tasks_run(kitchen: Kitchen) -> None:
    app, mailed = FastAPI(), []

    @app.get("/")
    @cached(client=kitchen.client)
    async def read(tasks: BackgroundTasks, db: Session = Depends(get_db)) -> int:
        tasks.add_task(mailed.append, 1)
        kitchen.runs[0] += 1
        await asyncio.sleep(0.05)
        return 1

    async def work() -> None:
        replies = await asyncio.gather(*(kitchen.get(app, "/") for _ in range(200)))
        assert {reply.json for reply in replies} == {1}
        assert sorted(labels(*replies)) == ["HIT"] * 199 + ["MISS"]

    kitchen(work)
    assert kitchen.runs == {0: 1} and mailed == [1]


@pytest.mark.parametrize("way", ["killed", "frozen", "nowhere"])
def test_without_redis_requests_say_bypass_and_none_fails(way: str) -> None:
    with start() as server:
        kitchen = Kitchen(server, timeout=0.2)
        if way == "nowhere":
            kitchen.client = CacheClient("redis://127.0.0.1:1/0", timeout=0.2)
        app = FastAPI()

        @app.get("/async/{n}")
        @cached(client=kitchen.client, strategy=StaleWhileRevalidate(10))
        async def read(n: int) -> int:
            return n

        @app.get("/sync/{n}")
        @cached(client=kitchen.client)
        def plain(n: int) -> int:
            return n

        async def work() -> None:
            if way == "killed":
                server.kill()
            elif way == "frozen":
                server.freeze()
            paths = [f"/{kind}/{n}" for n in range(40) for kind in ("async", "sync")]
            replies = await asyncio.gather(*(kitchen.get(app, path) for path in paths))
            assert [reply.json for reply in replies] == [n for n in range(40) for _ in range(2)]
            assert set(labels(*replies)) == {"BYPASS"}

        kitchen(work)
        if way == "frozen":
            server.thaw()


def test_a_hit_is_one_command(kitchen: Kitchen) -> None:
    app = FastAPI()
    app.get("/")(cached(client=kitchen.client)(lambda: 1))

    async def work() -> None:
        await kitchen.get(app, "/")
        before = calls(kitchen.server)
        for _ in range(10):
            await kitchen.get(app, "/")
        used = calls(kitchen.server) - before
        assert used == {"get": 10}

    kitchen(work)
