"""Ways to use a cache, each a file. They decide; ``cached`` acts."""

from labkit.cache.strategies.aside import CacheAside
from labkit.cache.strategies.base import Strategy, Verdict
from labkit.cache.strategies.early import EarlyRefresh
from labkit.cache.strategies.stale import StaleIfError, StaleWhileRevalidate
from labkit.cache.strategies.write_through import writes

__all__ = ["CacheAside", "EarlyRefresh", "StaleIfError", "StaleWhileRevalidate", "Strategy", "Verdict", "writes"]
