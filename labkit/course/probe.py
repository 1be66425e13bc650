"""An endpoint under a cache decorator, where every execution is counted and every answer can be judged.

The endpoint answers with who was asked for, which version of her and in which execution. So the answer itself
tells a hit from a miss, and both from what is stale or somebody else's, whatever headers the decorator sends.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

import redis
from fastapi import Depends
from sqlalchemy.orm import Session

from labkit.asgi import Reply
from labkit.errors import NotJSONError
from labkit.lab import Lab

PATH = "/check/users"
LIMIT = 10.0
"""Seconds that the requests of one call may take."""

Outcome = Literal["hit", "miss", "stale", "foreign", "failed"]
Endpoint = Callable[..., Any]
Read = Callable[..., Any]
Write = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True)
class Answer:
    """The reply to one request and what it is.

    Attributes:
        asked: the user's id.
        outcome: ``hit`` (a stored answer that is true), ``miss`` (the endpoint ran), ``stale`` (a version that
            was changed before the request), ``foreign`` (another user's, or from elsewhere), ``failed`` (the
            status is not 200, or the body is not the endpoint's).
        body: what it holds as JSON; None if that cannot be read.
    """

    asked: int
    reply: Reply
    outcome: Outcome
    body: Any


def invalidating(read: Read, write: Write) -> Write:
    """Cache-aside: write, then invalidate as the course text does (``None`` stands for the session)."""

    async def put_user(user_id: int) -> Any:
        body = await write(user_id)
        done = read.invalidate(user_id, None)  # type: ignore[attr-defined]
        if inspect.isawaitable(done):
            await done
        return body

    return put_user


class Probe:
    """A context manager: the endpoint stands in the Lab's application meanwhile, and its keys are deleted at the end.

    Args:
        lab: whose application and Redis are used, so that a client of the notebook stays in its loop.
        decorate: puts the decorator under study on the endpoint: ``lambda f: ctx.call(cached, ttl=60)(f)``.
        writer: makes the update (``async def put_user(user_id)``) of the decorated read function and of the
            bare update; None for no word to the cache.
        pause: seconds that an execution takes.
        absent: what the endpoint answers for ids that do not exist; an exception is raised.

    Attributes:
        endpoint: the decorated function.
        runs: id of each execution of the endpoint, in order.
    """

    def __init__(
        self,
        lab: Lab,
        decorate: Callable[[Endpoint], Endpoint],
        *,
        writer: Callable[[Read, Write], Write] | None = invalidating,
        pause: float = 0.0,
        absent: Mapping[int, Any] | None = None,
    ) -> None:
        self.lab, self.runs = lab, list[int]()
        self._pause, self._absent = pause, dict(absent or {})
        self._versions: dict[int, int] = {}
        self._serial = 0
        self._mark = secrets.token_hex(4)
        self._sessions: list[Session] = []
        self._redis = redis.Redis.from_url(lab.app.state.redis_url, socket_timeout=5)  # type: ignore[attr-defined]
        self._before = self._all_keys()
        self.endpoint = decorate(self._endpoint())
        self._put = writer(self.endpoint, self._write) if writer else self._write

    def __enter__(self) -> Self:
        app: Any = self.lab.app
        app.add_api_route(PATH + "/{user_id}", self.endpoint, response_model=None)
        app.add_api_route(PATH + "/{user_id}", self._updating(), methods=["PUT"], response_model=None)
        self._routes = app.router.routes[-2:]
        return self

    def __exit__(self, *raised: object) -> None:
        routes = self.lab.app.router.routes  # type: ignore[attr-defined]
        for route in self._routes:
            routes.remove(route)
        with suppress(redis.RedisError):  # a Redis that is down has nothing to tidy up
            if left := self.keys():
                self._redis.delete(*left)
        self._redis.close()

    def ask(self, *ids: int, **options: Any) -> list[Answer]:
        """One request an id, one after the other; options as in ``Lab.request``."""

        async def work(client: Any) -> list[Answer]:
            return [await self.once(client, user_id, **options) for user_id in ids]

        return self.lab.run(work, LIMIT)

    def ask_together(self, *ids: int, **options: Any) -> list[Answer]:
        """All requests at once; whoever shares an execution that began meanwhile counts as a miss."""

        async def work(client: Any) -> list[Answer]:
            return await asyncio.gather(*(self.once(client, user_id, **options) for user_id in ids))

        return self.lab.run(work, LIMIT)

    def update(self, *ids: int) -> list[Reply]:
        """Change users, one after the other; from here on their older versions are stale."""

        async def work(client: Any) -> list[Reply]:
            return [await self.change(client, user_id) for user_id in ids]

        return self.lab.run(work, LIMIT)

    def keys(self) -> set[str]:
        """The keys that came into Redis since the beginning and are there now."""
        return self._all_keys() - self._before

    async def once(self, client: Any, user_id: int, **options: Any) -> Answer:
        """One request, inside the Lab's loop."""
        version, serial = self._versions.get(user_id, 0), self._serial
        reply = await client.call("GET", f"{PATH}/{user_id}", **options)
        return self._judged(user_id, reply, version, serial)

    async def change(self, client: Any, user_id: int) -> Reply:
        """One update, inside the Lab's loop."""
        reply: Reply = await client.call("PUT", f"{PATH}/{user_id}")
        return reply

    def _judged(self, user_id: int, reply: Reply, version: int, serial: int) -> Answer:
        body: Any = None
        with suppress(NotJSONError):
            body = reply.json
        outcome: Outcome = "failed"
        if reply.status == 200 and isinstance(body, dict) and {"id", "mark", "version", "run"} <= body.keys():
            if body["mark"] != self._mark or body["id"] != user_id:
                outcome = "foreign"
            else:
                outcome = "stale" if body["version"] < version else "miss" if body["run"] > serial else "hit"
        return Answer(user_id, reply, outcome, body)

    def _body(self, user_id: int) -> dict[str, Any]:
        self._serial += 1
        version = self._versions.get(user_id, 0)
        return {"id": user_id, "mark": self._mark, "version": version, "run": self._serial}

    def _endpoint(self) -> Endpoint:
        async def get_db() -> Session:
            # Every session stays alive: an address used anew would make a hit by luck (or hide one).
            self._sessions.append(Session())
            return self._sessions[-1]

        async def get_user(user_id: int, db: Session = Depends(get_db)) -> Any:
            self.runs.append(user_id)
            answer = self._absent[user_id] if user_id in self._absent else self._body(user_id)
            if self._pause:
                await asyncio.sleep(self._pause)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        # As in a notebook: classes, and not their names, which this file's future import makes of them.
        get_user.__annotations__ = {"user_id": int, "db": Session}
        # Another name at each probe: no key of an earlier one fits, even of a decorator that forgets its prefix.
        get_user.__name__ = get_user.__qualname__ = f"get_user_{self._mark}"
        return get_user

    async def _write(self, user_id: int) -> dict[str, Any]:
        self._versions[user_id] = self._versions.get(user_id, 0) + 1
        return self._body(user_id)

    def _updating(self) -> Callable[[int], Coroutine[Any, Any, Any]]:
        async def put_user(user_id: int) -> Any:
            return await self._put(user_id)

        return put_user

    def _all_keys(self) -> set[str]:
        return {key.decode("utf-8", "replace") for key in self._redis.scan_iter(count=1000)}
