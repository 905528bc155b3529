"""Progress of a long ``map``: ``ex.map(f, xs, progress=True)``.

::

    loop thread: advance(done, failed)     two additions for each batch that arrives
    progress thread: every 0.1 s           snapshot ──► display: rich, tqdm, or a line of text every few seconds

A terminal that blocks (Ctrl-S) holds up the progress thread and nobody else.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from typing import NamedTuple, Protocol, Self

#: How often a terminal is redrawn.
REDRAW_S = 0.1
#: The rate shown is that of the last seconds.
RATE_WINDOW_S = 15.0
#: How long ``close`` waits for the last picture.
_CLOSE_S = 2.0
_logger = logging.getLogger("executor.progress")


class Snapshot(NamedTuple):
    """How far it has come.

    Attributes:
        label: What is being done.
        total: Items in all, or None while that is unknown.
        done: Items with an outcome, failed ones among them.
        failed: Items that raised.
        elapsed_s: Seconds since the start.
        rate_per_s: Items a second lately.
        closed: No more will come.
    """

    label: str
    total: int | None
    done: int
    failed: int
    elapsed_s: float
    rate_per_s: float
    closed: bool = False

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at this rate, or None where nobody can tell."""
        if self.total is None or self.rate_per_s <= 0:
            return None
        return max(self.total - self.done, 0) / self.rate_per_s

    @property
    def complete(self) -> bool:
        """Whether every item has an outcome."""
        return self.total is not None and self.done >= self.total


class Display(Protocol):
    """Shows snapshots to somebody. Used by one thread."""

    #: Seconds between two pictures.
    interval_s: float

    def show(self, snapshot: Snapshot) -> None:
        """Show the state of things."""
        ...

    def close(self, snapshot: Snapshot) -> None:
        """Show it for the last time."""
        ...


class RateMeter:
    """Items a second over the last :data:`RATE_WINDOW_S`."""

    def __init__(self, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])

    def rate(self, now: float, done: int) -> float:
        """The rate, with a new mark."""
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - RATE_WINDOW_S:
            self._marks.popleft()
        then, before = self._marks[0]
        return (done - before) / (now - then) if now > then else 0.0


class ProgressReporter:
    """Counts, and has a display show it until all is done or it is closed.

    Args:
        total: Items in all, or None while that is unknown (:meth:`set_total`).
        label: What is being done.
        display: Where it is shown.
    """

    def __init__(self, total: int | None, label: str, display: Display) -> None:
        self.total, self.label = total, label
        self.done = self.failed = 0
        self._display = display
        self._started = time.monotonic()
        self._meter = RateMeter(self._started)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="executor-progress", daemon=True)
        self._thread.start()
        atexit.register(self._close_at_exit)  # a terminal must get its cursor back

    def advance(self, done: int, failed: int = 0) -> None:
        """Note that ``done`` more items have an outcome; ``failed`` of them raised. Takes a microsecond."""
        with self._lock:
            self.done += done
            self.failed += failed

    def set_total(self, total: int) -> None:
        """The input has ended: so many items in all."""
        self.total = total

    def close(self, *, wait: bool = False) -> None:
        """Show the last picture. May be called again.

        Args:
            wait: Return when it has been shown; never on an event loop.
        """
        self._closing.set()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close(wait=True)

    def _close_at_exit(self) -> None:
        self.close(wait=True)

    def _run(self) -> None:
        try:
            self._show_until_closed()
        except Exception:
            _logger.debug("progress cannot be shown", exc_info=True)
        finally:
            atexit.unregister(self._close_at_exit)

    def _show_until_closed(self) -> None:
        next_show = 0.0
        snapshot = self._snapshot(closed=False)
        while not snapshot.complete:
            if snapshot.elapsed_s >= next_show:
                self._display.show(snapshot)
                next_show = snapshot.elapsed_s + self._display.interval_s
            if self._closing.wait(REDRAW_S):
                break
            snapshot = self._snapshot(closed=False)
        self._display.close(self._snapshot(closed=True))

    def _snapshot(self, *, closed: bool) -> Snapshot:
        now = time.monotonic()
        with self._lock:
            done, failed = self.done, self.failed
        elapsed_s = now - self._started
        rate = self._meter.rate(now, done)
        if closed:
            rate = done / elapsed_s if elapsed_s > 0 else 0.0
        return Snapshot(self.label, self.total, done, failed, elapsed_s, rate, closed)


def progress_reporter(total: int | None, label: str) -> ProgressReporter:
    """A reporter with the best display there is: rich or tqdm on a terminal, lines of text elsewhere.

    Args:
        total: Items in all, or None while that is unknown.
        label: What is being done, e.g. the name of the function.
    """
    from executor.progress.displays import best_display

    return ProgressReporter(total, label, best_display())


def status_text(snapshot: Snapshot) -> str:
    """``12 % · 1,234/10,000 · 345/s · 0:25 left · 3 failed``: all but the label and the bar."""
    parts = [f"{snapshot.done:,}"]
    if snapshot.total is not None:
        percent = 100 * snapshot.done // snapshot.total if snapshot.total else 100
        parts = [f"{percent} %", f"{snapshot.done:,}/{snapshot.total:,}"]
    parts.append(rate_text(snapshot.rate_per_s))
    if snapshot.closed:
        parts.append(f"in {duration_text(snapshot.elapsed_s)}")
    elif snapshot.eta_s is not None:
        parts.append(f"{duration_text(snapshot.eta_s)} left")
    if snapshot.failed:
        parts.append(f"{snapshot.failed:,} failed")
    return " · ".join(parts)


def rate_text(rate_per_s: float) -> str:
    """``345/s``, ``2.5/s``, or for slow things ``4.0/min``."""
    if rate_per_s >= 10:
        return f"{rate_per_s:,.0f}/s"
    if rate_per_s >= 0.5 or rate_per_s <= 0:
        return f"{rate_per_s:.1f}/s"
    return f"{60 * rate_per_s:.1f}/min"


def duration_text(seconds: float) -> str:
    """``0.4 s``, ``0:25``, ``1:02:03``, ``3 d 4 h``."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
