"""What all tests share: a work folder of their own, a clean language, skips that count as failures in CI."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit import settings

REQUIRE_ALL = os.environ.get("LABKIT_REQUIRE_ALL", "") not in ("", "0")
OUTSIDE = ("LABKIT_LANG", "LABKIT_FAKE_REDIS", "LABKIT_LOG", "LABKIT_LOG_FORM", "DATABASE_URL", "REDIS_URL")
_session_work = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One work folder for the whole run: expensive data is made once, and the learner's is never touched."""
    folder = config.stash[_session_work] = tempfile.mkdtemp(prefix="labkit-tests-")
    os.environ["LABKIT_WORK"] = folder
    for name in OUTSIDE:
        os.environ.pop(name, None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell has started this in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_session_work], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    return _no_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    return _no_skip(report)


def _no_skip(report: Any) -> Any:
    """Where everything must run (``LABKIT_REQUIRE_ALL=1``), a test that finds its part missing has failed."""
    if REQUIRE_ALL and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"{report.nodeid}: skipped although LABKIT_REQUIRE_ALL is set. {reason}"
    return report


@pytest.fixture(autouse=True)
def _clean_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(settings, "_chosen", None)
    yield


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty work folder for one test."""
    folder = tmp_path / "work"
    monkeypatch.setenv("LABKIT_WORK", str(folder))
    return folder


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of this checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program (Debian's package chromium; elsewhere set CHROMIUM)."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no Chromium: install the package chromium or set CHROMIUM=/path/to/it")
    return found


@pytest.fixture
def workbook(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project, entered: two lessons in Spanish and one in English; ``work`` is its work folder."""
    root = tmp_path / "workbook"
    for folder in ("labkit", "notebooks/source"):
        (root / folder).mkdir(parents=True)
    for name in ("es/00_start", "es/01_second", "en/00_start"):
        write_notebook(root / f"notebooks/{name}.ipynb", [f"print('{name}')", "40 + 2"])
    monkeypatch.chdir(root)
    return root


def write_notebook(path: Path, cells: list[str]) -> None:
    """A notebook of code cells without outputs, written as JSON so that it has no library's version in it."""
    body = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{index}",
                "source": source,
                "metadata": {},
                "outputs": [],
                "execution_count": None,
            }
            for index, source in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")
