"""The blog's data, the same for everybody: a seed and a scale determine every row.

People are skewed: a few write and read much, most little (Zipf), and time has a rhythm of days and weeks.
The first ``FEED_USERS`` users own exactly ``FEED_POSTS`` posts at every scale, unevenly, and two of them own
none, so that the slow endpoint always runs 1 + 50 + 1,000 statements; ``scale`` multiplies everything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from labkit._text import say
from labkit.blog import words
from labkit.errors import LabkitError

VERSION = 1
"""Raised whenever the same seed gives other rows, so that files made before are made anew."""

SEED = 7
FEED_USERS, FEED_POSTS = 50, 1_000
USERS, POSTS, COMMENTS = 300, 6_000, 10_000
MAX_SCALE = 100

JOINED, WRITTEN = datetime(2024, 1, 1), datetime(2025, 1, 1)
_DAY = 86_400
# How much is written on each weekday (from Monday) and in each hour (UTC) of a day.
_WEEK = np.array([1.0, 1.1, 1.15, 1.1, 0.9, 0.5, 0.55])
_HOURS = np.array([6, 4, 2, 1, 1, 1, 1, 1, 2, 3, 4, 6, 8, 10, 12, 13, 12, 11, 11, 12, 12, 11, 10, 8], dtype=float)

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Row = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class BlogData:
    """All rows as columns of numbers (some 100 bytes a post); texts are composed while rows are read.

    Row ``i`` of a column belongs to id ``i + 1``. Times are whole seconds since 2024-01-01 UTC.
    """

    user_name: Integers
    user_namesakes: Integers
    user_time: Integers
    post_author: Integers
    post_spanish: npt.NDArray[np.bool_]
    post_time: Integers
    post_words: Integers
    comment_post: Integers
    comment_author: Integers
    comment_time: Integers
    comment_words: Integers

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each table, in the order in which they must be inserted."""
        return {
            "users": len(self.user_time),
            "posts": len(self.post_time),
            "comments": len(self.comment_time),
        }

    def rows(self, table: str, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows ``start`` to ``stop`` of a table, their columns in the order of the model."""
        part = slice(start, stop)
        return {"users": self._users, "posts": self._posts, "comments": self._comments}[table](part)

    def _users(self, part: slice) -> Iterator[Row]:
        columns = (self.user_name, self.user_namesakes, self.user_time)
        for i, name, namesakes, seconds in _numbered(columns, part):
            username = words.username(name) + (str(namesakes + 1) if namesakes else "")
            yield i, username, f"{username}@example.org", _moment(seconds)

    def _posts(self, part: slice) -> Iterator[Row]:
        columns = (self.post_author, self.post_spanish, self.post_time, self.post_words)
        for i, author, spanish, seconds, (topic, *draws, body) in _numbered(columns, part):
            language = "es" if spanish else "en"
            title, text = words.title(language, topic, draws), words.body(language, topic, body)
            yield i, title, text, author, _moment(seconds)

    def _comments(self, part: slice) -> Iterator[Row]:
        columns = (self.comment_post, self.comment_author, self.comment_words, self.comment_time)
        for i, post, author, draw, seconds in _numbered(columns, part):
            language = "es" if self.post_spanish[post - 1] else "en"
            yield i, post, author, words.comment(language, draw), _moment(seconds)


def check_scale(scale: object) -> None:
    """Raise ``LabkitError`` unless ``scale`` is a whole number from 1 to ``MAX_SCALE``."""
    if isinstance(scale, bool) or not isinstance(scale, int) or not 1 <= scale <= MAX_SCALE:
        raise LabkitError(say("blog.scale", scale=repr(scale), most=MAX_SCALE))


def generate(seed: int = SEED, scale: int = 1) -> BlogData:
    """Draw the data of one blog: about 300 users, 6,000 posts and 10,000 comments times ``scale``.

    Only uniform numbers are taken from numpy's generator: they are the part of it that stays the same
    from one numpy to the next.

    Raises:
        LabkitError: if ``scale`` is not a whole number from 1 to 100.
    """
    check_scale(scale)
    rng = np.random.default_rng(seed)
    users, posts, comments = USERS * scale, POSTS * scale, COMMENTS * scale

    user_name = _whole(rng, users)
    user_spanish = rng.random(users) < 0.65
    user_time = np.sort(_moments(rng, users, days=366, first=JOINED))

    author = np.concatenate([_feed_authors(rng), _other_authors(rng, users, posts - FEED_POSTS)])[_order(rng, posts)]
    # A writer keeps to her language nine times out of ten.
    post_spanish = user_spanish[author - 1] ^ (rng.random(posts) < 0.1)
    post_time = 366 * _DAY + np.sort(_moments(rng, posts, days=365, first=WRITTEN))

    popularity = _zipf(posts, 0.8)[_order(rng, posts)]
    post = _draw(rng, comments, popularity)
    reader = _order(rng, users)[_draw(rng, comments, _zipf(users, 0.9))]
    comment_time = _replies(rng, post_time[post])
    by_time = np.argsort(comment_time, kind="stable")

    return BlogData(
        user_name=user_name,
        user_namesakes=_namesakes(user_name),
        user_time=user_time,
        post_author=author,
        post_spanish=post_spanish,
        post_time=post_time,
        post_words=_whole(rng, (posts, 5)),
        comment_post=post[by_time] + 1,
        comment_author=reader[by_time] + 1,
        comment_time=comment_time[by_time],
        comment_words=_whole(rng, comments),
    )


def _feed_authors(rng: np.random.Generator) -> Integers:
    """The author ids of the posts of the first users; two of these users get none."""
    writers = _order(rng, FEED_USERS)[2:]
    return 1 + writers[_draw(rng, FEED_POSTS, _zipf(len(writers), 0.9))]


def _other_authors(rng: np.random.Generator, users: int, posts: int) -> Integers:
    others = FEED_USERS + _order(rng, users - FEED_USERS)
    return 1 + others[_draw(rng, posts, _zipf(len(others), 0.9))]


def _zipf(n: int, s: float) -> Floats:
    weights: Floats = np.arange(1, n + 1, dtype=float) ** -s
    return weights


def _draw(rng: np.random.Generator, n: int, weights: Floats) -> Integers:
    """``n`` positions, each with a chance in proportion to its weight."""
    cumulative = np.cumsum(weights)
    positions: Integers = np.searchsorted(cumulative[:-1] / cumulative[-1], rng.random(n), side="right")
    return positions


def _order(rng: np.random.Generator, n: int) -> Integers:
    """A random order of ``0 .. n-1``."""
    return np.argsort(rng.random(n), kind="stable")


def _whole(rng: np.random.Generator, shape: int | tuple[int, int]) -> Integers:
    """Whole numbers to pick words by."""
    return (rng.random(shape) * 2**16).astype(np.int64)


def _second_of_day(rng: np.random.Generator, n: int) -> Integers:
    return _draw(rng, n, _HOURS) * 3600 + (rng.random(n) * 3600).astype(np.int64)


def _moments(rng: np.random.Generator, n: int, *, days: int, first: datetime) -> Integers:
    """Seconds since ``first``: more on working days and in the evening, and more as the year goes on."""
    day = np.arange(days)
    weights = _WEEK[(first.weekday() + day) % 7] * (1 + day / days)
    return _draw(rng, n, weights) * _DAY + _second_of_day(rng, n)


def _replies(rng: np.random.Generator, written: Integers) -> Integers:
    """When comments on posts of these times are made: mostly at once, up to two weeks later, never before."""
    delay = np.arange(14)
    chances = 0.6**delay * _WEEK[(np.arange(7)[:, None] + delay) % 7]
    cumulative = np.cumsum(chances, axis=1)
    day = written // _DAY
    weekday, chance = (JOINED.weekday() + day) % 7, rng.random(len(written))
    # One delay after another: a table of all of them would take 100 MB at the largest scale.
    late = sum(chance >= (limit / cumulative[:, -1])[weekday] for limit in cumulative[:, :-1].T)
    moment: Integers = (day + late) * _DAY + _second_of_day(rng, len(written))
    moment[moment <= written] += _DAY
    return moment


def _namesakes(names: Integers) -> Integers:
    """How many earlier users have the same name."""
    met: Counter[str] = Counter()
    earlier = np.empty_like(names)
    for i, draw in enumerate(names.tolist()):
        name = words.username(draw)
        earlier[i] = met[name]
        met[name] += 1
    return earlier


def _numbered(columns: tuple[npt.NDArray[Any], ...], part: slice) -> Iterator[Row]:
    """Rows of plain Python values, each with its id in front."""
    values = zip(*(column[part].tolist() for column in columns), strict=True)
    return ((i, *row) for i, row in enumerate(values, part.start + 1))


def _moment(seconds: int) -> datetime:
    return JOINED + timedelta(seconds=seconds)
