"""Names and texts that read naturally, composed from the word lists in ``words.toml``.

Nothing here is random: each function is handed whole numbers and turns the same ones into the same text.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

_STRIDE = 7  # shares no factor with the length of a list of sentences, so that none comes twice


@cache
def _words() -> dict[str, Any]:
    return tomllib.loads(files("labkit.blog").joinpath("words.toml").read_text(encoding="utf-8"))


def _pick(words: Sequence[str], draw: int) -> str:
    return words[draw % len(words)]


def _theme(language: str, topic: int) -> dict[str, Any]:
    themes: list[dict[str, Any]] = _words()[language]
    return themes[topic % len(themes)]


def username(draw: int) -> str:
    """A name such as ``"lucia.garcia"``, without accents; equal draws give equal names."""
    first, last = _words()["first_names"], _words()["last_names"]
    name = f"{first[draw % len(first)]}.{last[draw // len(first) % len(last)]}"
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()


def title(language: str, topic: int, draws: Sequence[int]) -> str:
    """A post's title in ``"es"`` or ``"en"``; ``draws`` are three whole numbers."""
    theme = _theme(language, topic)
    pattern = _pick(theme["titles"], draws[0])
    # A pattern uses either b or n: the third draw serves both.
    values = {
        "a": _pick(theme["a"], draws[1]),
        "b": _pick(theme["b"], draws[2]),
        "n": _pick(theme.get("n", "-"), draws[2]),
    }
    text: str = pattern.format_map(values)
    return text[0].upper() + text[1:]


def body(language: str, topic: int, draw: int) -> str:
    """A post's text on the topic of its title: two to five different sentences."""
    return _some(_theme(language, topic)["sentences"], draw // 4, 2 + draw % 4)


def comment(language: str, draw: int) -> str:
    """A reader's remark."""
    return _pick(_words()["comments"][language], draw)


def _some(sentences: Sequence[str], first: int, count: int) -> str:
    return " ".join(_pick(sentences, first + _STRIDE * i) for i in range(count))
