"""No two different argument lists share a key, and equal ones always do: in every process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from labkit.cache.keys import KeyMaker, is_tool
from labkit.errors import CacheError


class Word(StrEnum):
    A = "a"


class Number(IntEnum):
    ONE = 1


class OtherNumber(IntEnum):
    ONE = 1


class Plain(Enum):
    A = "a"


@dataclass(frozen=True)
class Point:
    x: Any
    y: Any = 0
    seen: Any = field(default=0, compare=False)


@dataclass(frozen=True)
class Vector:
    x: Any
    y: Any = 0


class Filter(BaseModel):
    x: Any = None


class OtherFilter(BaseModel):
    x: Any = None


def function(*values: Any) -> None: ...


def key(*values: Any) -> str:
    return KeyMaker("p", function, names(len(values)))(values)


def names(count: int) -> list[str]:
    return [f"v{n}" for n in range(count)]


MADRID = ZoneInfo("Europe/Madrid")
NIGHT = datetime(2026, 10, 25, 2, 30, tzinfo=MADRID)

# Each of these is another value, though Python takes many for equal, or writes them alike.
DISTINCT: list[tuple[Any, ...]] = [
    *[(), (None,), ("",), ("None",), (1,), ("1",), (True,), ("True",), (1.0,), ("1.0",), (Decimal(1),), (b"1",)],
    *[(0,), (False,), (0.0,), (-0.0,), (math.nan,), (math.inf,), (-math.inf,), ("nan",), (Decimal("NaN"),)],
    *[(Decimal("1.0"),), (Decimal("1.00"),), (Decimal("-0"),), (2**64,), (-(2**64),), (10**5000,), (str(2**64),)],
    *[("a", "b"), ("a:b",), ("a,b",), ("a", "b", ""), ("a\0b",), (("a", "b"),), (["a", "b"],)],
    *[("('a', 'b')",), ({"a": "b"},)],
    *[("a',", "b"), ("a", "',b"), ("'a'",), ('"a"',), ("\\x41",), ("A",), ("ñ",), ("n\u0303",), ("\ud800",)],
    *[("\\ud800",)],
    *[([],), ((),), ({},), (set(),), (frozenset(),), ([[]],), ([()],), ([None],), ({1},), (frozenset({1}),)],
    *[({"1"},), ([1],)],
    *[({1: 2},), ({"1": 2},), ({True: 2},), ({1.0: 2},), ({(1,): 2},), ({"$tuple": [1]},), ({"$int": "1"},)],
    *[({"a": 1, "b": 2},)],
    *[("a",), (Word.A,), (Plain.A,), (Number.ONE,), (OtherNumber.ONE,), (b"a",)],
    *[(Point(1),), (Point(True),), (Vector(1),), ({"x": 1, "y": 0},), (Point(Point(1)),), (Filter(x=1),)],
    *[(Filter(x="1"),), (OtherFilter(x=1),)],
    *[(NIGHT,), (NIGHT.replace(fold=1),), (NIGHT.replace(tzinfo=None),), (NIGHT.astimezone(UTC),)],
    *[(NIGHT.isoformat(),)],
    *[(NIGHT.replace(tzinfo=timezone(timedelta(hours=2))),)],
    *[(NIGHT.replace(tzinfo=timezone(timedelta(hours=2), "x")),)],
    *[(NIGHT.replace(tzinfo=ZoneInfo("Europe/Paris")),), (date(2026, 1, 1),), (datetime(2026, 1, 1),)],
    *[("2026-01-01",)],
    *[(time(1),), (time(1, tzinfo=UTC),), (timedelta(1),), (timedelta(seconds=1),), (86400,)],
    *[(UUID(int=1),), (str(UUID(int=1)),), (UUID(int=1).hex,), ("x" * 10_000,), ("x" * 9_999, "x"), ("x" * 10_001,)],
    *[(1, None), (None, 1), (None, None), ([1, 2], 3), ([1], 2, 3), ([[1], 2],), ([1, [2]],), ((1, (2,)),)],
    *[(((1,), 2),)],
    *[([], 12, 3), ([], 1, 23), ([], 123), ([], "1", "23")],
    *[([1], "\n[2]"), ([1], [2]), ("[1]\n[2]",)],
]  # fmt: skip


def test_different_values_have_different_keys() -> None:
    keys = [key(*values) for values in DISTINCT]
    assert [(a, b) for (a, x), (b, y) in combinations(zip(DISTINCT, keys, strict=True), 2) if x == y] == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({1, 2, "a", None, (1, 2)}, {(1, 2), None, "a", 2, 1}),
        ({8, 16, 0}, {0, 16, 8}),
        (frozenset({frozenset({1, 9}), frozenset({17})}), frozenset({frozenset({17}), frozenset({9, 1})})),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: 1, "b": {2, 1}}, {"b": {1, 2}, 1: 1}),
        ([{"b": 1, "a": [{"d": 1, "c": 2}]}], [{"a": [{"c": 2, "d": 1}], "b": 1}]),
        (Point(1, seen=5), Point(1, seen=6)),
        (Filter(), Filter(x=None)),
        (math.nan, -math.nan),
        ([10**5000], [10**5000]),
    ],
)
def test_equal_values_share_a_key(one: Any, other: Any) -> None:
    assert key(one) == key(other)
    assert key(0, [one]) == key(0, [other])


texts = st.text(st.characters(exclude_categories=()), max_size=6) | st.text("a:,'\"\\()[]\n$1", max_size=5)
atoms = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), texts, st.binary(max_size=3),
    st.decimals(allow_nan=False), st.dates(), st.datetimes(), st.timedeltas(), st.uuids(),
    st.sampled_from([*Word, *Number]),
)  # fmt: skip
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(atoms, max_size=3),
        st.dictionaries(texts | st.integers(0, 3), inner, max_size=3),
        st.builds(Point, inner),
        st.builds(Filter, x=inner),
    ),
    max_leaves=6,
)


def typed(value: Any) -> Any:
    """What two values must have in common to be the same: hashable, and free of any order that does not count."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, tuple(typed(item) for item in value)
    if kind is frozenset:
        return kind, frozenset(typed(item) for item in value)
    if kind is dict:
        return kind, frozenset((typed(k), typed(item)) for k, item in value.items())
    if kind in (Point, Filter):
        return kind, typed(value.x)
    return kind, repr(value)


