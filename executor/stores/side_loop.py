"""An asyncio loop on a thread of its own, for stores whose client is asynchronous.

``asyncio`` runs on the side, threads wait for it::

    any thread ── run(work) ──► loop thread ── many requests at once ──► server
               ◄── result ────

A thread that runs a loop of its own may wait here, too: it blocks, as with every other store, and nothing hangs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: How long :meth:`SideLoop.close` lets background work finish, in seconds.
_GRACE_S = 5.0


class SideLoop:
    """Runs at once; of the process that made it, and of no fork of it.

    Args:
        name: Of its thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        #: Held while work is handed over: what has been taken is also done, or cancelled, before the loop ends.
        self._handing_over = threading.Lock()
        self._ended = False
        self._beside: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it; if the waiting is interrupted, it is cancelled.

        Raises:
            RuntimeError: It has been closed.
        """
        with self._handing_over:
            if self._ended:
                work.close()
                raise RuntimeError("The store was closed while it was being used.")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin something nobody waits for; only from the loop itself. It must not raise."""
        task = self._loop.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Give background work a moment, cancel what is left, run ``last``, and end the thread; once."""
        with self._handing_over:
            self._ended = True
            finished = asyncio.run_coroutine_threadsafe(self._finish(last), self._loop)
        try:
            finished.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    async def _finish(self, last: Coroutine[Any, Any, None]) -> None:
        if self._beside:
            await asyncio.wait(self._beside, timeout=_GRACE_S)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=1)
        await last
        await self._loop.shutdown_default_executor()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
