"""KubeExecutor beside its peers, on one machine, in one run.

    run.py ── for each repetition, case, peer ──► measure.py (a fresh interpreter) ──► one JSON line
       │                                             cases/NAME.py × peers/NAME.py, calling calls.py
       ▼
    summary.py (medians) ─► targets.py (met or not) ─► report.py (results.md) and plot.py (results.png)

``python -m benchmarks.run --quick`` from the root of the repository.
"""
