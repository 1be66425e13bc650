"""Values as bytes, and back: what comes out equals what went in, type and value, or is refused beforehand.

JSON carries what it can. The rest goes in as a dictionary with one key that names the type, for example
``{"$tuple": [1, 2]}``. Reading builds only what this page names and the classes that were allowed by name:
bytes from Redis never choose what is imported or run (which is what pickle lets them do).
"""

from __future__ import annotations

import math
import reprlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from functools import cache, cached_property
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

import orjson

from labkit._text import say
from labkit.errors import CacheError

DEEPEST = 60  # containers in containers; a level takes up to four of the 254 levels that orjson writes

_PLAIN, _TAGGED = b"J", b"T"
_zones = cache(available_timezones)  # so that a zone's name in the bytes is looked up, and never searched for

Path = tuple[Any, ...]  # (the path above, this step); () at the top: rendered only where something is refused


class Corrupt(Exception):
    """Bytes that this codec did not write, or not for these classes: the caller takes them for a miss."""


class Refused(Exception):
    """A value that cannot be written: where it stands, its type, and whether it is only too deep."""

    def __init__(self, kind: type, path: Path, deep: bool = False) -> None:
        self.kind, self.deep = kind, deep
        self.steps: list[Any] = []
        while path:
            path, step = path
            self.steps.insert(0, step)

    def where(self, root: str) -> str:
        """The place in words of Python: ``$.users[3].born``."""
        named = (isinstance(step, str) and step.isidentifier() for step in self.steps)
        return root + "".join(
            f".{step}" if name else f"[{reprlib.repr(step)}]" for step, name in zip(self.steps, named, strict=True)
        )


def class_name(kind: type) -> str:
    """The name under which a class stands in the bytes and in keys."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _span(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _zone(zone: tzinfo | None) -> Any:
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        return [_span(offset), *name]
    if zone is None or (type(zone) is ZoneInfo and zone.key in _zones()):
        return zone and zone.key
    raise TypeError(zone)


def _read_zone(form: Any) -> tzinfo | None:
    if type(form) is list:
        return timezone(timedelta(*form[0]), *form[1:])
    if form is not None and form not in _zones():
        raise Corrupt
    return form and ZoneInfo(form)


_WRITERS: dict[type, Callable[[Any], Any]] = {
    bytes: lambda value: b64encode(value).decode(),
    Decimal: str,
    UUID: lambda value: value.hex,
    date: date.isoformat,
    timedelta: _span,
    datetime: lambda value: [value.replace(tzinfo=None).isoformat(), value.fold, _zone(value.tzinfo)],
    time: lambda value: [value.replace(tzinfo=None).isoformat(), value.fold, _zone(value.tzinfo)],
}


class Writer:
    """Writes values as what JSON has, with a tag where JSON has no such type.

    Args:
        allowed: the classes whose objects are written, by name, whole and in order. None writes an object of any
            dataclass, model or Enum by that alone which makes it equal to another: that is what keys are made of.
    """

    def __init__(self, allowed: Mapping[str, type] | None) -> None:
        self._allowed = allowed
        self.tagged = False

    def write(self, value: Any, path: Path = (), depth: int = 0) -> Any:
        """The form of a value.

        Raises:
            Refused: if the value, or one inside it, could not be told from another or built again.
        """
        kind = type(value)
        if kind is str:
            return value if _is_text(value) else self._tag("str", value.encode("utf-8", "surrogatepass").hex())
        if kind is int:
            return value if -(2**63) <= value < 2**64 else self._tag("int", format(value, "x"))
        if value is None or kind is bool:
            return value
        if kind is float:
            return value if math.isfinite(value) else self._tag("float", repr(value))
        if depth >= DEEPEST:
            raise Refused(kind, path, deep=True)
        if kind is dict:
            return self._dict(value, path, depth + 1)
        if kind is list:
            return self._list(value, path, depth + 1)
        if kind is tuple:
            return self._tag("tuple", self._list(value, path, depth + 1))
        if kind is set or kind is frozenset:
            return self._tag(kind.__name__, sorted(self._list(value, path, depth + 1), key=orjson.dumps))
        try:
            if kind in _WRITERS:
                return self._tag(kind.__name__, _WRITERS[kind](value))
            return self._object(value, kind, path, depth + 1)
        except (TypeError, AttributeError, KeyError):
            raise Refused(kind, path) from None

    def _tag(self, tag: str, form: Any) -> dict[str, Any]:
        self.tagged = True
        return {f"${tag}": form}

    def _list(self, values: Iterable[Any], path: Path, depth: int) -> list[Any]:
        return [self.write(value, (path, index), depth) for index, value in enumerate(values)]

    def _dict(self, value: dict[Any, Any], path: Path, depth: int) -> dict[str, Any]:
        forms = [self.write(item, (path, key), depth) for key, item in value.items()]
        if all(type(key) is str and key[:1] != "$" and _is_text(key) for key in value):
            return dict(zip(value, forms, strict=True))
        pairs = list(zip([self.write(key, (path, key), depth) for key in value], forms, strict=True))
        if self._allowed is None:
            pairs.sort(key=lambda pair: orjson.dumps(pair[0], option=orjson.OPT_SORT_KEYS))
        return self._tag("dict", [list(column) for column in zip(*pairs, strict=True)])

    def _object(self, value: Any, kind: type, path: Path, depth: int) -> dict[str, Any]:
        """An object of a class: its class by name and its state. ORM objects are more than their fields."""
        name = class_name(kind)
        whole = self._allowed is not None
        if (whole and self._allowed.get(name) is not kind) or hasattr(kind, "__mapper__"):  # type: ignore[union-attr]
            raise TypeError(kind)
        if isinstance(value, Flag):
            return self._tag("flag", [name, self.write(value.value)])
        if isinstance(value, Enum):
            return self._tag("enum", [name, value.name])
        if is_dataclass(kind):
            if not whole and kind.__eq__ is object.__eq__:
                raise TypeError(kind)
            state = {field.name: getattr(value, field.name) for field in fields(kind) if whole or field.compare}
            if whole:
                state |= {k: v for k, v in _attributes(value).items() if not _is_computed(kind, k)}
            return self._tag("dataclass", [name, self._dict(state, path, depth)])
        inside = value.__dict__
        parts = [{field: inside[field] for field in kind.__pydantic_fields__}]  # type: ignore[attr-defined]
        parts += [value.__pydantic_extra__ or {}, value.__pydantic_private__ or {}]
        forms = [self._dict(part, path, depth) for part in parts]
        return self._tag("model", [name, *forms, *([sorted(value.model_fields_set)] if whole else [])])


def _is_text(text: str) -> bool:
    """Whether UTF-8 has it: a lone surrogate (half of a character, as in a broken file name) it has not."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _attributes(value: object) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _is_computed(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), cached_property)


