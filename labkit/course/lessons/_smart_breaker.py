"""Exercise 4.3: a circuit breaker, judged by who asks Redis and when: with a false Redis, then with a broken one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from labkit.course.checks import Context, Verdict, done

CALLS, RECOVERY, TIMEOUT = 5, 0.25, 0.2
KEY = "lesson-04:breaker"
PATIENCE = 1.0
"""Seconds in which those who must not wait for a probe have to be answered."""


class Clock:
    """Seconds that pass when the check says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """What may be asked of Redis, and what is said without it.

    Attributes:
        error: what asking raises; None if Redis is well. ``answer``: what it gives then.
        gate: if set, asking waits for it.
        attempts, without: how often each was called.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.answer: Any = "kept"
        self.gate: asyncio.Event | None = None
        self.attempts = self.without = 0

    async def ask(self) -> Any:
        """Ask Redis."""
        self.attempts += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.answer

    async def otherwise(self) -> str:
        """Do without."""
        self.without += 1
        return "made"


class Trial:
    """A breaker of hers with a clock and a store of the check's."""

    def __init__(self, ctx: Context, make: Callable[..., Any]) -> None:
        self.ctx, self.clock, self.store = ctx, Clock(), Store()
        self.patience = 200  # hundredths of a second
        self.breaker = ctx.call(make, recovery=RECOVERY, clock=self.clock)
        ctx.require(inspect.iscoroutinefunction(getattr(self.breaker, "call", None)), "breaker_call")

    async def once(self) -> Any:
        """One request."""
        return await self.breaker.call(self.store.ask, self.store.otherwise)

    async def several(self, count: int = CALLS) -> tuple[list[Any], int]:
        """Requests one after the other; their answers, and how many of them asked Redis."""
        before, answers = self.store.attempts, []
        for _ in range(count):
            try:
                answers.append(await self.once())
            except RedisError as error:
                answers.append(error)
            await self._settled()
        return answers, self.store.attempts - before

    async def _settled(self) -> None:
        """Let a probe behind the callers' backs end."""
        while getattr(self.breaker, "state", None) == "half_open" and self.patience:
            self.patience -= 1
            await asyncio.sleep(0.01)

    async def failing(self, error: Exception, count: int = CALLS) -> int:
        """Requests while Redis is away: all must be answered; how many of them asked Redis."""
        self.store.error = error
        answers, attempts = await self.several(count)
        failed = sum(isinstance(answer, RedisError) for answer in answers)
        kind = type(error).__name__
        self.ctx.require(not failed, "breaker_fails", failed=failed, calls=count, kind=kind)
        self.ctx.require(answers == ["made"] * count, "breaker_otherwise", got=repr(answers[0])[:40])
        return attempts

    def state(self, wanted: str) -> None:
        """What it says of itself."""
        state = getattr(self.breaker, "state", None)
        self.ctx.require(state == wanted, "breaker_state", says=repr(state)[:40], wanted=wanted)

    def wait(self, share: float = 1.01) -> None:
        """Let a part of the recovery time pass."""
        self.clock.now += share * RECOVERY


def check_4_3(ctx: Context, Breaker: Callable[..., Any]) -> Verdict:
    """Well, away, back, away again, a probe that is cancelled, errors that are not Redis's; then the live faults."""
    steps = (_well, _away, _refused, _probe, _away_again, _cancelled, _not_redis)
    for step in steps:
        trial = Trial(ctx, Breaker)
        ctx.run(step, trial)
    reached = {fault: _live(ctx, Breaker, fault) for fault in ("redis_frozen", "redis_down")}
    return done("breaker_done", calls=CALLS, **reached)


async def _well(trial: Trial) -> None:
    trial.state("closed")
    for answer in ("kept", None):
        trial.store.answer = answer
        answers, attempts = await trial.several(3)
        trial.ctx.require(attempts == 3, "breaker_never_asks", attempts=attempts, calls=3)
        got = next((each for each in answers if each != answer), answer)
        trial.ctx.require(got == answer, "breaker_body", got=repr(got)[:40], expected=repr(answer))
    trial.state("closed")


async def _away(trial: Trial) -> None:
    """The first failure opens it: who comes after it does not ask, until the time is up."""
    ctx = trial.ctx
    attempts = await trial.failing(redis.TimeoutError("frozen"))
    ctx.require(attempts < CALLS, "breaker_waits", attempts=attempts, calls=CALLS)
    ctx.require(attempts == 1, "breaker_threshold", attempts=attempts, calls=CALLS)
    trial.state("open")
    trial.wait(0.9)
    attempts = await trial.failing(redis.TimeoutError("frozen"))
    ctx.require(not attempts, "breaker_early", attempts=attempts, recovery=RECOVERY)


async def _refused(trial: Trial) -> None:
    """The same where the connection is refused."""
    attempts = await trial.failing(redis.ConnectionError("down"))
    trial.ctx.require(attempts == 1, "breaker_one_kind", attempts=attempts, calls=CALLS)


