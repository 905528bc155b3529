"""Plain tasks of a service: published by stock Celery, run by our workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chain, chord
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError

from executor.broker import keys
from executor.cli.main import main
from tests.faults import Server
from tests.integration.worker import calls
from tests.integration.worker.conftest import RawClient, WorkerProcess
from tests.support import until

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore")]
WAIT_S = 40


@pytest.fixture
def shop(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("SHOP_BROKER", server.url)
    from tests.integration.worker import shop as module

    module.app.conf.update(broker_url=server.url, result_backend=server.url)
    for cached in ("backend", "amqp", "pool"):
        module.app.__dict__.pop(cached, None)
    module.app._local.__dict__.clear()
    module.app._backend_cache = None
    yield module
    module.app.close()


@pytest.fixture
def start_shop(start: Callable[..., WorkerProcess]) -> Callable[..., WorkerProcess]:
    def starter(**settings: Any) -> WorkerProcess:
        return start(celery_app="tests.integration.worker.shop:app", service_queues=["shop"], **settings)

    return starter


def test_a_service_uses_what_celery_has(shop: Any, start_shop: Callable[..., WorkerProcess]) -> None:
    start_shop(slots=2)
    assert shop.add.delay(1, 2).get(timeout=WAIT_S) == 3
    assert shop.add.apply_async((1, 2), priority=9).get(timeout=WAIT_S) == 3
    assert shop.add.apply_async((1, 2), countdown=0.5).get(timeout=WAIT_S) == 3
    assert shop.flaky.delay().get(timeout=WAIT_S) == 2
    assert chain(shop.add.s(1, 2), shop.add.s(3))().get(timeout=WAIT_S) == 6
    assert chord([shop.add.s(i, i) for i in range(10)], shop.total.s())().get(timeout=WAIT_S) == 90
    with pytest.raises(ValueError, match="no"):
        shop.fails.delay().get(timeout=WAIT_S)


def test_tasks_and_calls_share_the_children(
    shop: Any, start_shop: Callable[..., WorkerProcess], client: RawClient, connection: redis.Redis
) -> None:
    worker = start_shop()
    results = [shop.add.delay(i, i) for i in range(20)]
    root = client.send(calls.add, *[(i, i) for i in range(20)])
    assert [result.get(timeout=WAIT_S) for result in results] == [2 * i for i in range(20)]
    assert client.results(root, 20) == [2 * i for i in range(20)]
    until(lambda: not connection.exists(keys.inflight(worker.id)), what="all is acknowledged")


def test_limits_and_revocation(shop: Any, start_shop: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    start_shop(slots=2)
    with pytest.raises(TimeLimitExceeded):
        shop.over_its_limit.delay().get(timeout=WAIT_S)
    assert shop.over_its_soft_limit.delay().get(timeout=WAIT_S) == "cleaned up"
    path = tmp_path / "notes"
    running = shop.waits.delay(str(path), str(tmp_path / "never"), "w")
    until(path.exists, what="it runs")
    running.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        running.get(timeout=WAIT_S)
    assert shop.add.delay(1, 1).get(timeout=WAIT_S) == 2


def test_a_task_whose_process_is_killed_runs_again_up_to_a_bound(
    shop: Any, start_shop: Callable[..., WorkerProcess], connection: redis.Redis, tmp_path: Path
) -> None:
    worker = start_shop()
    assert shop.killed_once.delay(str(tmp_path / "notes")).get(timeout=WAIT_S) == "done"
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        shop.dies.delay("kill").get(timeout=WAIT_S)
    (letter,) = connection.lrange(keys.dead_letters("default"), 0, -1)
    assert [death["reason"] for death in json.loads(letter)["deaths"]] == ["SIGKILL"] * 3
    with pytest.raises(WorkerLostError, match="exit code 3"):
        shop.dies.delay("exit").get(timeout=WAIT_S)
    until(lambda: not connection.exists(keys.inflight(worker.id)), what="nothing is in flight")


def test_a_dead_letter_is_listed_shown_and_queued_again(
    shop: Any,
    start_shop: Callable[..., WorkerProcess],
    connection: redis.Redis,
    server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_shop()
    task = shop.dies.delay("kill")
    with pytest.raises(WorkerLostError):
        task.get(timeout=WAIT_S)
    assert main(["dead-letter", "--broker-url", server.url]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{task.id}  ")
    assert "died of: SIGKILL, SIGKILL, SIGKILL" in line
    assert main(["dead-letter", task.id, "--resubmit", "--broker-url", server.url]) == 0
    said = capsys.readouterr().out
    assert said.endswith("queued again\n")
    assert '"exit_code"' in said
    assert not connection.exists(keys.dead_letters("default"))
    until(lambda: connection.llen(keys.dead_letters("default")) == 1, 20, "it ran, and died three times more")
    assert main(["dead-letter", "nobody", "--broker-url", server.url]) == 1
    assert "no dead letter 'nobody'" in capsys.readouterr().err


def test_tasks_of_a_killed_worker_run_at_another(
    shop: Any, start_shop: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    first = start_shop(slots=2)
    path, gate = tmp_path / "notes", tmp_path / "gate"
    running = [shop.waits.delay(str(path), str(gate), f"task{i}") for i in range(2)]
    delayed = shop.add.apply_async((4, 5), countdown=3)
    until(lambda: path.exists() and len(path.read_text().splitlines()) == 2, what="both run")
    start_shop(slots=2)
    first.kill()
    until(lambda: len(path.read_text().splitlines()) == 4, 20, "both run again")
    gate.touch()
    assert [each.get(timeout=WAIT_S) for each in running] == ["task0", "task1"]
    assert delayed.get(timeout=WAIT_S) == 9
    assert len(path.read_text().splitlines()) == 4


def test_tasks_lost_too_often_with_their_workers_fail(
    shop: Any, start_shop: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    path, gate = tmp_path / "notes", tmp_path / "never"
    task = shop.waits.delay(str(path), str(gate), "task")
    for count in (1, 2):
        worker = start_shop(max_deliveries=2)
        until(lambda count=count: path.exists() and len(path.read_text().splitlines()) == count, 20, "it runs")
        worker.kill()
    start_shop(max_deliveries=2)
    with pytest.raises(WorkerLostError, match="lease expired"):
        task.get(timeout=WAIT_S)


def test_a_drained_worker_hands_tasks_back_and_loses_none(
    shop: Any, start_shop: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    path, gate = tmp_path / "notes", tmp_path / "gate"
    first = start_shop(grace_s=1.0)
    running = shop.waits.delay(str(path), str(gate), "task")
    delayed = shop.add.apply_async((4, 5), countdown=4)
    until(path.exists, what="it runs")
    first.terminate()
    assert first.process.wait(20) == 0
    start_shop()
    gate.touch()
    assert running.get(timeout=WAIT_S) == "task"
    assert delayed.get(timeout=WAIT_S) == 9
