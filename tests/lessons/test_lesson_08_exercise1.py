"""The trap gallery, Exercise 1: each trap shows on this machine, in counts, and its cure cures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lessons.leafing import Leafing


@pytest.fixture(scope="module")
def gallery() -> Iterator[Leafing]:
    leafing = Leafing(1)
    yield leafing
    leafing.close()


def test_without_an_order_two_queries_show_different_users(gallery: Leafing) -> None:
    card = gallery.card("T12")
    assert card.state == "cured"
    assert card.found.trap < 50 == card.found.cure