async def _probe(trial: Trial) -> None:
    """When the time is up one request asks, the others do not wait for it, and what it finds counts."""
    ctx, store, many = trial.ctx, trial.store, 10
    await trial.failing(redis.TimeoutError("frozen"))
    trial.wait()
    store.error, store.gate, before = None, asyncio.Event(), store.attempts
    tasks = [asyncio.create_task(trial.once()) for _ in range(many)]
    answered, _ = await asyncio.wait(tasks, timeout=0.05)
    attempts = store.attempts - before
    try:
        ctx.require(attempts, "breaker_never_back", calls=many, recovery=RECOVERY)
        ctx.require(attempts == 1, "breaker_all_probe", attempts=attempts, calls=many)
        if len(answered) < many - 1:
            answered, _ = await asyncio.wait(tasks, timeout=PATIENCE)
        ctx.require(len(answered) >= many - 1, "breaker_wait_probe", waiting=many - len(answered), calls=many)
        trial.state("half_open")
    finally:
        store.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)
    store.gate = None
    _, attempts = await trial.several()
    ctx.require(attempts == CALLS, "breaker_stays_open", attempts=attempts, calls=CALLS)
    trial.state("closed")


async def _away_again(trial: Trial) -> None:
    """A probe that fails opens it for as long again; and it opens anew after it had closed."""
    ctx, error = trial.ctx, redis.TimeoutError("frozen")
    await trial.failing(error)
    for _ in range(3):
        trial.wait()
        attempts = await trial.failing(error)
        ctx.require(attempts, "breaker_never_back", calls=CALLS, recovery=RECOVERY)
        ctx.require(attempts == 1, "breaker_no_reopen", attempts=attempts, calls=CALLS)
        trial.state("open")
    trial.wait()
    trial.store.error = None
    await trial.several()
    attempts = await trial.failing(error)
    ctx.require(attempts == 1, "breaker_second_outage", attempts=attempts, calls=CALLS)


async def _cancelled(trial: Trial) -> None:
    """Whoever probes may give up: the next one must be let through."""
    store = trial.store
    await trial.failing(redis.TimeoutError("frozen"))
    trial.wait()
    store.error, store.gate = None, asyncio.Event()
    task = asyncio.create_task(trial.once())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    store.gate.set()
    await asyncio.sleep(0)
    trial.wait()
    _, attempts = await trial.several()
    trial.ctx.require(attempts, "breaker_cancelled", attempts=attempts, calls=CALLS, says=trial.breaker.state)


async def _not_redis(trial: Trial) -> None:
    """What fails without Redis is the caller's: it comes through, and it was tried once."""
    runs = 0

    async def broken() -> None:
        nonlocal runs
        runs += 1
        raise _Broken

    trial.store.error = redis.TimeoutError("frozen")
    for _ in range(2):
        runs, raised = 0, False
        try:
            await trial.breaker.call(trial.store.ask, broken)
        except _Broken:
            raised = True
        trial.ctx.require(raised, "breaker_swallows")
        trial.ctx.require(runs == 1, "breaker_twice", runs=runs)


class _Broken(Exception):
    pass


def _live(ctx: Context, make: Callable[..., Any], fault: str) -> int:
    """The Lab's Redis breaks and comes back; attempts that reached it meanwhile."""
    url, trial = ctx.lab.app.state.redis_url, Trial(ctx, make)
    with ctx.lab.fault(fault):
        answers, reached = ctx.run(_asking, trial, url, TIMEOUT)
        failed = sum(isinstance(answer, RedisError) for answer in answers)
        kind = ctx.words(f"breaker_{fault}")
        ctx.require(not failed, "breaker_live_fails", failed=failed, calls=CALLS, kind=kind)
        ctx.require(reached == 1, "breaker_live", attempts=reached, calls=CALLS, kind=kind)
    with redis.Redis.from_url(url, socket_timeout=5) as client:
        client.set(KEY, "kept", ex=60)
        trial.wait()
        answers, _ = ctx.run(_asking, trial, url, 5.0)
        client.delete(KEY)
    back = sum(answer == b"kept" for answer in answers)
    # A breaker that probes behind the callers' backs answers the first of them without Redis.
    ctx.require(back >= CALLS - 1, "breaker_live_back", back=back, calls=CALLS, kind=kind)
    trial.state("closed")
    return reached


async def _asking(trial: Trial, url: str, timeout: float) -> tuple[list[Any], int]:
    patient: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    client = Redis.from_url(url, retry=Retry(NoBackoff(), 0), **patient)
    ask: Callable[[], Awaitable[Any]] = lambda: client.get(KEY)  # noqa: E731
    store = trial.store

    async def asking() -> Any:
        store.attempts += 1
        return await ask()

    store.ask = asking  # type: ignore[method-assign]
    try:
        return await trial.several()
    finally:
        await client.aclose()
