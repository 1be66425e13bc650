"""Invalidations that Redis has not confirmed: they are owed to it, and paid before anything is read again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from labkit.cache._commands import Commands

BOUND = 10_000


class Debts:
    """What is owed. At most ``bound`` keys and tags; beyond that, everything under ``prefixes``.

    Args:
        lock: held for every change; the breaker's, so that it never closes on a new debt.
        prefixes: beginnings of the keys that are this cache's own. Keys that begin otherwise are never forgotten.
    """

    def __init__(self, lock: AbstractContextManager[Any], prefixes: set[str], bound: int = BOUND) -> None:
        self.keys: set[str] = set()
        self.tags: set[str] = set()
        self.everything = False
        self._lock, self._prefixes, self._bound = lock, prefixes, bound

    def __bool__(self) -> bool:
        return bool(self.keys or self.tags or self.everything)

    def add(self, keys: Iterable[str], tags: Iterable[str], everything: bool = False) -> None:
        """Owe more."""
        with self._lock:
            self.keys.update(keys)
            self.tags.update(tags)
            self.everything |= everything
            if len(self.keys) + len(self.tags) > self._bound:
                self.everything = True
                self.tags.clear()
                mine = tuple(self._prefixes)
                self.keys = {key for key in self.keys if not key.startswith(mine)}

    async def pay(self, commands: Commands, scan: Any) -> None:
        """Have all of it done; what fails is owed still.

        Args:
            scan: ``scan(match=, count=)`` gives the names in Redis that match a pattern.

        Raises:
            Exception: whatever keeps Redis from doing it.
        """
        with self._lock:
            keys, tags, everything = self.keys, self.tags, self.everything
            self.keys, self.tags, self.everything = set(), set(), False
        try:
            await commands.wipe(keys, tags)
            for prefix in sorted(self._prefixes if everything else ()):
                for start in (prefix, "{" + prefix):  # the value, and the token of its fill
                    pattern = "".join("\\" + char if char in "*?[]\\^" else char for char in start) + "*"
                    await commands.unlink([name.decode() for name in scan(match=pattern, count=1000)])
        except BaseException:
            self.add(keys, tags, everything)
            raise
