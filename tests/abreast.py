"""Long jobs of one test file, three at a time, the longest first: most of what a lesson does is wait."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labkit.course.editions import RUNNING

Jobs = dict[tuple[str, Path], "Future[Any]"]
AT_ONCE = 3  # on two cores: each computes for about half of its time
ROOT = Path(__file__).parents[1]


@contextmanager
def abreast(
    request: pytest.FixtureRequest, job: Callable[[str, Path, Path], Any], by_test: bool = False
) -> Iterator[Jobs]:
    """Begin a job for each test of this file that will run and has a ``path``; the tests wait for their own.

    Args:
        request: of the fixture, whose scope is the module.
        job: called with the test's name (without its parameters), its path and a new folder.
        by_test: whether two tests of one path are two jobs; else the key's name is empty and they share one.
    """
    wanted = {
        (item.originalname if by_test else "", item.callspec.params["path"]): None
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    }
    seconds = json.loads((ROOT / RUNNING).read_text(encoding="utf-8"))
    longest_first = sorted(wanted, key=lambda key: -seconds.get(key[1].stem, 0))
    folders: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")  # it is not for threads
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield {(name, path): pool.submit(job, name, path, folders.mktemp(path.stem)) for name, path in longest_first}
    finally:
        pool.shutdown(cancel_futures=True)
