"""What a benchmark asks of a peer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol


class Handle(Protocol):
    """A call that is on its way."""

    def result(self) -> Any:
        """Wait for the value of the call."""


class Peer(ABC):
    """One way of running calls in other processes of this machine.

    An adapter imports its peer in `load` and not before, so that a peer which is missing is told apart from one that
    fails, and the time of its import can be measured.
    """

    #: As the tables call it.
    title: ClassVar[str]
    #: The distributions whose versions the report names.
    distributions: ClassVar[tuple[str, ...]] = ()
    #: What a program writes to get hold of it.
    import_statement: ClassVar[str]
    #: Gets the smaller sizes, lest a run takes hours.
    slow: ClassVar[bool] = False
    #: How `map` is done where that is not obvious; stands below the table.
    map_note: ClassVar[str] = ""

    #: The bare loop has one worker, whatever is asked.
    single_worker: ClassVar[bool] = False

    @abstractmethod
    def load(self) -> None:
        """Import the peer."""

    @abstractmethod
    def start(self, workers: int) -> None:
        """Start with `workers` processes that run one call at a time each."""

    @abstractmethod
    def submit(self, fn: Callable[..., Any], *arguments: Any) -> Handle:
        """Send one call."""

    def results(self, handles: Sequence[Handle]) -> list[Any]:
        """Wait for all calls in the way the peer likes best."""
        return [handle.result() for handle in handles]

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        """Apply `fn` to each item in the way the peer's manual advises for many small items."""
        raise NotImplementedError(f"{self.title} has no map")

    @abstractmethod
    def stop(self) -> None:
        """Stop all that `start` started."""


def pool_chunk(n_items: int, workers: int) -> int:
    """Return the chunk size that `multiprocessing.Pool.map` would choose: four chunks for each worker."""
    return max(1, -(-n_items // (4 * workers)))
