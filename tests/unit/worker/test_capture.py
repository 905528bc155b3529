"""What children print, passed on in whole lines, and the last of it kept."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from executor.worker import capture
from executor.worker.capture import KEPT_BYTES, LINE_BYTES, Tail


@pytest.fixture
def printing() -> Callable[..., tuple[bytes, Tail]]:
    """Prints pieces through a capture; gives what came out, and the tail."""

    def run(*pieces: bytes) -> tuple[bytes, Tail]:
        target_read, target_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        one, tail = capture.Capture(target_write, target_write), Tail()
        one.add(out_read, err_read, tail)
        for piece in pieces:
            os.write(out_write, piece)
        os.close(out_write)
        os.close(err_write)
        tail.wait(5)
        one.drain(5)
        os.close(target_write)
        with open(target_read, "rb") as reader:
            return reader.read(), tail

    return run


def test_all_that_is_printed_comes_out(printing: Callable[..., tuple[bytes, Tail]]) -> None:
    assert printing(b"one\ntwo", b" more\nno end")[0] == b"one\ntwo more\nno end"


def test_a_line_without_an_end_is_passed_on_in_pieces() -> None:
    pieces: list[bytes] = []
    stream = capture._Stream(pieces.append, Tail())
    for _ in range(4):
        stream.feed(b"x" * (LINE_BYTES // 2 + 1))
    assert sum(map(len, pieces)) >= LINE_BYTES


def test_the_tail_keeps_the_last_of_it_since_the_mark() -> None:
    tail = Tail()
    tail.add(b"before")
    tail.mark()
    assert tail.text() == ""
    tail.add(b"after \xff")
    assert tail.text() == "after \\xff"
    tail.add(b"y" * 3 * KEPT_BYTES + b"end")
    assert len(tail.text()) == KEPT_BYTES
    assert tail.text(3) == "end"
