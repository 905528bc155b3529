"""Calls that crash, leave things behind or shout: a clear error or the right answer, and nobody else harmed."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from executor.errors import ChildCrashed, SerializationError, WorkerLost
from tests.contract import calls
from tests.support import DEADLINE_S, Gate, Script, until

NewGate = Callable[[], Gate]


@contextmanager
def nobody_harmed(executor: Any, gate: Gate) -> Iterator[None]:
    """A call runs in the other worker all the while: it goes on, and runs once; the executor is usable after it."""
    neighbour = executor.submit(calls.wait_at, gate, "unharmed")
    gate.wait_arrivals()
    yield
    assert not neighbour.done()
    gate.open()
    assert neighbour.result(DEADLINE_S) == "unharmed"
    assert gate.arrivals == 1
    assert list(executor.map(calls.square, range(10))) == [x * x for x in range(10)]


class CrashContract:
    @pytest.mark.parametrize("code", [0, 1, 3, 255])
    def test_os_exit(self, executor: Any, gate: Gate, code: int) -> None:
        with nobody_harmed(executor, gate), pytest.raises(ChildCrashed) as caught:
            executor.submit(calls.exit_process, code).result(DEADLINE_S)
        assert caught.value.details["exit_code"] == code

    @pytest.mark.parametrize(("function", "name"), [(calls.segfault, "SIGSEGV"), (calls.abort, "SIGABRT")])
    def test_fatal_signals_of_its_own(self, executor: Any, gate: Gate, function: Any, name: str) -> None:
        with nobody_harmed(executor, gate), pytest.raises(ChildCrashed, match=name) as caught:
            executor.submit(function).result(DEADLINE_S)
        assert caught.value.details["signal"] == name

    def test_killed_again_and_again(self, executor: Any, new_gate: NewGate) -> None:
        trace = new_gate()
        with nobody_harmed(executor, new_gate()), pytest.raises(WorkerLost) as caught:
            executor.submit(calls.kill_self, trace).result(DEADLINE_S)
        assert trace.arrivals == 3  # max_deliveries
        assert len(caught.value.deaths) == 3
        assert "SIGKILL" in str(caught.value)

    def test_killed_once_runs_again(self, executor: Any, new_gate: NewGate) -> None:
        trace = new_gate()
        with nobody_harmed(executor, new_gate()):
            assert executor.submit(calls.kill_self_first, trace, "value").result(DEADLINE_S) == "value"
        assert trace.arrivals == 2

    def test_at_most_once(self, executor: Any, new_gate: NewGate) -> None:
        trace = new_gate()
        with nobody_harmed(executor, new_gate()), pytest.raises(WorkerLost):
            executor.options(max_deliveries=1).submit(calls.kill_self_first, trace, "value").result(DEADLINE_S)
        assert trace.arrivals == 1

    def test_crash_in_a_map_hits_its_item_only(self, executor: Any) -> None:
        results = executor.map(_exit_on, [7] * 20, range(20))
        assert [next(results) for _ in range(7)] == list(range(7))
        with pytest.raises(ChildCrashed):
            next(results)
        assert list(executor.map(calls.square, range(10))) == [x * x for x in range(10)]

    def test_kill_in_a_map_runs_its_item_again(self, executor: Any, gate: Gate) -> None:
        assert list(executor.map(_KillFirstOn(gate, 7), range(20))) == list(range(20))
        assert gate.arrivals == 2

    def test_many_crashes_among_many_calls(self, executor: Any) -> None:
        futures = [executor.submit(_exit_on_multiple, 10, x) for x in range(50)]
        for x, future in enumerate(futures):
            if x % 10 == 0:
                assert isinstance(future.exception(DEADLINE_S), ChildCrashed)
            else:
                assert future.result(DEADLINE_S) == x

    @pytest.mark.parametrize("code", [None, 0, 3, "text"])
    def test_sys_exit_is_an_exception_like_any_other(self, executor: Any, gate: Gate, code: Any) -> None:
        with nobody_harmed(executor, gate):
            error = executor.submit(calls.exit_with, code).exception(DEADLINE_S)
        assert isinstance(error, SystemExit)
        assert error.code == code

    def test_crash_tells_the_last_output(self, executor: Any, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ChildCrashed) as caught:
            executor.submit(_print_and_exit, "last words").result(DEADLINE_S)
        assert "last words" in caught.value.details["output"]


class LeftoverContract:
    def test_threads_left_behind(self, executor: Any, new_gate: NewGate) -> None:
        stay = new_gate()
        with nobody_harmed(executor, new_gate()):
            pid = executor.submit(calls.leave_threads, stay).result(DEADLINE_S)
            assert pid != os.getpid()
            assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    def test_children_left_behind_end_with_the_executor(self, make_executor: Callable[..., Any]) -> None:
        with make_executor(max_workers=1) as executor:
            child = executor.submit(calls.leave_child_process).result(DEADLINE_S)
            assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9
        until(lambda: not _alive(child), what="the call's own child process is gone")

    def test_shutdown_ends_workers_that_ignore_sigterm(self, make_executor: Callable[..., Any], gate: Gate) -> None:
        executor = make_executor(max_workers=1)
        future = executor.submit(calls.ignore_sigterm, gate)
        pid = executor.submit(calls.pid)
        gate.open()
        executor.shutdown()
        assert future.result(0) == "still here"
        until(lambda: not _alive(pid.result(0)), what="the worker is gone")

    def test_terminate_ends_a_call_that_ignores_sigterm(self, make_executor: Callable[..., Any], gate: Gate) -> None:
        executor = make_executor(max_workers=1)
        future = executor.submit(calls.ignore_sigterm, gate)
        gate.wait_arrivals()
        executor.terminate()
        with pytest.raises(Exception, match="terminated"):
            future.result(DEADLINE_S)

    def test_a_changed_directory_harms_nobody(self, executor: Any, gate: Gate, tmp_path: Path) -> None:
        with nobody_harmed(executor, gate):
            executor.submit(calls.change_directory, str(tmp_path)).result(DEADLINE_S)
            assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    def test_closed_standard_files_do_not_harm_the_calls_after_it(self, make_executor: Callable[..., Any]) -> None:
        with make_executor(max_workers=1) as executor:
            executor.submit(calls.close_standard_files).result(DEADLINE_S)
            executor.submit(print, "to nobody, perhaps").result(DEADLINE_S)
            assert executor.submit(calls.use_process_pool, 3).result(DEADLINE_S) == [0, 1, 4]

    def test_a_call_may_fork(self, executor: Any) -> None:
        for _ in range(3):
            pid, code = executor.submit(calls.fork_and_return).result(DEADLINE_S)
            assert pid != os.getpid()
            assert code == 5


class UnpickleContract:
    def test_exception_that_cannot_be_opened_again(self, executor: Any, gate: Gate) -> None:
        with nobody_harmed(executor, gate), pytest.raises(SerializationError, match="UnreadableError") as caught:
            executor.submit(calls.raise_unreadable).result(DEADLINE_S)
        assert "1 and 2" in str(caught.value)

    def test_result_that_cannot_be_opened_here(self, executor: Any, gate: Gate) -> None:
        with nobody_harmed(executor, gate), pytest.raises(SerializationError, match="cannot be opened here"):
            executor.submit(calls.UnreadableHere, os.getpid()).result(DEADLINE_S)

    def test_argument_that_cannot_be_opened_there(self, executor: Any, gate: Gate) -> None:
        with nobody_harmed(executor, gate), pytest.raises(SerializationError, match="cannot be opened elsewhere"):
            executor.submit(calls.identity, calls.UnreadableElsewhere()).result(DEADLINE_S)

    def test_function_of_a_module_that_workers_do_not_have(
        self, executor: Any, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "only_at_the_client.py").write_text("def f():\n    return 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        import only_at_the_client  # type: ignore[import-not-found]

        with nobody_harmed(executor, gate), pytest.raises(SerializationError, match="only_at_the_client"):
            executor.submit(only_at_the_client.f).result(DEADLINE_S)

    def test_unreadable_item_in_a_map(self, executor: Any) -> None:
        results = executor.map(calls.identity, [1, calls.UnreadableElsewhere(), 3], chunksize=1)
        assert next(results) == 1
        with pytest.raises(SerializationError):
            next(results)
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    def test_arguments_are_taken_as_they_are_at_the_call(self, executor: Any, gate: Gate) -> None:
        held = [executor.submit(calls.wait_at, gate) for _ in range(4)]
        value = [1, 2]
        future = executor.submit(calls.identity, value)
        value.append(3)
        gate.open()
        assert future.result(DEADLINE_S) == [1, 2]
        assert all(one.result(DEADLINE_S) is None for one in held)

    def test_lambdas_and_closures(self, executor: Any) -> None:
        factor = 3
        assert executor.submit(lambda x: factor * x, 5).result(DEADLINE_S) == 15
        assert list(executor.map(lambda x: factor + x, range(3))) == [3, 4, 5]
        factor = 4
        assert executor.submit(lambda x: factor * x, 5).result(DEADLINE_S) == 20

    def test_a_closure_over_a_changing_list(self, executor: Any) -> None:
        values: list[int] = []

        def total() -> int:
            return sum(values)

        sums = []
        for x in range(4):
            values.append(x)
            sums.append(executor.submit(total).result(DEADLINE_S))
        assert sums == [0, 1, 3, 6]

    def test_pickle_errors_are_the_standard_library_s_too(self, executor: Any) -> None:
        with pytest.raises((pickle.PicklingError, TypeError)):
            executor.submit(calls.identity, threading.Lock()).result(DEADLINE_S)
        with pytest.raises(pickle.PicklingError):
            executor.submit(calls.make_lock).result(DEADLINE_S)


class SizeContract:
    def test_million_items_there_and_back(self, executor: Any) -> None:
        items = list(range(1_000_000))
        assert executor.submit(calls.size, items).result(DEADLINE_S) == 1_000_000
        assert executor.submit(calls.identity, items).result(DEADLINE_S) == items

    def test_map_of_many_items(self, executor: Any) -> None:
        assert sum(executor.map(calls.square, range(200_000))) == sum(x * x for x in range(200_000))

    def test_infinite_input_needs_a_buffersize(self, executor: Any) -> None:
        taken = 0

        def count() -> Iterator[int]:
            nonlocal taken
            while True:
                taken += 1
                yield taken

        results = executor.map(calls.square, count(), buffersize=20)
        for given, y in enumerate(itertools.islice(results, 500), 1):
            assert y == given * given
            assert taken <= given + 20
        results.close()
        assert list(results) == []
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    @pytest.mark.parametrize("buffersize", [1, 2, 3, 1000])
    def test_buffersize(self, executor: Any, buffersize: int) -> None:
        expected = [x * x for x in range(50)]
        assert list(executor.map(calls.square, iter(range(50)), buffersize=buffersize)) == expected
        assert list(executor.map(calls.square, range(50), buffersize=buffersize, chunksize=7)) == expected
        assert list(executor.map(calls.square, [], buffersize=buffersize)) == []

    def test_lazy_input_that_fails_is_raised_in_its_place(self, executor: Any) -> None:
        def failing() -> Iterator[int]:
            yield from range(5)
            raise calls.CustomError(5)

        results = executor.map(calls.square, failing(), buffersize=2)
        seen: list[int] = []
        with pytest.raises(calls.CustomError):
            seen.extend(results)
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    @pytest.mark.parametrize("buffersize", [0, -1])
    def test_buffersize_below_one_is_refused(self, executor: Any, buffersize: int) -> None:
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(calls.square, [1], buffersize=buffersize)

    @pytest.mark.slow
    @pytest.mark.timeout(180)
    def test_ten_thousand_functions(self, executor: Any) -> None:
        futures = [executor.submit(_constant(i)) for i in range(10_000)]
        assert [future.result(120) for future in futures] == list(range(10_000))

    def test_deep_recursion_is_an_exception(self, executor: Any, gate: Gate) -> None:
        with nobody_harmed(executor, gate), pytest.raises(RecursionError):
            executor.submit(calls.set_recursion_limit_and_recurse, 10**6).result(DEADLINE_S)


class OutputContract:
    """Each in a script: what it prints is looked at as a whole. The binding gives ``script_head``."""

    def test_prints_of_a_call_appear_at_the_client(self, tmp_path: Path, script_head: str) -> None:
        finished = _run(
            tmp_path,
            script_head,
            """
            executor.submit(print, "to standard output").result()
            executor.submit(os.write, 2, b"to standard error\\n").result()
        """,
        )
        assert "to standard output" in finished.stdout
        assert "to standard error" in finished.stderr

    def test_twelve_megabytes_of_lines(self, tmp_path: Path, script_head: str) -> None:
        finished = _run(
            tmp_path,
            script_head,
            """
            assert executor.submit(calls.print_lines, 12).result() == 12
            assert executor.submit(calls.square, 3).result() == 9
        """,
        )
        assert finished.stdout.count("l" * 1023 + "\n") == 12 * 1024

    def test_one_line_of_a_hundred_megabytes(self, tmp_path: Path, script_head: str) -> None:
        finished = _run(
            tmp_path,
            script_head,
            """
            assert executor.submit(calls.print_one_line, 100).result() == 100
            assert executor.submit(calls.square, 3).result() == 9
        """,
        )
        assert finished.stdout.count("x") == 100 * 2**20

    def test_bytes_that_are_no_text(self, tmp_path: Path, script_head: str) -> None:
        finished = _run(
            tmp_path,
            script_head,
            r"""
            assert executor.submit(calls.write_stdout_directly, b"\xff\xfe\x00\r\n").result() == 5
            assert executor.submit(calls.square, 3).result() == 9
        """,
        )
        assert finished.returncode == 0


class ProcessContract:
    """What becomes of the processes behind it, in scripts."""

    def test_killed_client_leaves_nothing_behind(self, tmp_path: Path, script_head: str) -> None:
        source = _source(
            script_head,
            f"""
            gate = Gate({str(tmp_path / "gate")!r})
            executor.submit(calls.wait_at, gate)
            gate.wait_arrivals()
            print("running", flush=True)
            threading.Event().wait()
        """,
        )
        with Script(tmp_path, source) as script:
            script.wait_output("running")
            assert script.descendants()
            script.process.kill()
            script.process.wait()
            until(lambda: not script.descendants(), what="workers and server are gone")

    def test_terminated_client_leaves_nothing_behind(self, tmp_path: Path, script_head: str) -> None:
        source = _source(
            script_head,
            f"""
            gate = Gate({str(tmp_path / "gate")!r})
            executor.submit(calls.wait_at, gate)
            gate.wait_arrivals()
            print("running", flush=True)
            threading.Event().wait()
        """,
        )
        with Script(tmp_path, source) as script:
            script.wait_output("running")
            script.process.send_signal(signal.SIGTERM)
            script.process.wait(DEADLINE_S)
            until(lambda: not script.descendants(), what="workers and server are gone")

    def test_ctrl_c_in_a_terminal_does_not_reach_the_workers(self, tmp_path: Path, script_head: str) -> None:
        source = _source(
            script_head,
            f"""
            gate = Gate({str(tmp_path / "gate")!r})
            future = executor.submit(calls.wait_at, gate, "survived")
            gate.wait_arrivals()
            try:
                print("waiting", flush=True)
                future.result()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            gate.open()
            print(future.result(), flush=True)
        """,
        )
        with Script(tmp_path, source) as script:
            script.wait_output("waiting")
            script.interrupt_group()
            finished = script.finish()
        assert finished.lines() == ["waiting", "interrupted", "survived"]
        assert (finished.returncode, finished.stderr) == (0, "")

    def test_a_forked_child_is_told_that_the_executor_is_not_its_own(self, tmp_path: Path, script_head: str) -> None:
        finished = _run(
            tmp_path,
            script_head,
            """
            executor.submit(calls.square, 3).result()
            child = os.fork()
            if child == 0:
                try:
                    executor.submit(calls.square, 3)
                except RuntimeError as error:
                    print("refused" if "fork" in str(error) else error, flush=True)
                with Executor(1) as own:
                    print(own.submit(calls.square, 4).result(), flush=True)
                executor.shutdown()
                sys.exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            print(executor.submit(calls.square, 5).result(), flush=True)
        """,
        )
        assert finished.lines() == ["refused", "16", "0", "25"], finished.stderr

    def test_things_of_main(self, tmp_path: Path, script_head: str) -> None:
        finished = _run(
            tmp_path,
            script_head,
            """
            print(executor.submit(lambda x: x + offset, 1).result())
            print(executor.submit(make_adder(5), 2).result())
            point = executor.submit(Point(1, 2).moved, 3).result()
            print(type(point) is Point, point.x, point.y, isinstance(point, Point))
            print(executor.submit(factorial, 10).result())
            print(executor.submit(lambda: list(numbers(4))).result())
            print([p.x for p in executor.map(Point, range(3), range(3))])
            error = executor.submit(refuse).exception()
            print(type(error) is Refusal, error)
            print(executor.submit(functools.partial(factorial, 5)).result())
            print(executor.submit(Color.next_of, Color.RED).result() is Color.BLUE)
        """,
        )
        assert finished.lines() == [
            "11",
            "7",
            "True 4 2 True",
            "3628800",
            "[0, 1, 2, 3]",
            "[0, 1, 2]",
            "True no",
            "120",
            "True",
        ], finished.stderr


def _source(head: str, body: str) -> str:
    indented = "\n".join("        " + line.strip("\n") for line in _dedented(body))
    return _PREFACE.format(head=head) + indented + '\n\nif __name__ == "__main__":\n    main()\n'


def _dedented(body: str) -> list[str]:
    import textwrap

    return textwrap.dedent(body).splitlines()


def _run(directory: Path, head: str, body: str) -> Any:
    with Script(directory, _source(head, body)) as script:
        finished = script.finish(2 * DEADLINE_S)
        until(lambda: not script.descendants(), what="no process stays behind")
    assert finished.returncode == 0, finished.stderr
    return finished


_PREFACE = """\
import enum, functools, os, sys, threading
{head}
from tests.contract import calls
from tests.support import Gate

offset = 10

class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def moved(self, by):
        return Point(self.x + by, self.y)

class Refusal(Exception):
    pass

class Color(enum.Enum):
    RED = 1
    BLUE = 2

    def next_of(self):
        return Color.BLUE if self is Color.RED else Color.RED

def refuse():
    raise Refusal("no")

def make_adder(n):
    return lambda x: x + n

def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)

def numbers(n):
    yield from range(n)

def main():
    with Executor(2) as executor:
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _exit_on(bad: int, x: int) -> int:
    if x == bad:
        os._exit(9)
    return x


def _exit_on_multiple(of: int, x: int) -> int:
    if x % of == 0:
        os._exit(9)
    return x


def _print_and_exit(text: str) -> None:
    print(text, flush=True)
    os._exit(4)


def _constant(i: int) -> Callable[[], int]:
    return lambda: i


class _KillFirstOn:
    def __init__(self, trace: Gate, bad: int) -> None:
        self.trace, self.bad = trace, bad

    def __call__(self, x: int) -> int:
        return int(calls.kill_self_first(self.trace, x)) if x == self.bad else x
