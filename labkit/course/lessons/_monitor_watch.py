"""What the checks of lesson 03 notice beside an answer: what is logged, and whether the loop turns."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from labkit.monitoring.ids import request_id

STALL = 0.5
"""Seconds without a turn of the loop from which it is said to stand still."""


class turning:
    """Watches the running loop: the longest times without a turn, in seconds."""

    async def __aenter__(self) -> list[float]:
        self.stalls = [0.0]
        self._task = asyncio.ensure_future(self._turn())
        await asyncio.sleep(0)
        return self.stalls

    async def _turn(self) -> None:
        last = time.monotonic()
        while True:
            try:
                await asyncio.sleep(0.02)
            finally:
                now = time.monotonic()
                self.stalls.append(now - last)
                last = now

    async def __aexit__(self, *raised: object) -> None:
        await asyncio.sleep(0)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextmanager
def logged() -> Iterator[list[str]]:
    """Everything that is logged meanwhile, after the id of its request, with tracebacks, whoever listens."""
    make, kept, lock = logging.getLogRecordFactory(), list[str](), threading.Lock()
    shape = logging.Formatter()

    def note(*words: Any, **more: Any) -> logging.LogRecord:
        record = make(*words, **more)
        with lock:
            text = f"{request_id.get()} {record.getMessage()}"
            if isinstance(record.exc_info, tuple) and record.exc_info[0]:
                text += "\n" + shape.formatException(record.exc_info)
            kept.append(text)
        return record

    logging.setLogRecordFactory(note)
    try:
        yield kept
    finally:
        logging.setLogRecordFactory(make)
