"""The last log records in memory, as a table."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from labkit._text import say
from labkit.errors import MonitoringError
from labkit.monitoring._entry import BASE, OURS, Entry, entry

if TYPE_CHECKING:
    import pandas as pd

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Journal(logging.Handler):
    """The last records in memory, as a table to filter.

    A context manager: inside, it hears every logger, and the components speak from INFO on unless ``configure``
    said otherwise. It takes nothing away: a warning that nobody else would have written still goes to stderr.

    Args:
        size: records that are kept; the oldest go first.

    Raises:
        MonitoringError: if ``size`` is not a whole number above 0.
    """

    def __init__(self, size: int = 10_000) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise MonitoringError(say("logs.size", value=repr(size)))
        super().__init__()
        self._entries: deque[Entry] = deque(maxlen=size)
        self._raised = False

    def emit(self, record: logging.LogRecord) -> None:
        self._entries.append(entry(record))
        if record.levelno >= logging.WARNING and logging.lastResort and self._alone(record.name):
            logging.lastResort.handle(record)

    def _alone(self, name: str) -> bool:
        """Whether without journals this record would have had no handler; of ours nobody expects it on stderr."""
        if name.partition(".")[0] == OURS or next(_journals(), None) is not self:
            return False
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(not isinstance(each, Journal) for each in logger.handlers):
                return False
            logger = logger.parent if logger.propagate else None
        return True

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The oldest first."""
        self.acquire()
        try:
            return tuple(self._entries)
        finally:
            self.release()

    @property
    def df(self) -> pd.DataFrame:
        """One row a record, the oldest first; levels can be compared: ``df[df.level >= "WARNING"]``.

        Columns: time (UTC), level, component, request_id, message, error (a traceback), and those of ``extra=``.
        """
        import pandas as pd

        entries = self.entries
        rows = [
            {
                "time": pd.Timestamp(one.time, unit="s", tz="UTC"),
                "level": logging.getLevelName(one.level),
                "component": one.component,
                "request_id": one.request_id,
                "message": one.message,
                "error": one.error,
                **one.fields,
            }
            for one in entries
        ]
        df = pd.DataFrame(rows, columns=[*dict.fromkeys([*BASE, *(name for one in entries for name in one.fields)])])
        ranks = {name: logging.getLevelNamesMapping()[name] for name in _LEVELS}
        ranks |= {logging.getLevelName(one.level): one.level for one in entries}
        df["level"] = pd.Categorical(df["level"], sorted(ranks, key=ranks.__getitem__), ordered=True)
        df["time"] = pd.to_datetime(df["time"], utc=True)
        return df

    def clear(self) -> None:
        """Forget everything so far."""
        self._entries.clear()

    def __enter__(self) -> Self:
        ours = logging.getLogger(OURS)
        if ours.level == logging.NOTSET:
            ours.setLevel(logging.INFO)
            self._raised = True
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *raised: object) -> None:
        logging.getLogger().removeHandler(self)
        if self._raised:
            self._raised = False
            if (other := next(_journals(), None)) is not None:
                other._raised = True
            else:
                logging.getLogger(OURS).setLevel(logging.NOTSET)

    def __repr__(self) -> str:
        return f"<Journal {len(self._entries)}>"


def _journals() -> Iterator[Any]:
    return (each for each in logging.getLogger().handlers if isinstance(each, Journal))
