"""What an application answered to one request, kept as it came and read only when somebody asks."""

from __future__ import annotations

import json as _json
from contextlib import suppress
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit._html import MONO, Safe, card, tag
from labkit._text import duration, number, say
from labkit.errors import NotJSONError

if TYPE_CHECKING:
    from starlette.datastructures import Headers

RawHeaders = tuple[tuple[bytes, bytes], ...]

_SHOWN = 1_500  # characters of a body that a notebook shows


class Reply(NamedTuple):
    """What the application answered.

    A named tuple, for under load one is made for every request: a frozen dataclass takes four times as long.

    Attributes:
        status: HTTP status; 500 where the endpoint raised before it answered.
        body: the whole body, streamed chunks joined.
        elapsed: seconds from the request to the last byte (background tasks are not in it).
        queries: SQL statements of the request; those of its background tasks are counted, as in a QueryReport.
        label: the request, as ``GET /users``.
        error: the learner's own frames and the exception if one was raised, else empty.
        note: what would help, as the nearest known paths after a 404, else empty.
        latency_ms: simulated round trip, in milliseconds, that each statement paid and ``elapsed`` includes.
    """

    status: int
    body: bytes
    raw_headers: RawHeaders
    elapsed: float
    queries: int = 0
    label: str = ""
    error: str = ""
    note: str = ""
    latency_ms: float = 0.0

    @property
    def headers(self) -> Headers:
        """The headers, looked up without regard to case."""
        from starlette.datastructures import Headers

        return Headers(raw=list(self.raw_headers))

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that the answer sets, ready to be passed to the next request."""
        jar = SimpleCookie()
        for value in self.headers.getlist("set-cookie"):
            jar.load(value)
        return {name: morsel.value for name, morsel in jar.items()}

    @property
    def text(self) -> str:
        """The body as text (UTF-8; what is not UTF-8 shows as the replacement character)."""
        return self.body.decode("utf-8", "replace")

    @property
    def json(self) -> Any:
        """The body read as JSON.

        Raises:
            NotJSONError: if it is not JSON; says of what type it is and how it begins.
        """
        try:
            return _json.loads(self.body)
        except ValueError as error:
            kind = self.headers.get("content-type", say("core.no_content_type"))
            start = self.body[:60].decode("utf-8", "replace")
            text = say("core.not_json", label=self.label, status=self.status, kind=kind, start=start)
            raise NotJSONError("\n".join(filter(None, (text, self.error, self.note)))) from error

    def _headline(self) -> str:
        trip = say("core.reply_latency", ms=number(self.latency_ms, ",.3g")) if self.latency_ms else ""
        count = say("core.reply_queries", count=self.queries) + trip
        size = f"{number(len(self.body) / 1000, ',.1f')} kB"
        return f"{self.label} → {self.status} · {duration(self.elapsed)} · {count} · {size}"

    def __repr__(self) -> str:
        return "\n".join(filter(None, (self._headline(), self.error, self.note)))

    def _repr_html_(self) -> Safe:
        good = self.status < 400 and not self.error
        text = self.error or self.note or self.text
        if good:
            with suppress(ValueError):
                text = _json.dumps(_json.loads(self.body), indent=2, ensure_ascii=False)
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
        style = f"font-family:{MONO};font-size:12px;margin:0;max-height:260px;overflow:auto"
        colour, symbol = ("#009E73", "✓") if good else ("#D55E00", "✗")
        return card(self._headline(), tag("pre", shown, f"{style};white-space:pre-wrap"), colour=colour, symbol=symbol)
