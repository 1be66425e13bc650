"""What comes back equals what went in, type and value; and no bytes do more than being a miss."""

from __future__ import annotations

import json
import math
import random
import sys
import zoneinfo
from dataclasses import dataclass, field, fields, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from functools import cached_property
from typing import Annotated, Any, Generic, Literal, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, field_validator
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column
from starlette.responses import Response
from typing_extensions import TypeAliasType

from labkit.cache.codec import Codec, Corrupt
from labkit.errors import CacheError


class Colour(Enum):
    RED = "red"
    BLUE = (1, 2)


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


class Rights(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Point:
    x: Any
    y: Any = None
    hidden: Any = field(default=3, init=False, compare=True)

    def __post_init__(self) -> None:
        self.x = [self.x]  # running it twice would show


@dataclass(frozen=True, slots=True)
class Slotted:
    inside: Any


@dataclass
class Twin:
    inside: Any


class Model(BaseModel):
    inside: Any = None
    name: str = Field(default="", alias="nombre")

    @field_validator("name")
    @classmethod
    def twice(cls, value: str) -> str:
        return value + "!"


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    inside: Any = None
    _secret: int = PrivateAttr(default=1)


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]


CODEC = Codec([Colour, Level, Word, Rights, Point, Slotted, Twin, Model, Open, Page[int]])

zones = st.one_of(
    st.none(),
    st.sampled_from(["UTC", "Europe/Madrid", "America/Bogota", "Australia/Lord_Howe"]).map(ZoneInfo),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text(max_size=5)),
)
texts = st.text(st.characters(exclude_categories=()), max_size=20) | st.text("$:,\"'\\ab\0\n", max_size=8)
hashable = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**200]),
    st.floats(),
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, 5e-324, 1e22]),
    texts,
    st.binary(max_size=20),
    st.decimals() | st.sampled_from([Decimal("-0"), Decimal("1.10"), Decimal("1E+400"), Decimal("NaN123")]),
    st.uuids(),
    st.dates(),
    st.timedeltas() | st.sampled_from([timedelta.max, timedelta.min]),
    st.datetimes(timezones=zones, allow_imaginary=True),
    st.datetimes(timezones=zones).map(lambda moment: moment.replace(fold=1)),
    st.times(timezones=zones),
    st.sampled_from([*Colour, *Level, *Word, *Rights, Rights(0), Rights.READ | Rights.WRITE]),
)


def has_hash(value: Any) -> bool:
    return not (type(value) is Decimal and value.is_snan())


keys = st.recursive(
    hashable.filter(has_hash),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    keys | hashable,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(keys, max_size=4),
        st.builds(Point, inner, inner),
        st.builds(Slotted, inner),
        st.builds(Twin, inner),
        st.builds(Model, inside=inner, nombre=st.text(max_size=3)),
        st.builds(Open, inside=inner, other=inner),
        st.builds(Page[int], items=st.lists(st.integers(), max_size=3)),
    ),
    max_leaves=12,
)


