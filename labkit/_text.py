"""Sentences a person reads, in Spanish and English, kept in TOML catalogues and never in code.

A catalogue is a folder of ``room.toml`` files. Each entry holds both languages side by side, so that one
cannot be changed without the other in sight::

    [n_plus_one]
    es = "{count:,} consultas iguales desde {place}"
    en = "{count:,} identical statements from {place}"
"""

from __future__ import annotations

import string
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from labkit.errors import LabkitError
from labkit.settings import language

_SWAP = str.maketrans(",.", ".,")


class _Formatter(string.Formatter):
    """``str.format`` with the separators of the language: 1,051.5 in English is 1.051,5 in Spanish.

    Percentages get their space: ``{share:.0%}`` is ``86 %``.
    """

    def __init__(self, lang: str) -> None:
        self._swap = lang == "es"

    def format_field(self, value: Any, format_spec: str) -> str:
        text: str = super().format_field(value, format_spec)
        if format_spec.endswith("%"):
            text = f"{text[:-1]} %"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return text.translate(_SWAP) if self._swap and is_number else text


@cache
def _entries(package: str, room: str) -> dict[str, dict[str, str]]:
    file = files(package) / "messages" / f"{room}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


class Catalogue:
    """The messages of one package.

    Args:
        package: dotted name of the package whose ``messages`` folder holds the TOML files.
    """

    def __init__(self, package: str) -> None:
        self._package = package

    def __call__(self, key: str, /, lang: str | None = None, **values: Any) -> str:
        """Return the sentence behind ``"room.name"`` in the current language, with its values filled in.

        Raises:
            LabkitError: if there is no such message (a bug in labkit, never of the reader).
        """
        room, _, name = key.partition(".")
        lang = lang or language()
        try:
            text = _entries(self._package, room)[name][lang]
        except (KeyError, OSError) as error:
            raise LabkitError(f"no message {key!r} in {lang!r} in {self._package}/messages: add it") from error
        return _Formatter(lang).vformat(text, (), values)


say = Catalogue("labkit")


def number(value: float, spec: str = ",", lang: str | None = None) -> str:
    """Format a number with the separators of the language (``number(1051)`` -> ``"1.051"`` in Spanish)."""
    return _Formatter(lang or language()).format_field(value, spec)


def duration(seconds: float, lang: str | None = None) -> str:
    """A duration with three significant digits and the unit that fits: ``"1,25 s"``, ``"340 ms"``, ``"12 µs"``."""
    size, unit = (1.0, "s") if abs(seconds) >= 1.0 else (1e-3, "ms") if abs(seconds) >= 1e-3 else (1e-6, "µs")
    value = seconds / size
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{number(value, f',.{digits}f', lang)} {unit}"
