"""The checks of the middleware of lesson 03: what names a request (3.3), and an id on every answer (3.4)."""

from __future__ import annotations

import inspect
import random
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from prometheus_client import CollectorRegistry, Counter, Histogram

from labkit.asgi import Reply
from labkit.course.checks import Context, Verdict, almost, done
from labkit.course.lessons._monitor_watch import logged
from labkit.lab import Lab
from labkit.monitoring.samples import Snapshot

MADE_UP = 2_000
"""Paths that nobody serves, and ids of one endpoint."""

AT_A_TIME = 100
LIMIT = 5.0
SECRET = "db-7.internal"
TEMPLATES = ("/users/{user_id}", "/users/latest", "/posts/{post_id}/comments")
UNSAFE = ("a" * 5_000, 'x" onmouseover="alert(1)', "<script>", "one two", "")


class OnPurpose(Exception):
    """What an endpoint of a check raises."""


# --- 3.3 the label (T47)


def check_3_3(ctx: Context, endpoint_of: Callable[..., Any]) -> Verdict:
    """2,000 ids of one endpoint, 2,000 paths that nobody serves; the label of each request is counted."""
    chance = random.Random(ctx.seed)
    words = [f"/{chance.getrandbits(40):x}/{chance.choice('abcdef')}{n}" for n in range(MADE_UP)]
    numbers = [f"/users/{n}" for n in chance.sample(range(1, 10**6), MADE_UP)]
    others = [
        "/users/latest",
        f"/posts/{chance.randint(1, 999)}/comments",
        f"/posts/{chance.randint(1000, 9999)}/comments",
    ]
    labels = CollectorRegistry()
    counter = Counter("app_requests_total", "Requests.", ["endpoint"], registry=labels)
    seconds = Histogram("app_request_duration_seconds", "Seconds.", ["endpoint"], registry=labels)
    got: dict[str, Any] = {}

    def note(request: Request) -> None:
        got[request.url.path] = label = endpoint_of(request)
        counter.labels(label).inc()
        seconds.labels(label).observe(0.001)

    class Layer:  # thousands of requests: what the learner's costs is not the question here
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)
            if scope["type"] == "http":
                note(Request(scope))

    with _app(lambda app: app.add_middleware(Layer)) as lab:
        _asked(ctx, lab, [numbers[0], *others])
        reply = _ask(ctx, lab, words[:1])[0]
        if reply.error:
            raise Verdict("error", "endpoint_missing", code=str(reply.error))
        ctx.require(all(isinstance(label, str) for label in got.values()), "endpoint_type", got=_odd(got))
        for paths in (numbers[1:], words[1:]):
            _asked(ctx, lab, paths)
        every = sum(map(len, Snapshot.of(labels).values.values()))
        _asked(ctx, lab, ["/v2/items/7"])
        included = got.pop("/v2/items/7") == "/v2/items/{item_id}"
    by_ids, by_words = ({got[path] for path in paths} for paths in (numbers, words))
    counts = {"names": len({*got.values()}), "series": every, "ids": MADE_UP, "words": MADE_UP}
    if len(by_ids) > 1:
        raise almost("endpoint_path" if len(by_words) > 1 else "endpoint_ids", **counts)
    ctx.require(len(by_words) == 1, "endpoint_words", **counts)
    named = dict(zip(TEMPLATES, (got[path] for path in (numbers[0], *others)), strict=False))
    merged = len({*named.values()} | by_words) <= len(TEMPLATES)
    ctx.require(
        not merged, "endpoint_merged", **counts, shown=", ".join(sorted({*map(str, named.values())} | by_words))
    )
    wrong = next(((template, label) for template, label in named.items() if label != template), None)
    if wrong is not None:
        raise almost("endpoint_names", wanted=wrong[0], got=wrong[1])
    return done("endpoint_done" if included else "endpoint_done_prefix", **counts, unmatched=next(iter(by_words)))


def _odd(got: dict[str, Any]) -> str:
    return next((f"{label!r}" for label in got.values() if not isinstance(label, str)), "")[:60]


@contextmanager
def _app(cover: Callable[[FastAPI], Any], handlers: dict[Any, Any] | None = None) -> Iterator[Lab]:
    """A small application under what ``cover`` puts on it, in a Lab of its own."""
    app = FastAPI(exception_handlers=handlers)
    nested, other = APIRouter(prefix="/posts"), APIRouter()

    @app.get("/users/latest")
    async def latest() -> dict[str, str]:
        return {"user": "latest"}

    @app.get("/users/{user_id}")
    async def user(user_id: int) -> dict[str, int]:
        return {"user": user_id}

    @nested.get("/{post_id}/comments")
    async def comments(post_id: int) -> list[int]:
        return [post_id]

    @other.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "teapot", headers={"X-Own": "kept"})

    @app.get("/raises")
    async def raises() -> None:
        raise OnPurpose(f"no route to {SECRET}")

    app.include_router(nested)
    app.include_router(other, prefix="/v2")
    cover(app)
    with Lab(app, latency=0, time_limit=LIMIT) as lab:
        yield lab


def _ask(ctx: Context, lab: Lab, paths: list[str], headers: dict[str, str] | None = None) -> list[Reply]:
    """One request a path, one after the other, inside the loop; some at a time, so that each may take its time."""
    replies: list[Reply] = []
    for first in range(0, len(paths), AT_A_TIME):
        some = paths[first : first + AT_A_TIME]

        async def work(client: Any, some: list[str] = some) -> list[Reply]:
            call = client.caller("GET", headers=headers)
            return [await call(path) for path in some]

        with ctx.limited():
            replies += lab.run(work)
    return replies


