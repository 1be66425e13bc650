"""How many different users an application has at the moment: exact, and bounded in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

WINDOW = 300.0  # seconds without a request after which a user is gone
MOST = 100_000  # users that are remembered at once: about 15 MB with ids of 16 characters
_TIDY = 1_000  # users below which it is not worth while to look for those who have gone


class ActiveUsers:
    """The distinct users of the last ``window`` seconds.

    Exact up to ``most`` users at once. With more than that the count stays at ``most``: new ones are not remembered
    until somebody has gone.

    Args:
        window: seconds.
        most: users remembered at once.
        clock: seconds that never go back.

    May be used from several threads.
    """

    def __init__(self, window: float = WINDOW, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._window, self._most, self._clock = window, most, clock
        self._seen: dict[Hashable, float] = {}
        self._room = min(_TIDY, most)
        self._next = -1.0
        self._lock = threading.Lock()

    def saw(self, user: Hashable) -> None:
        """This user has just done something."""
        # Without the lock but for the last of the three, which is seldom asked: this runs for each request.
        if user in self._seen or len(self._seen) < self._room or self._tidied():
            self._seen[user] = self._clock()

    def count(self) -> int:
        """Different users within the window."""
        with self._lock:
            self._forget(self._clock())
            return len(self._seen)

    def _tidied(self) -> bool:
        """Whether there is room for one more. All users are gone through once a second at most, however many come."""
        with self._lock:
            now = self._clock()
            if len(self._seen) < self._most or now >= self._next:
                self._forget(now)
                self._next = now + 1.0
            return len(self._seen) < self._most

    def _forget(self, now: float) -> None:
        begin = now - self._window
        for user in [user for user, seen in self._seen.copy().items() if seen <= begin]:
            if self._seen[user] <= begin:  # not seen again meanwhile
                del self._seen[user]
        self._room = min(max(_TIDY, 2 * len(self._seen)), self._most)
