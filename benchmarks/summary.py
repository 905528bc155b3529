"""Many records of one measurement → its medians."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One case with one peer over all repetitions."""

    case: str
    peer: str
    n: int
    #: Metric → the values of the repetitions that ended well, ascending.
    samples: Mapping[str, list[float]] = field(default_factory=dict)
    #: Why repetitions gave nothing: "not installed", "failed: …".
    troubles: tuple[str, ...] = ()

    def median(self, metric: str) -> float | None:
        """Return the median of `metric`, if it was measured at all."""
        values = self.samples.get(metric)
        return statistics.median(values) if values else None


Summary = Mapping[tuple[str, str], Entry]


def summarize(records: Iterable[Record]) -> Summary:
    """Return an entry for each (case, peer) in `records`."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["case"], record["peer"]].append(record)
    return {pair: _entry(group) for pair, group in groups.items()}


def versions(records: Iterable[Record]) -> dict[str, str]:
    """Return distribution → version, of all that took part."""
    found: dict[str, str] = {}
    for record in records:
        found.update(record.get("versions", {}))
    return dict(sorted(found.items()))


def _entry(group: list[Record]) -> Entry:
    samples: dict[str, list[float]] = defaultdict(list)
    for record in group:
        for metric, value in record.get("metrics", {}).items():
            samples[metric].append(value)
    first = group[0]
    ascending = {metric: sorted(values) for metric, values in samples.items()}
    return Entry(first["case"], first["peer"], first["n"], ascending, tuple(_troubles(group)))


def _troubles(group: list[Record]) -> Iterable[str]:
    for record in group:
        if record["status"] == "not installed":
            yield "not installed"
        elif record["status"] != "ok":
            yield f"failed: {record['reason']}"
