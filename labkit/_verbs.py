"""The words for the methods of HTTP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from labkit._reply import Reply


class Verbs(ABC):
    """Whoever has a ``request`` has these."""

    @abstractmethod
    def request(self, method: str, path: str, **options: Any) -> Reply:
        """Make one request."""

    def get(self, path: str, **options: Any) -> Reply:
        """GET; see ``request``."""
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> Reply:
        """POST; see ``request``."""
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Any) -> Reply:
        """PUT; see ``request``."""
        return self.request("PUT", path, **options)

    def patch(self, path: str, **options: Any) -> Reply:
        """PATCH; see ``request``."""
        return self.request("PATCH", path, **options)

    def delete(self, path: str, **options: Any) -> Reply:
        """DELETE; see ``request``."""
        return self.request("DELETE", path, **options)
