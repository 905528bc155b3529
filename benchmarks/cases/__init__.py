"""The cases, in the order of the tables."""

from benchmarks.cases import array, idle, imports, latency, pending, sleeping, start, throughput
from benchmarks.cases.base import registry

CASES = registry(
    [
        *throughput.CASES,
        *latency.CASES,
        *sleeping.CASES,
        *array.CASES,
        *start.CASES,
        *imports.CASES,
        *idle.CASES,
        *pending.CASES,
    ]
)
