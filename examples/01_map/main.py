"""Measure every function of Python's standard library, many files at once.

Each source file is one call: parse it, walk its tree, measure every function. The answers are reduced to a table and a
plot. `--sequential` computes the same in plain Python; the digest shows that both agree.

    python examples/01_map/main.py
    python examples/01_map/main.py --sequential
"""

import argparse
import ast
import hashlib
import json
import sys
import sysconfig
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from executor import KubeExecutor

OUT = Path(__file__).parent / "out"
LIBRARY = Path(sysconfig.get_path("stdlib"))

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda)
#: Each of these adds one path through a function (McCabe, 1976).
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.IfExp, ast.ExceptHandler, ast.Assert, ast.comprehension)
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


@dataclass(frozen=True)
class Function:
    """One function: how long, how branched, how deep."""

    name: str
    line: int
    lines: int
    complexity: int
    depth: int
    documented: bool


@dataclass(frozen=True)
class Source:
    """One file: what was found in it, and the CPU time that took."""

    path: str
    lines: int
    parses: bool
    functions: list[Function]
    cpu_seconds: float

    @property
    def package(self) -> str:
        """First part of the path, without `.py`."""
        return self.path.partition("/")[0].removesuffix(".py")


# ── The work: runs in a worker ────────────────────────────────────────────────────────────────────────────────────────


def own_nodes(function: ast.AST) -> Iterator[tuple[ast.AST, int]]:
    """Every node of a function with its depth of blocks, but not those of functions and classes inside it."""
    todo = [(child, 0) for child in ast.iter_child_nodes(function)]
    while todo:
        node, depth = todo.pop()
        if isinstance(node, SCOPES):
            continue
        depth += isinstance(node, BLOCKS)
        yield node, depth
        todo += [(child, depth) for child in ast.iter_child_nodes(node)]


def paths_of(node: ast.AST) -> int:
    """How many paths one node adds."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return len(node.cases) if isinstance(node, ast.Match) else int(isinstance(node, BRANCHES))


def measured(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    """The figures of one function."""
    nodes = list(own_nodes(function))
    return Function(
        name=function.name,
        line=function.lineno,
        lines=function.end_lineno - function.lineno + 1,
        complexity=1 + sum(paths_of(node) for node, _ in nodes),
        depth=max((depth for _, depth in nodes), default=0),
        documented=ast.get_docstring(function, clean=False) is not None,
    )


def parsed(text: bytes) -> ast.Module | None:
    """The tree of a file; None if it is no Python: the library's own tests keep some files broken on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):
            return None


def measure(path: str) -> Source:
    """Read, parse and measure one file of the standard library (`path` is relative to it)."""
    return measure_text(path, (LIBRARY / path).read_bytes())


def measure_text(path: str, text: bytes) -> Source:
    """Parse and measure the text of one file."""
    begun = time.process_time()
    tree = parsed(text)
    functions = [measured(node) for node in ast.walk(tree) if isinstance(node, FUNCTIONS)] if tree else []
    return Source(path, text.count(b"\n"), tree is not None, functions, time.process_time() - begun)


# ── The two ways to do it ─────────────────────────────────────────────────────────────────────────────────────────────


def in_parallel(paths: list[str], workers: int | None) -> list[Source]:
    with KubeExecutor(workers) as ex:
        return list(with_bar(ex.map(measure, paths), len(paths)))


def in_sequence(paths: list[str]) -> list[Source]:
    return list(with_bar(map(measure, paths), len(paths)))


def with_bar(items: Iterator[Source], total: int) -> Iterator[Source]:
    """The same items, with a progress bar where `rich` is installed and somebody looks."""
    try:
        from rich.progress import track
    except ImportError:
        return items
    return iter(track(items, description="Measuring", total=total, disable=not sys.stderr.isatty()))


# ── Reduce, show ──────────────────────────────────────────────────────────────────────────────────────────────────────


