"""A cache in Redis for any function and any FastAPI endpoint, that says what it does and never fails a request."""

from labkit.cache.client import CacheClient
from labkit.cache.decorator import cached
from labkit.cache.events import Event
from labkit.cache.strategies import CacheAside, EarlyRefresh, StaleIfError, StaleWhileRevalidate, Strategy, writes

__all__ = [
    "CacheAside",
    "CacheClient",
    "EarlyRefresh",
    "Event",
    "StaleIfError",
    "StaleWhileRevalidate",
    "Strategy",
    "cached",
    "writes",
]
