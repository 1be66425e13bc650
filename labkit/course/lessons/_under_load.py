"""The checks of what a cache does on bad days: a stampede (2.5) and a Redis that is not there (2.6)."""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from labkit.course.checks import Context, Verdict, almost, done
from labkit.course.lessons._cache import composed, counted, right_client, settled, unharmed
from labkit.course.probe import Probe

CROWD, KEYS = 50, 20
PAUSE = 0.02
PATIENCE = 0.5
"""Seconds that a client may wait for Redis."""

LIMIT = 7.0
"""Seconds for one step of 2.5."""

RETURN = 3.0
"""Seconds after which a Redis that is back has to be used again."""


class _OnPurpose(Exception):
    """What a computation raises."""


class _Work:
    """A computation that counts how often it runs, and how many run at a time."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runs = self.peak = self._now = 0
        self._error = error

    async def __call__(self) -> str:
        self.runs += 1
        self._now += 1
        self.peak = max(self.peak, self._now)
        try:
            await asyncio.sleep(PAUSE)
        finally:
            self._now -= 1
        if self._error is not None:
            raise self._error
        return "answer"


def check_2_5(ctx: Context, run_once: Callable[..., Any]) -> Verdict:
    """The answer, executions of a crowd, other keys meanwhile, the next time, failures, and one who leaves."""
    mark = secrets.token_hex(4)  # no lock or task of an earlier check fits
    trial = ctx.call(run_once, f"{mark}:value", _Work())
    ctx.require(inspect.iscoroutine(trial), "once_sync", got=repr(trial)[:60])
    trial.close()
    got = _in_lab(ctx, lambda: run_once(f"{mark}:value", _Work()))
    if inspect.iscoroutine(got):
        got.close()
    ctx.require(got == "answer", "once_value", got=repr(got)[:60])

    with (
        right_client(ctx) as client,
        Probe(ctx.lab, composed(client, once=run_once), writer=None, pause=PAUSE) as probe,
    ):
        answers = probe.ask_together(*[7] * CROWD)
        counts = counted(probe, answers)
    unharmed(answers)
    if counts["runs"] != 1:
        work = _Work()
        _in_lab(ctx, lambda: settled(*(run_once(f"{mark}:queue", work) for _ in range(5))))
        raise almost("once_queue" if work.peak == 1 else "once_stampede", **counts)
    ctx.require(not counts["foreign"] and not counts["failed"], "once_value", got=repr(answers[-1].body)[:60])

    work = _Work()
    _in_lab(ctx, lambda: settled(*(run_once(f"{mark}:{n}", work) for n in range(KEYS))))
    ctx.require(work.runs == KEYS, "once_mixed", runs=work.runs, keys=KEYS)
    ctx.require(work.peak > 1, "once_serial", keys=KEYS)

    work = _Work()
    for _ in range(2):
        _in_lab(ctx, lambda: settled(run_once(f"{mark}:again", work)))
    ctx.require(work.runs == 2, "once_forever", runs=work.runs)
    _failures(ctx, run_once, mark)
    _one_leaves(ctx, run_once, mark)
    return done("once_done", crowd=CROWD, **counts)


def _in_lab(ctx: Context, work: Callable[[], Awaitable[Any]]) -> Any:
    """Run this where requests run: a lock of hers belongs to one loop."""

    async def run(_: Any) -> Any:
        return await work()

    with ctx.limited():
        return ctx.lab.run(run, LIMIT)


def _failures(ctx: Context, run_once: Callable[..., Any], mark: str) -> None:
    """All who waited for a failure learn of it; whoever comes later is not told the old one."""

    async def failing() -> tuple[list[Any], list[Any]]:
        broken = _Work(_OnPurpose())
        together = await settled(*(run_once(f"{mark}:broken", broken) for _ in range(5)))
        return together, await settled(run_once(f"{mark}:broken", _Work()))

    together, later = _in_lab(ctx, failing)
    late = sum(isinstance(one, TimeoutError) for one in together)
    ctx.require(not late, "once_hangs", waiting=late, asked=len(together))
    told = sum(isinstance(one, _OnPurpose) for one in together)
    other = next((one for one in together if not isinstance(one, _OnPurpose)), None)
    ctx.require(told == len(together), "once_swallows", told=told, asked=len(together), other=repr(other)[:60])
    ctx.require(not isinstance(later[0], TimeoutError), "once_hangs", waiting=1, asked=1)
    ctx.require(later[0] == "answer", "once_poison")


def _one_leaves(ctx: Context, run_once: Callable[..., Any], mark: str) -> None:
    """The first of three is cancelled while the others wait for what it began."""

    async def leaving() -> list[Any]:
        work = _Work()
        three = [asyncio.ensure_future(run_once(f"{mark}:leaving", work)) for _ in range(3)]
        await asyncio.sleep(PAUSE / 4)
        three[0].cancel()
        return (await settled(*three))[1:]

    others = _in_lab(ctx, leaving)
    harmed = sum(one != "answer" for one in others)
    ctx.require(not harmed, "once_leaves", harmed=harmed, waiting=len(others))


def check_2_6(ctx: Context, client_class: Callable[..., Any]) -> Verdict:
    """What the client does while Redis is well, killed and frozen, and once it is back."""
    client = ctx.call(client_class, ctx.lab.app.state.redis_url)
    missing = [name for name in ("get", "set", "delete") if not callable(getattr(client, name, None))]
    ctx.require(not missing, "down_methods", names=", ".join(missing))
    absent = ctx.call(client.get, f"check:{secrets.token_hex(4)}")
    ctx.require(absent is None, "down_absent", got=repr(absent)[:60])
    _patience(ctx, client)
    with Probe(ctx.lab, composed(client)) as probe:
        first, second = probe.ask(1, 1)
        unharmed([first, second])
        ctx.require(second.outcome == "hit", "down_no_hits", **counted(probe, [first, second]))
        unharmed_update(probe)
        ctx.require(probe.ask(1)[0].outcome == "miss", "down_keeps")
        failed, methods, values = {}, {}, {}
        for fault in ("redis_down", "redis_frozen"):
            with ctx.lab.fault(fault):
                methods[fault], values[fault] = _alone(ctx, client)
                failed[fault] = sum(answer.outcome == "failed" for answer in probe.ask(1, 2, 3, 4, 5))
        counts = {"down": failed["redis_down"], "frozen": failed["redis_frozen"], "asked": 5}
        raising = methods["redis_down"]
        ctx.require(len(raising) < 3, "down_fails", **counts)
        ctx.require(not raising, "down_some", names=", ".join(raising), **counts)
        ctx.require(not methods["redis_frozen"], "down_frozen", names=", ".join(methods["redis_frozen"]), **counts)
        wrong = [value for value in values.values() if value is not None]
        ctx.require(not wrong, "down_value", got=repr(wrong[:1])[1:-1][:60])
        ctx.require(not any(failed.values()), "down_fails", **counts)
        end, back = time.monotonic() + RETURN, False
        while not back and time.monotonic() < end:
            back = probe.ask(6)[0].outcome == "hit"
        ctx.require(back, "down_forever", seconds=RETURN)
    return done("down_done", **counts)


def unharmed_update(probe: Probe) -> None:
    """Change user 1, whose answer is stored; an exception of hers becomes a verdict."""
    reply = probe.update(1)[0]
    if reply.error:
        raise Verdict("error", "course.endpoint_raised", path="delete", code=str(reply.error))


def _alone(ctx: Context, client: Any) -> tuple[list[str], Any]:
    """Which methods raise, and what ``get`` gives."""
    raising, value = [], None
    for name, words in (("get", ("check:a",)), ("set", ("check:a", {"id": 1}, 60)), ("delete", ("check:a",))):
        try:
            found = ctx.call(getattr(client, name), *words)
        except Verdict:
            raise
        except Exception:
            raising.append(name)
        else:
            value = found if name == "get" else value
    return raising, value


def _patience(ctx: Context, client: Any) -> None:
    """Time limits have to stay: without one a frozen Redis holds the whole application."""
    pool = getattr(getattr(client, "client", None), "connection_pool", None)
    options = getattr(pool, "connection_kwargs", {})
    for name in ("socket_timeout", "socket_connect_timeout") if options else ():
        limit = options.get(name)
        ctx.require(limit is not None and limit <= PATIENCE, "down_patience", name=name, limit=str(limit))
