"""A Lab's Redis is killed, frozen and slowed on purpose, and is well again whatever happens meanwhile."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable

import pytest
import redis as client
from redis.backoff import NoBackoff
from redis.retry import Retry

from labkit import Lab, _broken
from labkit.errors import ServiceError
from labkit.services import redis as services
from tests.outages import app, real_only, the_lab  # noqa: F401 (the fixture)


def server(lab: Lab) -> services.RedisServer:
    assert isinstance(lab.redis, services.RedisServer)
    return lab.redis


def ping(url: str, timeout: float = 0.3) -> str:
    """What a client of nobody's finds: ``well``, ``down`` or ``frozen``."""
    try:
        with client.Redis.from_url(url, socket_timeout=timeout, retry=Retry(NoBackoff(), 0)) as connection:
            return "well" if connection.ping() else "?"
    except client.TimeoutError:
        return "frozen"
    except client.ConnectionError:
        return "down"


def state(lab: Lab) -> str:
    return ping(server(lab).url)


@pytest.mark.parametrize(("name", "seen"), [("redis_down", "down"), ("redis_frozen", "frozen")])
def test_it_goes_wrong_inside_the_block_and_is_right_after_it(lab: Lab, name: str, seen: str) -> None:
    address = server(lab).url
    assert state(lab) == "well"
    with lab.fault(name):
        assert state(lab) == seen
    assert state(lab) == "well" and server(lab).url == address


@pytest.mark.parametrize("name", _broken.Redis.names)
def test_an_exception_does_not_leave_it_broken(lab: Lab, name: str) -> None:
    with pytest.raises(ZeroDivisionError), lab.fault(name):
        _ = 1 / 0
    assert state(lab) == "well" and server(lab).delay == 0


def test_faults_are_nested_and_a_fault_is_entered_inside_itself(lab: Lab) -> None:
    fault = lab.fault("redis_frozen")
    with fault, fault:
        with lab.fault("redis_down"), fault, lab.fault("redis_down"):
            assert state(lab) == "down"
        assert state(lab) == "frozen"
    assert state(lab) == "well"
    with fault:
        assert state(lab) == "frozen"
    assert state(lab) == "well"


def test_faults_end_in_any_order(lab: Lab) -> None:
    down, frozen, slow = (lab.fault(name) for name in _broken.Redis.names)
    for fault in (slow, down, frozen):
        fault.__enter__()
    assert (state(lab), server(lab).delay) == ("down", 0)
    down.__exit__()
    assert (state(lab), server(lab).delay) == ("frozen", 20)
    frozen.__exit__()
    assert (state(lab), server(lab).delay) == ("well", 20)
    slow.__exit__()
    assert (state(lab), server(lab).delay) == ("well", 0)


def test_slow_holds_back_each_command_and_the_slowest_counts(lab: Lab) -> None:
    def took(times: int = 3) -> float:
        with client.Redis.from_url(server(lab).url, protocol=2) as connection:
            connection.ping()
            start = time.perf_counter()
            for _ in range(times):
                connection.ping()
            return time.perf_counter() - start

    with lab.fault("redis_slow", ms=30):
        assert took() >= 0.09
        with lab.fault("redis_slow", ms=60):
            assert took() >= 0.18
        with lab.fault("redis_slow", ms=5):
            assert server(lab).delay == 30
    assert server(lab).delay == 0
    assert took(1) < 0.03


@real_only
def test_slow_keeps_the_data_and_the_addresses_and_many_wait_together() -> None:
    with Lab(app()) as lab:
        real = server(lab)
        before = real.url, real.socket_url
        with client.Redis.from_url(real.url) as connection:
            connection.set("big", b"x" * 3_000_000)
        with lab.fault("redis_slow", ms=40):
            assert (real.url, real.socket_url) == before
            for url in before:
                with client.Redis.from_url(url) as connection:
                    assert connection.get("big") == b"x" * 3_000_000
                    start = time.perf_counter()
                    threads = [threading.Thread(target=connection.get, args=("nothing",)) for _ in range(8)]
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join()
                    assert time.perf_counter() - start < 8 * 0.2 * 0.9, "they wait side by side"
        with client.Redis.from_url(real.url) as connection:
            assert connection.strlen("big") == 3_000_000
        assert not [thread for thread in threading.enumerate() if thread.name == "labkit detour"]


@real_only
def test_slow_holds_for_who_was_connected_before() -> None:
    with Lab(app()) as lab, client.Redis.from_url(server(lab).url, protocol=2) as connection:
        connection.ping()
        with lab.fault("redis_slow", ms=30):
            for _ in range(2):
                start = time.perf_counter()
                connection.ping()
                assert time.perf_counter() - start >= 0.03
        connection.ping()
        assert len(connection.client_list()) == 1, "nobody goes on by the old way"


