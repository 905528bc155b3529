"""What the contract suites run in workers: importable, so that every implementation can pickle it."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

from tests.support import Gate

if TYPE_CHECKING:
    from pathlib import Path

# --- plain ones ---------------------------------------------------------------------------------------------------


def identity(value: Any) -> Any:
    return value


def square(x: int) -> int:
    return x * x


def add(x: int, y: int = 0) -> int:
    return x + y


def everything(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def pid(_: Any = None) -> int:
    return os.getpid()


def nothing(*_: Any) -> None:
    pass


def factorial(n: int) -> int:
    return 1 if n < 2 else n * factorial(n - 1)


def size(value: Any) -> int:
    return len(value)


def mark_and_return(directory: Path, value: Any) -> Any:
    """Leaves a trace of each execution: ``executions(directory)`` counts them."""
    Gate(directory).arrive()
    return value


class Callable_:
    """An instance that can be called, with a state."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return self.factor * x

    def method(self, x: int) -> int:
        return self.factor + x

    @classmethod
    def of_class(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x


# --- exceptions ---------------------------------------------------------------------------------------------------


class CustomError(Exception):
    """With an attribute beside its arguments."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class UnreadableError(Exception):
    """Pickles well, but cannot be opened again: its constructor wants other arguments than ``args``."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class LockedError(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


def fail(message: str = "as planned") -> NoReturn:
    raise ValueError(message)


def stop_iterating(kind: type[Exception]) -> NoReturn:
    raise kind


def fail_deeply(depth: int) -> NoReturn:
    if depth:
        fail_deeply(depth - 1)
    raise CustomError(42)


def fail_from() -> NoReturn:
    try:
        raise KeyError("the inner one")
    except KeyError as inner:
        raise CustomError(7) from inner


def fail_on(bad: int, x: int) -> int:
    if x == bad:
        raise CustomError(x)
    return x


def raise_(error: BaseException) -> NoReturn:
    raise error


def raise_locked() -> NoReturn:
    raise LockedError


def raise_unreadable() -> NoReturn:
    raise UnreadableError(1, 2)


def exit_with(code: Any) -> NoReturn:
    sys.exit(code)


# --- things that cannot be pickled, or not be opened --------------------------------------------------------------


def make_lock() -> Any:
    return threading.Lock()


def make_generator() -> Iterator[int]:
    yield 1


class UnreadableHere:
    """Cannot be opened in the process whose id it carries; made in a worker, that is the client."""

    def __init__(self, where: int) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        return _open_except_in, (self.where,)


def _open_except_in(where: int) -> UnreadableHere:
    if where == os.getpid():
        raise RuntimeError("cannot be opened here")
    return UnreadableHere(where)


class UnreadableElsewhere:
    """Cannot be opened in any process but the one that made it."""

    def __reduce__(self) -> Any:
        return _open_only_in, (os.getpid(),)


def _open_only_in(where: int) -> UnreadableElsewhere:
    if where != os.getpid():
        raise RuntimeError("cannot be opened elsewhere")
    return UnreadableElsewhere()


class UnpicklableWith:
    """Raises the given exception when it is pickled."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


# --- gates --------------------------------------------------------------------------------------------------------


def wait_at(gate: Gate, value: Any = None) -> Any:
    return gate.pass_through(value)


def wait_at_and_fail(gate: Gate) -> NoReturn:
    gate.pass_through()
    raise CustomError(1)


def wait_or_return(gate: Gate, holder: Any, value: Any) -> Any:
    """Waits at the gate if the value is the holder."""
    return gate.pass_through(value) if value == holder else value


def pid_at(gate: Gate, _: Any = None) -> int:
    """Used to see that calls run in processes of their own at the same time."""
    return int(gate.pass_through(os.getpid()))


# --- initializers -------------------------------------------------------------------------------------------------

_initialized: list[Any] = []


def initialize(*values: Any) -> None:
    _initialized.extend(values)


def initialized() -> list[Any]:
    return list(_initialized)


def fail_to_initialize() -> NoReturn:
    raise RuntimeError("this worker does not want to")


# --- hostile ones -------------------------------------------------------------------------------------------------


def exit_process(code: int = 3) -> NoReturn:
    os._exit(code)


def segfault() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def kill_self(gate: Gate) -> NoReturn:
    gate.arrive()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def kill_self_first(gate: Gate, value: Any) -> Any:
    """Is killed the first time, and returns the value after that."""
    gate.arrive()
    if gate.arrivals == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def leave_threads(gate: Gate) -> int:
    """Leaves a daemon and a stubborn thread behind."""
    for daemon in (True, False):
        threading.Thread(target=gate.pass_through, daemon=daemon).start()
    return os.getpid()


def leave_child_process() -> int:
    """Leaves a process behind that would live for an hour; returns its id."""
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,), daemon=False)
    child.start()
    assert child.pid is not None
    return child.pid


def ignore_sigterm(gate: Gate) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return gate.pass_through("still here")


def print_lines(megabytes: int) -> int:
    line = "l" * 1023
    for _ in range(megabytes * 1024):
        print(line)
    return megabytes


def print_one_line(megabytes: int) -> int:
    for _ in range(megabytes):
        sys.stdout.write("x" * 2**20)
    sys.stdout.flush()
    return megabytes


def write_stdout_directly(data: bytes) -> int:
    return os.write(1, data)


def close_standard_files() -> None:
    for fd in (0, 1, 2):
        os.close(fd)


def change_directory(path: str) -> str:
    os.chdir(path)
    return os.getcwd()


def fork_and_return() -> tuple[int, int]:
    """A forked child that ends by itself, as old libraries do it."""
    child = os.fork()
    if child == 0:
        os._exit(5)
    return os.getpid(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def set_recursion_limit_and_recurse(depth: int) -> int:
    return 0 if depth == 0 else 1 + set_recursion_limit_and_recurse(depth - 1)


# --- calls that compute in parallel themselves --------------------------------------------------------------------


def use_threads(count: int) -> list[int]:
    results: list[int] = []
    threads = [threading.Thread(target=lambda i=i: results.append(i * i)) for i in range(count)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(results)


def use_process_pool(count: int) -> list[int]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as inner:
        return list(inner.map(square, range(count)))


def use_multiprocessing(count: int, method: str) -> list[int]:
    with multiprocessing.get_context(method).Pool(2) as inner:
        return inner.map(square, range(count))


def submit_within(executor: Any, depth: int) -> int:
    """Each call submits the next to the executor it runs in, and waits for it."""
    if depth == 0:
        return 0
    return 1 + int(executor.submit(submit_within, executor, depth - 1).result())


def map_within(executor: Any, count: int) -> list[int]:
    return list(executor.map(square, range(count)))


def fibonacci_within(executor: Any, n: int) -> int:
    """A tree of nested calls."""
    if n < 2:
        return n
    one = executor.submit(fibonacci_within, executor, n - 1)
    other = executor.submit(fibonacci_within, executor, n - 2)
    return int(one.result()) + int(other.result())


# --- coroutines ---------------------------------------------------------------------------------------------------


async def square_slowly(x: int) -> int:
    import asyncio

    await asyncio.sleep(0)
    return x * x


async def fail_slowly() -> NoReturn:
    import asyncio

    await asyncio.sleep(0)
    raise CustomError(5)


# --- shapes of functions ------------------------------------------------------------------------------------------


def partials() -> list[tuple[Callable[..., Any], tuple[Any, ...], Any]]:
    """Callables of all kinds that plain pickle can take: callable, arguments, value."""
    return [
        (functools.partial(add, y=3), (4,), 7),
        (functools.partial(functools.partial(pow, 2), 3), (), 8),
        (Callable_(3), (5,), 15),
        (Callable_(3).method, (5,), 8),
        (Callable_.of_class, (5,), ("Callable_", 5)),
        (len, ("four",), 4),
        (str.upper, ("x",), "X"),
        ("a b".split, (), ["a", "b"]),
        (complex, (1, 2), 1 + 2j),
        (factorial, (20,), 2432902008176640000),
        (pickle.loads, (pickle.dumps([1]),), [1]),
    ]
