"""loky's ProcessPoolExecutor: the one behind joblib."""

from benchmarks.peers.process_pool import ProcessPool


class Loky(ProcessPool):
    title = "loky"
    distributions = ("loky",)
    import_statement = "import loky"

    def load(self) -> None:
        import loky

        self._class = loky.ProcessPoolExecutor
