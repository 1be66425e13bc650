"""The same views behind a cache, and the ways to change a user that keep it true."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, StringConstraints, model_validator
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from labkit.blog.database import get_db
from labkit.blog.views import Few, Id, PostView, Totals, UserView, count_all, find_user, view_latest, view_user
from labkit.cache import CacheClient, StaleWhileRevalidate, cached
from labkit.cache.events import Observer

_DAY = 86_400.0


class UserChange(BaseModel):
    """What is to be different about a user; what is left out stays."""

    username: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=50)] | None = None
    email: Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$", max_length=120)] | None = None

    @model_validator(mode="after")
    def _changes(self) -> UserChange:
        if self.username is None and self.email is None:
            raise ValueError("give a username, an email or both")
        return self


class Invalidation(BaseModel):
    """What became of a wish to forget.

    ``confirmed`` is false while Redis is away: the cache does it as soon as Redis is back, before it serves
    anything from there.
    """

    message: str
    confirmed: bool


def make_router(cache: CacheClient, observer: Observer | None = None) -> APIRouter:
    """The endpoints under ``/cached``, on one client. Where Redis is away they answer from the database.

    ``observer`` is told what becomes of each call.
    """
    router = APIRouter(prefix="/cached", tags=["cached"])

    @router.get("/users/{user_id}")
    @cached(ttl=600, key_prefix="user", client=cache, observer=observer, tags=["user:{user_id}"])
    async def get_user_cached(user_id: Id, db: Session = Depends(get_db)) -> UserView:
        """One user."""
        return view_user(find_user(db, user_id))

    @router.get("/posts/latest")
    @cached(
        ttl=60,
        key_prefix="posts",
        client=cache,
        observer=observer,
        tags=lambda posts, **_: {f"user:{post.author_id}" for post in posts},  # their names are in it
    )
    async def get_latest_posts_cached(limit: Few = 20, db: Session = Depends(get_db)) -> list[PostView]:
        """The newest posts."""
        return view_latest(db, limit)

    # Counting takes the longer the more there is: after the first time it is done behind the readers' backs.
    @router.get("/stats/global")
    @cached(ttl=900, key_prefix="stats", client=cache, observer=observer, strategy=StaleWhileRevalidate(window=_DAY))
    async def get_global_stats(db: Session = Depends(get_db)) -> Totals:
        """Totals."""
        return await run_in_threadpool(count_all, db)

    @router.put("/users/{user_id}")
    async def update_user(user_id: Id, change: UserChange, db: Session = Depends(get_db)) -> UserView:
        """Change a user, then have the cache forget her and every list that she is in."""
        user = find_user(db, user_id)
        for name, value in change.model_dump(exclude_none=True).items():
            setattr(user, name, value)
        changed = view_user(user)
        try:
            db.commit()
        except IntegrityError:
            raise HTTPException(409, "That username or email is taken") from None
        await get_user_cached.invalidate_tag(f"user:{user_id}")
        return changed

    @router.delete("/cache/user/{user_id}")
    async def invalidate_user_cache(user_id: Id) -> Invalidation:
        """Have the cache forget one user."""
        confirmed = await get_user_cached.invalidate(user_id)
        return Invalidation(message=f"Cache invalidated for user {user_id}", confirmed=confirmed)

    return router
