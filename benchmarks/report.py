"""The table: Markdown from records."""

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.cases import CASES
from benchmarks.cases.base import WORKERS, Case
from benchmarks.peers import PEERS, peer
from benchmarks.summary import Entry, Record, Summary, summarize, versions
from benchmarks.targets import OURS, TARGETS, Target

#: Above this share of the CPUs in use before the measurements, the report warns.
QUIET = 0.10
_VERDICTS = {True: "met", False: "**not met**", None: "no figure"}


def markdown(about: dict[str, Any], records: list[Record]) -> str:
    """Return the whole report."""
    summary = summarize(records)
    parts = [_head(about, records), _targets(summary), *(_case(CASES[name], summary) for name in CASES)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(about: dict[str, Any], records: list[Record]) -> str:
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"KubeExecutor beside its peers, {WORKERS} worker processes each, on one machine in one run.",
            f"Medians of {_count(about['repetitions'], 'interleaved repetition')}; each measurement a fresh process.",
            "",
            "![Each case, all peers](results.png)",
            "",
            f"- **When**: {about['started']} to {about['ended']}{', quick sizes' if about['quick'] else ''}",
            f"- **Machine**: {about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}",
            f"- **Other load**: {_other_load(about, records)}",
            f"- **Versions**: Python {about['python']}, {_versions(records)}",
        ]
    )


def _other_load(about: dict[str, Any], records: list[Record]) -> str:
    shares = sorted(record["background"] for record in records)
    median, worst = shares[len(shares) // 2], shares[-1]
    told = f"before the measurements {median:.0%} of the CPUs were busy (median; at worst {worst:.0%})"
    return told if median < QUIET else f"{told}: **the machine was not quiet, take the figures with care**"


def _versions(records: list[Record]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions(records).items())


def _targets(summary: Summary) -> str:
    rows = [_target_row(target, summary) for target in TARGETS if (target.case, target.who) in summary]
    if not rows:
        return ""
    head = ["case", "metric", "target", "measured", ""]
    return "## Targets\n\n" + _table(head, rows)


def _target_row(target: Target, summary: Summary) -> list[str]:
    measured, threshold = target.measured(summary), target.threshold(summary)
    figure = "–" if measured is None else target.column.form.format(measured)
    if target.of and measured is not None and threshold:
        figure += f" = {measured / threshold * target.bound:.2f} ×"
    title = CASES[target.case].title
    subject = title if target.who == OURS else f"{title} ({peer(target.who).title})"
    return [subject, target.column.title, str(target), figure, _VERDICTS[target.met(summary)]]


def _case(case: Case, summary: Summary) -> str:
    entries = [summary[case.name, key] for key in PEERS if (case.name, key) in summary]
    if not entries:
        return ""
    ours = summary.get((case.name, OURS))
    head = ["", "n", *(column.title for column in case.columns), *_comparison_head(case), "lowest … highest"]
    table = _table(head, [_case_row(case, entry, ours) for entry in entries])
    return "\n\n".join(part for part in (f"## {case.title}", case.note, table, *_footnotes(case, entries)) if part)


def _comparison_head(case: Case) -> list[str]:
    return ["ours is better by"] if case.columns[0].comparable else []


def _case_row(case: Case, entry: Entry, ours: Entry | None) -> list[str]:
    title = peer(entry.peer).title
    name = f"**{title}**" if entry.peer.startswith(OURS) else title
    figures = [_figure(entry.median(column.metric), column.form) for column in case.columns]
    if not entry.samples:
        figures[0] = entry.troubles[0].replace("|", "/")
    comparison = [_advantage(case, entry, ours)] if case.columns[0].comparable else []
    return [name, f"{entry.n:,}", *figures, *comparison, _spread(case, entry)]


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _advantage(case: Case, entry: Entry, ours: Entry | None) -> str:
    column = case.columns[0]
    theirs, mine = entry.median(column.metric), ours and ours.median(column.metric)
    if entry.peer == OURS or not theirs or not mine:
        return ""
    return f"{mine / theirs if column.more_is_better else theirs / mine:,.2f} ×"


def _spread(case: Case, entry: Entry) -> str:
    column = case.columns[0]
    values = entry.samples.get(column.metric, [])
    return f"{column.form.format(values[0])} … {column.form.format(values[-1])}" if len(values) > 1 else ""


def _footnotes(case: Case, entries: list[Entry]) -> Iterator[str]:
    if case.name == "map":
        adapters = [peer(entry.peer) for entry in entries]
        yield "; ".join(f"{adapter.title}: {adapter.map_note}" for adapter in adapters if adapter.map_note)
    for entry in entries:
        if entry.samples and entry.troubles:
            count = _count(len(entry.troubles), "repetition")
            yield f"{peer(entry.peer).title}: {count} without a figure: {entry.troubles[0]}"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
