"""What the tests of the monitoring share: a client that sees each message, and what the registry has counted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from labkit.monitoring import Metrics

Messages = list[dict[str, Any]]


def counted(metrics: Metrics) -> Counter[tuple[str, str, int]]:
    """Requests by method, endpoint and status."""
    found: Counter[tuple[str, str, int]] = Counter()
    for metric in metrics.registry.collect():
        for sample in metric.samples:
            if sample.name == "app_requests_total":
                labels = sample.labels
                found[labels["method"], labels["endpoint"], int(labels["status"])] += int(sample.value)
    return found


def statuses(metrics: Metrics) -> Counter[int]:
    """Requests by status."""
    found: Counter[int] = Counter()
    for (_, _, status), times in counted(metrics).items():
        found[status] += times
    return found


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of the samples with that name and these labels."""
    return sum(
        sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def series(metrics: Metrics) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every time series that a scrape would bring, but the machine's own."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if not sample.name.startswith(("app_process_", "app_system_"))
    }


@dataclass
class Answer:
    """What the client has seen.

    Attributes:
        messages: as they came.
        at: what the clock said then, if there was one.
        error: what came out of the application.
    """

    messages: Messages = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def status(self) -> int:
        return next((each["status"] for each in self.messages if each["type"] == "http.response.start"), 0)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return next((list(each["headers"]) for each in self.messages if each["type"] == "http.response.start"), [])

    @property
    def body(self) -> bytes:
        return b"".join(each.get("body", b"") for each in self.messages)

    def json_body(self) -> Any:
        return json.loads(self.body)

    @property
    def whole(self) -> bool:
        last = self.messages[-1] if self.messages else {}
        return last.get("type") == "http.response.body" and not last.get("more_body")

    def header(self, name: str) -> str:
        """Its value; it must be there once."""
        (value,) = [value for key, value in self.headers if key.lower() == name.encode()]
        return value.decode()


def scope_of(method: str = "GET", path: str = "/", headers: Sequence[tuple[bytes, bytes]] = (), **more: Any) -> Any:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*([] if any(name == b"host" for name, _ in headers) else [(b"host", b"localhost")]), *headers],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        "state": {},
        **more,
    }


async def ask(
    app: Any,
    path: str = "/",
    method: str = "GET",
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: Iterable[bytes] = (b"",),
    leave: asyncio.Event | None = None,
    broken: Callable[[Answer], BaseException | None] | None = None,
    clock: Callable[[], float] | None = None,
    each: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
    **more: Any,
) -> Answer:
    """Make a request as a server would, and never raise but when this task is cancelled.

    Args:
        body: its parts, a message each.
        leave: when it is set, the client is gone.
        broken: an error for ``send`` to raise, by what was sent so far.
        clock: read at each message.
        each: awaited for each message that comes.
    """
    answer, parts = Answer(), list(body)
    ended = leave or asyncio.Event()

    async def receive() -> dict[str, Any]:
        if parts and not (leave and leave.is_set()):
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if broken is not None and (error := broken(answer)) is not None:
            raise error
        answer.messages.append(message)
        answer.at.append(clock() if clock else 0.0)
        if each is not None:
            await each(message)
        if message["type"] == "http.response.body" and not message.get("more_body") and leave is None:
            ended.set()

    try:
        await app(scope_of(method, path, headers, **more), receive, send)
    except BaseException as error:
        answer.error = error
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
    return answer


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    """In a loop of its own."""

    async def main() -> Any:
        return await work()

    return asyncio.run(main())


def asked(app: Any, *arguments: Any, **options: Any) -> Answer:
    """One request in a loop of its own."""
    answer: Answer = run(lambda: ask(app, *arguments, **options))
    return answer
