"""The executor inside other libraries: asyncio, dask, joblib, scikit-learn, tqdm and rich."""

import asyncio
import multiprocessing
import operator
import os
import time
import warnings
from functools import reduce

import pytest

from executor import KubeExecutor
from tests.support import run_script, until


@pytest.fixture(scope="module")
def ex():
    with KubeExecutor(max_workers=2) as executor:
        yield executor


def square(x):
    return x * x


def where(_):
    time.sleep(0.02)
    return os.getpid()


def fail_at_three(x, directory):
    if x == 3:
        raise KeyError("three")
    (directory / f"ran-{x}").touch()
    time.sleep(0.1)
    return x


def linger(path, seconds):
    path.touch()
    time.sleep(seconds)
    path.with_suffix(".end").touch()


def fail_after(path):
    until(path.exists)
    raise ZeroDivisionError


async def test_asyncio_run_in_executor(ex):
    loop = asyncio.get_running_loop()
    results = await asyncio.gather(*(loop.run_in_executor(ex, square, i) for i in range(50)))
    assert results == [i * i for i in range(50)]
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(ex, operator.truediv, 1, 0)


class TestDask:
    @pytest.fixture(autouse=True)
    def dask(self):
        return pytest.importorskip("dask")

    def test_delayed(self, ex, dask):
        squares = [dask.delayed(square)(i) for i in range(20)]
        (total,) = dask.compute(dask.delayed(sum)(squares), scheduler=ex)
        assert total == sum(i * i for i in range(20))

    def test_bag_runs_in_workers(self, ex, dask):
        bag = pytest.importorskip("dask.bag")
        pids = set(bag.from_sequence(range(12), npartitions=6).map(where).compute(scheduler=ex))
        assert os.getpid() not in pids
        assert pids

    def test_an_error_arrives(self, ex, dask):
        with pytest.raises(ZeroDivisionError):
            dask.compute(dask.delayed(operator.truediv)(1, 0), scheduler=ex)


