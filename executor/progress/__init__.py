"""Shows how far a ``map`` has come: ``ex.map(f, xs, progress=True)``."""

from executor.progress.reporter import ProgressReporter, progress_reporter

__all__ = ["ProgressReporter", "progress_reporter"]
