"""An entry comes back whole, and whatever is not one whole entry of this version is a miss."""

from __future__ import annotations

import math
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.cache.codec import Corrupt
from labkit.cache.entry import Entry, unpack

seconds = st.floats(0, 9e10)
medias = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80)
times = st.tuples(st.binary(), seconds, seconds, seconds)
entries = times.map(lambda parts: Entry(*parts)) | st.tuples(times, st.integers(100, 599), medias).map(
    lambda parts: Entry(*parts[0], True, *parts[1:])
)
REAL = Entry(b'{"id":7}', 1.7e9, 300.0, 0.0125, True, 200, "application/json")


def is_miss(data: bytes) -> bool:
    """Whether bytes are a miss; another exception fails the test."""
    try:
        unpack(data)
        return False
    except Corrupt:
        return True


@given(entries)
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    back = unpack(entry.pack())
    assert back == entry
    assert [type(part) for part in back] == [type(part) for part in entry]


@given(st.binary() | st.binary().map(lambda tail: b"LK\x01" + tail))
def test_foreign_bytes_are_a_miss(data: bytes) -> None:
    assert is_miss(data)


def test_what_is_cut_or_longer_is_a_miss() -> None:
    data = REAL.pack()
    assert all(is_miss(data[:end]) for end in range(len(data)))
    assert is_miss(data + b"x")
    assert is_miss(b"")


def test_other_versions_are_a_miss() -> None:
    data = REAL.pack()
    assert all(is_miss(data[:2] + bytes([version]) + data[3:]) for version in range(256) if version != 1)


def test_flipped_bits_are_a_miss_or_an_entry_that_harms_nobody() -> None:
    chance, data = random.Random(3), REAL.pack()
    for _ in range(10_000):
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            entry = unpack(bytes(changed))
        except Corrupt:
            continue
        assert int(2e9 - entry.created) is not None
        assert math.isfinite(entry.fresh) and math.isfinite(entry.cost) and 100 <= entry.status < 600
        entry.media.encode("ascii")
        assert "\n" not in entry.media and "\r" not in entry.media


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("created", bad) for bad in (math.nan, math.inf, -1.0, 1e300)),
        *(("fresh", bad) for bad in (math.nan, math.inf, -1.0)),
        *(("cost", bad) for bad in (math.nan, -math.inf)),
        *(("status", bad) for bad in (0, 99, 600, 65535)),
        ("media", "text/html\r\nset-cookie: a=b"),
        ("media", "text/ñ"),
    ],
)
def test_impossible_headers_are_a_miss(field: str, value: object) -> None:
    assert is_miss(REAL._replace(**{field: value}).pack())


def test_a_value_has_no_status() -> None:
    assert is_miss(Entry(b"", 1.0, 1.0, status=200).pack())
    assert is_miss(Entry(b"", 1.0, 1.0, media="text/html").pack())


def test_the_header_is_as_long_as_it_was() -> None:
    """A change of the header without a change of the version would read the entries of an older process wrongly."""
    assert (
        REAL.pack()
        == (b"LK\x01" + struct.pack("=?HHI", True, 200, 16, 8) + struct.pack("=ddd", 1.7e9, 300.0, 0.0125))
        + b"application/json"
        + b'{"id":7}'
    )