class TestJoblib:
    @pytest.fixture(autouse=True)
    def joblib(self):
        joblib = pytest.importorskip("joblib")
        pytest.importorskip("executor.integrations.joblib")
        return joblib

    def test_results_in_order_from_workers(self, ex, joblib):
        with joblib.parallel_config("kube", executor=ex):
            results = joblib.Parallel()(joblib.delayed(square)(i) for i in range(500))
            pids = set(joblib.Parallel()(joblib.delayed(where)(i) for i in range(20)))
        assert results == [i * i for i in range(500)]
        assert len(pids) == 2
        assert os.getpid() not in pids

    def test_lambdas_and_closures(self, ex, joblib):
        offset = 7
        with joblib.parallel_config("kube", executor=ex):
            assert joblib.Parallel()(joblib.delayed(lambda x: x + offset)(i) for i in range(5)) == [7, 8, 9, 10, 11]

    def test_a_view_is_an_executor_too(self, ex, joblib):
        with joblib.parallel_config("kube", executor=ex.options(timeout=30)):
            assert joblib.Parallel()(joblib.delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]

    def test_short_tasks_are_batched(self, ex, joblib):
        with joblib.parallel_config("kube", executor=ex), joblib.Parallel() as parallel:
            assert parallel(joblib.delayed(square)(i) for i in range(3000)) == [i * i for i in range(3000)]
            assert parallel._backend._effective_batch_size > 1

    def test_numpy_arrays(self, ex, joblib):
        numpy = pytest.importorskip("numpy")
        arrays = [numpy.full(100_000, i) for i in range(6)]
        with joblib.parallel_config("kube", executor=ex):
            sums = joblib.Parallel()(joblib.delayed(numpy.sum)(a) for a in arrays)
            doubled = joblib.Parallel()(joblib.delayed(operator.mul)(a, 2) for a in arrays)
        assert sums == [100_000 * i for i in range(6)]
        assert all((d == 2 * a).all() for d, a in zip(doubled, arrays, strict=True))

    def test_an_exception_ends_the_loop(self, ex, joblib, tmp_path):
        with joblib.parallel_config("kube", executor=ex), pytest.raises(KeyError, match="three"):
            joblib.Parallel(pre_dispatch="all", batch_size=1)(
                joblib.delayed(fail_at_three)(i, tmp_path) for i in range(60)
            )
        ran = len(list(tmp_path.iterdir()))
        assert ran < 50
        with joblib.parallel_config("kube", executor=ex):
            assert joblib.Parallel()(joblib.delayed(square)(i) for i in range(3)) == [0, 1, 4]

    def test_abort_interrupts_what_runs(self, ex, joblib, tmp_path):
        path = tmp_path / "started"

        tasks = [joblib.delayed(linger)(path, 20), joblib.delayed(fail_after)(path)]
        start = time.monotonic()
        with joblib.parallel_config("kube", executor=ex), pytest.raises(ZeroDivisionError):
            joblib.Parallel(batch_size=1)(tasks)
        assert ex.submit(square, 3).result(10) == ex.submit(square, -3).result(10) == 9
        both_free = list(ex.map(where, range(20), chunksize=1))
        assert len(both_free) == 20
        assert time.monotonic() - start < 15
        assert not path.with_suffix(".end").exists()

    def test_an_error_in_the_users_generator(self, ex, joblib):
        def tasks():
            for i in range(30):
                yield joblib.delayed(square)(i)
            raise LookupError("no more input")

        with joblib.parallel_config("kube", executor=ex), pytest.raises(LookupError, match="no more input"):
            joblib.Parallel()(tasks())

    def test_a_generator_that_submits_itself(self, ex, joblib):
        """The generator is pulled by callbacks; were that on the executor's loop, it would wait on itself."""

        def tasks():
            for i in range(20):
                yield joblib.delayed(square)(ex.submit(square, i).result(20))

        with joblib.parallel_config("kube", executor=ex):
            assert joblib.Parallel(batch_size=1)(tasks()) == [i**4 for i in range(20)]

    def test_nested_loops(self, ex, joblib):
        with joblib.parallel_config("kube", executor=ex):
            results = joblib.Parallel()(joblib.delayed(inner_loop)(i) for i in range(4))
        assert [total for total, _ in results] == [sum(i * j for j in range(5)) for i in range(4)]
        assert {name for _, name in results} <= {"ThreadingBackend", "SequentialBackend"}

    def test_as_a_generator(self, ex, joblib):
        with joblib.parallel_config("kube", executor=ex):
            stream = joblib.Parallel(return_as="generator")(joblib.delayed(square)(i) for i in range(40))
            assert list(stream) == [i * i for i in range(40)]
            unordered = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(square)(i) for i in range(40))
            assert sorted(unordered) == [i * i for i in range(40)]

    def test_a_generator_dropped_early(self, ex, joblib):
        with joblib.parallel_config("kube", executor=ex):
            stream = joblib.Parallel(return_as="generator")(joblib.delayed(where)(i) for i in range(40))
            next(stream)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stream.close()
        assert ex.submit(square, 2).result(10) == 4

    def test_timeout(self, ex, joblib):
        with joblib.parallel_config("kube", executor=ex), pytest.raises(multiprocessing.TimeoutError):
            joblib.Parallel(timeout=0.3)(joblib.delayed(time.sleep)(i * 5) for i in range(2))

    def test_n_jobs(self, ex, joblib):
        with joblib.parallel_config("kube", executor=ex):
            assert joblib.effective_n_jobs(-1) == 2
            assert joblib.effective_n_jobs(5) == 5
            with pytest.raises(ValueError, match="n_jobs == 0"):
                joblib.Parallel(n_jobs=0)([])
            assert joblib.Parallel(n_jobs=1)(joblib.delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2

    def test_an_executor_of_its_own(self, tmp_path):
        done = run_script(
            tmp_path,
            """
            import os, joblib, executor.integrations.joblib as kube

            def pid(x):
                return os.getpid()

            if __name__ == "__main__":
                first = joblib.Parallel(n_jobs=2, backend="kube")(joblib.delayed(pid)(i) for i in range(8))
                again = joblib.Parallel(n_jobs=2, backend="kube")(joblib.delayed(pid)(i) for i in range(8))
                assert os.getpid() not in first and set(again) & set(first), (first, again)
                print("fine")
            """,
            timeout=50,
        )
        assert done.returncode == 0, done.stderr
        assert "fine" in done.lines()

    @pytest.mark.timeout(180)  # scikit-learn is imported here and in each worker: 5 s on a busy machine
    def test_scikit_learn_grid_search(self, ex, joblib):
        pytest.importorskip("sklearn")
        from sklearn.datasets import load_iris
        from sklearn.model_selection import GridSearchCV
        from sklearn.tree import DecisionTreeClassifier

        data, target = load_iris(return_X_y=True)
        grid = {"max_depth": [1, 2, 4], "min_samples_leaf": [1, 5]}
        here = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=3).fit(data, target)
        with joblib.parallel_config("kube", executor=ex):
            there = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=3).fit(data, target)
        assert there.best_params_ == here.best_params_
        assert there.cv_results_["mean_test_score"] == pytest.approx(here.cv_results_["mean_test_score"])


def inner_loop(i):
    from joblib import Parallel, delayed
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    return sum(Parallel(n_jobs=2)(delayed(operator.mul)(i, j) for j in range(5))), type(backend).__name__


class TestProgress:
    def test_lines_without_a_terminal(self, ex, capfd):
        assert list(ex.map(square, range(100), progress=True)) == [i * i for i in range(100)]
        said = until(lambda: "100/100" in (text.append(capfd.readouterr().err) or "".join(text)) and "".join(text))
        assert "square: 100 % · 100/100 · " in said

    def test_failures_are_counted(self, ex, capfd, tmp_path):
        results = ex.map(fail_at_three, range(6), [tmp_path] * 6, progress=True)
        with pytest.raises(KeyError):
            list(results)
        text.clear()
        until(lambda: "failed" in (text.append(capfd.readouterr().err) or "".join(text)))

    def test_tqdm_over_map(self, ex, capfd):
        tqdm = pytest.importorskip("tqdm").tqdm
        assert sum(tqdm(ex.map(square, range(200)), total=200)) == sum(i * i for i in range(200))
        assert "200/200" in capfd.readouterr().err

    def test_tqdm_as_completed(self, ex):
        from concurrent.futures import as_completed

        tqdm = pytest.importorskip("tqdm").tqdm
        futures = [ex.submit(square, i) for i in range(30)]
        with open(os.devnull, "w") as nowhere:
            results = [future.result() for future in tqdm(as_completed(futures), total=30, file=nowhere)]
        assert reduce(operator.add, results) == sum(i * i for i in range(30))

    def test_rich_track(self, ex):
        track = pytest.importorskip("rich.progress").track
        assert list(track(ex.map(square, range(20)), total=20, transient=True)) == [i * i for i in range(20)]


text: list[str] = []
