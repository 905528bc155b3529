"""A chunk: several items of one iterable, run as one call.

What runs in the worker is here, in a room that imports next to nothing: a worker opens it by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def run_chunk(function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Call ``function(item)`` for each item; the first exception ends the chunk."""
    return [function(item) for item in items]


def run_star_chunk(function: Callable[..., T], items: Iterable[Iterable[Any]]) -> list[T]:
    """Call ``function(*item)`` for each item; the first exception ends the chunk."""
    return [function(*item) for item in items]


def chunks_of(iterable: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Cut an iterable into tuples of ``size`` items; the last may be shorter.

    An exception of the iterable takes the items of its unfinished chunk with it.
    """
    items = iter(iterable)
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk


def even_chunksize(items: int, workers: int) -> int:
    """The chunk size that gives each worker about four chunks, as ``multiprocessing.Pool.map`` chooses it.

    Args:
        items: Number of items.
        workers: Number of worker processes.
    """
    return max(1, -(-items // (workers * 4)))
