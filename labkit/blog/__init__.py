"""The application under study: a small blog with more queries than it needs."""

from __future__ import annotations

from labkit.blog.app import create_app
from labkit.blog.database import get_db
from labkit.blog.models import Base, Comment, Post, User

__all__ = ["Base", "Comment", "Post", "User", "create_app", "get_db"]