lists = st.lists(values, max_size=3).map(tuple)


@given(lists, lists)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_key_is_shared_by_equal_arguments_and_by_no_others(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert (key(*one) == key(*other)) == (typed(one) == typed(other))


def shuffled(value: Any) -> Any:
    """The same value, made in another order."""
    if type(value) in (list, tuple):
        return type(value)(shuffled(item) for item in value)
    if type(value) is dict:
        return {k: shuffled(item) for k, item in reversed(value.items())}
    if type(value) is frozenset:
        return frozenset(reversed([*value]))
    return type(value)(x=shuffled(value.x)) if type(value) in (Point, Filter) else value


@given(lists)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_order_in_which_a_value_was_made_does_not_count(one: tuple[Any, ...]) -> None:
    assert key(*one) == key(*shuffled(one))


def test_keys_are_the_same_in_processes_with_other_hash_seeds() -> None:
    code = "import tests.test_cache_keys as t; print(*(t.key(*v, {'a', 'b', 'c', t.Plain.A}) for v in t.DISTINCT))"
    root = Path(__file__).parents[1]
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "4242")
    ]
    here = [KeyMaker("p", function, names(len(v) + 1))((*v, {Plain.A, "c", "b", "a"})) for v in DISTINCT]
    assert [other.communicate(timeout=120)[0].split() for other in others] == [here, here]


