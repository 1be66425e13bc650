"""Starlette answers a failed request outside of every layer: its answers are led by the exchange, as all others are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette._utils import is_async_callable
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request

from labkit.monitoring.ids import request_id

if TYPE_CHECKING:
    from labkit.monitoring._exchange import Exchange

FAILED = "labkit.monitoring.failed"  # in the scope: the exchange, once it has failed; sooner it would be a cycle


def lead_through(guard: ServerErrorMiddleware) -> None:
    """Let what Starlette's outermost layer answers to failures go by the exchange, like every other answer."""
    for name in ("handler", "error_response", "debug_response"):
        make: Any = getattr(guard, name)
        if make is not None and not hasattr(make, "labkit"):
            led = _led(make)
            led.labkit = True
            setattr(guard, name, led)


def _led(make: Any) -> Any:
    async def wait(request: Request, error: Exception) -> Any:
        with _again(request) as through:
            return through(await make(request, error))

    def run(request: Request, error: Exception) -> Any:
        with _again(request) as through:
            return through(make(request, error))

    return wait if is_async_callable(make) else run


@contextmanager
def _again(request: Request) -> Iterator[Callable[[Any], Any]]:
    """The request once more, for what answers its failure."""
    exchange: Exchange | None = request.scope.get(FAILED)
    if exchange is None:  # it failed before it came to us
        yield lambda response: response
        return
    token = request_id.set(exchange.id)
    try:
        yield lambda response: partial(exchange.answer, response)
    except BaseException:
        exchange.abandon()
        raise
    finally:
        request_id.reset(token)
