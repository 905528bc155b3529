"""One asyncio loop on one daemon thread: where all of a client's work is done.

User threads and user loops only hand work over; so ``result()`` never blocks the loop that would bring it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger("executor")


class LoopThread:
    """Started at once; stopped by :meth:`stop`."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._ending = False
        #: Held while work is handed over: what has been taken is also done, or cancelled, before the loop is closed.
        self._handing_over = threading.RLock()
        self._takes_work = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._ending:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # asyncio lets these through; nobody else may end this thread
                log.exception("A callback tried to end the loop thread of the executor.")
        with self._handing_over:
            self._takes_work = False
        try:
            self.loop.run_until_complete(_cancel_the_rest())
        finally:
            self.loop.close()

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        """Have something called on the loop, soon. From any thread.

        Raises:
            RuntimeError: The loop has ended.
        """
        with self._handing_over:
            if not self._takes_work:
                raise RuntimeError("The executor has ended, and its event loop is closed.")
            self.loop.call_soon_threadsafe(callback, *args)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop; the future is for threads. From any thread.

        Where the loop has ended, the future has a RuntimeError that says so.
        """
        with self._handing_over:
            if self._takes_work:
                return asyncio.run_coroutine_threadsafe(work, self.loop)
        work.close()
        ended: Future[T] = Future()
        ended.set_exception(RuntimeError("The executor has ended, and its event loop is closed."))
        return ended

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine on the loop and wait for it; never from the loop itself.

        Raises:
            TimeoutError: It took longer than ``timeout_s``; it has been cancelled.
        """
        future = self.start(work)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    @property
    def is_current(self) -> bool:
        """Whether the caller is on this loop's thread."""
        return threading.current_thread() is self._thread

    def end(self) -> None:
        """Stop the loop, and wait for nothing. From any thread."""
        self._ending = True
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except RuntimeError:
            pass  # it has ended

    def stop(self) -> None:
        """Stop the loop, and wait for its thread unless it is the caller's own."""
        self.end()
        if not self.is_current:
            self._thread.join()


async def _cancel_the_rest() -> None:
    await asyncio.sleep(0)  # what was handed over last becomes a task here
    for _ in range(5):  # one that will not be cancelled is left behind
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in rest:
                task.cancel()
            await asyncio.wait(rest, timeout=1)
