"""What progress says, and who gets to see it."""

import fcntl
import logging
import os
import pty
import struct
import sys
import termios
import threading
import time

import pytest

from executor.progress import displays, reporter
from executor.progress.displays import LineDisplay, RichDisplay, TqdmDisplay
from executor.progress.reporter import (
    ProgressReporter,
    RateMeter,
    Snapshot,
    duration_text,
    progress_reporter,
    rate_text,
    status_text,
)


class Recorder:
    """A display that remembers."""

    interval_s = 0.0

    def __init__(self):
        self.shown = []
        self.closed = []

    def show(self, snapshot):
        self.shown.append(snapshot)

    def close(self, snapshot):
        self.closed.append(snapshot)


class Terminal:
    """A pseudo terminal as standard error, for the length of a ``with``: pytest sets its own between the phases."""

    def __enter__(self):
        self._mine, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        os.set_blocking(self._mine, False)
        self._stream, self._before = os.fdopen(its, "w", buffering=1), sys.stderr
        sys.stderr = self._stream
        return self

    def __exit__(self, *exc):
        sys.stderr = self._before
        self._stream.close()
        os.close(self._mine)

    def written(self):
        text = b""
        while True:
            try:
                text += os.read(self._mine, 65536)
            except BlockingIOError:
                return text.decode()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However loaded the machine is, what a display shows at the end is waited for."""
    monkeypatch.setattr(reporter, "_CLOSE_S", 30.0)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.42, "0.4 s"), (25, "0:25"), (59.9, "1:00"), (3723, "1:02:03"), (280_000, "3 d 5 h")],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0, "0.0/s"), (0.05, "3.0/min"), (2.5, "2.5/s"), (123_456.7, "123,457/s")])
def test_rates(rate, text):
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (Snapshot("f", 10_000, 1_234, 3, 4.0, 345.0), "12 % · 1,234/10,000 · 345/s · 0:25 left · 3 failed"),
        (Snapshot("f", None, 1_234, 0, 4.0, 345.0), "1,234 · 345/s"),
        (Snapshot("f", 10, 0, 0, 4.0, 0.0), "0 % · 0/10 · 0.0/s"),
        (Snapshot("f", 0, 0, 0, 0.1, 0.0, closed=True), "100 % · 0/0 · 0.0/s · in 0.1 s"),
        (Snapshot("f", 10, 10, 0, 65.0, 0.15, closed=True), "100 % · 10/10 · 9.0/min · in 1:05"),
    ],
)
def test_status(snapshot, text):
    assert status_text(snapshot) == text


def test_the_rate_is_that_of_the_last_seconds():
    meter = RateMeter(0.0)
    assert meter.rate(0.0, 0) == 0.0
    assert meter.rate(1.0, 100) == pytest.approx(100)
    for second in range(2, 60):
        rate = meter.rate(float(second), 100 + second)
    assert rate == pytest.approx(1.0, abs=0.01)


def test_a_reporter_ends_by_itself_when_all_is_done():
    display = Recorder()
    reporter = ProgressReporter(10, "f", display)
    reporter.advance(6, 1)
    reporter.advance(4)
    reporter._thread.join(5)
    assert [(s.done, s.failed, s.closed) for s in display.closed] == [(10, 1, True)]


def test_a_reporter_learns_its_total_late():
    display = Recorder()
    with ProgressReporter(None, "f", display) as reporter:
        reporter.advance(5)
        reporter.set_total(5)
        reporter._thread.join(5)
        assert display.closed[0].total == 5


def test_close_shows_the_last_picture_once():
    display = Recorder()
    reporter = ProgressReporter(10, "f", display)
    reporter.advance(3)
    reporter.close()
    reporter.close(wait=True)
    assert [s.done for s in display.closed] == [3]


def test_counts_from_many_threads_add_up():
    display = Recorder()
    reporter = ProgressReporter(None, "f", display)
    threads = [threading.Thread(target=lambda: [reporter.advance(1) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reporter.close(wait=True)
    assert display.closed[0].done == 8000


def test_a_redraw_waits_its_turn():
    display = Recorder()
    reporter = ProgressReporter(None, "f", display)
    start = time.monotonic()
    for _ in range(20_000):
        reporter.advance(1)
    reporter.close(wait=True)
    assert len(display.shown) <= (time.monotonic() - start) / 0.1 + 2


def test_a_display_that_fails_harms_nobody():
    class Broken(Recorder):
        def show(self, snapshot):
            raise OSError(5, "the terminal is gone")

    reporter = ProgressReporter(10, "f", Broken())
    reporter.advance(1)
    reporter.close(wait=True)


def test_without_terminal_lines_go_to_standard_error(capsys):
    with progress_reporter(3, "square") as reporter:
        reporter.advance(3, 1)
    said = capsys.readouterr().err
    assert said.startswith("square: 100 % · 3/3 · ")
    assert said.endswith("1 failed\n")
    assert said.count("\n") == 1


def test_lines_go_to_the_log_where_there_is_one(caplog, capsys):
    with caplog.at_level(logging.INFO, "executor.progress"):
        LineDisplay().show(Snapshot("f", 10, 5, 0, 2.0, 1.0))
    assert caplog.messages == ["f: 50 % · 5/10 · 1.0/s · 0:05 left"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("installed", "expected"),
    [({"rich", "tqdm"}, RichDisplay), ({"tqdm"}, TqdmDisplay), (set(), LineDisplay)],
)
def test_a_terminal_gets_the_best_display_installed(terminal, monkeypatch, installed, expected):
    find = displays.importlib.util.find_spec
    monkeypatch.setattr(
        displays.importlib.util,
        "find_spec",
        lambda name: (name in installed or None) if name in ("rich", "tqdm") else find(name),
    )
    with terminal:
        assert type(displays.best_display()) is expected


def test_rich_shows_two_bars_at_a_time(terminal):
    pytest.importorskip("rich")
    with terminal:
        one = ProgressReporter(10, "first", RichDisplay())
        two = ProgressReporter(None, "second", RichDisplay())
        one.advance(4, 1)
        two.advance(7)
        time.sleep(0.3)
        one.close(wait=True)
        two.close(wait=True)
        text = terminal.written()
    assert "first" in text
    assert "second" in text
    assert "4/10" in text
    assert "1 failed" in text
    assert RichDisplay._shared is None


def test_rich_leaves_a_display_of_the_users_alone(terminal, monkeypatch):
    pytest.importorskip("rich")
    from rich.errors import LiveError
    from rich.progress import Progress

    def refuse(self):
        raise LiveError("only one live display")

    monkeypatch.setattr(Progress, "start", refuse)
    with terminal:
        display = RichDisplay()
        display.show(Snapshot("f", 10, 1, 0, 2.0, 1.0))
        display.close(Snapshot("f", 10, 10, 0, 3.0, 1.0, closed=True))
        assert "f: 100 % · 10/10" in terminal.written()
    assert RichDisplay._users == 0


def test_tqdm_shows_a_bar(terminal):
    pytest.importorskip("tqdm")
    with terminal:
        with ProgressReporter(10, "f", TqdmDisplay()) as reporter:
            reporter.advance(10, 2)
        text = terminal.written()
    assert "10/10" in text
    assert "2 failed" in text
