"""Importing Celery without what it imports only because it happens to be there.

billiard, kombu and Celery try ``cffi``, ``yaml`` and ``psutil`` and do without them; together these take a quarter of
a worker's start. They are hidden while Celery is imported, and found again afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

_OPTIONAL = ("cffi", "yaml", "psutil")


@contextmanager
def lean_imports(enabled: bool) -> Iterator[None]:
    """Hide what is optional.

    Args:
        enabled: False for workers with a user's app, which may serialize with YAML.
    """
    hidden = [name for name in _OPTIONAL if enabled and name not in sys.modules]
    for name in hidden:
        sys.modules[name] = cast("Any", None)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
