"""The generated data: the same for everybody, skewed as described in data/README.md."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.blog import words
from labkit.blog.generator import SEED, VERSION, BlogData, generate
from labkit.errors import LabkitError

README = Path(__file__).parents[1] / "data" / "README.md"


def fingerprint(data: BlogData) -> str:
    digest = hashlib.sha256()
    for table in data.sizes:
        for row in data.rows(table):
            digest.update("\t".join(map(str, row)).encode() + b"\n")
    return digest.hexdigest()


def facts(data: BlogData) -> dict[str, str]:
    """What data/README.md states, computed."""
    users, posts, comments = (list(data.rows(table)) for table in data.sizes)
    written = Counter(post[3] for post in posts)
    read = Counter(comment[2] for comment in comments)
    answers = Counter(comment[1] for comment in comments)
    weekdays = Counter(post[4].weekday() for post in posts)
    evening = sum(post[4].hour in range(13, 23) for post in posts)
    return {
        "generator version, seed": f"{VERSION}, {SEED}",
        "users, posts, comments": f"{len(users):,}, {len(posts):,}, {len(comments):,}",
        "posts of the first 50 users": f"{sum(written[i] for i in range(1, 51)):,}",
        "of these users, without posts": f"{sum(written[i] == 0 for i in range(1, 51))}",
        "most posts by one of them": f"{max(written[i] for i in range(1, 51))}",
        "most posts, most comments by one user": f"{max(written.values())}, {max(read.values()):,}",
        "most comments on one post": f"{max(answers.values())}",
        "posts without comments": f"{sum(answers[post[0]] == 0 for post in posts):,}",
        "posts in Spanish": f"{data.post_spanish.mean():.0%}",
        "posts on a Tuesday, on a Saturday": f"{weekdays[1]:,}, {weekdays[5]}",
        "posts written from 13:00 to 22:59 UTC": f"{evening / len(posts):.0%}",
        "sha256 of all rows": f"`{fingerprint(data)[:16]}…`",
    }


def test_the_readme_states_the_true_numbers() -> None:
    """Fails whenever the data changes: then raise VERSION, so that learners' files are made anew."""
    text = README.read_text(encoding="utf-8")
    rows = [f"| {name} | {value} |" for name, value in facts(generate()).items()]
    missing = [row for row in rows if row not in text]
    assert not missing, "put these into data/README.md and raise generator.VERSION:\n" + "\n".join(missing)


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_the_feed_has_fifty_users_with_a_thousand_posts_at_every_scale(scale: int) -> None:
    data = generate(scale=scale)
    feed = Counter(data.post_author[data.post_author <= 50].tolist())
    assert feed.total() == 1_000
    assert len(feed) == 48, "two users have no posts"
    assert max(feed.values()) > 100 > 10 > min(feed.values())
    assert data.sizes == {"users": 300 * scale, "posts": 6_000 * scale, "comments": 10_000 * scale}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_seed_gives_a_consistent_blog(seed: int) -> None:
    data = generate(seed)
    users, posts, comments = (list(data.rows(table)) for table in data.sizes)
    assert (data.post_author <= 50).sum() == 1_000
    assert len({user[1] for user in users}) == len({user[2] for user in users}) == 300
    for table in (users, posts, comments):
        assert [row[0] for row in table] == list(range(1, len(table) + 1))
        moments = [row[-1] for row in table]
        assert moments == sorted(moments)
    assert users[-1][-1] < posts[0][-1], "everybody has joined before the first post"
    for _, post, author, body, moment in comments:
        assert 1 <= author <= 300
        assert body
        assert timedelta(0) < moment - posts[post - 1][-1] < timedelta(days=16)
    assert all(0 < len(post[1]) <= 200 and post[2] for post in posts)


def test_time_has_a_weekly_and_a_daily_rhythm() -> None:
    posts = list(generate().rows("posts"))
    weekdays = Counter(post[-1].weekday() for post in posts)
    assert max(weekdays[5], weekdays[6]) < min(weekdays[day] for day in range(5))
    hours = Counter(post[-1].hour for post in posts)
    assert max(hours[hour] for hour in range(3, 8)) < min(hours[hour] for hour in range(13, 23))
    assert {post[-1].year for post in posts} == {2025}


def test_the_same_arguments_give_the_same_rows_and_another_seed_others() -> None:
    assert fingerprint(generate()) == fingerprint(generate(SEED, 1))
    assert fingerprint(generate()) != fingerprint(generate(SEED + 1))


def test_rows_do_not_depend_on_where_a_chunk_begins() -> None:
    data = generate()
    for table, size in data.sizes.items():
        whole = list(data.rows(table))
        chunks = [row for start in range(0, size, 777) for row in data.rows(table, start, min(start + 777, size))]
        assert chunks == whole


def test_rows_are_plain_values() -> None:
    """numpy's numbers would be stored as bytes."""
    data = generate()
    for table in data.sizes:
        assert {type(value) for value in next(data.rows(table))} <= {int, str, datetime}


@pytest.mark.parametrize("scale", [0, -1, 101, 1.5, True, "2", None, np.int64(1)])
def test_a_scale_that_cannot_be_is_refused(scale: object) -> None:
    with pytest.raises(LabkitError, match="scale="):
        generate(scale=scale)  # type: ignore[arg-type]


@given(st.integers(0, 7), st.lists(st.integers(0, 2**16 - 1), min_size=3, max_size=3), st.integers(0, 2**16 - 1))
def test_texts_read_like_texts(topic: int, draws: list[int], draw: int) -> None:
    for language in ("es", "en"):
        title, body = words.title(language, topic, draws), words.body(language, topic, draw)
        assert title[0].isupper()
        assert not set("{}") & set(title)
        sentences = body.removesuffix(".").split(". ")
        assert 2 <= len(sentences) <= 5
        assert len(set(sentences)) == len(sentences)
        assert words.comment(language, draw)
    assert words.username(draw).isascii()
