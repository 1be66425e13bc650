"""Every exception labkit raises on purpose: one tree, so that a caller can catch all of it at once."""

from __future__ import annotations


class LabkitError(Exception):
    """Base of all. The message names the thing, the value that was given and the remedy."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of the frames of every library: the learner's own lines and the sentence."""
        from labkit._frames import lines

        return [*lines(self), f"{type(self).__name__}: {self}"]


class AppError(LabkitError):
    """The application under study cannot be imported, started or used."""


class RequestError(LabkitError):
    """A request could not be made or answered (unknown name, bad argument, closed Lab)."""


class RequestTimeout(RequestError):
    """A request ran into the time limit; the Lab stays usable."""


class NotJSONError(RequestError):
    """``Reply.json`` was asked of an answer that is not JSON."""


class ServiceError(LabkitError):
    """A server (Redis, PostgreSQL, uvicorn) could not be started, found or reached."""


class MeasurementError(LabkitError):
    """Something cannot be measured: the argument is unusable or the system forbids it."""


class CacheError(LabkitError):
    """The cache cannot be used this way: an argument that makes no key, a value that would not come back as it was."""


class MonitoringError(LabkitError):
    """Metrics, health checks, logs or alerts are asked for something that cannot be."""


class CourseError(LabkitError):
    """A lesson was used wrongly: unknown exercise, lesson or language, a source that does not build."""


class WorkFolderError(LabkitError):
    """The learner's folder cannot be read or written."""