def test_a_key_says_whose_it_is() -> None:
    def get_user(user_id: int) -> None: ...

    prefixed, bare = KeyMaker("user", get_user, ["user_id"])((7,)), KeyMaker("", get_user, ["user_id"])((7,))
    assert prefixed.startswith("user:get_user:") and bare.startswith("get_user:")
    assert len(prefixed.rpartition(":")[2]) == 20  # 80 bits
    assert prefixed.isascii() and " " not in prefixed


def test_functions_do_not_share_keys() -> None:
    def twins() -> list[Any]:
        def get(user_id: int) -> None: ...

        one = get

        def get(user_id: int) -> None: ...  # type: ignore[no-redef]

        return [one, get, lambda user_id: None,
                lambda user_id: 1]  # fmt: skip

    def get(user_id: int) -> None: ...

    elsewhere = type(get)(get.__code__, {}, "get")
    elsewhere.__qualname__, elsewhere.__module__ = get.__qualname__, "other"
    makers = [KeyMaker("", each, ["user_id"]) for each in [*twins(), get, elsewhere]]
    makers += [KeyMaker("", get, ["id"]), KeyMaker("", get, ["user_id", "x"]), KeyMaker("p", get, ["user_id"])]
    keys = [maker((7,)) if len(maker._names) == 1 else maker((7, None)) for maker in makers]
    assert len({found.rpartition(":")[2] for found in keys[:-1]}) == len(keys) - 1
    assert len(set(keys)) == len(keys)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


@dataclass(eq=False)
class Identity:
    x: int


class SubText(str):
    __slots__ = ()


class Liar:
    def __repr__(self) -> str:
        return "1"

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


loop: list[Any] = []
loop.append(loop)


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (object(), "item", "object"),
        ([1, {"a": User(id=1)}], "item[1].a", "User"),
        (len, "item", "builtin_function_or_method"),
        (lambda: 1, "item", "function"),
        ((n for n in ()), "item", "generator"),
        (User, "item", "DeclarativeAttributeIntercept"),
        (Identity(1), "item", "Identity"),
        (Point(Liar()), "item.x", "Liar"),
        (SubText("a"), "item", "SubText"),
        (Filter(x=[object()]), "object", "object"),
        ({1: {object()}}, "item[1][0]", "object"),
        ([Session()], "item[0]", "Session"),
        (loop, "item", ""),
    ],
)  # fmt: skip
def test_what_is_not_known_by_its_value_is_refused(value: Any, path: str, kind: str) -> None:
    with pytest.raises(CacheError) as error:
        KeyMaker("", function, ["first", "item"])((1, value))
    assert path in str(error.value) and kind in str(error.value) and "function" in str(error.value)


def test_tools_count_like_none() -> None:
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        assert key(7, session) == key(7, None) == key(7, engine)
        assert key([7], session) == key([7], None)
    engine.dispose()


def test_tools_are_told_by_name_and_package() -> None:
    import httpx
    import redis
    import redis.asyncio
    from fastapi import BackgroundTasks, Request, WebSocket
    from fastapi.responses import JSONResponse
    from sqlalchemy import ext
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )
    from sqlalchemy.orm import scoped_session, sessionmaker

    from labkit.cache.client import CacheClient

    class MySession(AsyncSession):
        pass

    class Response:
        pass

    class Client(BaseModel):
        """A customer."""

    tools = [
        MySession,
        AsyncConnection,
        AsyncEngine,
        async_scoped_session,
        async_sessionmaker,
        scoped_session,
        sessionmaker,
    ]
    tools += [
        Request,
        WebSocket,
        BackgroundTasks,
        JSONResponse,
        redis.Redis,
        redis.asyncio.Redis,
        redis.asyncio.RedisCluster,
    ]
    tools += [httpx.Client, httpx.AsyncClient, CacheClient]
    assert [tool for tool in tools if not is_tool(tool)] == []
    assert [kind for kind in (int, dict, Response, Client, User, Point, type(ext)) if is_tool(kind)] == []
