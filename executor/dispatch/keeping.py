"""Large values live as long as their calls: now and then the client tells the store which ones are still wanted.

In a daemon thread, through a store of its own: a server or disk that hangs holds up neither calls nor shutdown.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from executor.errors import KubeExecutorError
from executor.stores.base import BlobRef, ExpiringStore
from executor.stores.offload import blob_refs

if TYPE_CHECKING:
    import asyncio

    from executor.dispatch.dispatcher import Dispatcher
    from executor.stores.base import BlobStore

log = logging.getLogger("executor")

#: How often, in seconds; well below what stores give an unused value (a day, a week).
KEEP_EVERY_S = 3600.0


class Keeping:
    """Keeps the values of one client's calls, if its store is one from which they go by themselves.

    Args:
        dispatcher: Knows the calls.
        open_store: Opens the client's store anew.
    """

    def __init__(self, dispatcher: Dispatcher, open_store: Callable[[], BlobStore]) -> None:
        self._dispatcher, self._open_store = dispatcher, open_store
        self._timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None

    def start(self, store: BlobStore) -> None:
        """Begin, on the loop thread; the first time is now."""
        if isinstance(store, ExpiringStore):
            self._tick()

    def stop(self) -> None:
        """Let it be; a thread that is at it ends by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self._dispatcher.loop.loop.call_later(KEEP_EVERY_S, self._tick)
        if self._thread is None or not self._thread.is_alive():
            refs = wanted_refs(self._dispatcher)
            self._thread = threading.Thread(target=self._keep, args=(refs,), name="executor-keeping", daemon=True)
            self._thread.start()

    def _keep(self, refs: list[BlobRef]) -> None:
        try:
            with closing(self._open_store()) as store:
                assert isinstance(store, ExpiringStore)
                store.keep(refs)
        except (OSError, KubeExecutorError) as error:
            log.warning("Large values could not be kept alive, or swept: %s. Trying again later.", error)


def wanted_refs(dispatcher: Dispatcher) -> list[BlobRef]:
    """References of the large values of all calls that have no outcome yet. On the loop thread."""
    found: list[Any] = []
    with dispatcher.lock:
        for lane in dispatcher.lanes():
            found += lane.waiting_buffers()
    for batch in dispatcher.ledger.values():
        found += batch.cargo.all_buffers()
    return blob_refs(found)
