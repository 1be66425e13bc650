"""The probe and the standard traffic: every trap of exercise 2 shows in its outcomes, whatever luck does."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.asyncio
from fastapi import FastAPI
from sqlalchemy.orm import Session

from labkit import Lab
from labkit.course.evidence import Evidence
from labkit.course.probe import Probe
from labkit.course.traffic import Traffic, standard_traffic, strategies
from labkit.services.redis import RedisServer, start


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with start() as server:
        yield server


@pytest.fixture(scope="module")
def lab(server: RedisServer) -> Iterator[Lab]:
    app = FastAPI()
    app.state.redis_url = server.url
    with Lab(app) as lab:
        yield lab


def made(url: str, key: Callable[[dict[str, Any]], str], *, forget: bool = True) -> Callable[[Any], Any]:
    """A small decorator with a rule for its keys, as a learner would write it."""
    store = redis.asyncio.Redis.from_url(url)

    def cached(func: Any) -> Any:
        names = [*inspect.signature(func).parameters]

        @functools.wraps(func)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            name = f"user:{func.__name__}:{key(dict(zip(names, args, strict=False)) | kwargs)}"
            if (stored := await store.get(name)) is not None:
                return json.loads(stored)
            result = await func(*args, **kwargs)
            await store.set(name, json.dumps(result), ex=60)
            return result

        async def invalidate(*args: Any) -> None:
            if forget:
                await store.delete(f"user:{func.__name__}:{key(dict(zip(names, args, strict=False)))}")

        wrapper.invalidate = invalidate  # type: ignore[attr-defined]
        return wrapper

    return cached


def by_id(arguments: dict[str, Any]) -> str:
    return str(arguments["user_id"])


def by_all(arguments: dict[str, Any]) -> str:
    return str(arguments)


def by_nothing(arguments: dict[str, Any]) -> str:
    return ""


def outcomes(probe: Probe, *ids: int) -> list[str]:
    return [answer.outcome for answer in probe.ask(*ids)]


def test_a_right_cache_hits_until_the_update(lab: Lab, server: RedisServer) -> None:
    with Probe(lab, made(server.url, by_id)) as probe:
        assert outcomes(probe, 1, 1, 2, 1) == ["miss", "hit", "miss", "hit"] and probe.runs == [1, 2]
        assert len(probe.keys()) == 2
        assert [reply.status for reply in probe.update(1)] == [200] and len(probe.keys()) == 1
        assert outcomes(probe, 1, 2, 1) == ["miss", "hit", "hit"]


def test_the_session_in_the_key_never_hits_by_luck(lab: Lab, server: RedisServer) -> None:
    """T23: each session lives on, so that no address comes twice."""

    def address(arguments: dict[str, Any]) -> str:
        assert isinstance(arguments["db"], Session)
        return f"{arguments['user_id']}:{id(arguments['db'])}"

    with Probe(lab, made(server.url, address), writer=None) as probe:
        assert outcomes(probe, *[1] * 200) == ["miss"] * 200
        assert len(probe.keys()) == 200


def test_one_key_for_all_is_foreign_and_a_forgotten_invalidation_stale(lab: Lab, server: RedisServer) -> None:
    with Probe(lab, made(server.url, by_nothing)) as probe:  # T26
        assert outcomes(probe, 1, 2, 1) == ["miss", "foreign", "hit"]
    with Probe(lab, made(server.url, by_id, forget=False)) as probe:  # T25
        probe.ask(1)
        probe.update(1)
        assert outcomes(probe, 1) == ["stale"] and len(probe.keys()) == 1


def test_probes_do_not_see_each_other_and_leave_nothing(lab: Lab, server: RedisServer) -> None:
    store = redis.Redis.from_url(server.url)
    store.set("hers", "1")
    routes = len(lab.app.router.routes)  # type: ignore[attr-defined]
    for _ in range(2):
        with Probe(lab, made(server.url, by_id)) as probe:
            assert outcomes(probe, 1, 1) == ["miss", "hit"]
    assert store.keys() == [b"hers"] and len(lab.app.router.routes) == routes  # type: ignore[attr-defined]
    assert lab.get("/check/users/1").status == 404
    store.flushall()
    store.close()


def test_a_stampede_is_counted_and_absent_users_are_what_one_says(lab: Lab, server: RedisServer) -> None:
    gone = LookupError("on purpose")
    with Probe(lab, made(server.url, by_id), pause=0.02, absent={404: {"error": "?"}, 500: gone}) as probe:
        assert {answer.outcome for answer in probe.ask_together(*[7] * 20)} == {"miss"}
        assert probe.runs == [7] * 20  # T35
        (absent,) = probe.ask(404)
        assert absent.outcome == "failed" and absent.body == {"error": "?"} and len(probe.keys()) == 2  # T33
        (raised,) = probe.ask(500)
        assert raised.outcome == "failed" and raised.reply.status == 500


def test_a_write_may_store_what_it_wrote(lab: Lab, server: RedisServer) -> None:
    """Write-through: the answer of the update is the next hit."""
    store = redis.asyncio.Redis.from_url(server.url)

    def writer(read: Any, write: Any) -> Any:
        async def put(user_id: int) -> Any:
            body = await write(user_id)
            await store.set(f"user:{read.__name__}:{user_id}", json.dumps(body))
            return body

        return put

    with Probe(lab, made(server.url, by_id), writer=writer) as probe:
        assert outcomes(probe, 1) == ["miss"]
        probe.update(1)
        assert outcomes(probe, 1) == ["hit"] and probe.runs == [1]


def test_a_redis_that_is_down_is_no_matter_for_the_probe() -> None:
    app = FastAPI()
    with start() as server:
        app.state.redis_url = server.url
        with Lab(app) as lab, Probe(lab, lambda func: func, writer=None) as probe:
            server.kill()
            assert outcomes(probe, 1, 1) == ["miss", "miss"]


# --- the standard traffic


def test_a_right_cache_passes_eighty_percent_and_the_wrong_ones_do_not(lab: Lab, server: RedisServer) -> None:
    right = standard_traffic(lab, made(server.url, by_id), name="right")
    again = standard_traffic(lab, made(server.url, by_id), name="again")
    assert right.outcomes == again.outcomes, "counts, the same at each run"
    assert right.hit_rate > 0.8 and right.requests == 2_000 and right.updates == 20
    assert right.hits + right.runs == 2_000 and right.stale == right.foreign == right.failed == 0
    never = standard_traffic(lab, made(server.url, lambda a: str(id(a["db"]))), writer=None, requests=300)
    assert (never.hit_rate, never.runs) == (0, 300)
    one = standard_traffic(lab, made(server.url, by_nothing), requests=300)
    assert one.foreign > one.hits and one.hit_rate < 0.4
    old = standard_traffic(lab, made(server.url, by_id, forget=False), requests=2_000)
    assert old.stale > 50 and old.hit_rate < right.hit_rate


def test_results_are_told_drawn_and_kept(lab: Lab, server: RedisServer, tmp_path: Any) -> None:
    found = strategies(
        lab, {"uno": made(server.url, by_id), "dos": made(server.url, by_id, forget=False)}, requests=200
    )
    assert [*found.df.iloc[:, 0]] == ["uno", "dos"] and "uno: " in repr(found) and "<table" in found._repr_html_()
    for figure in (found.plot(), found.results[0].plot()):
        assert figure.png().startswith(b"\x89PNG") and len(figure.alt.split()) >= 5
    evidence = Evidence(tmp_path / "02_cache.json")
    evidence.keep("traffic", found.results[0])
    evidence.keep("strategies", found)
    kept = evidence.kept()
    assert kept["traffic"]["values"]["hit_rate"] == found.results[0].hit_rate
    assert len(kept["strategies"]["rows"]) == 2
    wrong = Traffic("x", 1, 0, ("hit", "foreign"))
    assert wrong.hit_rate == 0.5 and "1" in repr(wrong).rpartition("·")[2]
