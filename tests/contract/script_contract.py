"""What happens around a whole process: interpreter exit, Ctrl-C, fork and spawn; see ``executor_contract``.

A binding adds the fixture ``script_head``: a line that imports its class as ``Executor``.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from tests.support import Finished, Gate, Script, until

if TYPE_CHECKING:
    from pathlib import Path

_HEAD = """\
import os, signal, sys, threading, time
{head}
from tests.contract import calls
from tests.support import Gate, until

def square(x):
    return x * x

def say(text):
    os.write(1, f"{{text}}\\n".encode())  # whole lines, also from several threads: print() writes the end apart

def main():
"""
_TAIL = """
if __name__ == "__main__":
    main()
    say("end of main")
"""


def script_of(head: str, body: str, definitions: str = "") -> str:
    """A whole script around the body of its ``main``, with more functions and classes before it."""
    start = _HEAD.format(head=head).replace("def main():", f"{textwrap.dedent(definitions)}\ndef main():")
    return start + textwrap.indent(textwrap.dedent(body), "    ") + _TAIL


def run_main(directory: Path, head: str, body: str, definitions: str = "") -> Finished:
    """Run a script to its end, and see that nothing stays behind it."""
    with Script(directory, script_of(head, body, definitions)) as script:
        finished = script.finish()
        until(lambda: not script.descendants(), what="no process stays behind")
        return finished


class ScriptContract:
    def test_functions_of_main_can_be_submitted(self, tmp_path: Path, script_head: str) -> None:
        finished = run_main(
            tmp_path,
            script_head,
            """
            with Executor(2) as executor:
                say(executor.submit(square, 7).result())
                say(list(executor.map(square, range(4))))
        """,
        )
        assert finished.lines() == ["49", "[0, 1, 4, 9]", "end of main"]
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""

    def test_exit_waits_for_what_is_pending(self, tmp_path: Path, script_head: str) -> None:
        gate = tmp_path / "gate"
        finished = run_main(
            tmp_path,
            script_head,
            f"""
            gate = Gate({str(gate)!r})
            executor = Executor(2)
            for i in range(20):
                executor.submit(calls.mark_and_return, gate.path, i).add_done_callback(lambda f: say(f.result()))
        """,
        )
        assert finished.returncode == 0, finished.stderr
        assert sorted(line for line in finished.lines() if line != "end of main") == sorted(str(i) for i in range(20))
        assert len(list(gate.glob("arrived-*"))) == 20

    def test_exit_waits_for_a_map_that_nobody_looks_at(self, tmp_path: Path, script_head: str) -> None:
        gate = tmp_path / "gate"
        finished = run_main(
            tmp_path,
            script_head,
            f"""
            gate = Gate({str(gate)!r})
            executor = Executor(2)
            results = executor.map(calls.mark_and_return, [gate.path] * 20, range(20))
        """,
        )
        assert finished.returncode == 0, finished.stderr
        assert len(list(gate.glob("arrived-*"))) == 20

    def test_exit_after_shutdown_without_waiting(self, tmp_path: Path, script_head: str) -> None:
        gate = tmp_path / "gate"
        finished = run_main(
            tmp_path,
            script_head,
            f"""
            gate = Gate({str(gate)!r})
            executor = Executor(2)
            futures = [executor.submit(calls.mark_and_return, gate.path, i) for i in range(10)]
            executor.shutdown(wait=False)
        """,
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
        assert len(list(gate.glob("arrived-*"))) == 10

    def test_exit_of_an_unused_and_of_an_idle_executor(self, tmp_path: Path, script_head: str) -> None:
        finished = run_main(
            tmp_path,
            script_head,
            """
            unused, idle = Executor(2), Executor(2)
            say(idle.submit(calls.square, 3).result())
        """,
        )
        assert finished.lines() == ["9", "end of main"]
        assert (finished.returncode, finished.stderr) == (0, "")

    def test_exit_by_an_exception_still_finishes_the_calls(self, tmp_path: Path, script_head: str) -> None:
        gate = tmp_path / "gate"
        finished = run_main(
            tmp_path,
            script_head,
            f"""
            gate = Gate({str(gate)!r})
            executor = Executor(2)
            futures = [executor.submit(calls.mark_and_return, gate.path, i) for i in range(10)]
            raise KeyError("the script's own")
        """,
        )
        assert finished.returncode == 1
        assert "the script's own" in finished.stderr
        assert len(list(gate.glob("arrived-*"))) == 10

    def test_sys_exit_keeps_its_code(self, tmp_path: Path, script_head: str) -> None:
        finished = run_main(
            tmp_path,
            script_head,
            """
            with Executor(2) as executor:
                executor.submit(calls.square, 3)
                sys.exit(17)
        """,
        )
        assert (finished.returncode, finished.stderr) == (17, "")

    def test_submit_at_exit_is_refused(self, tmp_path: Path, script_head: str) -> None:
        finished = run_main(
            tmp_path,
            script_head,
            """
            import atexit
            executor = Executor(2)
            executor.submit(calls.square, 3).result()
            def late():
                try:
                    executor.submit(calls.square, 3)
                except RuntimeError:
                    say("refused")
            atexit.register(late)
        """,
        )
        assert finished.lines() == ["end of main", "refused"]
        assert finished.returncode == 0, finished.stderr

    def test_keyboard_interrupt_while_waiting_for_a_result(self, tmp_path: Path, script_head: str) -> None:
        self._interrupted(tmp_path, script_head, "executor.submit(calls.wait_at, gate, 5).result()")

    def test_keyboard_interrupt_while_waiting_for_a_map(self, tmp_path: Path, script_head: str) -> None:
        self._interrupted(tmp_path, script_head, "list(executor.map(calls.wait_at, [gate] * 4))")

    def _interrupted(self, directory: Path, head: str, wait: str) -> None:
        body = f"""
            gate = Gate({str(directory / "gate")!r})
            with Executor(2) as executor:
                try:
                    threading.Thread(target=lambda: (gate.wait_arrivals(), say("waiting"))).start()
                    {wait}
                except KeyboardInterrupt:
                    say("interrupted")
                gate.open()
                say(executor.submit(calls.square, 3).result())
        """
        with Script(directory, script_of(head, body)) as script:
            script.wait_output("waiting")
            script.interrupt()
            finished = script.finish()
            until(lambda: not script.descendants(), what="no process stays behind")
        assert finished.lines() == ["waiting", "interrupted", "9", "end of main"]
        assert (finished.returncode, finished.stderr) == (0, "")

    def test_keyboard_interrupt_that_nobody_catches_ends_the_script(self, tmp_path: Path, script_head: str) -> None:
        body = f"""
            gate = Gate({str(tmp_path / "gate")!r})
            threading.Thread(target=lambda: (gate.wait_arrivals(), say("waiting")), daemon=True).start()
            with Executor(2) as executor:
                executor.submit(calls.wait_at, gate, 5).result()
        """
        with Script(tmp_path, script_of(script_head, body)) as script:
            script.wait_output("waiting")
            script.interrupt()
            Gate(tmp_path / "gate").open()  # the end of ``with`` waits for the call
            finished = script.finish()
            until(lambda: not script.descendants(), what="no process stays behind")
        assert finished.returncode != 0
        assert "KeyboardInterrupt" in finished.stderr

    def test_a_forked_child_leaves_its_parents_executor_alone(self, tmp_path: Path, script_head: str) -> None:
        finished = run_main(
            tmp_path,
            script_head,
            """
            with Executor(2) as executor:
                say(executor.submit(calls.square, 3).result())
                child = os.fork()
                if child == 0:
                    sys.exit(0)
                say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                say(executor.submit(calls.square, 4).result())
        """,
        )
        assert finished.lines() == ["9", "0", "16", "end of main"]
        assert finished.returncode == 0, finished.stderr

    def test_processes_beside_the_executor(self, tmp_path: Path, script_head: str) -> None:
        finished = run_main(
            tmp_path,
            script_head,
            """
            import multiprocessing
            with Executor(2) as executor:
                say(executor.submit(calls.square, 3).result())
                for method in ("fork", "spawn"):
                    process = multiprocessing.get_context(method).Process(target=say, args=(method,))
                    process.start()
                    process.join()
                    say(process.exitcode)
                say(executor.submit(calls.square, 4).result())
        """,
        )
        assert finished.lines() == ["9", "fork", "0", "spawn", "0", "16", "end of main"]
        assert finished.returncode == 0, finished.stderr

    def test_an_executor_in_a_process_that_was_spawned(self, tmp_path: Path, script_head: str) -> None:
        finished = run_main(
            tmp_path,
            script_head,
            """
            import multiprocessing
            process = multiprocessing.get_context("spawn").Process(target=in_the_child)
            process.start()
            process.join()
            say(process.exitcode)
        """,
            """
            class Box:
                def __init__(self, x):
                    self.x = x

            def prepare(number):
                global offset
                offset = number

            def add_offset(x):
                return x + offset

            def in_the_child():  # the script is not called __main__ there
                with Executor(1, initializer=prepare, initargs=(10,)) as executor:
                    say(f"{__name__} {executor.submit(add_offset, 9).result()}")
                    say(list(executor.map(add_offset, range(2))))
                    box = executor.submit(Box, 4).result()
                    say(f"{type(box).__name__} {box.x} {isinstance(box, Box)}")
        """,
        )
        assert finished.lines() == ["__mp_main__ 19", "[10, 11]", "Box 4 True", "0", "end of main"]
        assert finished.returncode == 0, finished.stderr

    def test_pools_of_a_calls_own_find_what_the_script_defines(self, tmp_path: Path, script_head: str) -> None:
        finished = run_main(
            tmp_path,
            script_head,
            """
            with Executor(1) as executor:
                say(executor.submit(with_pool, 3).result())
                say(executor.submit(with_process_pool, 3).result())
                say(list(executor.map(with_pool, [1, 2])))
                say(executor.submit(functools.partial(pickled, 4)).result())
        """,
            """
            import concurrent.futures, functools, multiprocessing, pickle

            class Box:
                def __init__(self, x):
                    self.x = x

            def with_pool(n):
                with multiprocessing.get_context("fork").Pool(1) as pool:
                    return pool.map(square, range(n))

            def with_process_pool(n):
                context = multiprocessing.get_context("fork")
                with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                    return [box.x for box in pool.map(Box, range(n))]

            def pickled(x):
                return pickle.loads(pickle.dumps(Box(x))).x, pickle.loads(pickle.dumps(pickled)) is pickled
        """,
        )
        assert finished.lines() == ["[0, 1, 4]", "[0, 1, 2]", "[[0], [0, 1]]", "(4, True)", "end of main"]
        assert finished.returncode == 0, finished.stderr

    def test_an_executor_made_in_a_thread_that_has_ended(self, tmp_path: Path, script_head: str) -> None:
        finished = run_main(
            tmp_path,
            script_head,
            """
            made = []
            def make():
                executor = Executor(2)
                made.append(executor.submit(calls.square, 3))
                made.append(executor)
            maker = threading.Thread(target=make)
            maker.start()
            maker.join()
            say(made[0].result())
            say(made[1].submit(calls.square, 4).result())
        """,
        )
        assert finished.lines() == ["9", "16", "end of main"]
        assert (finished.returncode, finished.stderr) == (0, "")