def identity(value: Any) -> Any:
    """A value as nested tuples in which every difference of type, sign, scale, zone or order is one of the text."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [identity(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted((identity(item) for item in value), key=repr)
    if kind is dict:
        return kind, [(identity(key), identity(item)) for key, item in value.items()]
    if kind in (datetime, time):
        zone = value.tzinfo
        return kind, repr(value.replace(tzinfo=None)), value.fold, type(zone), repr(zone), zone and zone.tzname(None)
    if kind is int:
        return kind, hex(value)
    if isinstance(value, BaseModel):
        return kind, identity(value.__getstate__())
    if isinstance(value, Slotted | Twin | Point):
        return kind, [identity(getattr(value, entry.name)) for entry in fields(value)]
    return kind, repr(value)


@given(values)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_supported_value_comes_back_as_it_was(value: Any) -> None:
    back = CODEC.loads(CODEC.dumps(value))
    assert identity(back) == identity(value)


def test_plain_data_is_one_read_of_json() -> None:
    data = CODEC.dumps({"a": [1, 1.5, None, True, "ñ", {"b": -0.0}]})
    assert data[:1] == b"J"
    assert orjson.loads(data[1:]) == {"a": [1, 1.5, None, True, "ñ", {"b": -0.0}]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "\ud800", 2**64, -(2**63) - 1])
def test_what_json_has_not_is_not_written_as_if_it_had(value: Any) -> None:
    for holder in (value, [value], {"a": [value]}):
        assert CODEC.dumps(holder)[:1] == b"T"
        assert identity(CODEC.loads(CODEC.dumps(holder))) == identity(holder)
    assert identity(CODEC.loads(CODEC.dumps({value: 1}))) == identity({value: 1})


def test_zones_differ_by_type_and_name() -> None:
    noon = datetime(2026, 10, 25, 2, 30, fold=1)
    zones: list[tzinfo] = [
        UTC,
        ZoneInfo("UTC"),
        timezone(timedelta(hours=1)),
        timezone(timedelta(hours=1), "CET"),
    ]
    back = [CODEC.loads(CODEC.dumps(noon.replace(tzinfo=zone))) for zone in zones]
    assert [repr(moment.tzinfo) for moment in back] == [repr(zone) for zone in zones]
    assert all(moment.fold == 1 for moment in back)


def test_classes_are_found_in_annotations() -> None:
    class Row(TypedDict):
        colour: Colour

    @dataclass
    class Node:
        children: list[Node]
        row: Row | None = None

    Node.__annotations__ = {"children": list[Node], "row": Row | None}
    found = Codec([Annotated[dict[str, Node | Literal["x"]], "note"], list[Page[Level]]])
    value = [Node([Node([])], {"colour": Colour.RED}), Page[Level](items=[Level.LOW])]
    assert found.loads(found.dumps(value)) == value
    assert type(found.loads(found.dumps(value))[1].items[0]) is Level


def test_classes_are_found_in_recursive_aliases() -> None:
    Tree = TypeAliasType("Tree", dict[str, "Tree"] | Twin)  # type: ignore[misc]
    codec = Codec([Tree])
    assert codec.loads(codec.dumps({"a": Twin(1)})) == {"a": Twin(1)}


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)


class MappedTwin(MappedAsDataclass, Base):
    __tablename__ = "mapped"
    id: Mapped[int] = mapped_column(primary_key=True)


class Text(str):
    __slots__ = ()


class Nameless(tzinfo):
    pass


class SubTwin(Twin):
    pass


Impostor = make_dataclass("Twin", ["inside"])
Impostor.__module__, Impostor.__qualname__ = Twin.__module__, Twin.__qualname__
missing = object.__new__(Twin)


@pytest.mark.parametrize(
    ("value", "path", "type_"),
    [
        ({"users": [0, {"born": object()}]}, "$.users[1].born", "object"),
        ([Row(id=1)], "$[0]", "Row"),
        ([MappedTwin(id=1)], "$[0]", "MappedTwin"),
        (Response("hi"), "$", "Response"),
        ({"a b": {3: 1j}}, "$['a b'][3]", "complex"),
        ({Text("k"): 1}, "$.k", "Text"),
        (bytearray(b""), "$", "bytearray"),
        (range(3), "$", "range"),
        ((x for x in ()), "$", "generator"),
        (datetime(2026, 1, 1, tzinfo=Nameless()), "$", "datetime"),
        (SubTwin(1), "$", "SubTwin"),
        (Impostor(1), "$", "Twin"),
        (Twin({1: (Twin, 2)}), "$.inside[1][0]", "type"),
        (missing, "$", "Twin"),
        (Open(other={1, lambda: 0}), "$.__pydantic_extra__.other", "function"),
    ],
)
def test_a_refusal_names_the_path_and_the_type(value: Any, path: str, type_: str) -> None:
    codec = Codec([Twin, Open, MappedTwin, Row])
    with pytest.raises(CacheError) as error:
        codec.dumps(value)
    assert path in str(error.value) and type_ in str(error.value)


def test_a_refusal_of_a_class_says_how_to_allow_it() -> None:
    with pytest.raises(CacheError, match=r"types=\[Twin\]"):
        Codec().dumps(Twin(1))


def test_what_contains_itself_or_is_too_deep_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 1
    for _ in range(300):
        deep = (deep,)
    for value in (loop, deep, {"a": Twin(loop)}, {frozenset([deep])}):
        with pytest.raises(CacheError):
            CODEC.dumps(value)


def test_what_is_computed_from_the_fields_comes_along() -> None:
    class Person(BaseModel):
        name: str

        @cached_property
        def initial(self) -> str:
            return self.name[0]

    codec, ana = Codec([Person]), Person(name="Ana")
    assert ana.initial == "A"
    assert codec.loads(codec.dumps(ana)) == ana
    assert codec.loads(codec.dumps(ana)).initial == "A"


def test_whole_models_come_back_with_what_was_set() -> None:
    codec = Codec([RootModel[list[int]], Open])
    root = RootModel[list[int]]([1])
    assert codec.loads(codec.dumps(root)) == root
    one, other = Open(), Open(inside=None)
    other._secret = 5
    assert codec.loads(codec.dumps(one)).model_fields_set == set()
    assert codec.loads(codec.dumps(other)).model_fields_set == {"inside"}
    assert codec.loads(codec.dumps(other))._secret == 5


# Hostile bytes -----------------------------------------------------------------------------------------------


class Spy:
    """Fails at whatever foreign bytes make Python import, run or open."""

    def __init__(self) -> None:
        self.on, self.seen = False, []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event in (
            "import",
            "exec",
            "compile",
            "open",
            "os.system",
            "subprocess.Popen",
            "pickle.find_class",
        ):
            self.seen.append((event, args[0]))


SPY = Spy()


def feed(codec: Codec, data: bytes) -> bool:
    """Whether it was a miss; anything else than a miss or a value fails the test."""
    SPY.on = True
    try:
        codec.loads(data)
        return False
    except Corrupt:
        return True
    finally:
        SPY.on = False


def nested(chance: random.Random, depth: int = 0) -> Any:
    """JSON with tags in the wrong places."""
    tags = ["$tuple", "$set", "$dict", "$object", "$str", "$int", "$float", "$bytes", "$Decimal", "$UUID", "$date"]
    tags += ["$timedelta", "$datetime", "$time", "$frozenset", "$nothing", "$", "__class__"]
    names = [f"{__name__}:{name}" for name in ("Twin", "Model", "Open", "Rights", "Colour", "Point", "Slotted")]
    names += [
        "os:system",
        "builtins:eval",
        "subprocess:Popen",
        "../../etc/passwd",
        "Europe/Madrid",
        "Bad/Zone",
        "READ",
        "inside",
    ]
    names += ["__class__", "__dict__", "__pydantic_fields_set__", "2026-01-01T00:00:00", "nan", "ff", "1_0", " 1"]
    kind = chance.randrange(9 if depth < 5 else 4)
    if kind < 4:
        return chance.choice([None, True, 0, -1, 1e300, 2**63, chance.choice(names), "", "\0"])
    if kind < 6:
        return [nested(chance, depth + 1) for _ in range(chance.randrange(5))]
    if kind == 6:
        return {chance.choice(names + tags): nested(chance, depth + 1) for _ in range(chance.randrange(3))}
    tag = chance.choice(tags)
    body = [chance.choice(names), nested(chance, depth + 1)] if tag == "$object" else nested(chance, depth + 1)
    return {tag: body}


REAL: list[Any] = [
    {"id": 7, "tags": {"a", "b"}, "when": datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Madrid")), "t": time(1, 2)},
    [Twin((1, Decimal("1.5"), UUID(int=5))), Model(inside=b"abc", nombre="x"), Open(other={1: 2}), Rights.READ],
    (Point(1), Slotted(timedelta(1)), Colour.BLUE, 2**70, math.nan, "\ud800", date(2026, 1, 1)),
]


def test_ten_thousand_hostile_payloads_are_misses_or_values_and_nothing_else() -> None:
    zoneinfo.available_timezones()
    chance, real = random.Random(7), [CODEC.dumps(value) for value in REAL]
    missed = 0
    for data in real:
        assert not feed(CODEC, data)
        missed += sum(feed(CODEC, data[:end]) for end in range(len(data)))
        assert missed >= len(data), "a truncation was taken for a value"
        missed = 0
    for _ in range(3_000):
        assert feed(CODEC, bytes([chance.choice([0, 1, 80, 128, 255])]) + chance.randbytes(chance.randrange(80)))
        feed(CODEC, chance.choice([b"J", b"T"]) + chance.randbytes(chance.randrange(80)))
        data = bytearray(chance.choice(real))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        feed(CODEC, bytes(data))
        feed(CODEC, b"T" + json.dumps(nested(chance)).encode())
    feed(CODEC, b"T" + b'{"$tuple":[' * 400 + b"]}" * 400)
    assert SPY.seen == []


@pytest.mark.parametrize(
    "text",
    [
        '{"$tuple":5}',
        '{"$tuple":"abc"}',
        '{"$set":{"a":1}}',
        '{"$frozenset":{"$tuple":[1]}}',
        '{"$tuple":{"a":1},"b":2}',
        '{"$set":[[1]]}',
        '{"$dict":[[1]]}',
        '{"$dict":[[[1],2]]}',
        '{"$object":["os:system","ls"]}',
        '{"$object":["MODULE:Twin",{}]}',
        '{"$object":["MODULE:Twin",["inside"]]}',
        '{"$object":["MODULE:Slotted",{"inside":1,"more":2}]}',
        '{"$object":["MODULE:Model",{"inside":1}]}',
        '{"$object":["MODULE:Rights",64]}',
        '{"$object":["MODULE:Colour","red"]}',
        '{"$int":"0xff"}',
        '{"$int":"1_0"}',
        '{"$int":5}',
        '{"$float":"1e5"}',
        '{"$float":1}',
        '{"$bytes":"a"}',
        '{"$bytes":"YQ==\\n"}',
        '{"$str":"61 62"}',
        '{"$Decimal":" 1"}',
        '{"$Decimal":[0,[1],2]}',
        '{"$UUID":"{00000000-0000-0000-0000-000000000001}"}',
        '{"$date":"20260101"}',
        '{"$timedelta":[1]}',
        '{"$timedelta":[0,86400,0]}',
        '{"$datetime":["2026-01-01T00:00:00",0,"../../etc/passwd"]}',
        '{"$datetime":["2026-01-01T00:00:00",0,"Bad/Zone"]}',
        '{"$datetime":["2026-01-01T00:00:00",2,null]}',
        '{"$time":["25:00:00",0,null]}',
        '{"$time":["01:00:00",0,["x"]]}',
        '{"$nothing":1}',
        "[" * 100_000,
        "",
        "1 2",
        "NaN",
    ],
)
def test_json_of_another_shape_is_a_miss(text: str) -> None:
    assert feed(CODEC, b"T" + text.replace("MODULE", __name__).encode())


def test_a_class_that_has_changed_since_is_a_miss() -> None:
    old = Codec([Twin]).dumps(Twin(1))
    newer = make_dataclass("Twin", ["inside", "outside"])
    newer.__module__, newer.__qualname__ = Twin.__module__, Twin.__qualname__
    assert feed(Codec([newer]), old)
    assert feed(Codec(), old)
    model = CODEC.dumps(Open()).replace(b"Open", b"Page[int]")
    assert feed(CODEC, model)
    private = b'"__pydantic_private__":{"_secret":1}'
    assert private in CODEC.dumps(Open())
    assert feed(CODEC, CODEC.dumps(Open()).replace(private, b'"__pydantic_private__":null'))
    assert feed(CODEC, CODEC.dumps(Model()).replace(b'"__pydantic_private__":null', private))


def test_an_int_that_python_will_not_print_comes_back() -> None:
    assert CODEC.loads(CODEC.dumps([10**5000, -(10**5000)])) == [10**5000, -(10**5000)]
