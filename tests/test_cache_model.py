"""The cache against a model: never a value older than an invalidation that was acknowledged before it was asked for.

Redis freezes, dies and comes back with its old data meanwhile, and computations are held while the world changes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from labkit.cache import CacheClient, StaleWhileRevalidate, cached
from labkit.services.redis import RedisServer
from tests.caching import command, start

KEYS = st.sampled_from([1, 2])


class Machine(RuleBasedStateMachine):
    server: RedisServer

    @initialize()
    def begin(self) -> None:
        self.server.thaw()
        command(self.server, "FLUSHALL")
        self.loop = asyncio.new_event_loop()
        self.clients = [CacheClient(self.server.url, timeout=0.05) for _ in range(2)]  # as of two processes
        self.truth, self.floor, self.now = Counter[int](), Counter[int](), 0.0
        self.state = "well"
        self.gate = asyncio.Event()
        self.gate.set()
        self.held: list[tuple[int, int, asyncio.Task[int]]] = []
        self.readers = [self.reader(client) for client in self.clients]

    def reader(self, client: CacheClient) -> Any:
        @cached(ttl=5, client=client, strategy=StaleWhileRevalidate(60), tags=["n:{n}", "all"])
        async def read(n: int) -> int:
            found = self.truth[n]
            await self.gate.wait()
            return found

        return read

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    @precondition(lambda self: self.gate.is_set())
    @rule(n=KEYS)
    def ask(self, n: int) -> None:
        assert self.floor[n] <= self.run(self.readers[0](n)) <= self.truth[n]

    @precondition(lambda self: self.gate.is_set())
    @rule(n=KEYS)
    def ask_the_other(self, n: int) -> None:
        got = self.run(self.readers[1](n))
        assert got <= self.truth[n]
        if self.state == "well" and not self.owing:
            assert self.floor[n] <= got

    @property
    def owing(self) -> bool:
        """Whether the other process may still see what the first one could not delete."""
        return bool(self.clients[0]._debts) or not self.clients[0].breaker.closed

    @rule(n=KEYS)
    def change(self, n: int) -> None:
        self.truth[n] += 1

    @rule(n=KEYS, way=st.sampled_from(["key", "tag", "all"]))
    def change_and_invalidate(self, n: int, way: str) -> None:
        self.truth[n] += 1
        told = {1: self.truth[1], 2: self.truth[2]} if way == "all" else {n: self.truth[n]}
        read = self.readers[0]
        self.run(read.invalidate(n) if way == "key" else read.invalidate_tag("all" if way == "all" else f"n:{n}"))
        self.floor |= told

    @precondition(lambda self: self.gate.is_set())
    @rule(n=KEYS)
    def refresh(self, n: int) -> None:
        assert self.run(self.readers[0].refresh(n)) == self.truth[n]

    @rule()
    def hold(self) -> None:
        self.gate.clear()

    @precondition(lambda self: not self.gate.is_set())
    @rule(n=KEYS)
    def ask_and_hold(self, n: int) -> None:
        task = self.loop.create_task(self.readers[0](n))
        self.held.append((n, self.floor[n], task))
        self.run(asyncio.sleep(0.005))

    @precondition(lambda self: self.held)
    @rule()
    def cancel(self) -> None:
        *_, task = self.held.pop(0)
        task.cancel()
        self.run(asyncio.wait([task]))

    @rule()
    def release(self) -> None:
        self.gate.set()
        for n, floor, task in self.held:
            assert floor <= self.run(task) <= self.truth[n]
        self.held.clear()

    @precondition(lambda self: self.state == "well")
    @rule(how=st.sampled_from(["frozen", "dead"]))
    def fail(self, how: str) -> None:
        self.state = how
        self.server.freeze() if how == "frozen" else self.server.kill()

    @precondition(lambda self: self.state != "well")
    @rule(pause=st.sampled_from([0.0, 0.3]))
    def come_back(self, pause: float) -> None:
        self.server.thaw() if self.state == "frozen" else self.server.restart()
        self.state = "well"
        self.run(asyncio.sleep(pause))

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.3]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.held) <= 50

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        if self.state == "frozen":
            self.server.thaw()
        elif self.state == "dead":
            self.server.restart()
        self.release()
        for client in self.clients:
            self.run(client.close())
        self.loop.close()


def test_never_older_than_an_acknowledged_invalidation() -> None:
    with start(appendonly=True) as server:
        Machine.server = server
        slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
        run_state_machine_as_test(
            Machine,
            settings=settings(max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=slow),
        )
