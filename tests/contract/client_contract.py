"""The client's process as a whole, in scripts: what calls print, what becomes of processes, what ``__main__`` holds.

A binding adds the fixture ``script_head``: a line that imports its class as ``Executor``.
"""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path
from typing import Any

from tests.support import DEADLINE_S, Gate, Script, until


class OutputContract:
    """What calls print."""

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
    """What becomes of the processes behind it, and what ``__main__`` holds."""

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

    def test_ctrl_c_while_the_end_waits_for_calls(self, tmp_path: Path, script_head: str) -> None:
        source = f"""\
{script_head}
from tests.contract import calls
from tests.support import Gate

if __name__ == "__main__":
    executor = Executor(1)
    executor.submit(calls.wait_at, Gate({str(tmp_path / "gate")!r}))
    print("end of main", flush=True)
"""
        with Script(tmp_path, source) as script:
            script.wait_output("end of main")
            Gate(tmp_path / "gate").wait_arrivals()
            script.interrupt_group()
            finished = script.finish()
            until(lambda: not script.descendants(), what="no process stays behind")
        assert finished.stderr.count("Traceback") == 1, finished.stderr
        assert "KeyboardInterrupt" in finished.stderr

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
    indented = textwrap.indent(textwrap.dedent(body), " " * 8)
    return _PREFACE.format(head=head) + indented + '\n\nif __name__ == "__main__":\n    main()\n'


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
