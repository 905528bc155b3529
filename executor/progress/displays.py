"""Where progress is shown: thin, one class for each kind of display."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from executor.progress.reporter import REDRAW_S, Display, Snapshot, status_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Seconds between two lines of text where there is no terminal.
LINE_INTERVAL_S = 5.0
_logger = logging.getLogger("executor.progress")


def best_display() -> Display:
    """Rich or tqdm if standard error is a terminal and one of them is installed; else lines of text."""
    if _is_terminal():
        if importlib.util.find_spec("rich") is not None:
            return RichDisplay()
        if importlib.util.find_spec("tqdm") is not None:
            return TqdmDisplay()
    return LineDisplay()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0


class LineDisplay:
    """A line every few seconds: to the log where the program has set one up, else to standard error.

    Nothing is said of what ends within the first seconds but the result.
    """

    interval_s = LINE_INTERVAL_S

    def show(self, snapshot: Snapshot) -> None:
        """Write a line."""
        if snapshot.elapsed_s >= 1:
            _write(f"{snapshot.label}: {status_text(snapshot)}")

    def close(self, snapshot: Snapshot) -> None:
        """Write the last line."""
        _write(f"{snapshot.label}: {status_text(snapshot)}")


def _write(line: str) -> None:
    if _logger.isEnabledFor(logging.INFO) and _logger.hasHandlers():
        _logger.info(line)
    elif sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


class TqdmDisplay:
    """A bar of tqdm."""

    interval_s = REDRAW_S

    def __init__(self) -> None:
        self._bar: Any = None

    def show(self, snapshot: Snapshot) -> None:
        """Redraw the bar."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=snapshot.total, desc=snapshot.label, file=sys.stderr, dynamic_ncols=True)
        self._bar.total, self._bar.n = snapshot.total, snapshot.done
        if snapshot.failed:
            self._bar.set_postfix_str(f"{snapshot.failed:,} failed", refresh=False)
        self._bar.refresh()

    def close(self, snapshot: Snapshot) -> None:
        """Leave the bar as it is at the end."""
        self.show(snapshot)
        self._bar.close()


class RichDisplay:
    """A bar of rich; several at a time share one live display, of which rich allows only one.

    Where the program has a live display of its own, lines of text take its place.
    """

    interval_s = REDRAW_S
    _lock = threading.Lock()
    _shared: Progress | None = None
    _users = 0

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._instead: LineDisplay | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Redraw the bar."""
        if self._progress is None and self._instead is None:
            self._begin(snapshot)
        if self._instead is not None:
            if not snapshot.closed:
                self._instead.show(snapshot)
        elif self._progress is not None and self._task is not None:
            self._progress.update(
                self._task,
                total=snapshot.total,
                completed=snapshot.done,
                status=status_text(snapshot),
                refresh=True,
            )

    def close(self, snapshot: Snapshot) -> None:
        """Leave the bar as it is at the end; the last one stops the live display."""
        if self._instead is None:
            self.show(snapshot)
        if self._instead is not None:
            self._instead.close(snapshot)
            return
        cls = type(self)
        with cls._lock:
            cls._users -= 1
            if cls._users == 0 and cls._shared is not None:
                cls._shared.stop()
                cls._shared = None

    def _begin(self, snapshot: Snapshot) -> None:
        from rich.errors import LiveError

        cls = type(self)
        with cls._lock:
            if cls._shared is None:
                progress = _rich_progress()
                try:
                    progress.start()
                except LiveError:
                    self._instead = LineDisplay()
                    self.interval_s = self._instead.interval_s
                    return
                cls._shared = progress
            cls._users += 1
            self._progress = cls._shared
        self._task = self._progress.add_task(snapshot.label, total=snapshot.total, status="")


def _rich_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,
    )
