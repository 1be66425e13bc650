"""What the blog shows of itself, read from the database at every request: a user, the newest posts, totals."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Query
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from labkit.blog.database import get_db
from labkit.blog.models import Comment, Post, User

Id = Annotated[int, Path(ge=1, le=2**31 - 1)]  # what PostgreSQL keeps as an integer
Few = Annotated[int, Query(ge=1, le=100)]

router = APIRouter()


class UserView(BaseModel):
    """A user as everybody may see her."""

    id: int
    username: str
    email: str


class PostView(BaseModel):
    """A post in a list."""

    id: int
    title: str
    author_id: int
    author: str


class Totals(BaseModel):
    """How much there is of everything."""

    total_users: int
    total_posts: int
    total_comments: int


def find_user(db: Session, user_id: int) -> User:
    """The user with this id.

    Raises:
        HTTPException: 404 if there is none. Not a dictionary with an error in it: that would be an answer.
    """
    user = db.get(User, user_id)
    if user is None:
        raise HTTPException(404, f"User {user_id} not found")
    return user


def view_user(user: User) -> UserView:
    """What of a user is shown."""
    return UserView(id=user.id, username=user.username, email=user.email)


def view_latest(db: Session, limit: int) -> list[PostView]:
    """The newest posts, newest first, with the names of their authors."""
    newest = select(Post.id, Post.title, Post.author_id, User.username).join(Post.author)
    rows = db.execute(newest.order_by(Post.created_at.desc(), Post.id.desc()).limit(limit))
    return [PostView(id=id, title=title, author_id=author_id, author=name) for id, title, author_id, name in rows]


def count_all(db: Session) -> Totals:
    """Three counts in one statement, each of its own table alone.

    One SELECT over the three tables without a join condition would count their product. Each count reads a whole
    index (or a table that has none): it grows with the table, not with the product.
    """
    counts = (select(func.count()).select_from(model).scalar_subquery() for model in (User, Post, Comment))
    users, posts, comments = db.execute(select(*counts)).one()
    return Totals(total_users=users, total_posts=posts, total_comments=comments)


@router.get("/users/{user_id}", tags=["users"])
async def get_user(user_id: Id, db: Session = Depends(get_db)) -> UserView:
    """One user."""
    return view_user(find_user(db, user_id))


@router.get("/posts/latest", tags=["posts"])
async def get_latest_posts(limit: Few = 20, db: Session = Depends(get_db)) -> list[PostView]:
    """The newest posts."""
    return view_latest(db, limit)


@router.get("/stats/global", tags=["stats"])
async def get_stats(db: Session = Depends(get_db)) -> Totals:
    """Totals; counted in a thread, since that takes longer the more there is."""
    return await run_in_threadpool(count_all, db)
