"""Calls that crash, leave things behind or shout: a clear error or the right answer, and nobody else harmed."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from executor.errors import ChildCrashed, SerializationError, WorkerLost
from tests.contract import calls
from tests.support import DEADLINE_S, Gate, until

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


class _KillFirstOn:
    def __init__(self, trace: Gate, bad: int) -> None:
        self.trace, self.bad = trace, bad

    def __call__(self, x: int) -> int:
        return int(calls.kill_self_first(self.trace, x)) if x == self.bad else x
