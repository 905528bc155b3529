"""What the project has promised itself, and whether a run kept it."""

from dataclasses import dataclass

from benchmarks.cases import CASES
from benchmarks.cases.base import Column
from benchmarks.peers import peer
from benchmarks.summary import Summary

OURS = "ours"


@dataclass(frozen=True)
class Target:
    """A bound for one of our metrics: a figure, or a multiple of what a peer did in the same run."""

    case: str
    metric: str
    bound: float
    at_least: bool = False
    #: Key of the peer of which `bound` is a multiple.
    of: str | None = None
    #: Whose metric is judged.
    who: str = OURS

    @property
    def column(self) -> Column:
        """The metric's column in the table of its case."""
        return next(column for column in CASES[self.case].columns if column.metric == self.metric)

    def threshold(self, summary: Summary) -> float | None:
        """Return the bound in the metric's own unit, or None if the peer has no figure."""
        if self.of is None:
            return self.bound
        theirs = _median(summary, self.case, self.of, self.metric)
        return None if theirs is None else self.bound * theirs

    def measured(self, summary: Summary) -> float | None:
        """Return our figure."""
        return _median(summary, self.case, self.who, self.metric)

    def met(self, summary: Summary) -> bool | None:
        """Return whether the target was met, or None if it cannot be told."""
        measured, threshold = self.measured(summary), self.threshold(summary)
        if measured is None or threshold is None:
            return None
        return measured >= threshold if self.at_least else measured <= threshold

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        bound = f"{self.bound:g} × {peer(self.of).title}" if self.of else self.column.form.format(self.bound)
        return f"{sign} {bound}"


def _median(summary: Summary, case: str, key: str, metric: str) -> float | None:
    entry = summary.get((case, key))
    return entry.median(metric) if entry else None


def _half_of_slow_peers(case: str) -> list[Target]:
    return [Target(case, "p50_ms", 0.5, of=key) for key in ("ray", "parsl", "celery")]


TARGETS = [
    Target("submit", "calls_per_s", 30_000, at_least=True),
    Target("submit", "calls_per_s", 2, at_least=True, of="process-pool"),
    *(Target("submit", "calls_per_s", 10, at_least=True, of=key) for key in ("ray", "dask", "parsl")),
    Target("map", "items_per_s", 1_000_000, at_least=True),
    Target("map", "items_per_s", 5, at_least=True, of="ray-pool"),
    Target("map_buffersize", "peak_mib", 16),
    Target("round_trip", "p50_ms", 4, of="redis-loop"),
    *_half_of_slow_peers("round_trip"),
    Target("paced", "p50_ms", 3, of="redis-loop"),
    *_half_of_slow_peers("paced"),
    Target("idle", "cpu_percent", 5),
    Target("sleep_1ms", "efficiency", 0.9, at_least=True),
    Target("sleep_10ms", "efficiency", 0.97, at_least=True),
    Target("sleep_1s", "efficiency", 0.97, at_least=True),
    Target("sleep_mixed", "tail_s", 1.0),
    Target("array", "median_s", 0.5, of="process-pool"),
    Target("array", "median_s", 1.0, of="ray"),
    Target("array", "median_s", 0.5, of="process-pool", who="ours-redis"),
    Target("array", "median_s", 1.5, of="ray", who="ours-redis"),
    Target("start", "start_s", 1.0),
    Target("import", "beyond_ms", 15),
    Target("idle", "child_rss_mib", 60),
    Target("idle", "parent_rss_mib", 60),
    Target("pending", "bytes_per_call", 2_000),
]
