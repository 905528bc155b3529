"""The picture: one small dot plot for each figure, ours in colour, the targets as a shade."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.cases.base import Column
from benchmarks.peers import PEERS, peer
from benchmarks.summary import Record, Summary, summarize
from benchmarks.targets import OURS, TARGETS

#: What is drawn: (case, metric).
PANELS = [
    ("submit", "calls_per_s"),
    ("map", "items_per_s"),
    ("round_trip", "p50_ms"),
    ("paced", "p50_ms"),
    ("sleep_1ms", "efficiency"),
    ("sleep_10ms", "efficiency"),
    ("sleep_1s", "efficiency"),
    ("sleep_mixed", "tail_s"),
    ("array", "median_s"),
    ("start", "start_s"),
    ("import", "import_ms"),
    ("pending", "bytes_per_call"),
    ("idle", "child_rss_mib"),
    ("idle", "others_pss_mib"),
    ("idle", "cpu_percent"),
]
COLUMNS = 3
INK, OURS_COLOUR, PEER_COLOUR, TARGET_COLOUR, FAINT = "#22262e", "#1657c4", "#7d8592", "#d8ecd9", "#e7e9ed"
#: Keeps the line of a row from striking its figure through.
BACKDROP = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.75}
#: Linear from zero; all else spans magnitudes and is drawn on a logarithmic axis.
LINEAR = {"efficiency", "tail_s", "child_rss_mib", "cpu_percent"}


def draw(about: dict[str, Any], records: list[Record], path: Path) -> None:
    """Write the picture of `records` to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    summary = summarize(records)
    panels = [panel for panel in PANELS if _rows(summary, *panel)]
    if not panels:
        return
    pyplot.rcParams.update({"font.size": 9, "font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK})
    rows = math.ceil(len(panels) / COLUMNS)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=(5.2 * COLUMNS, 2.75 * rows + 0.9), squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, summary, *panel)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    _draw_head(figure, about, rows)
    figure.savefig(path, dpi=90, facecolor="white")
    pyplot.close(figure)


def _draw_head(figure: Any, about: dict[str, Any], rows: int) -> None:
    height = 2.75 * rows + 0.9
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.75 / height), h_pad=1.6, w_pad=1.8)
    figure.text(0.012, 1 - 0.12 / height, "KubeExecutor beside its peers", fontsize=15, weight="bold", va="top")
    told = f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, {about['started']}"
    shade = "Dot: median; line: lowest to highest; green: where the targets put us."
    figure.text(0.012, 1 - 0.46 / height, f"{told}. {shade}", fontsize=9, color=PEER_COLOUR, va="top")


def _draw_panel(axes: Any, summary: Summary, case_name: str, metric: str) -> None:
    column = next(column for column in CASES[case_name].columns if column.metric == metric)
    rows = _rows(summary, case_name, metric)
    failed = _without_figure(summary, case_name)
    values = [value for _, samples in rows for value in samples]
    thresholds = _thresholds(summary, case_name, metric)
    _scale(axes, metric, values + thresholds)
    _shade(axes, column, thresholds)
    for position, (key, samples) in enumerate(rows):
        _draw_row(axes, column, position, key, samples)
    for position, (_, trouble) in enumerate(failed, start=len(rows)):
        axes.text(0.01, position, trouble, transform=axes.get_yaxis_transform(), va="center", color=PEER_COLOUR)
    _label(axes, case_name, column, [key for key, _ in [*rows, *failed]])


def _rows(summary: Summary, case_name: str, metric: str) -> list[tuple[str, list[float]]]:
    found = [(key, summary.get((case_name, key))) for key in PEERS]
    return [(key, list(entry.samples[metric])) for key, entry in found if entry and entry.samples.get(metric)]


def _without_figure(summary: Summary, case_name: str) -> list[tuple[str, str]]:
    """Return (peer, "failed" or "not installed") of those that took part and gave nothing."""
    found = [(key, summary.get((case_name, key))) for key in PEERS]
    return [(key, entry.troubles[0].partition(":")[0]) for key, entry in found if entry and not entry.samples]


def _thresholds(summary: Summary, case_name: str, metric: str) -> list[float]:
    relevant = [target for target in TARGETS if (target.case, target.metric) == (case_name, metric)]
    bounds = [target.threshold(summary) for target in relevant if target.who == OURS]
    return [bound for bound in bounds if bound is not None]


def _scale(axes: Any, metric: str, values: Sequence[float]) -> None:
    if metric in LINEAR:
        low, high = min(0.0, *values), max(values)
        axes.set_xlim(low - 0.03 * (high - low), high + 0.22 * (high - low))
        return
    positive = [value for value in values if value > 0] or [1.0]
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    decades = max(1.0, math.log10(max(positive) / min(positive)))
    axes.set_xlim(min(positive) / 10 ** (0.08 * decades), max(positive) * 10 ** (0.26 * decades))


def _shade(axes: Any, column: Column, thresholds: Sequence[float]) -> None:
    if not thresholds:
        return
    low, high = axes.get_xlim()
    strictest = max(thresholds) if column.more_is_better else min(thresholds)
    span = (strictest, high) if column.more_is_better else (low, strictest)
    axes.axvspan(*span, color=TARGET_COLOUR, lw=0, zorder=0)


def _draw_row(axes: Any, column: Column, position: int, key: str, samples: list[float]) -> None:
    median = sorted(samples)[len(samples) // 2]
    colour = OURS_COLOUR if key.startswith(OURS) else PEER_COLOUR
    axes.axhline(position, color=FAINT, lw=0.8, zorder=1)
    axes.plot([min(samples), max(samples)], [position, position], color=colour, lw=2, alpha=0.6, zorder=2)
    axes.plot([median], [position], "o", ms=8 if key == OURS else 6, color=colour, zorder=3)
    weight = "bold" if key == OURS else "normal"
    text = column.form.format(median)
    style = {"color": colour, "weight": weight, "va": "center_baseline", "bbox": BACKDROP}
    axes.annotate(text, (max(samples), position), (7, 0), textcoords="offset points", **style)


def _label(axes: Any, case_name: str, column: Column, keys: Sequence[str]) -> None:
    axes.set_yticks(range(len(keys)), [peer(key).title for key in keys])
    axes.set_ylim(len(keys) - 0.4, -0.6)
    for tick, key in zip(axes.get_yticklabels(), keys, strict=True):
        tick.set(color=OURS_COLOUR if key.startswith(OURS) else INK, weight="bold" if key == OURS else "normal")
    better = "more is better" if column.more_is_better else "less is better"
    axes.set_title(CASES[case_name].title.replace("`", ""), loc="left", fontsize=10, weight="bold")
    axes.set_xlabel(f"{column.title.replace('`', '')} ({better})", fontsize=8, color=PEER_COLOUR)
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="x", which="both", labelsize=8, labelcolor=PEER_COLOUR)
    axes.minorticks_off()
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
