"""One call of a cached function, from the look-up to the answer: what endpoints, functions and threads share."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException

from labkit.cache import locks
from labkit.cache.call import Call, Made, Raised
from labkit.cache.client import Unavailable, checked_ttl
from labkit.cache.codec import Codec, Corrupt
from labkit.cache.entry import Entry, unpack
from labkit.cache.events import Event, Kind, Observer, tell
from labkit.cache.faces import Looping, Threading
from labkit.cache.flights import Flight, Flights, Landed
from labkit.cache.locks import Lock
from labkit.cache.strategies.base import Strategy, Verdict

_SEEN = 32  # bytes at the beginning of an entry that tell it from the one stored after it


class Life:
    """How long values live: all equally long. What learns it (``AdaptiveTTL``) has the same methods."""

    def __init__(self, ttl: float) -> None:
        self._ttl = checked_ttl(ttl)

    def filled(self, key: str, data: bytes) -> float:
        """``data`` was computed for ``key``: seconds for which it is fresh."""
        return self._ttl

    def seen(self, key: str) -> None:
        """``key`` was answered from the cache."""

    forget = seen


class Engine:
    """Looks up, computes, stores and tells, for one cached function."""

    def __init__(
        self, name: str, face: Looping | Threading, strategy: Strategy, life: Life, observer: Observer | None
    ) -> None:
        self.name, self.face, self.strategy, self.life, self.observer = name, face, strategy, life, observer
        self.flights = Flights()
        self.at_hand = getattr(face.redis, "at_hand", None)
        self._refreshing: set[str] = set()

    async def obtain(self, key: str, call: Call) -> Any:
        """The answer to ``call``: from Redis, from somebody who is about to have it, or by running the function."""
        start, arrived, flights, face = perf_counter(), self.flights.count, self.flights, self.face
        while True:
            flight, seat = flights.enter(key, face.home(), face.seat)
            if seat is None:
                return await self._lead(flight, call, start)
            landed = await self._join(flight, seat)
            if landed.heir:
                return await self._lead(flight, call, start)
            if landed.error is not None:
                self._tell("error", key, start, type(landed.error).__name__)
                raise landed.error
            if landed.found is None and landed.settled:  # nothing that could be shared: each for itself
                return await self._lead(Flight(key, None, 0, away=True), call, start)
            if landed.found is not None and (landed.settled or flight.born > arrived):
                try:
                    result = call.use(landed.found)
                except Corrupt:  # made for another route
                    return await self._lead(Flight(key, None, 0), call, start)
                return self._serve(flight, call, landed.found, result, start)

    def glance(self, key: str, codec: Codec) -> tuple[Any] | None:
        """The fresh value that a ``NearCache`` has at hand. Without a flight: there is nothing to wait for."""
        start = perf_counter() if self.observer is not None else 0.0
        if (data := self.at_hand(key)) is None:  # type: ignore[misc]
            return None
        try:
            entry = unpack(data)
            if entry.rendered or self.strategy.judge(entry, time.time(), random.random()) is not Verdict.FRESH:
                return None
            result = codec.loads(entry.payload)
        except Corrupt:
            return None  # ``obtain`` tells
        self.life.seen(key)
        self._tell("hit", key, start)
        return (result,)

    async def overwrite(self, key: str, call: Call) -> Any:
        """Run the function and store what it gives, whatever is stored or under way."""
        stored = False
        try:
            lock: Lock | None = await locks.seize(self.face.redis, key)
        except Unavailable:
            lock = None
        try:
            made, entry = await self._run(Flight(key, None, 0, lock=lock), call)
            stored = await self._store(lock, entry, made)
        finally:
            if not stored:
                await self.forget(key)
            self.flights.detach(key)
        return _given(made.result)

    async def forget(self, key: str) -> bool:
        """Invalidate ``key``; whether Redis confirmed it."""
        self.life.forget(key)
        try:
            return await self.face.redis.forget((key,))
        finally:
            self.flights.detach(key)  # whoever comes from now on joins nobody who began before

    async def forget_tag(self, tag: str) -> bool:
        """Invalidate what has ``tag``, of any function; whether Redis confirmed it."""
        try:
            return await self.face.redis.forget((), (locks.tag_key(tag),))
        finally:
            self.flights.detach_all()

    async def fill(self, lock: Lock, call: Call) -> Any:
        """Run the function and store what it gives, under a lock that is held already."""
        made, entry = await self._run(Flight(lock.key, None, 0, lock=lock), call)
        await self._store(lock, entry, made)
        return made.result

    async def _join(self, flight: Flight, seat: Any) -> Any:
        try:
            return await self.face.join(seat)
        except BaseException:
            if seat.done() and not seat.cancelled() and seat.result().heir:
                self._abandon(flight)
            raise

    def _abandon(self, flight: Flight) -> None:
        """The caller who leads is cancelled: somebody who waits goes on, or the lock is given back."""
        if not self.flights.hand_over(flight) and flight.lock is not None:
            self.face.spawn(_give_back(flight.lock))

    async def _lead(self, flight: Flight, call: Call, start: float) -> Any:
        try:
            if flight.lock is None and not flight.away:
                found = await self._look(flight, call)
                if found is not None:
                    self.flights.land(flight, Landed(flight.old))
                    if not flight.refresh or not await self._refresh(flight, call):
                        return self._serve(flight, call, flight.old, found[0], start)
            made, entry = await self._run(flight, call)
        except Exception as error:
            self._tell("error", flight.key, start, type(error).__name__)
            self.flights.land(flight, Landed(error=error))
            if flight.lock is not None:
                await _give_back(flight.lock)
            raise
        except BaseException:
            self._abandon(flight)
            raise
        stored = False
        try:
            stored = await self._store(flight.lock, entry, made)
        finally:  # without a lock it is as good as it gets; refused, it is for those who came before it began
            self.flights.land(flight, Landed(entry, settled=stored or flight.lock is None or entry is None))
        if entry is flight.old and entry is not None:
            return self._serve(flight, call, entry, made.result, start)
        self._tell("bypass" if flight.away else "miss", flight.key, start)
        return _given(call.dress(made.result, "BYPASS" if flight.away else "MISS", 0.0))

    async def _look(self, flight: Flight, call: Call) -> tuple[Any] | None:
        """What Redis holds (it is ``flight.old``), unless the function must run: then the flight has the lock, or
        Redis is away."""
        seen: bytes | None = None
        try:
            data = await self.face.redis.read(flight.key)
            while True:
                if data is not None:
                    seen = data[:_SEEN]
                    try:
                        entry = unpack(data)
                        flight.old, result = entry, call.use(entry)
                        verdict = self.strategy.judge(entry, time.time(), random.random())
                        if verdict is not Verdict.EXPIRED:
                            flight.refresh = verdict is Verdict.STALE
                            return (result,)
                    except Corrupt:
                        flight.old = None
                        self._tell("error", flight.key, perf_counter(), "corrupt")
                taken = await locks.take(self.face.redis, flight.key, seen)
                if isinstance(taken, Lock):
                    flight.lock = taken
                    return None
                if isinstance(taken, str):
                    await locks.wait(self.face.redis, flight.key, taken)
                data = taken if isinstance(taken, bytes) else None
        except Unavailable:
            flight.away = True
            return None

    async def _run(self, flight: Flight, call: Call) -> tuple[Made, Entry | None]:
        """Run the function, the lock kept alive meanwhile; what it gave, and what is to be stored."""
        created, start, old = time.time(), perf_counter(), flight.old
        stop = self.face.keep(flight.lock) if flight.lock is not None else None
        try:
            made = await call.make()
        except Exception as error:
            if old is None or not _is_failure(error) or not self.strategy.rescue(old, time.time()):
                made = call.rescue(error)
            else:
                made = Made(Raised(error), failed=True)
        finally:
            self._refreshing.discard(flight.key)
            if stop is not None:
                stop()
        if made.failed and old is not None and self.strategy.rescue(old, time.time()):
            return Made(call.use(old)), old
        if made.payload is None:
            return made, None
        fresh = self.life.filled(flight.key, made.payload) if made.ttl is None else made.ttl
        cost = perf_counter() - start
        return made, Entry(made.payload, created, fresh, cost, bool(made.media), made.status, made.media)

    async def _store(self, lock: Lock | None, entry: Entry | None, made: Made) -> bool:
        """Give the lock back and store ``entry``; whether it is stored."""
        if lock is None:
            return False
        try:
            tagged = [await lock.tag(tag, self.strategy.keep(entry.fresh)) for tag in made.tags] if entry else [False]
            if entry is None or not all(tagged):
                await lock.finish()
                return False
            return await lock.finish(entry.pack(), self.strategy.keep(entry.fresh))
        except Unavailable:
            await _give_back(lock)
            return False

    async def _refresh(self, flight: Flight, call: Call) -> bool:
        """Have a value computed anew that is served meanwhile; whether this caller must do it, under its lock."""
        if flight.key in self._refreshing:
            return False
        self._refreshing.add(flight.key)
        if (behind := call.behind(self.fill)) is None:
            return await self._claim(flight)
        self.face.spawn(self._behind(flight, behind))
        return False

    async def _claim(self, flight: Flight) -> bool:
        with suppress(Unavailable):
            taken = await locks.take(self.face.redis, flight.key, flight.old.pack()[:_SEEN])
            if isinstance(taken, Lock):
                flight.lock = taken
                return True
        self._refreshing.discard(flight.key)
        return False

    async def _behind(self, flight: Flight, behind: Callable[[Lock], Awaitable[Any]]) -> None:
        try:
            if await self._claim(flight):
                await behind(flight.lock)
        except Exception as error:
            self._tell("error", flight.key, perf_counter(), f"refresh: {type(error).__name__}")
        finally:
            self._refreshing.discard(flight.key)
            if flight.lock is not None:
                await _give_back(flight.lock)

    def _serve(self, flight: Flight, call: Call, entry: Entry, result: Any, start: float) -> Any:
        age = time.time() - entry.created
        label = "BYPASS" if flight.away else "HIT" if age < entry.fresh else "STALE"
        self.life.seen(flight.key)
        self._tell("bypass" if flight.away else "hit" if age < entry.fresh else "stale", flight.key, start)
        return _given(call.dress(result, label, age))

    def _tell(self, kind: Kind, key: str, start: float, detail: str = "") -> None:
        if self.observer is not None:
            tell(self.observer, Event(kind, self.name, key, perf_counter() - start, detail))


def _is_failure(error: Exception) -> bool:
    """Whether an exception means that an older value would do better: "no such thing" is an answer."""
    return not isinstance(error, HTTPException) or error.status_code >= 500


def _given(result: Any) -> Any:
    if isinstance(result, Raised):
        raise result.error
    return result


async def _give_back(lock: Lock) -> None:
    with suppress(Unavailable):
        await lock.finish()
