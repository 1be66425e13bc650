"""What lies in Redis under a key: the payload, with when it was made, for how long it is fresh and what it cost."""

from __future__ import annotations

import struct
from typing import NamedTuple

from labkit.cache.codec import Corrupt

_HEADER = struct.Struct("<3sBHHIddd")
_MAGIC = b"LK\x01"  # the last byte is the version: another one is a miss
_MOST = 1e11  # seconds: no time or duration beyond the year 5000


class Entry(NamedTuple):
    """One stored answer.

    Attributes:
        payload: the bytes of the value, or the body of the response.
        created: when it was made, in seconds since 1970.
        fresh: for how many seconds from then it counts as fresh.
        cost: how many seconds making it took.
        rendered: whether the payload is a response's body rather than a value's bytes.
        status, media: status code and content type of such a response; 0 and empty for values.
    """

    payload: bytes
    created: float
    fresh: float
    cost: float = 0.0
    rendered: bool = False
    status: int = 0
    media: str = ""

    def pack(self) -> bytes:
        """The bytes to store."""
        media = self.media.encode()
        sizes = len(media), len(self.payload)
        head = _HEADER.pack(_MAGIC, self.rendered, self.status, *sizes, self.created, self.fresh, self.cost)
        return b"".join((head, media, self.payload))


def unpack(data: bytes) -> Entry:
    """The entry in bytes from Redis.

    Raises:
        Corrupt: if they are not one whole entry of this version.
    """
    try:
        magic, rendered, status, media_size, size, created, fresh, cost = _HEADER.unpack_from(data)
    except (struct.error, TypeError):
        raise Corrupt("header") from None
    start = _HEADER.size + media_size
    whole = magic == _MAGIC and len(data) == start + size and rendered <= 1
    # Written so that NaN fails.
    if not (whole and 0 <= created < _MOST and 0 <= fresh < _MOST and 0 <= cost < _MOST):
        raise Corrupt("header")
    if not rendered:
        if status or media_size:
            raise Corrupt("value with a status")
        return Entry(data[start:], created, fresh, cost)
    media = data[_HEADER.size : start].decode("latin-1")
    if not (100 <= status < 600 and media.isascii() and media.isprintable()):  # a line break would forge headers
        raise Corrupt("response")
    return Entry(data[start:], created, fresh, cost, True, status, media)
