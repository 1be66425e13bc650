"""What lesson 03 shows and delivers: its metrics, buckets, who hangs up, an outage; report, rubric and modules."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry

from labkit import Lab
from labkit.blog import create_app
from labkit.course import rubric
from labkit.course.cards import words
from labkit.course.deliverables import module, requirements
from labkit.course.evidence import Evidence
from labkit.course.exercises import outline
from labkit.course.lessons._monitor_buckets import buckets
from labkit.course.lessons._monitor_counted import hang_up, inventory, statuses
from labkit.course.lessons._monitor_faults import Scenario, Scenarios, leaks, storm
from labkit.course.lessons.lesson_03 import report_sections
from labkit.course.markers import Role
from labkit.monitoring import Metrics, MetricsMiddleware, Snapshot
from tests.lessons.judging import cell_text

LESSON = "03_monitoring"


def test_the_inventory_counts_series_and_what_is_fed() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.track_request("GET", "/users/{user_id}", 200, 0.01)
    found = inventory(metrics)
    rows = {row["metric"]: row for row in found.df.to_dict("records")}
    assert rows["app_requests_total"]["total"] == rows["app_request_duration_seconds"]["total"] == 1
    assert rows["app_requests_total"]["series"] == 1 and rows["app_database_queries_total"]["series"] == 0
    assert 1 < found.fed < len(found.df) and "app_info" in rows
    assert "app_requests_total" in found._repr_html_()


# --- buckets


@pytest.fixture
def lab() -> Iterator[Lab]:
    app = FastAPI()

    @app.get("/quick")
    async def quick() -> int:
        return 1

    @app.get("/pieces")
    async def pieces() -> StreamingResponse:
        async def some() -> object:
            for _ in range(20):
                yield b"."
                await asyncio.sleep(0.005)

        return StreamingResponse(some())  # type: ignore[arg-type]

    app.state.metrics = Metrics()
    app.add_middleware(MetricsMiddleware, metrics=app.state.metrics)
    with Lab(app, latency=0) as lab:
        yield lab


def test_the_default_buckets_guess_where_the_others_know(lab: Lab) -> None:
    metrics = lab.app.state.metrics  # type: ignore[attr-defined]
    lab.get("/quick")
    before = Snapshot.of(metrics)
    loaded = lab.load("/quick", requests=200, concurrency=1)
    seen = buckets(before, Snapshot.of(metrics), loaded, "/quick")
    assert seen.per_s == pytest.approx(200 / seen.seconds)
    assert abs(seen.fine - seen.real) <= abs(seen.default - seen.real)
    assert seen.told > 0 and len(seen.df) == 5 and seen.plot().alt
    made = SimpleNamespace(elapsed=(0.0002,) * 100)
    guess = buckets(before, Snapshot.of(metrics), made, "/quick")  # type: ignore[arg-type]
    assert guess.default == pytest.approx(0.00475) and guess.real == pytest.approx(0.0002)
    assert guess.fine == pytest.approx(0.0002, rel=0.1)


def test_a_load_before_which_nothing_was_counted_is_no_reason_to_fail(lab: Lab) -> None:
    metrics = Metrics()
    loaded = lab.load("/quick", requests=3)
    seen = buckets(Snapshot.of(metrics), Snapshot.of(metrics), loaded, "/quick")
    assert seen.told != seen.told and seen.df.notna().all().all()


# --- who hangs up


def test_clients_that_leave_are_counted_as_gone(lab: Lab) -> None:
    hang_up(lab, lab.app, "/pieces", times=5, after=3)
    found = statuses("/pieces", shipped=lab.app.state.metrics, nobody=Metrics())  # type: ignore[attr-defined]
    assert found.df["499"].tolist() == ["5", "0"]
    assert "/pieces" in repr(found) and "499" in found._repr_html_()


# --- an outage in the middle


def test_the_outage_begins_and_ends_within_the_load(lab: Lab) -> None:
    from contextlib import contextmanager

    now: list[str] = []

    @contextmanager
    def fault(name: str) -> Iterator[None]:
        now.append(f"{name} begins")
        yield
        now.append("ends")

    lab.fault = fault  # type: ignore[method-assign, assignment]
    storm(lab, "/quick", fault="database_down", begins=0.05, ends=0.1, rate=50, seconds=0.3)
    assert now == ["database_down begins", "ends"]
    now.clear()
    storm(lab, "/quick", fault="database_down", begins=60, ends=90, requests=1)
    assert now == []


def test_what_cannot_be_broken_stays_whole(lab: Lab) -> None:
    assert storm(lab, "/quick", fault="database_down", begins=0, ends=0.05, rate=50, seconds=0.2).errors == 0


# --- what leaks


@pytest.mark.parametrize(
    ("body", "leaked"),
    [
        ('{"error": "unavailable"}', []),
        ("connection to server at 10.1.2.3, port 5433 failed", ["host", "port"]),
        ("password authentication failed for user anna", ["user"]),
        ("s3cret", ["password"]),
        ("(psycopg.OperationalError) no", ["driver"]),
        ("unable to open /data/blog.db", ["file"]),
    ],
)
def test_every_part_of_an_address_is_looked_for(body: str, leaked: list[str]) -> None:
    from sqlalchemy import make_url

    urls = make_url("postgresql+psycopg://anna:s3cret@10.1.2.3:5433/shop"), make_url("sqlite:////data/blog.db")
    assert leaks(body, *urls) == leaked


# --- the rubric and the report


def evidence_of(path: Path, solved: str, panel: bool = False, tried: str = "") -> Evidence:
    evidence = Evidence(path / "progress/03_monitoring.json")
    for id in solved.split():
        evidence.add("check", exercise=id, verdict="done", key="k", message="m", counts={}, source="", needs=[])
    for id in tried.split():
        evidence.add("check", exercise=id, verdict="almost", key="k", message="m", counts={}, source="", needs=[])
    if panel:
        rows = [{"time_s": 0.0, "status_2xx": None}, {"time_s": 1.0, "status_2xx": 90.0}]
        evidence.add("keep", name="panel", values={}, rows=rows, findings=[], picture="", alt="")
    return evidence


@pytest.mark.parametrize(
    ("solved", "panel", "level"),
    [
        ("", True, None),
        ("3.1", False, 1),
        ("3.1 3.2", True, 1),
        ("3.3 3.4 3.5 3.6 3.7", True, 1),
        ("3.1 3.2 3.3 3.5 3.7", True, 1),
        ("3.1 3.2 3.3 3.4", False, 2),
        ("3.1 3.2 3.3 3.5 3.6 3.7", True, 2),
        ("3.1 3.2 3.3 3.4 3.5", False, 2),
        ("3.1 3.2 3.3 3.4 3.5 3.6", True, 3),
        ("3.1 3.2 3.3 3.4 3.5 3.6 3.7", False, 3),
        ("3.1 3.2 3.3 3.4 3.5 3.6 3.7", True, 4),
    ],
)
def test_the_level_comes_of_the_whole_parts(tmp_path: Path, solved: str, panel: bool, level: int | None) -> None:
    found = rubric.levels(evidence_of(tmp_path, solved, panel), room="lesson_03")[2]
    assert (found.criterion, found.level) == ("monitoring", level)


def test_a_try_is_more_than_nothing(tmp_path: Path) -> None:
    assert rubric.levels(evidence_of(tmp_path, "", tried="3.2"), room="lesson_03")[2].level == 1
    assert rubric.levels(evidence_of(tmp_path, "3.1"), room="lesson_02")[2].level is None


def test_the_exercises_of_the_rubric_are_those_of_the_lesson() -> None:
    assert [id for ids in rubric.MONITORED.values() for id in ids] == [*outline(LESSON).exercises]


def test_the_report_tells_metrics_health_panel_and_alert(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path / "progress/03_monitoring.json")
    missing = "\n".join(report_sections(evidence.kept()))
    assert missing.count(words("lesson_03.not_measured")) == 4
    scenarios = (
        Scenario("", "healthy", 200, 0.01),
        Scenario("database_down", "unhealthy", 503, 0.02, ("host",)),
    )
    evidence.keep("metrics", inventory(Metrics()))
    evidence.keep("health", Scenarios(scenarios))
    kept = evidence.kept()
    told = "\n".join(report_sections(kept))
    assert "| app_requests_total | counter | 0 | 0 |" in told
    assert f"| {words('lesson_03.fault_database_down')} | unhealthy | 503 | 20,0 ms | host |" in told
    assert "03_monitoring-health.png" in told and not kept


# --- the modules


CELLS = ("setup", "imports", "metrics", "live", "router", "endpoint", "ids", "part", "whole", "alert")


def delivered(role: Role, folder: Path, load: Callable[[str, str], ModuleType]) -> dict[str, ModuleType]:
    """The three modules as the report writes them, imported."""
    cells = [cell_text(LESSON, name, role) for name in CELLS]
    found = {}
    for file in dict.fromkeys(part.file for part in outline(LESSON).parts):
        sources = [cell_text(LESSON, part.cell, role) for part in outline(LESSON).parts if part.file == file]
        text = module(file, [(source, requirements(source, cells)) for source in sources])
        assert "lab." not in text and "lesson" not in text
        name = Path(file).stem
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        found[name] = load(name, text)
    return found


@pytest.mark.parametrize("role", ["starter", "solution"])
def test_the_delivered_modules_serve_an_application(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    names = ("metrics", "monitoring_middleware", "health_checks")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    made = delivered(role, tmp_path, lambda name, text: importlib.import_module(name))
    try:
        assert tuple(sorted(made)) == tuple(sorted(names))
        app = create_app(data_folder=data, monitored=False)
        app.state.metrics = made["metrics"].LiveMetrics(CollectorRegistry())
        app.middleware("http")(made["monitoring_middleware"].monitoring_middleware)
        app.router.routes = [route for route in app.router.routes if "health" not in repr(route)]
        app.include_router(made["health_checks"].router)
        with Lab(app, redis=True, latency=0) as lab:
            assert [lab.get(path).status for path in ("/users/1", "/health/", "/health/metrics")] == [200] * 3
            assert "app_requests_total" in lab.get("/health/metrics").text
            seen = lab.get("/health/detailed").json
            assert set(seen["checks"]) == {"database", "cache", "system"}
            assert seen["status"] == ("healthy" if role == "solution" else "unhealthy")
        assert made["metrics"].error_alert().state == "inactive"
    finally:
        for name in names:
            sys.modules.pop(name, None)
        _clear_default_registry()


def _clear_default_registry() -> None:
    from prometheus_client import REGISTRY

    for each in [each for each in REGISTRY._collector_to_names if getattr(each, "_name", "").startswith("app")]:
        REGISTRY.unregister(each)
