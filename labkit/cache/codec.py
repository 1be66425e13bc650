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
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

import orjson

from labkit._text import say
from labkit.errors import CacheError

_PLAIN, _TAGGED = b"J", b"T"
_BARE = frozenset({str, int, bool, type(None)})
_zones = cache(available_timezones)  # so that a zone named in foreign bytes is looked up, and never searched for

_Path = tuple[Any, ...]  # (the path above, this step), () at the top: put into words only where something is refused


class Corrupt(Exception):
    """Bytes that were not written here, or not for these classes: the caller takes them for a miss."""


class Refused(Exception):
    """A value that could not be built again or told from another: its type, and the steps that lead to it."""

    def __init__(self, kind: type, path: _Path) -> None:
        self.kind, self._path = kind, path

    def where(self, root: str) -> str:
        """The place as Python writes it: ``$.users[3].born``."""
        words, path = "", self._path
        while path:
            path, step = path
            words = (f".{step}" if isinstance(step, str) and step.isidentifier() else f"[{reprlib.repr(step)}]") + words
        return root + words


def class_name(kind: type) -> str:
    """The name under which a class stands in the bytes and in keys."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _span(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _moment(value: datetime | time) -> list[Any]:
    zone: Any = value.tzinfo
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        zone = [_span(offset), *name]
    elif zone is not None:
        if type(zone) is not ZoneInfo or zone.key not in _zones():
            raise TypeError(zone)
        zone = zone.key
    return [value.replace(tzinfo=None).isoformat(), value.fold, zone]


def _zone(form: Any) -> tzinfo | None:
    if type(form) is list:
        return timezone(timedelta(*form[0]), *form[1:])
    if form is not None and form not in _zones():
        raise Corrupt
    return form and ZoneInfo(form)


# How a type stands in JSON, and how it is read. A form that would be written otherwise is not taken.
_FORMS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    str: (
        lambda text: text.encode("utf-8", "surrogatepass").hex(),
        lambda x: bytes.fromhex(x).decode("utf-8", "surrogatepass"),
    ),
    int: (lambda value: format(value, "x"), lambda form: int(form, 16)),
    float: (repr, float),
    bytes: (lambda value: b64encode(value).decode(), lambda form: b64decode(form, validate=True)),
    Decimal: (str, Decimal),
    UUID: (str, UUID),
    date: (date.isoformat, date.fromisoformat),
    timedelta: (_span, lambda form: timedelta(*form)),
    datetime: (_moment, lambda form: datetime.fromisoformat(form[0]).replace(fold=form[1], tzinfo=_zone(form[2]))),
    time: (_moment, lambda form: time.fromisoformat(form[0]).replace(fold=form[1], tzinfo=_zone(form[2]))),
}
_GROUPS = (tuple, set, frozenset)
_TAGS = {f"${kind.__name__}": kind for kind in [*_FORMS, *_GROUPS]}


class Writer:
    """Writes values as what JSON has, with a tag where JSON has no such type.

    Args:
        allowed: the classes whose objects are written whole, by name. None takes every dataclass, model and Enum, and
            writes only what makes an object equal to another, in one order: that is what keys are made of.
    """

    def __init__(self, allowed: Mapping[str, type] | None) -> None:
        self._allowed = allowed

    def write(self, value: Any, path: _Path = ()) -> Any:
        """The form of a value.

        Raises:
            Refused: if the value, or one inside it, cannot be written so.
            RecursionError: if it is too deep or contains itself.
        """
        kind = type(value)
        plain = value is None or kind is bool or (kind is str and _is_text(value))
        if plain or (kind is int and -(2**63) <= value < 2**64) or (kind is float and math.isfinite(value)):
            return value
        if kind is dict:
            return self._dict(value, path)
        if kind is list or kind in _GROUPS:
            forms = [self.write(item, (path, index)) for index, item in enumerate(value)]
            ordered = forms if kind in (list, tuple) else sorted(forms, key=_order)
            return ordered if kind is list else {f"${kind.__name__}": ordered}
        try:
            if kind in _FORMS:
                return {f"${kind.__name__}": _FORMS[kind][0](value)}
            state = self._state(value, kind)
        except (TypeError, AttributeError):
            raise Refused(kind, path) from None
        return {"$object": [class_name(kind), self.write(state, path)]}

    def _dict(self, value: dict[Any, Any], path: _Path) -> dict[str, Any]:
        if all(type(key) is str and key[:1] != "$" and _is_text(key) for key in value):
            return {key: self.write(item, (path, key)) for key, item in value.items()}
        pairs = [[self.write(key, (path, key)), self.write(item, (path, key))] for key, item in value.items()]
        return {"$dict": pairs if self._allowed is not None else sorted(pairs, key=_order)}

    def _state(self, value: Any, kind: Any) -> Any:
        """What an object consists of: all of it, or for a key what its class compares."""
        whole = self._allowed is not None
        known: Any = kind if self._allowed is None else self._allowed.get(class_name(kind))
        if known is not kind or not _is_known(kind):
            raise TypeError(kind)
        if isinstance(value, Enum):
            return value.value if isinstance(value, Flag) else value.name
        if is_dataclass(kind):
            if not whole and kind.__eq__ is object.__eq__:
                raise TypeError(kind)
            state = {field.name: getattr(value, field.name) for field in fields(kind) if whole or field.compare}
            return state | (getattr(value, "__dict__", {}) if whole else {})
        if whole:
            return value.__getstate__()
        inside = [getattr(value, name) for name in kind.__pydantic_fields__]
        return [inside, value.__pydantic_extra__ or {}, value.__pydantic_private__ or {}]


def _is_plain(value: Any) -> bool:
    """Whether JSON has it all, but for what orjson itself refuses."""
    kind = type(value)
    if kind is dict:
        return all(map(_is_plain, value.values()))
    if kind is list:
        return all(map(_is_plain, value))
    return kind in _BARE or (kind is float and math.isfinite(value))


def _is_text(text: str) -> bool:
    """Whether UTF-8 has it: half of a surrogate pair (as in a broken file name) it has not."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _order(form: Any) -> bytes:
    return orjson.dumps(form, option=orjson.OPT_SORT_KEYS)


