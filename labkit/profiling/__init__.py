"""Looks into a running application: its SQL, its functions, its lines, its memory."""

from labkit.profiling.calls import Function, Profile, profile_async, profile_endpoint
from labkit.profiling.lines import LineReport, lines_of
from labkit.profiling.memory import MemoryReport, memory_of
from labkit.profiling.nplus1 import Finding
from labkit.profiling.plans import Plan, activity, explain, top_statements
from labkit.profiling.queries import QueryRecorder, QueryReport, record
from labkit.profiling.sampling import SampleReport, sample

__all__ = [
    "Finding",
    "Function",
    "LineReport",
    "MemoryReport",
    "Plan",
    "Profile",
    "QueryRecorder",
    "QueryReport",
    "SampleReport",
    "activity",
    "explain",
    "lines_of",
    "memory_of",
    "profile_async",
    "profile_endpoint",
    "record",
    "sample",
    "top_statements",
]
