"""The life of a pool: its beginning, its end, and that of the interpreter; see ``pool_contract``."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract import calls
from tests.support import Gate, Script, until

MakePool = Callable[..., Any]


class LifeContract:
    def test_with_terminates(self, make_pool: MakePool, gate: Gate) -> None:
        pool = make_pool()
        with pool as inner:
            assert inner is pool
            assert inner.apply(calls.square, (3,)) == 9
            inner.apply_async(calls.wait_at, (gate,))
            gate.wait_arrivals()
        pool.join()  # would not return if it waited for the call: the gate is closed
        _assert_not_running(pool)

    def test_close_and_join_finish_what_is_pending(self, make_pool: MakePool, tmp_path: Path) -> None:
        pool = make_pool()
        seen: list[int] = []
        results = [pool.apply_async(calls.square, (x,), callback=seen.append) for x in range(50)]
        values = pool.imap(calls.square, iter(range(50)))
        listed = pool.map_async(calls.square, range(50), 1)
        pool.close()
        _assert_not_running(pool)
        pool.join()
        assert all(result.ready() for result in results)
        assert sorted(seen) == [x * x for x in range(50)]
        assert list(values) == listed.get(0) == [x * x for x in range(50)]
        pool.close()
        pool.join()

    def test_use_after_close_and_terminate_is_refused(self, make_pool: MakePool) -> None:
        for end in ("close", "terminate"):
            pool = make_pool()
            getattr(pool, end)()
            _assert_not_running(pool)
            pool.join()
            _assert_not_running(pool)

    def test_join_before_close_is_refused(self, make_pool: MakePool) -> None:
        pool = make_pool()
        with pytest.raises(ValueError, match="still running"):
            pool.join()
        pool.terminate()
        pool.join()

    def test_terminate_ends_workers_that_are_busy(self, make_pool: MakePool, gate: Gate) -> None:
        pool = make_pool()
        for _ in range(10):
            pool.apply_async(calls.wait_at, (gate,))
        gate.wait_arrivals(2)
        pool.terminate()
        pool.terminate()
        pool.join()
        assert gate.arrivals == 2

    def test_close_then_terminate(self, make_pool: MakePool, gate: Gate) -> None:
        pool = make_pool()
        pool.apply_async(calls.wait_at, (gate,))
        gate.wait_arrivals()
        pool.close()
        pool.terminate()
        pool.join()

    def test_constructor_checks(self, make_pool: MakePool) -> None:
        for processes in (0, -1):
            with pytest.raises(ValueError, match="Number of processes must be at least 1"):
                make_pool(processes)
        with pytest.raises(TypeError, match="initializer must be a callable"):
            make_pool(1, 42)
        for count in (0, -1, 1.5, "x"):
            with pytest.raises(ValueError, match="maxtasksperchild must be a positive int or None"):
                make_pool(1, maxtasksperchild=count)

    def test_initializer_runs_in_each_worker(self, make_pool: MakePool) -> None:
        with make_pool(2, calls.initialize, ("a", 1)) as pool:
            assert pool.map(_initialized, range(6), 1) == [["a", 1]] * 6

    def test_maxtasksperchild_replaces_workers(self, make_pool: MakePool) -> None:
        pool = make_pool(1, maxtasksperchild=2)
        pids = [pool.apply(calls.pid) for _ in range(6)]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]
        assert len(pool.map(calls.pid, range(6), chunksize=3)) == 6  # a chunk counts as one
        pool.close()
        pool.join()

    def test_pool_cannot_be_pickled(self, pool: Any) -> None:
        with pytest.raises(NotImplementedError, match="pool objects cannot be passed between processes or pickled"):
            pickle.dumps(pool)

    def test_repr_tells_state_and_size(self, make_pool: MakePool) -> None:
        pool = make_pool(2)
        assert "Pool state=RUN pool_size=2>" in repr(pool)
        pool.close()
        assert "state=CLOSE" in repr(pool)
        pool.terminate()
        assert "state=TERMINATE" in repr(pool)
        pool.join()

    def test_pool_that_is_let_go_while_running_warns(self, make_pool: MakePool) -> None:
        pool = make_pool(1)
        assert pool.apply(calls.square, (3,)) == 9
        with pytest.warns(ResourceWarning, match="unclosed running"):  # noqa: PT031
            pool = None
            gc.collect()

    def test_ended_pool_does_not_warn(self, make_pool: MakePool) -> None:
        pool = make_pool(1)
        pool.terminate()
        pool.join()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pool = None
            gc.collect()

    def test_context_is_accepted(self, make_pool: MakePool) -> None:
        with make_pool(1, context=multiprocessing.get_context("spawn")) as pool:
            assert pool.apply(calls.square, (3,)) == 9


class PoolScriptContract:
    def test_exit_does_not_wait_for_what_is_pending(self, tmp_path: Path, pool_head: str) -> None:
        self._run(
            tmp_path,
            pool_head,
            """
            pool = Pool(2)
            print(pool.apply(calls.square, (3,)), flush=True)
            result = pool.apply_async(calls.wait_at, (gate,))
            gate.wait_arrivals()
        """,
            ["9", "end"],
        )

    def test_exit_after_close_without_join(self, tmp_path: Path, pool_head: str) -> None:
        self._run(
            tmp_path,
            pool_head,
            """
            pool = Pool(2)
            result = pool.apply_async(calls.wait_at, (gate,))
            gate.wait_arrivals()
            pool.close()
        """,
            ["end"],
        )

    def test_exit_of_an_unused_pool(self, tmp_path: Path, pool_head: str) -> None:
        self._run(tmp_path, pool_head, "pool = Pool(2)", ["end"])

    def test_functions_of_main(self, tmp_path: Path, pool_head: str) -> None:
        self._run(
            tmp_path,
            pool_head,
            """
            with Pool(2) as pool:
                print(pool.map(cube, range(4)), pool.apply(cube, (4,)), list(pool.imap(cube, range(3))), flush=True)
        """,
            ["[0, 1, 8, 27] 64 [0, 1, 8]", "end"],
        )

    def test_keyboard_interrupt_in_map(self, tmp_path: Path, pool_head: str) -> None:
        source = _script(
            tmp_path,
            pool_head,
            """
            with Pool(2) as pool:
                threading.Thread(target=lambda: (gate.wait_arrivals(), print("waiting", flush=True))).start()
                try:
                    pool.map(gate.pass_through, range(2))
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
        """,
        )
        with Script(tmp_path, source) as script:
            script.wait_output("waiting")
            script.interrupt()
            finished = script.finish()
            until(lambda: not script.descendants(), what="no process stays behind")
        assert finished.lines() == ["waiting", "interrupted", "end"]
        assert finished.returncode == 0, finished.stderr

    def _run(self, directory: Path, head: str, body: str, lines: list[str]) -> None:
        with Script(directory, _script(directory, head, body)) as script:
            finished = script.finish()
            until(lambda: not script.descendants(), what="no process stays behind")
        assert finished.lines() == lines, finished.stderr
        assert finished.returncode == 0, finished.stderr


def _script(directory: Path, head: str, body: str) -> str:
    return (
        textwrap.dedent(f"""\
        import threading
        {head}
        from tests.contract import calls
        from tests.support import Gate

        def cube(x):
            return x ** 3

        def main():
            gate = Gate({str(directory / "gate")!r})
        """)
        + textwrap.indent(textwrap.dedent(body), "    ")
        + textwrap.dedent("""
        if __name__ == "__main__":
            main()
            print("end", flush=True)
        """)
    )


def _assert_not_running(pool: Any) -> None:
    for method in ("apply", "apply_async", "map", "map_async", "imap", "imap_unordered", "starmap", "starmap_async"):
        args = (calls.square, (1,)) if "apply" in method else (calls.square, [])
        with pytest.raises(ValueError, match="Pool not running"):
            getattr(pool, method)(*args)
    with pytest.raises(ValueError, match="Pool not running"):
        pool.__enter__()


def _initialized(_: int) -> list[Any]:
    return calls.initialized()
