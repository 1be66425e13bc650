"""What a Lab gives its application before it starts: a Redis, a PostgreSQL, its addresses, its data.

An application asks by leaving a place empty: ``app.state.redis_url`` or ``app.state.database_url`` is None.
One that is named by a string and reads the environment gets ``REDIS_URL`` and ``DATABASE_URL`` before it is
imported. An ``app.state.prepare(progress)`` is called to write the data, with a progress bar.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from labkit import settings
from labkit._client import explain
from labkit._progress import Bar
from labkit._text import say
from labkit.errors import AppError, LabkitError

if TYPE_CHECKING:
    from labkit.services.postgres import PostgresServer
    from labkit.services.redis import GivenRedis, RedisServer


class Supplies:
    """The servers of one Lab; a context manager that stops those it started.

    Attributes:
        redis, postgres: those that were started.
        given: the Redis of the user's own, if there is one instead.
        environment: ``DATABASE_URL`` and ``REDIS_URL`` as far as they are known, for a child process.
    """

    def __init__(self, work: Path | str | None) -> None:
        self.redis: RedisServer | None = None
        self.given: GivenRedis | None = None
        self.postgres: PostgresServer | None = None
        self.environment: dict[str, str] = {}
        self._work = Path(work) if work is not None else None
        self._stack = ExitStack()

    def _folder(self, name: str) -> Path | None:
        return self._work / name if self._work is not None else None

    def redis_url(self, redis: bool | str | None) -> str:
        """The address that was given or set, else of a Redis that is started now."""
        url = redis if isinstance(redis, str) else settings.redis_url()
        if url is None:
            if self.redis is None:
                from labkit.services.redis import start

                self.redis = self._stack.enter_context(start(self._folder("redis")))
            url = self.redis.url
        else:
            from labkit.services.redis import GivenRedis

            self.given = GivenRedis(url)
        self.environment["REDIS_URL"] = url
        return url

    def database_url(self, url: str | None, postgres: bool) -> str | None:
        """The address that was given, else of a PostgreSQL started now, else ``DATABASE_URL``, else None."""
        if url is None and postgres:
            if self.postgres is None:
                from labkit.services.postgres import start

                self.postgres = self._stack.enter_context(start(self._folder("postgres")))
            url = self.postgres.url
        url = url or settings.database_url()
        if url is not None:
            self.environment["DATABASE_URL"] = url
        return url

    def address(self, app: Any) -> str | None:
        """Where the database of an application is, password included; None if it never told."""
        state = getattr(app, "state", None)
        engine = getattr(state, "engine", None)
        given = getattr(state, "database_url", None) or self.environment.get("DATABASE_URL")
        return given if engine is None else str(engine.url.render_as_string(hide_password=False))

    def announce(self, database_url: str | None, redis: bool | str | None, postgres: bool) -> None:
        """Set the environment for an application that reads it when it is imported; restored at the end."""
        given = {}
        if redis:
            given["REDIS_URL"] = self.redis_url(redis)
        if database_url or postgres:
            given["DATABASE_URL"] = self.database_url(database_url, postgres) or ""
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        self._stack.callback(_restore, before)

    def give(self, app: Any, database_url: str | None, redis: bool | str | None, postgres: bool) -> None:
        """Fill the empty places of ``app.state`` and have the application write its data.

        Raises:
            AppError: if there is no empty place for what was asked for, or writing the data fails.
        """
        state = getattr(app, "state", None)
        wanted = {"redis": redis, "postgres": postgres, "database_url": database_url}
        for option, place in zip(wanted, ("redis_url", "database_url", "database_url"), strict=True):
            announced = place.upper() in self.environment
            if wanted[option] and not announced and getattr(state, place, "") is not None:
                raise AppError(say("core.no_place", option=option, place=place, variable=place.upper()))
        if getattr(state, "redis_url", "") is None and redis is not False:
            self._set(state, "redis_url", self.redis_url(redis))
        if getattr(state, "database_url", "") is None:
            url = self.database_url(database_url, postgres)
            if url is not None:
                self._set(state, "database_url", url)
        if callable(prepare := getattr(state, "prepare", None)):
            _prepare(prepare)

    def _set(self, state: Any, name: str, value: str) -> None:
        setattr(state, name, value)
        self._stack.callback(setattr, state, name, None)  # the next Lab gives it a server of its own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _prepare(prepare: Callable[[Callable[[int, int], None]], Any]) -> None:
    try:
        prepare(Bar(lambda done, total: say("core.preparing", part=done / total if total else 1.0)))
    except LabkitError:
        raise
    except (Exception, SystemExit) as error:
        raise AppError(say("core.prepare_failed", reason=explain(error))) from None