def source_files(limit: int | None) -> list[str]:
    """Paths of all source files of the standard library, sorted; every n-th of them if there is a limit."""
    paths = sorted(
        path.relative_to(LIBRARY).as_posix()
        for path in LIBRARY.rglob("*.py")
        if "site-packages" not in path.parts and "__pycache__" not in path.parts
    )
    return paths if not limit else paths[:: max(1, len(paths) // limit)][:limit]


def digest(sources: list[Source]) -> str:
    """A fingerprint of all figures but the times: equal digests, equal answers."""
    facts = [astuple(source)[:-1] for source in sources]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def by_package(sources: list[Source]) -> list[tuple[str, ...]]:
    """Rows of the table: the fifteen largest packages."""
    packages: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        packages[source.package].append(source)
    largest = sorted(packages.items(), key=lambda item: -sum(source.lines for source in item[1]))
    return [row(name, members) for name, members in largest[:15]] + [row("all of it", sources)]


def row(name: str, sources: list[Source]) -> tuple[str, ...]:
    functions = [function for source in sources for function in source.functions]
    if not functions:
        return (name, f"{len(sources):,}", f"{sum(s.lines for s in sources):,}", "0", "–", "–", "–", "–")
    return (
        name,
        f"{len(sources):,}",
        f"{sum(source.lines for source in sources):,}",
        f"{len(functions):,}",
        f"{fmean(function.lines for function in functions):.1f}",
        f"{fmean(function.complexity for function in functions):.1f}",
        f"{max(function.complexity for function in functions)}",
        f"{fmean(function.documented for function in functions):.0%}",
    )


HEADINGS = ("package", "files", "lines", "functions", "⌀ lines", "⌀ paths", "at most", "docs")


def show_table(rows: list[tuple[str, ...]]) -> None:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for cells in (HEADINGS, *rows):
            print(f"{cells[0]:<16}" + "".join(f"{cell:>11}" for cell in cells[1:]))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="Functions of Python's standard library")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True, max_width=None if index else 16)
    for cells in rows:
        table.add_row(*cells, style="bold" if cells is rows[-1] else None)
    Console().print(table)


def show_most_complex(sources: list[Source]) -> None:
    found = [(function, source.path) for source in sources for function in source.functions]
    found.sort(key=lambda item: (-item[0].complexity, item[1], item[0].line))
    print("\nMost paths through one function:")
    for function, path in found[:5]:
        print(f"  {function.complexity:>4}  {function.name}  ({path}:{function.line}, {function.lines} lines)")


def save_plot(sources: list[Source]) -> Path | None:
    """Length against complexity of every function, and how many are documented by length."""
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    functions = [function for source in sources for function in source.functions]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    bins = left.hexbin(
        [function.lines for function in functions],
        [function.complexity for function in functions],
        xscale="log", yscale="log", bins="log", gridsize=40, mincnt=1, cmap="viridis",
    )  # fmt: skip
    left.set(xlabel="lines", ylabel="cyclomatic complexity", title=f"{len(functions):,} functions of Python's library")
    figure.colorbar(bins, ax=left, label="functions")
    documented = shares_documented(functions)
    right.bar(list(documented), [100 * share for share in documented.values()], color="tab:green")
    right.set(xlabel="lines of the function", ylabel="% with a docstring", ylim=(0, 100), title="Who explains itself")
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / "functions.png", dpi=110)
    plt.close(figure)
    return OUT / "functions.png"


def shares_documented(functions: list[Function]) -> dict[str, float]:
    """Share of documented functions for each class of length."""
    edges = [1, 3, 6, 11, 21, 51, 101, sys.maxsize]
    shares = {}
    for low, high in pairwise(edges):
        flags = [function.documented for function in functions if low <= function.lines < high]
        shares[f"{low}–{high - 1}" if high != sys.maxsize else f"{low}+"] = fmean(flags) if flags else 0.0
    return shares


def compare(mode: str, seconds: float, answer: str, files: int) -> str:
    """Remember this run; a sentence that compares it with the last run of the other kind."""
    OUT.mkdir(exist_ok=True)
    memory = OUT / "runs.json"
    runs = json.loads(memory.read_text()) if memory.exists() else {}
    runs[mode] = {"seconds": seconds, "digest": answer, "files": files}
    memory.write_text(json.dumps(runs, indent=1))
    if len(runs) < 2 or len({run["files"] for run in runs.values()}) > 1:
        return "Run again with --sequential, or without it, and the two are compared here."
    agree = "agree" if len({run["digest"] for run in runs.values()}) == 1 else "DIFFER"
    ours, plain = runs["parallel"]["seconds"], runs["sequential"]["seconds"]
    return f"Parallel {ours:.2f} s, sequential {plain:.2f} s: {plain / ours:.2f} times as fast; the answers {agree}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequential", action="store_true", help="plain Python, one file after the other")
    parser.add_argument("--workers", type=int, help="worker processes (default: one for each core)")
    parser.add_argument("--limit", type=int, help="measure so many files only")
    options = parser.parse_args()
    paths = source_files(options.limit)

    begun = time.perf_counter()
    sources = in_sequence(paths) if options.sequential else in_parallel(paths, options.workers)
    seconds = time.perf_counter() - begun

    show_table(by_package(sources))
    show_most_complex(sources)
    work, answer = sum(source.cpu_seconds for source in sources), digest(sources)
    print(f"\n{len(paths):,} files, {work:.2f} s of work, done in {seconds:.2f} s (start and stop included).")
    print(compare("sequential" if options.sequential else "parallel", seconds, answer, len(paths)))
    if plot := save_plot(sources):
        print(f"Plot: {plot}")
    print(f"Digest of the answers: {answer}")
    if not any(source.functions for source in sources):
        sys.exit("No function was found: is the standard library there as source files?")


if __name__ == "__main__":
    main()