def _asked(ctx: Context, lab: Lab, paths: list[str]) -> None:
    for reply in _ask(ctx, lab, paths):
        if reply.error:
            raise Verdict("error", "course.endpoint_raised", path=reply.label, code=str(reply.error))


# --- 3.4 an id on every answer (T52)


@dataclass
class Recorder:
    """Stands for the collector: what the middleware told it."""

    told: list[tuple[Any, ...]] = field(default_factory=list)
    users: list[Any] = field(default_factory=list)

    def track_request(self, method: Any, endpoint: Any, status: Any, duration: Any, *more: Any) -> None:
        self.told.append((str(method), str(endpoint), str(status), duration))

    def saw(self, user: Any) -> None:
        self.users.append(user)


def check_3_4(ctx: Context, middleware: Callable[..., Any]) -> Verdict:
    """Good, refused, unknown and failing requests: headers of each, what was counted, what the log knows."""
    ctx.require(not inspect.isclass(middleware), "ids_class")
    recorder = Recorder()
    own = getattr(ctx.lab.app, "exception_handlers", {})
    handlers = {kind: h for kind, h in own.items() if getattr(h, "__module__", "") == "__main__"}
    with _app(lambda app: app.middleware("http")(middleware), handlers) as lab, logged() as records:
        lab.app.state.metrics = recorder  # type: ignore[attr-defined]
        paths = ["/users/1", "/users/2", "/teapot", "/nobody", "/raises", "/raises"]
        replies = _ask(ctx, lab, paths)
        for reply in replies[:4]:
            if reply.error:
                raise Verdict("error", "course.endpoint_raised", path=reply.label, code=str(reply.error))
        hers = next((reply for reply in replies[4:] if reply.error and OnPurpose.__name__ not in reply.error), None)
        if hers is not None:
            raise Verdict("error", "course.endpoint_raised", path=hers.label, code=str(hers.error))
        lost = [reply.status for reply in replies[:4]] != [200, 200, 418, 404] or replies[2].headers.get(
            "x-own"
        ) != "kept"
        ctx.require(not lost and replies[0].json == {"user": 1}, "ids_changed")
        _counted(ctx, recorder, len(paths))
        named = [reply.headers.get("x-request-id", "") for reply in replies]
        ctx.require(all(named[:4]), "ids_none", missing=named[:4].count(""), asked=4)
        timed = [reply.headers.get("x-response-time", "") for reply in replies]
        ctx.require(all(timed[:4]), "ids_no_time", missing=timed[:4].count(""), asked=4)
        sent = f"support-{secrets.token_hex(4)}"
        kept = [reply.headers.get("x-request-id") for reply in _ask(ctx, lab, paths[:2], {"X-Request-ID": sent})]
        ctx.require(all(named), "ids_500", missing=named[4:].count(""), asked=2, ignored=kept.count(sent) == 0)
        ctx.require(all(timed), "ids_500_time", missing=timed[4:].count(""), asked=2)
        ctx.require(len({*named}) == len(named), "ids_same", different=len({*named}), asked=len(named))
        ctx.require([reply.status for reply in replies[4:]] == [500, 500], "ids_status", got=replies[4].status)
        leaks = SECRET in replies[4].text or OnPurpose.__name__ in replies[4].text
        ctx.require(not leaks, "ids_leaks", secret=SECRET)
        raised = any(reply.error for reply in replies[4:])
        told = [record for record in records if SECRET in record]
        ctx.require(raised or told, "ids_silent", asked=2)
        ctx.require(raised or any(named[4] in record for record in told), "ids_nameless", asked=2)
        ctx.require(kept.count(sent) == 2, "ids_ignored", sent=sent, got=kept[0] or "-")
        accepted = [text for text in UNSAFE if _taken(ctx, lab, text)]
        shown = ", ".join(f"{len(text)} × a" if len(text) > 100 else text or '""' for text in accepted)
        ctx.require(not accepted, "ids_unsafe", count=len(accepted), tried=len(UNSAFE), shown=shown)
    return done("ids_done", asked=len(paths))


def _counted(ctx: Context, recorder: Recorder, asked: int) -> None:
    """Each request once, with the status that was sent."""
    statuses = sorted(status for _, _, status, _ in recorder.told)
    ctx.require(statuses, "ids_uncounted", asked=asked)
    ctx.require(len(statuses) == asked, "ids_count", got=len(statuses), asked=asked)
    wanted = ["200", "200", "404", "418", "500", "500"]
    ctx.require(statuses == wanted, "ids_statuses", got=", ".join(statuses), wanted=", ".join(wanted))
    short = all(isinstance(seconds, int | float) and 0 <= seconds < LIMIT for *_, seconds in recorder.told)
    ctx.require(short, "ids_seconds", got=str(recorder.told[0][-1])[:40])


def _taken(ctx: Context, lab: Lab, text: str) -> bool:
    """Whether an id that nobody should write into a header or a log came back; an empty one is no id either."""
    reply = _ask(ctx, lab, ["/users/1"], {"X-Request-ID": text})[0]
    back = reply.headers.get("x-request-id", "")
    return not back or (back == text or not re.fullmatch(r"[\w.:/+=@-]{1,128}", back))
