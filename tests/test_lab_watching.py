"""What a Lab tells of the application it runs: logs as a table, processes, a panel; and that nothing of it stays."""

from __future__ import annotations

import gc
import logging
import sys
import types
from typing import Any

import psutil
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter

from labkit import Lab
from labkit.blog import create_app
from labkit.errors import AppError, MonitoringError
from labkit.monitoring import Journal, monitor
from labkit.services.redis import RedisServer

_before: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _others() -> None:
    """Labs of other tests may be open all the while."""
    _before["handlers"] = list(logging.getLogger().handlers)
    _before["level"] = logging.getLogger("labkit").level


def journals() -> list[Any]:
    """Those that the test opened and that are still there."""
    root = logging.getLogger()
    return [each for each in root.handlers if isinstance(each, Journal) and each not in _before["handlers"]]


def app(**options: Any) -> FastAPI:
    app = FastAPI(**options)
    monitor(app)

    @app.get("/warns/{n}")
    def warns(n: int) -> int:
        logging.getLogger("shop.orders").warning("order %s is late", n, extra={"order": n})
        return n

    @app.get("/raises")
    def raises() -> float:
        return 1 / 0

    return app


class TestLogs:
    """Everything that is logged while the Lab is open."""

    def test_a_request_is_found_by_its_id_with_all_that_was_logged_for_it(self) -> None:
        with Lab(app()) as lab:
            assert lab.logs().empty
            replies = [lab.get(f"/warns/{n}") for n in (1, 2)]
            ids = [reply.headers["x-request-id"] for reply in replies]
            assert set(lab.logs()["request_id"]) == set(ids)
            found = lab.logs(request_id=ids[1])
            assert list(found["component"]) == ["shop.orders", "http"] and list(found.index) == [0, 1]
            assert found["message"][0] == "order 2 is late" and found["order"][0] == 2
            assert lab.logs(request_id="nobody's").empty

    def test_it_filters_by_component_and_by_level(self) -> None:
        with Lab(app()) as lab:
            lab.get("/warns/1")
            lab.get("/raises")
            assert list(lab.logs("http")["level"]) == ["INFO", "ERROR"]
            assert lab.logs("labkit.http").equals(lab.logs("http"))
            assert list(lab.logs("shop")["component"]) == ["shop.orders"], "loggers below it belong to it"
            assert lab.logs("sho").empty
            assert list(lab.logs("shop"))[5:] == ["error", "order"] and list(lab.logs("sho"))[-1] == "error"
            assert list(lab.logs(level="warning")["component"]) == ["shop.orders", "http"]
            assert list(lab.logs(level=logging.ERROR)["component"]) == ["http"]
            assert list(lab.logs("http", level="ERROR")["status"]) == [500]
            assert "ZeroDivisionError" in lab.logs("http", level="ERROR")["error"][0]

    @pytest.mark.parametrize("level", ["LOUD", True, 3.5])
    def test_a_level_that_is_none_is_named(self, level: Any) -> None:
        with Lab(app()) as lab, pytest.raises(MonitoringError, match=repr(level)):
            lab.logs(level=level)

    def test_it_stays_to_be_read_and_hears_no_more_when_the_lab_is_closed(self) -> None:
        lab = Lab(app())
        assert len(journals()) == 1
        lab.get("/warns/1")
        lab.close()
        assert not journals() and logging.getLogger("labkit").level == _before["level"]
        logging.getLogger("shop").error("too late")
        assert list(lab.logs(level="WARNING")["message"]) == ["order 1 is late"]

    def test_what_the_application_logs_at_its_start_and_end_is_heard(self) -> None:
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def lifespan(app: Any) -> Any:
            logging.getLogger("shop").error("opens")
            yield
            logging.getLogger("shop").error("closes")

        with Lab(app(lifespan=lifespan)) as lab:
            assert list(lab.logs("shop")["message"]) == ["opens"]
        assert list(lab.logs("shop")["message"]) == ["opens", "closes"]

    def test_nothing_is_left_of_a_lab_that_did_not_open_or_was_forgotten(self) -> None:
        with pytest.raises(AppError):
            Lab(FastAPI(lifespan=lambda app: 1 / 0))  # type: ignore[arg-type,return-value]
        assert not journals()
        lab = Lab(app())
        assert journals()
        del lab
        gc.collect()
        assert not journals()

    def test_two_labs_hear_the_same_process_and_end_in_any_order(self) -> None:
        first, second = Lab(app()), Lab(app())
        first.close()
        second.get("/warns/7")
        assert first.logs().empty and len(second.logs("http")) == 1
        second.close()
        assert not journals() and logging.getLogger("labkit").level == _before["level"]

    def test_an_application_that_is_imported_may_configure_its_logging(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``basicConfig`` does nothing once there is a handler: the journal must not be there yet."""
        seen: list[int] = []
        module = types.ModuleType("shop_that_logs")

        def give(name: str) -> Any:
            seen.append(len(journals()))
            return app()

        module.__getattr__ = give  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, "shop_that_logs", module)
        with Lab("shop_that_logs:main"):
            assert seen and not any(seen) and journals()

    def test_the_parts_of_the_blog_are_all_heard(self) -> None:
        with Lab(create_app()) as lab:
            logging.getLogger("labkit.sql").setLevel(logging.DEBUG)
            logging.getLogger("labkit.cache").setLevel(logging.DEBUG)
            try:
                reply = lab.get("/cached/users/7")
                with lab.fault("database_down"):
                    lab.get("/health/detailed")
            finally:
                logging.getLogger("labkit.sql").setLevel(logging.NOTSET)
                logging.getLogger("labkit.cache").setLevel(logging.NOTSET)
            assert {"http", "sql", "cache", "health"} <= set(lab.logs()["component"])
            mine = lab.logs(request_id=reply.headers["x-request-id"])
            assert {"http", "sql", "cache"} <= set(mine["component"])


def test_system_shows_this_process_and_the_servers_that_were_started() -> None:
    with Lab(create_app()) as lab:
        view = lab.system()
        assert isinstance(lab.redis, RedisServer)
        pids = list(view.df["pid"])
        assert pids[0] == psutil.Process().pid
        assert lab.redis.fake or lab.redis.pid in pids


class TestPanel:
    """What is watched."""

    def test_the_applications_metrics(self) -> None:
        with Lab(app()) as lab:
            panel = lab.panel(every=0.05)
            with panel.live():
                lab.load("/warns/1", requests=20)
            assert "20" in repr(panel) and len(panel.df) >= 2

    def test_a_registry_of_the_learners_own(self) -> None:
        registry = CollectorRegistry()
        count = Counter("app_requests_total", "Requests.", ["method", "endpoint", "status"], registry=registry)
        with Lab(FastAPI()) as lab, lab.panel(registry, every=0.05).live() as panel:
            count.labels("GET", "/", "200").inc(3)
        assert "3" in repr(panel)

    def test_without_metrics_a_sentence_says_how_to_get_them(self) -> None:
        with Lab(FastAPI()) as lab, pytest.raises(MonitoringError, match=r"monitor\(app\)"):
            lab.panel()

        async def bare(scope: Any, receive: Any, send: Any) -> None: ...

        with Lab(bare) as lab, pytest.raises(MonitoringError, match="registry"):
            lab.panel()
