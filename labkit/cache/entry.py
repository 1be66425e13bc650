"""What lies in Redis under a key: the payload, with when it was made, for how long it is fresh and what it cost."""

from __future__ import annotations

import struct
from typing import NamedTuple

from labkit.cache.codec import Corrupt

_HEADER = struct.Struct("<3sBHHIddd")
_HEADER_SIZE = _HEADER.size
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
    start = _HEADER_SIZE + media_size
    # Written so that NaN fails.
    times = 0 <= created < _MOST and 0 <= fresh < _MOST and 0 <= cost < _MOST
    if magic != _MAGIC or len(data) != start + size or not times:
        raise Corrupt("header")
    if not (rendered or status or media_size):
        return Entry(data[start:], created, fresh, cost)
    media = data[_HEADER_SIZE:start].decode("latin-1")
    # A line break in the media type would forge headers.
    if rendered != 1 or not (100 <= status < 600 and media.isascii() and media.isprintable()):
        raise Corrupt("response")
    return Entry(data[start:], created, fresh, cost, True, status, media)
