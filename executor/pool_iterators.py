"""What ``Pool.imap`` and ``Pool.imap_unordered`` hand out, and how far ahead of it their input is taken."""

from __future__ import annotations

import threading
from collections import deque
from multiprocessing import TimeoutError  # the very class that callers of a Pool catch
from typing import Any, Generic, TypeVar

from executor.pool_results import Home, Job

__all__ = ["IMapIterator", "IMapUnorderedIterator", "Window"]

T = TypeVar("T")


class Window:
    """How many calls of one iterable may be unfinished; whoever waits is woken when half of them are done.

    Args:
        size: Number of calls.
    """

    def __init__(self, size: int) -> None:
        self._size, self._out, self._full = size, 0, False
        self._changed = threading.Condition(threading.Lock())

    def enter(self) -> None:
        """One call more; waits while the window is full."""
        with self._changed:
            if self._out >= self._size:
                self._full = True
                self._changed.wait_for(lambda: self._out <= self._size // 2)
                self._full = False
            self._out += 1

    def leave(self) -> None:
        """One call is done."""
        with self._changed:
            self._out -= 1
            if self._full and self._out <= self._size // 2:
                self._changed.notify()


class IMapIterator(Job, Generic[T]):
    """The result of ``imap``: values in order, each as soon as it and those before it are there.

    Args:
        pool: Where the calls are made.
        chunked: Whether each chunk's value is a list of values. Then, as in the standard library, an exception ends
            the iteration; without, one can go on with ``next()`` after it.
    """

    def __init__(self, pool: Home, *, chunked: bool = False) -> None:
        self._changed = threading.Condition()
        self._chunked = chunked
        self._outcomes: deque[tuple[bool, Any]] = deque()  # of chunks, as they may be handed on
        self._early: dict[int, tuple[bool, Any]] = {}  # arrived before their turn
        self._values: deque[T] = deque()  # of the chunk that is being handed on
        self._placed = 0
        self._waiting = 0  # threads in next(): waking nobody is not free
        self._length: int | None = None
        self._aborted: BaseException | None = None
        self._failed = False  # a chunk of several has
        super().__init__(pool)

    def __iter__(self) -> IMapIterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """The next value.

        Args:
            timeout: Seconds to wait for it; None is without end.

        Raises:
            StopIteration: There are no more.
            multiprocessing.TimeoutError: It was not there in time.
            Exception: What the call raised, or the iterable.
        """
        with self._changed:
            if not self._can_answer() and not self._wait(timeout):
                raise TimeoutError
            if self._values:
                return self._values.popleft()
            if self._failed or not self._outcomes:
                raise self._aborted or StopIteration
            success, value = self._outcomes.popleft()
            if not success:
                self._failed = self._chunked
                raise value
            if not self._chunked:
                return value  # type: ignore[no-any-return]
            self._values.extend(value)
            return self._values.popleft()

    def _wait(self, timeout: float | None) -> bool:
        self._waiting += 1
        try:
            return self._changed.wait_for(self._can_answer, timeout)
        finally:
            self._waiting -= 1

    def _can_answer(self) -> bool:
        return bool(self._values or self._outcomes or self._failed or self._aborted or self._is_complete())

    def _is_complete(self) -> bool:
        return self._placed == self._length

    def _settle(self, index: int, success: bool, value: Any) -> None:
        with self._changed:
            self._place(index, (success, value))
            if self._waiting and self._can_answer():
                self._changed.notify_all()
            complete = self._is_complete()
        if complete:
            self._leave()

    def _place(self, index: int, outcome: tuple[bool, Any]) -> None:
        self._early[index] = outcome
        while self._placed in self._early:
            self._outcomes.append(self._early.pop(self._placed))
            self._placed += 1

    def _set_length(self, length: int) -> None:
        """The iterable has ended: there are ``length`` chunks."""
        with self._changed:
            self._length = length
            self._changed.notify_all()
            complete = self._is_complete()
        if complete:
            self._leave()

    def _abort(self, error: BaseException) -> None:
        with self._changed:
            if not self._is_complete():
                self._aborted = error
            self._changed.notify_all()
        self._leave()


class IMapUnorderedIterator(IMapIterator[T]):
    """The result of ``imap_unordered``: values as they arrive."""

    def _place(self, index: int, outcome: tuple[bool, Any]) -> None:
        self._outcomes.append(outcome)
        self._placed += 1
