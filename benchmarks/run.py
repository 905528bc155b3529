"""Run the benchmarks: ``python -m benchmarks.run [--quick] [--only CASE] [--peers a,b] [--out DIR]``.

Repetitions are interleaved: all cases with all peers once, then all again, so that a slow minute of the machine falls
on everybody. Each measurement is a process of its own; what it leaves behind is ended before the next one.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine, plot, processes, report
from benchmarks.cases import CASES
from benchmarks.cases.base import Case
from benchmarks.peers import PEERS, peer

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
TIMEOUT_S = 120.0
#: How long a leftover has between SIGTERM and SIGKILL.
GRACE_S = 3.0
BACKGROUND_WINDOW_S = 0.3

Record = dict[str, Any]


def main() -> None:
    """Measure what the command line asks for, and write the report."""
    options = parse(sys.argv[1:])
    processes.adopt_orphans()
    options.out.mkdir(parents=True, exist_ok=True)
    about = machine.description() | {"started": _now(), "quick": options.quick, "repetitions": options.repetitions}
    records = list(measured(options))
    write(options.out, about | {"ended": _now(), "load_after": os.getloadavg()[0]}, records)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options, with lists where the user wrote commas."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one repetition: 20 minutes with all peers")
    parser.add_argument("--only", type=_names(CASES), default=list(CASES), help=f"cases, of: {', '.join(CASES)}")
    parser.add_argument("--peers", type=_names(PEERS), default=list(PEERS), help=f"peers, of: {', '.join(PEERS)}")
    parser.add_argument("--repetitions", type=int, help="default: 3, quick: 1")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results, quick: benchmarks/results/quick")
    options = parser.parse_args(arguments)
    options.repetitions = options.repetitions or (1 if options.quick else 3)
    options.out = options.out or (RESULTS / "quick" if options.quick else RESULTS)
    return options


def measured(options: argparse.Namespace) -> Iterator[Record]:
    """Measure everything in turn, and say so."""
    missing: set[str] = set()
    for repetition in range(options.repetitions):
        for case, key in _pairs(options):
            if key in missing and repetition:
                continue
            record = measure(case, key, quick=options.quick) | {"repetition": repetition}
            if record["status"] == "not installed":
                missing.add(key)
            print(line(record), flush=True)
            yield record


def measure(case: Case, key: str, *, quick: bool) -> Record:
    """Run one measurement in a fresh process and end whatever it leaves behind."""
    background = processes.machine_busy_share(BACKGROUND_WINDOW_S)
    n = case.sizes.of(slow=peer(key).slow, quick=quick)
    with tempfile.TemporaryDirectory(prefix="kb-", ignore_cleanup_errors=True) as scratch:
        try:
            record = _run(case.name, key, n, _environment(scratch))
        finally:
            processes.end_descendants(GRACE_S)
    return {"case": case.name, "peer": key, "n": n, "background": background} | record


def line(record: Record) -> str:
    """Return one line for the terminal."""
    figures = "  ".join(f"{name} {value:,.4g}" for name, value in record.get("metrics", {}).items())
    told = figures or f"{record['status']}: {record.get('reason', '')}"
    return f"{record['repetition'] + 1}  {record['case']:<15}{record['peer']:<14}n={record['n']:<9,} {told}"


def write(out: Path, about: Record, records: list[Record]) -> None:
    """Write the raw records, the table and the plot."""
    (out / "results.json").write_text(json.dumps({"about": about, "records": records}, indent=1) + "\n")
    (out / "results.md").write_text(report.markdown(about, records))
    plot.draw(about, records, out / "results.png")
    print(f"written: {out}/results.md, results.png, results.json")


def _run(case_name: str, key: str, n: int, environment: dict[str, str]) -> Record:
    command = [sys.executable, "-m", "benchmarks.measure", case_name, key, str(n)]
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return _record(_read(stdout), _read(stderr), process.returncode)


def _record(stdout: str, stderr: str, returncode: int) -> Record:
    for text in reversed(stdout.splitlines()):
        if text.startswith('{"case"'):
            return json.loads(text)  # type: ignore[no-any-return]
    if returncode == -signal.SIGKILL:
        return {"status": "failed", "reason": f"no result within {TIMEOUT_S:.0f} s"}
    last = (stderr.strip().splitlines() or ["no output"])[-1]
    return {"status": "failed", "reason": f"exit code {returncode}; {last}"[:300]}


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def _environment(scratch: str) -> dict[str, str]:
    scripts = os.path.dirname(sys.executable)
    return os.environ | {
        processes.RUNNER: str(os.getpid()),
        "TMPDIR": scratch,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
    }


def _pairs(options: argparse.Namespace) -> Iterator[tuple[Case, str]]:
    for name in options.only:
        for key in options.peers:
            if key in CASES[name].peers:
                yield CASES[name], key


def _names(known: Any) -> Any:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return chosen

    return names


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


if __name__ == "__main__":
    main()
