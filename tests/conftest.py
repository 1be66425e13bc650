"""What all tests share: a work folder of their own, a clean language, skips that count as failures in CI."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit import settings

REQUIRE_ALL = os.environ.get("LABKIT_REQUIRE_ALL", "") not in ("", "0")
OUTSIDE = ("LABKIT_LANG", "LABKIT_FAKE_REDIS", "DATABASE_URL", "REDIS_URL")
_session_work = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One work folder for the whole run: expensive data is made once, and the learner's is never touched."""
    folder = config.stash[_session_work] = tempfile.mkdtemp(prefix="labkit-tests-")
    os.environ["LABKIT_WORK"] = folder
    for name in OUTSIDE:
        os.environ.pop(name, None)


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