@real_only
def test_slow_commands_on_one_connection_keep_their_order() -> None:
    with Lab(app()) as lab, lab.fault("redis_slow", ms=10), client.Redis.from_url(server(lab).url) as connection:
        pipe = connection.pipeline(transaction=False)
        for number in range(500):
            pipe.rpush("list", number)
        assert pipe.execute() == list(range(1, 501))
        start = time.perf_counter()
        assert connection.lrange("list", 0, -1) == [b"%d" % number for number in range(500)]
        assert time.perf_counter() - start >= 0.01


def test_an_interrupt_while_it_begins_leaves_it_well(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = type(server(lab)).kill

    def slowly(self: services.RedisServer) -> None:
        kill(self)
        _thread.interrupt_main()
        time.sleep(0.2)

    monkeypatch.setattr(type(server(lab)), "kill", slowly)
    with pytest.raises(KeyboardInterrupt), lab.fault("redis_down"):
        pytest.fail("it was entered")
    monkeypatch.undo()
    wait_until(lambda: state(lab) == "well")


def test_an_interrupt_while_it_ends_leaves_it_well(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    restart = type(server(lab)).restart

    def slowly(self: services.RedisServer) -> None:
        _thread.interrupt_main()
        time.sleep(0.2)
        restart(self)

    with pytest.raises(KeyboardInterrupt), lab.fault("redis_down"):
        monkeypatch.setattr(type(server(lab)), "restart", slowly)
    wait_until(lambda: state(lab) == "well")
    monkeypatch.undo()


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_what_cannot_begin_is_not_wished_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: services.RedisServer) -> None:
        raise ServiceError("no")

    fault = lab.fault("redis_frozen")
    with monkeypatch.context() as patch:
        patch.setattr(type(server(lab)), "freeze", refuse)
        with pytest.raises(ServiceError, match="no"), fault:
            pytest.fail("it was entered")
    assert not lab._outages._wishes
    with fault:
        assert state(lab) == "frozen"


def test_what_the_user_does_by_hand_stays_hers(lab: Lab) -> None:
    server(lab).freeze()
    with lab.fault("redis_frozen"):
        pass
    assert state(lab) == "frozen"
    server(lab).thaw()
    with lab.fault("redis_down"):
        server(lab).restart()
        assert state(lab) == "well"
    server(lab).kill()
    with lab.fault("redis_slow"):
        assert state(lab) == "down"
    assert state(lab) == "down"


@pytest.mark.parametrize("name", _broken.Redis.names)
def test_closing_the_lab_inside_a_fault_leaves_nothing(name: str) -> None:
    lab = Lab(app())
    with lab.fault(name) as fault:
        lab.close()
        assert not server(lab).alive
    with pytest.raises(ServiceError, match="cerrado"), fault:
        pytest.fail("it was entered")
    with pytest.raises(ServiceError, match="cerrado"):
        lab.fault(name)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("labkit detour")]


def test_an_unknown_fault_names_the_known_ones(lab: Lab) -> None:
    known = "redis_down, redis_frozen, redis_slow, database_down, database_frozen, disk_full"
    with pytest.raises(ServiceError, match=f"'redis_burnt'.*{known}"):
        lab.fault("redis_burnt")


@pytest.mark.parametrize("ms", [0, -1, float("nan"), float("inf"), True, "20"])
def test_unusable_milliseconds_are_refused(lab: Lab, ms: float) -> None:
    with pytest.raises(ServiceError, match=f"ms={ms!r}"):
        lab.fault("redis_slow", ms=ms)


def test_only_slow_takes_milliseconds(lab: Lab) -> None:
    with pytest.raises(ServiceError, match="ms=5"):
        lab.fault("redis_down", ms=5)


def test_somebody_elses_redis_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"redis": "redis://127.0.0.1:1/0"}, {"redis": False}):
        with Lab(app(), **options) as lab, pytest.raises(ServiceError, match="REDIS_URL"):
            lab.fault("redis_down")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    with Lab(app()) as lab, pytest.raises(ServiceError, match="REDIS_URL"):
        lab.fault("redis_frozen")


def test_it_says_what_it_is_and_that_it_is_simulated(lab: Lab) -> None:
    says = [repr(lab.fault(name)) for name in _broken.Redis.names]
    assert "apagado" in says[0] and "congelado" in says[1] and "20 ms" in says[2]
    assert all(("simulado" in each) == server(lab).fake for each in says)
    assert "2,5 ms" in repr(lab.fault("redis_slow", ms=2.5))
