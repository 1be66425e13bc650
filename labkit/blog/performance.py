"""The feed, three times: 50 users with their posts and the number of comments on each.

All three give the same answer, byte for byte, and differ in how often they ask the database.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Response
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from labkit.blog.database import get_db
from labkit.blog.models import Comment, Post, User

USERS = 50

router = APIRouter(prefix="/performance", tags=["performance"])


@router.get("/slow-endpoint", response_model=None)
async def slow_endpoint(db: Session = Depends(get_db), sleep_ms: float = 10) -> dict[str, Any]:
    """Slow on purpose: one query a user, one query a post, and a pause of ``sleep_ms`` a user."""
    users = db.query(User).order_by(User.id).limit(USERS).all()
    result = []
    for user in users:
        posts = db.query(Post).filter(Post.author_id == user.id).order_by(Post.id).all()
        feed: dict[str, Any] = {"id": user.id, "username": user.username, "posts": []}
        for post in posts:
            comments = db.scalar(select(func.count()).select_from(Comment).where(Comment.post_id == post.id))
            feed["posts"].append({"id": post.id, "title": post.title, "comments_count": comments})
        result.append(feed)
        time.sleep(sleep_ms / 1000)
    return {"users": result, "total": len(result)}


@router.get("/fast-endpoint")
async def fast_endpoint(db: Session = Depends(get_db)) -> Response:
    """The same answer from two queries, which read only the columns they need."""
    users = db.execute(select(User.id, User.username).order_by(User.id).limit(USERS)).all()
    posts = db.execute(
        # Counting post_id and not id lets PostgreSQL answer from the index alone.
        select(Post.author_id, Post.id, Post.title, func.count(Comment.post_id))
        .outerjoin(Post.comments)
        .where(Post.author_id.in_([user.id for user in users]))
        .group_by(Post.author_id, Post.id, Post.title)
        .order_by(Post.author_id, Post.id)
    )
    feeds = {user.id: {"id": user.id, "username": user.username, "posts": []} for user in users}
    for author_id, post_id, title, comments in posts:
        feeds[author_id]["posts"].append({"id": post_id, "title": title, "comments_count": comments})
    answer = {"users": list(feeds.values()), "total": len(feeds)}
    return Response(orjson.dumps(answer), media_type="application/json")


@router.get("/fastest-endpoint")
async def fastest_endpoint(db: Session = Depends(get_db)) -> Response:
    """The same answer from one query: the database writes the JSON itself, and Python passes it on.

    Fewest queries is fastest only with the indexes: without them this one reads all comments for each post.
    """
    answer = db.scalar(text(_JSON_QUERIES[db.get_bind().dialect.name]), {"users": USERS})
    return Response(answer, media_type="application/json")


_SQLITE_JSON = """
SELECT json_object(
    'users', json_group_array(json_object('id', id, 'username', username, 'posts', json(posts))),
    'total', count(*))
FROM (
    SELECT users.id, users.username,
        (SELECT json_group_array(json_object('id', id, 'title', title, 'comments_count', comments_count))
         FROM (
            SELECT posts.id, posts.title,
                (SELECT count(*) FROM comments WHERE comments.post_id = posts.id) AS comments_count
            FROM posts WHERE posts.author_id = users.id ORDER BY posts.id)) AS posts
    FROM users ORDER BY users.id LIMIT :users)
"""
_POSTGRESQL_JSON = """
SELECT json_build_object(
    'users', coalesce(
        json_agg(json_build_object('id', id, 'username', username, 'posts', posts) ORDER BY id), '[]'),
    'total', count(*))::text
FROM (
    SELECT users.id, users.username,
        (SELECT coalesce(json_agg(json_build_object('id', posts.id, 'title', posts.title, 'comments_count',
            (SELECT count(*) FROM comments WHERE comments.post_id = posts.id)) ORDER BY posts.id), '[]')
         FROM posts WHERE posts.author_id = users.id) AS posts
    FROM users ORDER BY users.id LIMIT :users) AS feed
"""
_JSON_QUERIES = {"sqlite": _SQLITE_JSON, "postgresql": _POSTGRESQL_JSON}
