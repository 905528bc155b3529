"""Messages over a socket pair, cut anywhere."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from executor.worker import pipe


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def read_all(inlet: pipe.Inlet, count: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while len(found) < count and not inlet.eof:
        found += [(kind, bytes(body)) for kind, body in inlet.read()]
    return found


def test_small_messages_arrive_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    for number in range(50):
        pipe.send(one, number % 7, b"x" * number, memoryview(b"y"))
    assert read_all(pipe.Inlet(other, wait=True), 50) == [(n % 7, b"x" * n + b"y") for n in range(50)]


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 5_000_000])
def test_messages_of_any_size_arrive(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    one, other = pair
    body = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    sender = threading.Thread(target=lambda: (pipe.send(one, 5, body), pipe.send(one, 6, b"after")))
    sender.start()
    assert read_all(pipe.Inlet(other, wait=True), 2) == [(5, body), (6, b"after")]
    sender.join()


@pytest.mark.parametrize("step", [1, 3, 8, 9, 10])
def test_messages_in_small_pieces_are_put_together(pair: tuple[socket.socket, socket.socket], step: int) -> None:
    one, other = pair
    inlet = pipe.Inlet(other, wait=False)
    copy, into = socket.socketpair()
    with copy, into:
        pipe.send(into, 1, b"first")
        pipe.send(into, 2, b"")
        pipe.send(into, 3, b"third")
        data = copy.recv(1000)
    found: list[tuple[int, bytes]] = []
    for start in range(0, len(data), step):
        one.sendall(data[start : start + step])
        found += [(kind, bytes(body)) for kind, body in inlet.read()]
    assert found == [(1, b"first"), (2, b""), (3, b"third")]


def test_reading_without_waiting_takes_nothing_where_nothing_is(pair: tuple[socket.socket, socket.socket]) -> None:
    inlet = pipe.Inlet(pair[1], wait=False)
    assert inlet.read() == []
    assert not inlet.eof


@pytest.mark.parametrize("begun", [b"", b"\x01", pipe._HEAD.pack(1, 100_000) + b"x" * 70_000])
def test_the_end_is_seen_even_within_a_message(pair: tuple[socket.socket, socket.socket], begun: bytes) -> None:
    one, other = pair
    inlet = pipe.Inlet(other, wait=True)
    sender = threading.Thread(target=lambda: (one.sendall(begun), one.close()))
    sender.start()
    while not inlet.eof:
        assert inlet.read() == []
    sender.join()
