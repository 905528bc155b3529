"""Primes, block by block: the work of the example, as it would be written for any pool of processes."""

import math
from itertools import pairwise

#: The primes that every block needs; `prepare` fills it, once in each worker process.
small_primes: list[int] = []


def sieve(limit: int) -> list[int]:
    """All primes up to `limit`, by Eratosthenes."""
    flags = bytearray([1]) * (limit + 1)
    flags[:2] = b"\0\0"
    for n in range(2, math.isqrt(limit) + 1):
        if flags[n]:
            flags[n * n :: n] = bytes(len(range(n * n, limit + 1, n)))
    return [n for n in range(limit + 1) if flags[n]]


def prepare(limit: int) -> None:
    """Runs once in each worker process: the primes that every block needs."""
    small_primes[:] = sieve(math.isqrt(limit))


def primes_in(low: int, high: int) -> list[int]:
    """The primes in `low <= n < high`."""
    flags = bytearray([1]) * (high - low)
    for prime in small_primes:
        first = max(prime * prime, -(-low // prime) * prime) - low
        if first < len(flags):
            flags[first::prime] = bytes(len(range(first, len(flags), prime)))
    return [low + index for index, flag in enumerate(flags) if flag and low + index > 1]


def count(low: int, high: int) -> int:
    return len(primes_in(low, high))


def widest_gap(block: tuple[int, int]) -> tuple[int, int, int]:
    """The widest gap between two primes of a block: (width, from, to)."""
    return max(((b - a, a, b) for a, b in pairwise(primes_in(*block))), default=(0, 0, 0))
