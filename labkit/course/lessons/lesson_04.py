"""The checks of lesson 04: a TTL, a warming and a circuit breaker, judged by counts and under live faults."""

from __future__ import annotations

from labkit.course.lessons._lives import chosen, two_lives, visits
from labkit.course.lessons._nearness import near_hits
from labkit.course.lessons._outage import outage
from labkit.course.lessons._smart_breaker import check_4_3
from labkit.course.lessons._smart_ttl import check_4_1
from labkit.course.lessons._smart_warming import check_4_2

__all__ = ["check_4_1", "check_4_2", "check_4_3", "chosen", "near_hits", "outage", "two_lives", "visits"]
