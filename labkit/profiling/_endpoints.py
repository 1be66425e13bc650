"""Get at the endpoint of a request, wherever it runs: in the loop or in a thread of the pool.

FastAPI calls every endpoint through ``fastapi.routing.run_endpoint_function``, which it keeps apart "to
facilitate profiling endpoints". Stepping in there needs no search for routes, so included routers and
mounted applications are the same to us; a context variable says whose request it is, so that requests
beside it are left alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from types import CodeType, coroutine
from typing import Any, Protocol

from fastapi import routing
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from labkit._text import say
from labkit.errors import MeasurementError

Call = Callable[..., Any]


class Probe(Protocol):
    """Something that measures while it is on: in one thread, for one call, on and off any number of times."""

    def on(self) -> None: ...
    def off(self) -> None: ...


def is_async(call: Call) -> bool:
    """Whether calling gives something to await, by FastAPI's rule: what lies under decorators counts too."""
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(function_of(call))


def enclose(call: Call, begin: Callable[[], Probe], done: Callable[[Any], None] = lambda probe: None) -> Call:
    """A function with the signature of ``call`` that is measured by a new probe each time it is called.

    The probe is on only while the call itself runs. A coroutine is driven step by step: whenever it waits,
    the probe is off, so that other requests of the same loop do not get into its measurement. What makes the body
    of a ``StreamingResponse``, after the call, is measured as a part of it.

    Args:
        call: a plain or an ``async def`` function.
        begin: makes the probe of one call.
        done: gets the probe when the call, and the body that it streams, has ended or raised.
    """
    if is_async(call):

        @wraps(call)
        async def measured_async(*args: Any, **kwargs: Any) -> Any:
            probe = begin()
            try:
                answer = await _stepwise(call(*args, **kwargs), probe)
            except BaseException:
                done(probe)
                raise
            return _ended(answer, probe, done)

        return measured_async

    @wraps(call)
    def measured(*args: Any, **kwargs: Any) -> Any:
        probe = begin()
        probe.on()
        try:
            answer = call(*args, **kwargs)
        except BaseException:
            probe.off()
            done(probe)
            raise
        probe.off()
        return _ended(answer, probe, done)

    return measured


def _ended(answer: Any, probe: Probe, done: Callable[[Any], None]) -> Any:
    if isinstance(answer, StreamingResponse):
        answer.body_iterator = _body(answer.body_iterator, probe, done)
    else:
        done(probe)
    return answer


async def _body(chunks: Any, probe: Probe, done: Callable[[Any], None]) -> AsyncIterator[Any]:
    try:
        if getattr(chunks, "ag_code", None) is iterate_in_threadpool.__code__:  # not begun: its argument is in sight
            async for chunk in iterate_in_threadpool(_each(chunks.ag_frame.f_locals["iterator"], probe)):
                yield chunk
            return
        steps = aiter(chunks)
        while True:
            try:
                chunk = await _stepwise(anext(steps), probe)
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        done(probe)


def _each(chunks: Iterable[Any], probe: Probe) -> Iterator[Any]:
    steps = iter(chunks)
    while True:
        probe.on()
        try:
            chunk = next(steps)
        except StopIteration:
            return
        finally:
            probe.off()
        yield chunk


@coroutine
def _stepwise(awaitable: Any, probe: Probe) -> Generator[Any, Any, Any]:
    steps = awaitable.__await__()
    resume, value = steps.send, None
    while True:
        probe.on()
        try:
            waits_for = resume(value)
        except StopIteration as end:
            return end.value
        finally:
            probe.off()
        try:
            resume, value = steps.send, (yield waits_for)
        except BaseException as error:
            resume, value = steps.throw, error


_wrap: ContextVar[Callable[[Call], Call] | None] = ContextVar("labkit_endpoint_wrap", default=None)
original = routing.run_endpoint_function


async def _run_endpoint(**given: Any) -> Any:
    if (wrap := _wrap.get()) is not None:
        given["dependant"] = copy.copy(given["dependant"])
        call = given["dependant"].call
        given["dependant"].call = wrap(getattr(call, "below", call))  # one measurement is enough
    return await original(**given)


@contextmanager
def around(wrap: Callable[[Call], Call]) -> Iterator[None]:
    """Within this block every endpoint that a request of this context reaches is called as
    ``wrap(endpoint)``."""
    routing.run_endpoint_function = _run_endpoint  # stays: without a block of ours it costs a look at _wrap
    token = _wrap.set(wrap)
    try:
        yield
    finally:
        _wrap.reset(token)


def function_of(call: Call) -> Call:
    """The function that a person wrote, below decorators, partials and objects that can be called."""
    call = inspect.unwrap(call)
    while isinstance(call, partial):
        call = inspect.unwrap(call.func)
    return type(call).__call__ if callable(call) and not inspect.isroutine(call) else call


def code_of(call: Call) -> CodeType:
    """The code of that function.

    Raises:
        MeasurementError: if it is not written in Python.
    """
    code = getattr(function_of(call), "__code__", None)
    if not isinstance(code, CodeType):
        raise MeasurementError(say("profiling.no_code", function=repr(call)))
    return code
