"""Long jobs of one test file, two at a time: most of what a lesson does is wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Jobs = dict[tuple[str, Path], "Future[Any]"]


@contextmanager
def abreast(request: pytest.FixtureRequest, job: Callable[[str, Path], Any], by_test: bool = False) -> Iterator[Jobs]:
    """Begin a job for each test of this file that will run and has a ``path``; the tests wait for their own.

    Args:
        request: of the fixture, whose scope is the module.
        job: called with the test's name (without its parameters) and its path.
        by_test: whether two tests of one path are two jobs; else the key's name is empty and they share one.
    """
    wanted = {
        (item.originalname if by_test else "", item.callspec.params["path"]): None
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    }
    pool = ThreadPoolExecutor(2)
    try:
        yield {(name, path): pool.submit(job, name, path) for name, path in wanted}
    finally:
        pool.shutdown(cancel_futures=True)
