"""What a Lab measures: the verbs that look at one request or at many, each with a tool of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from labkit._client import Client
from labkit._supplies import Supplies
from labkit._text import say
from labkit._verbs import Verbs
from labkit.asgi import ASGIApp, Reply
from labkit.errors import MeasurementError

if TYPE_CHECKING:
    from labkit.comparison import Comparison
    from labkit.load import LoadResult
    from labkit.profiling.calls import Profile
    from labkit.profiling.lines import LineReport
    from labkit.profiling.memory import MemoryReport
    from labkit.profiling.plans import Plan
    from labkit.profiling.queries import QueryReport
    from labkit.profiling.sampling import SampleReport

T = TypeVar("T")
Tool = Callable[[Callable[[], Awaitable[Reply]]], Awaitable[T]]


class Measurements(Verbs):
    """Whoever has an application and a loop in which it runs has these."""

    app: ASGIApp
    _target: str | None
    _supplies: Supplies

    @abstractmethod
    def run(self, work: Callable[[Client], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Run ``await work(client)`` inside the loop."""

    @property
    @abstractmethod
    def engine(self) -> Any:
        """The application's SQLAlchemy engine."""

    def queries(self, path: str, method: str = "GET", **options: Any) -> QueryReport:
        """Every SQL statement of one request, the line that ran it, and what is wrong with them (N+1)."""
        from labkit.profiling._endpoints import around
        from labkit.profiling.queries import record

        async def work(client: Client) -> QueryReport:
            reached: list[Callable[..., Any] | None] = [None]

            def note(endpoint: Callable[..., Any]) -> Callable[..., Any]:
                reached.append(endpoint)
                return endpoint

            with around(note), record() as recorder:
                reply = await client.measured(method, path, **options)
            return recorder.report(path, reply.elapsed, client.trip.ms if recorder.count else 0.0, reached[-1])

        return self.run(work)

    def profile(self, path: str, method: str = "GET", **options: Any) -> Profile:
        """Where the time of one request goes, function by function."""
        from labkit.profiling.calls import profile_async

        return self._measure(lambda make: profile_async(make, label=path), path, method, options)

    def lines(self, path: str, *functions: Callable[..., Any], method: str = "GET", **options: Any) -> LineReport:
        """How often each line of these functions (default: the endpoint) ran, and how long it took."""
        from labkit.profiling.lines import lines_of

        return self._measure(lambda make: lines_of(functions, make), path, method, options)

    def memory(self, path: str, *functions: Callable[..., Any], method: str = "GET", **options: Any) -> MemoryReport:
        """How much memory each line of these functions (default: the endpoint) took."""
        from labkit.profiling.memory import memory_of

        return self._measure(lambda make: memory_of(functions, make), path, method, options)

    def compare(self, path_a: str, path_b: str, *, seconds: float = 15.0, **options: Any) -> Comparison:
        """Whether two paths give the same answer, their statements, and how many times faster the second is.

        Args:
            seconds: limit of the whole; where it does not suffice the verdict is ``inconclusive``.
            options: see `labkit.comparison.compare_endpoints` (``method=``); the rest as in ``request``.
        """
        from labkit.comparison import compare_endpoints

        return self.run(lambda client: compare_endpoints(client, path_a, path_b, seconds=seconds, **options))

    def load(self, path: str | Mapping[str, float], **options: Any) -> LoadResult:
        """Many requests to a path, or several by weight; see `labkit.load.load`; the rest as in ``request``."""
        from labkit.load import load

        return self.run(lambda client: load(client, path, **options))

    def explain(self, statement: Any, parameters: Any = None) -> Plan:
        """How the database (of a recorded statement: the one that ran it) finds the rows: by scan or by index."""
        from labkit.profiling.plans import explain, explain_async

        engine = getattr(statement, "database", None) or self.engine
        if getattr(getattr(engine, "dialect", None), "is_async", False):
            return self.run(lambda client: explain_async(engine, statement, parameters))
        return explain(engine, statement, parameters)

    def sample(self, path: str, seconds: float = 3.0) -> SampleReport:
        """Where time goes while uvicorn serves the application under load, seen from outside by py-spy."""
        from labkit.profiling.sampling import sample

        target = self._target or getattr(getattr(self.app, "state", None), "factory", None)
        if target is None:
            raise MeasurementError(say("core.no_target"))
        return sample(target, path, seconds, factory=self._target is None, env=self._supplies.environment)

    def _measure(self, tool: Tool[T], path: str, method: str, options: dict[str, Any]) -> T:
        """Have a profiler make the request; it is given a function that makes it."""

        async def work(client: Client) -> T:
            async def make() -> Reply:
                return await client.measured(method, path, **options)

            return await tool(make)

        return self.run(work)