class Codec:
    """Bytes of values and values of bytes, for a closed set of classes.

    Args:
        types: classes and annotations (``list[User] | None``); the dataclasses, Pydantic models and Enums found in
            them and in their fields may be stored. Subclasses are not meant along.
    """

    def __init__(self, types: Iterable[Any] = ()) -> None:
        self._classes = _classes(types)
        self._readers: dict[str, Callable[[Any, int], Any]] = {
            "$tuple": lambda form, depth: tuple(self._list(form, depth)),
            "$set": lambda form, depth: set(self._list(form, depth)),
            "$frozenset": lambda form, depth: frozenset(self._list(form, depth)),
            "$dict": self._dict,
            "$str": lambda form, _: bytes.fromhex(form).decode("utf-8", "surrogatepass"),
            "$int": lambda form, _: int(form, 16),
            "$float": lambda form, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[form],
            "$bytes": lambda form, _: b64decode(form, validate=True),
            "$Decimal": lambda form, _: Decimal(_text(form)),
            "$UUID": lambda form, _: UUID(hex=form),
            "$date": lambda form, _: date.fromisoformat(form),
            "$timedelta": lambda form, _: timedelta(*form),
            "$datetime": lambda form, _: _moment(datetime.fromisoformat, *form),
            "$time": lambda form, _: _moment(time.fromisoformat, *form),
            "$enum": lambda form, _: self._class(form[0], Enum)[form[1]],
            "$flag": lambda form, depth: self._class(form[0], Flag)(self._read(form[1], depth)),
            "$dataclass": self._dataclass,
            "$model": self._model,
        }

    def dumps(self, value: Any) -> bytes:
        """The bytes of a value.

        Raises:
            CacheError: if what comes back would not equal what goes in: names the path, the type and the remedy.
        """
        writer = Writer(self._classes)
        try:
            form = writer.write(value)
        except Refused as refused:
            kind = refused.kind
            reason = "deep" if refused.deep else "class" if _is_known(kind) else "type"
            path = refused.where("$")
            raise CacheError(say(f"cache.value_{reason}", path=path, type=kind.__qualname__, most=DEEPEST)) from None
        return (_TAGGED if writer.tagged else _PLAIN) + orjson.dumps(form)

    def loads(self, data: bytes) -> Any:
        """The value of bytes.

        Raises:
            Corrupt: whatever is wrong with them; nothing is imported or run on their behalf.
        """
        try:
            if data[:1] == _PLAIN:
                return orjson.loads(data[1:])
            if data[:1] == _TAGGED:
                return self._read(orjson.loads(data[1:]), 0)
        except Exception as error:  # foreign bytes can be wrong in any way, and none of them is the reader's fault
            raise Corrupt(repr(error)) from None
        raise Corrupt(data[:1])

    def _read(self, form: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise Corrupt
        if type(form) is list:
            return self._list(form, depth)
        if type(form) is not dict:
            return form
        if len(form) == 1:
            (tag,) = form
            if tag[:1] == "$":
                return self._readers[tag](form[tag], depth)
        return {key: self._read(item, depth + 1) for key, item in form.items()}

    def _list(self, form: Any, depth: int) -> list[Any]:
        if type(form) is not list:
            raise Corrupt
        return [self._read(item, depth + 1) for item in form]

    def _dict(self, form: Any, depth: int) -> dict[Any, Any]:
        keys, items = (self._list(column, depth) for column in form)
        return dict(zip(keys, items, strict=True))

    def _class(self, name: str, base: type = object) -> Any:
        kind = self._classes[name]
        if not issubclass(kind, base):
            raise Corrupt
        return kind

    def _state(self, form: Any, depth: int) -> dict[str, Any]:
        state = self._read(form, depth)
        if type(state) is not dict:
            raise Corrupt
        return state

    def _dataclass(self, form: Any, depth: int) -> Any:
        """Built without ``__init__``: running it again could change the value, and would run code."""
        name, inside = form
        kind, state = self._class(name), self._state(inside, depth)
        new = object.__new__(kind)
        for field in fields(kind):
            object.__setattr__(new, field.name, state.pop(field.name))
        if state:
            new.__dict__.update(state)
        return new

    def _model(self, form: Any, depth: int) -> Any:
        """Built without validating: validators are code, and may change a value a second time."""
        name, inside, extra, private, given = form
        kind, state = self._class(name), self._state(inside, depth)
        if state.keys() != kind.__pydantic_fields__.keys():
            raise Corrupt
        new = kind.__new__(kind)
        new.__setstate__(
            {
                "__dict__": state,
                "__pydantic_extra__": self._state(extra, depth) if kind.model_config.get("extra") == "allow" else None,
                "__pydantic_private__": self._state(private, depth) if kind.__private_attributes__ else None,
                "__pydantic_fields_set__": set(given),
            }
        )
        return new


def _text(form: Any) -> str:
    if type(form) is not str:
        raise Corrupt
    return form


def _moment(parse: Callable[[str], Any], text: str, fold: int, zone: Any) -> Any:
    return parse(text).replace(fold=fold, tzinfo=_read_zone(zone))


def _is_known(kind: type) -> bool:
    """Whether a class can be stored once it is allowed: a dataclass, a Pydantic model or an Enum, and no ORM class."""
    known = is_dataclass(kind) or hasattr(kind, "__pydantic_fields__") or issubclass(kind, Enum)
    return known and not hasattr(kind, "__mapper__")


def _classes(types: Iterable[Any]) -> dict[str, type]:
    """The storable classes in annotations, those in their fields included."""
    found: dict[str, type] = {}
    seen: dict[int, Any] = {}  # by identity: annotations need not be hashable, and recursive ones come round again
    todo = list(types)
    while todo:
        hint = todo.pop()
        if id(hint) in seen:
            continue
        seen[id(hint)] = hint
        todo += [getattr(hint, "__value__", None), get_origin(hint), *get_args(hint)]
        if isinstance(hint, type) and (is_typeddict(hint) or _is_known(hint)):
            if not is_typeddict(hint):
                found[class_name(hint)] = hint
            todo += _hints(hint)
    return found


def _hints(kind: type) -> Iterable[Any]:
    if hasattr(kind, "__pydantic_fields__") and not is_dataclass(kind):
        return [field.annotation for field in kind.__pydantic_fields__.values()]
    try:
        return get_type_hints(kind).values()
    except NameError:  # a name imported for type checkers only: such a class can still be given in types=
        return []