class Codec:
    """Bytes of values and values of bytes, for a closed set of classes.

    Args:
        types: classes and annotations (``list[User] | None``); the dataclasses, Pydantic models and Enums found in
            them and in their fields may be stored. Subclasses are not meant along.
    """

    def __init__(self, types: Iterable[Any] = ()) -> None:
        self._classes = _classes(types)

    def dumps(self, value: Any) -> bytes:
        """The bytes of a value.

        Raises:
            CacheError: if what comes back would not equal what goes in: names the path, the type and the remedy.
        """
        with suppress(TypeError, RecursionError):  # a key that is no str, 65 bits, half a surrogate pair, too deep
            if _is_plain(value):
                return _PLAIN + orjson.dumps(value)
        try:
            return _TAGGED + orjson.dumps(Writer(self._classes).write(value))
        except Refused as refused:
            reason, kind = "class" if _is_known(refused.kind) else "type", refused.kind.__qualname__
            raise CacheError(say(f"cache.value_{reason}", path=refused.where("$"), type=kind)) from None
        except (RecursionError, orjson.JSONEncodeError):
            raise CacheError(say("cache.value_deep", type=type(value).__qualname__)) from None

    def loads(self, data: bytes) -> Any:
        """The value of bytes.

        Raises:
            Corrupt: whatever is wrong with them; nothing is imported or run on their behalf.
        """
        try:
            if data[:1] == _PLAIN:
                return orjson.loads(data[1:])
            if data[:1] == _TAGGED:
                return self._read(orjson.loads(data[1:]))
        except Exception as error:  # foreign bytes can be wrong in any way, and none of them is the reader's fault
            raise Corrupt(repr(error)) from None
        raise Corrupt(data[:1])

    def _read(self, form: Any) -> Any:
        if type(form) is list:
            return [self._read(item) for item in form]
        if type(form) is not dict:
            return form
        tag = next(iter(form), "")
        if tag[:1] != "$":
            return {key: self._read(item) for key, item in form.items()}
        ((tag, body),) = form.items()
        if tag == "$dict":
            return {self._read(key): self._read(item) for key, item in body}
        if tag == "$object":
            return self._object(*body)
        kind: Any = _TAGS[tag]
        if kind in _GROUPS and type(body) is list:
            return kind(self._read(body))
        write, read = _FORMS[kind]
        value = read(body)
        if write(value) != body:
            raise Corrupt
        return value

    def _object(self, name: str, inside: Any) -> Any:
        """Built without ``__init__`` or validation: they are code, and could change the value a second time."""
        kind: Any = self._classes[name]
        state = self._read(inside)
        if issubclass(kind, Enum):
            return kind(state) if issubclass(kind, Flag) else kind[state]
        new = object.__new__(kind)
        if is_dataclass(kind):
            for field in fields(kind):
                object.__setattr__(new, field.name, state.pop(field.name))
            if state:
                new.__dict__.update(state)
            return new
        inside, given = state["__dict__"], state["__pydantic_fields_set__"]
        extra, private = state.get("__pydantic_extra__"), state.get("__pydantic_private__")
        fits = (type(private) is dict) == bool(kind.__private_attributes__) and type(given) is set
        if not fits or type(extra) not in (dict, type(None)) or not kind.__pydantic_fields__.keys() <= inside.keys():
            raise Corrupt
        new.__setstate__(state)
        return new


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
        if isinstance(hint, type) and _is_known(hint):
            found[class_name(hint)] = hint
        if hasattr(hint, "__pydantic_fields__"):
            todo += [field.annotation for field in hint.__pydantic_fields__.values()]
        elif is_dataclass(hint) or is_typeddict(hint):
            with suppress(NameError):  # a name that only type checkers import: such a class can be given in types=
                todo += get_type_hints(hint).values()
    return found
