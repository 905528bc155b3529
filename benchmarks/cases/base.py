"""What a case is: something to measure, its sizes, and who takes part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.peers.base import Peer

Metrics = dict[str, float]

#: Workers of every peer in every case.
WORKERS = 2


@dataclass(frozen=True)
class Sizes:
    """How many calls, for fast peers and for slow ones, in a full run and in a quick one."""

    full: int
    quick: int
    slow_full: int
    slow_quick: int

    def of(self, *, slow: bool, quick: bool) -> int:
        """Return the number of calls."""
        if slow:
            return self.slow_quick if quick else self.slow_full
        return self.quick if quick else self.full

    @classmethod
    def same(cls, full: int, quick: int) -> "Sizes":
        """Return sizes that do not tell slow peers from fast ones."""
        return cls(full, quick, full, quick)


@dataclass(frozen=True)
class Column:
    """A metric as the table shows it."""

    metric: str
    title: str
    #: Format of one value.
    form: str = "{:,.2f}"
    more_is_better: bool = False
    #: False for differences, which may be nothing or less.
    comparable: bool = True


@dataclass(frozen=True)
class Case:
    """`run` gets a loaded peer, starts it, and returns metrics; whoever called stops the peer."""

    name: str
    title: str
    run: Callable[[Peer, int], Metrics]
    sizes: Sizes
    #: The first column is the one that is plotted and compared.
    columns: tuple[Column, ...]
    #: Keys of the peers that take part.
    peers: tuple[str, ...]
    note: str = ""


def registry(cases: list[Case]) -> Mapping[str, Case]:
    """Return `cases` by name."""
    return {case.name: case for case in cases}
