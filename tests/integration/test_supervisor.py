"""Whatever dies, nothing stays behind: client, supervisor, worker and server killed in turn.

The worker here is a stub that shows what a supervisor has to deal with: it has a child of its own which ignores
SIGTERM and leads a session, and it ends when its life pipe does. The last tests have the real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from executor.broker import keys
from executor.broker.address import BrokerAddress
from executor.broker.connection import check, connect_async
from executor.errors import BrokerUnavailable, PoolBroken, PoolStartError
from executor.pools.base import PoolState, WorkerDeath
from executor.pools.local import LocalOptions, LocalPool
from executor.tasks.pool_spec import PoolSpec
from tests.support import Script, free_port, run_script, until

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")

#: Everything must be gone within this time after the client is.
GONE_S = 5.0

STUB = """
import json, os, signal, subprocess, sys, threading

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
config = json.load(open(os.environ["KUBE_EXECUTOR_WORKER_CONFIG"]))
log = open(os.environ["KUBE_EXECUTOR_WORKER_LOG"], "w")
print("the stub's own log", file=log, flush=True)
life = int(os.environ["KUBE_EXECUTOR_LIFE_FD"])
os.set_inheritable(life, False)
stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
open(os.path.join(config["probes"], "child"), "w").write(str(child.pid))
open(os.path.join(config["probes"], "ready"), "w").close()

def die_with_supervisor():
    os.read(life, 1)
    child.kill()
    os._exit(1)

threading.Thread(target=die_with_supervisor, daemon=True).start()
signal.sigwait([signal.SIGUSR1])
"""

#: One that does not hear SIGTERM.
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STUB


def stub(source: str = STUB) -> list[str]:
    return [sys.executable, "-c", source]


def options(argv: Sequence[str] | None = None, broker: str | None = None) -> LocalOptions:
    address = None if broker is None else BrokerAddress.parse(broker)
    return LocalOptions(
        owner="client", queues=["ke.test.default"], worker_argv=argv or stub(), broker=address, grace_s=0.5
    )


@asynccontextmanager
async def running(argv: Sequence[str] | None = None, broker: str | None = None) -> AsyncIterator[LocalPool]:
    """A started pool; stopped at the end, after which its directories must be gone."""
    pool = LocalPool(PoolSpec(max_workers=2), options(argv, broker))
    await pool.start()
    paths = directories(pool)
    try:
        yield pool
    finally:
        await pool.stop()
    assert not [path for path in paths if os.path.exists(path)]


def directories(pool: LocalPool) -> list[str]:
    assert pool._directories is not None
    return pool._directories.paths


async def eventually(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Wait until the condition is true, letting the loop run."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - processes set no events
            await asyncio.sleep(0.005)
    assert condition(), what


def living(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def worker_of(pool: LocalPool) -> int:
    return int(pool.status().workers[0])


def child_of(pool: LocalPool) -> int:
    text = (Path(directories(pool)[0]) / "probes" / "child").read_text()
    return int(text) if text else 0


async def ready(pool: LocalPool) -> int:
    """Wait for the stub; returns its pid."""
    mark = Path(directories(pool)[0]) / "probes" / "ready"
    await eventually(mark.exists, "the stub is ready")
    return worker_of(pool)


def supervisor_of(pool: LocalPool) -> int:
    assert pool._supervisor is not None
    return pool._supervisor.pid


# ── the life of a pool ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_pool_starts_and_leaves_nothing() -> None:
    async with running() as pool:
        await check(pool.address)
        worker = await ready(pool)
        pids = [worker, child_of(pool), pool._server_pid, supervisor_of(pool)]
        assert living(pids) == pids
        assert pool.status().state is PoolState.RUNNING
        assert pool.slots == 2
    assert not living(pids)
    assert pool.status().state is PoolState.STOPPED
    assert pool.status().restarts == 0, "an end that was asked for is no death"


async def test_pool_files_are_private_and_whole() -> None:
    async with running() as pool:
        private = Path(directories(pool)[0])
        config = json.loads((private / "worker.json").read_text())
        assert config["broker"] == pool.address.url
        assert Path(config["key_file"]).read_text() == pool.key.hex()
        assert config["store"] == pool.store
        assert config["slots"] == 2
        assert config["queues"] == ["ke.test.default"]
        assert config["cwd"] == os.getcwd()
        assert all(os.path.isabs(path) for path in config["sys_path"])
        for name in ("worker.json", "key", "server.conf"):
            assert (private / name).stat().st_mode & 0o777 == 0o600
        assert private.stat().st_mode & 0o777 == 0o700


async def test_processes_show_no_secrets() -> None:
    async with running() as pool:
        worker = await ready(pool)
        secrets = [pool.address.password or "", pool.key.hex()]
        for pid in (worker, pool._server_pid, supervisor_of(pool)):
            shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert not any(secret.encode() in shown for secret in secrets)


async def test_processes_live_in_sessions_of_their_own() -> None:
    async with running() as pool:
        for pid in (await ready(pool), pool._server_pid, supervisor_of(pool)):
            assert os.getsid(pid) == pid


async def test_stop_in_any_state_and_again() -> None:
    pool = LocalPool(PoolSpec(), options())
    await pool.stop()
    with pytest.raises(PoolStartError, match="is stopped and cannot be started"):
        await pool.start()
    pool = LocalPool(PoolSpec(), options())
    await pool.start()
    await asyncio.gather(pool.stop(), pool.stop())
    await pool.stop()


async def test_stop_without_waiting_goes_on_by_itself() -> None:
    pool = LocalPool(PoolSpec(max_workers=1), options(stub(DEAF)))
    await pool.start()
    pids = [await ready(pool), child_of(pool), pool._server_pid, supervisor_of(pool)]
    paths = directories(pool)
    await pool.stop(wait=False)
    assert living(pids) == pids, "the grace period has begun"
    await eventually(lambda: not living(pids), "all gone")
    assert not [path for path in paths if os.path.exists(path)]


async def test_kill_takes_no_grace() -> None:
    async with running(stub(DEAF)) as pool:
        await ready(pool)
        started = asyncio.get_running_loop().time()
        pool.kill()
        await pool.stop(grace_s=30.0)
        assert asyncio.get_running_loop().time() - started < 10.0


async def test_pool_joins_another() -> None:
    async with running() as first:
        second = LocalPool(PoolSpec(name="second"), options())
        second.join(first)
        await second.start()
        try:
            assert second.address == first.address
            assert second.store == first.store
            await ready(second)
        finally:
            await second.stop()
        await check(first.address)


async def test_pool_with_a_server_of_the_users() -> None:
    async with running() as other, running(broker=other.address.url) as pool:
        await ready(pool)
        assert pool._server_pid == 0
        assert pool.address == other.address


async def test_start_with_a_server_that_is_not_there() -> None:
    pool = LocalPool(PoolSpec(), options(broker=f"redis://localhost:{free_port()}"))
    with pytest.raises(BrokerUnavailable, match="Nothing listens"):
        await pool.start()
    assert pool._directories is None, "nothing was begun"
    assert pool.status().state is PoolState.STOPPED


async def test_start_with_a_worker_that_cannot_be_run() -> None:
    pool = LocalPool(PoolSpec(), options(["/nowhere/python"]))
    with pytest.raises(PoolStartError, match=r"cannot be started: .*No such file"):
        await pool.start()
    assert pool.status().workers == ()


async def test_workers_that_never_come_up_break_the_pool() -> None:
    broken: list[BaseException] = []
    source = "import os; open(os.environ['KUBE_EXECUTOR_WORKER_LOG'], 'w').write('no such module'); os._exit(3)"
    async with running(stub(source)) as pool:
        pool.on_broken = broken.append
        await eventually(lambda: broken, "the pool gives up")
        assert isinstance(broken[0], PoolBroken)
        assert "exit code 3" in str(broken[0])
        assert "no such module" in str(broken[0])
        assert pool.status().state is PoolState.BROKEN
        assert pool.status().reason in str(broken[0])
    assert len(broken) == 1


async def test_a_worker_that_says_it_will_not_mend_is_not_started_again() -> None:
    broken: list[BaseException] = []
    async with running(stub(f"{STUB}\nos._exit(78)")) as pool:
        pool.on_broken = broken.append
        os.kill(await ready(pool), signal.SIGUSR1)
        await eventually(lambda: broken, "the pool gives up")
        assert pool.status().restarts == 1


# ── deaths ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_worker_killed_is_replaced_and_its_children_are_gone() -> None:
    deaths: list[WorkerDeath] = []
    async with running() as pool:
        pool.on_worker_died = deaths.append
        first = await ready(pool)
        child = child_of(pool)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: deaths, "its death is told")
        await eventually(lambda: pool.status().workers, "it is replaced")
        assert worker_of(pool) != first
        assert not living([first, child]), "a child in a session of its own went with it"
        death = deaths[0]
        assert (death.pid, death.reason, death.signal, death.exit_code) == (first, "SIGKILL", "SIGKILL", None)
        assert death.output == "the stub's own log"
        assert pool.status().restarts == 1
        assert pool.status().last_death == death
        await ready(pool)


async def test_worker_killed_gets_its_obituary() -> None:
    async with running() as pool, connect_async(pool.address) as redis:
        host, worker = socket.gethostname(), await ready(pool)
        known = {"it": (host, worker), "later": (host, worker + 1), "elsewhere": ("another-host", worker)}
        entries = {name: json.dumps({"host": host, "pid": pid}) for name, (host, pid) in known.items()}
        await redis.hset(keys.WORKERS, mapping=entries)
        pool.kill_worker(worker)
        async with asyncio.timeout(10.0):
            while not (obituaries := await redis.hgetall(keys.OBITUARIES)):  # noqa: ASYNC110 - written elsewhere
                await asyncio.sleep(0.01)
        assert list(obituaries) == [b"it"]
        assert json.loads(obituaries[b"it"])["reason"] == "SIGKILL"


async def test_worker_killed_again_and_again_does_not_break_the_pool() -> None:
    async with running() as pool:
        for _ in range(4):
            worker = await ready(pool)
            pool.kill_worker(worker)
            await eventually(lambda killed=worker: str(killed) not in pool.status().workers, "it died")
            await eventually(lambda: pool.status().workers, "it is replaced")
        assert pool.status().state is PoolState.RUNNING


async def test_only_workers_can_be_killed_by_command() -> None:
    async with running() as pool:
        worker = await ready(pool)
        pool.kill_worker(os.getpid())
        pool.kill_worker(worker)
        await eventually(lambda: str(worker) not in pool.status().workers, "the second command was obeyed")


async def test_resize_holds_for_the_next_worker() -> None:
    async with running() as pool:
        worker = await ready(pool)
        pool.resize(5)
        pool.kill_worker(worker)
        await eventually(lambda: pool.status().restarts, "it died")
        config = json.loads((Path(directories(pool)[0]) / "worker.json").read_text())
        assert config["slots"] == pool.slots == 5


async def test_server_killed_comes_back_at_the_same_address() -> None:
    async with running() as pool:
        first = pool._server_pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: pool._server_pid != first, "a new one answers")
        await check(pool.address)


async def test_supervisor_killed_takes_everything_along() -> None:
    broken: list[BaseException] = []
    async with running() as pool:
        pool.on_broken = broken.append
        pids = [await ready(pool), child_of(pool), pool._server_pid]
        os.kill(supervisor_of(pool), signal.SIGKILL)
        await eventually(lambda: not living(pids), "all gone", GONE_S)
        await eventually(lambda: broken, "the pool says so")
        assert "supervisor" in str(broken[0])


async def test_supervisor_survives_signals_to_everybody() -> None:
    async with running() as pool:
        await ready(pool)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(supervisor_of(pool), number)
        await check(pool.address)
        pool.kill_worker(worker_of(pool))
        await eventually(lambda: pool.status().restarts, "it still obeys")


# ── the end of the client ───────────────────────────────────────────────────────────────────────────────────────────

STUB_ARGV = stub()
CLIENT = """
import asyncio, os, signal, sys, threading
from executor.pools.local import LocalOptions, LocalPool
from executor.tasks.pool_spec import PoolSpec

async def start():
    options = LocalOptions(owner="client", queues=["ke.test.default"], worker_argv={argv!r})
    pool = LocalPool(PoolSpec(max_workers=1), options)
    await pool.start()
    while not (pool._directories.private / "probes" / "ready").exists():
        await asyncio.sleep(0.005)
    return pool

loop = asyncio.new_event_loop()
pool = loop.run_until_complete(start())
print("directories", *pool._directories.paths)
print("started")
{then}
"""


def client(then: str, argv: Sequence[str] | None = STUB_ARGV) -> str:
    return CLIENT.format(argv=argv, then=then)


def all_gone(script: Script) -> None:
    """Neither processes nor directories of the script are left, within the time allowed."""
    until(lambda: not script.descendants(), GONE_S, "its processes are gone")
    paths = next(line for line in script.output().splitlines() if line.startswith("directories")).split()[1:]
    until(lambda: not any(map(os.path.exists, paths)), GONE_S, "its directories are gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_client_killed_takes_everything_along(tmp_path: Path, number: signal.Signals) -> None:
    with Script(tmp_path, client("loop.run_forever()")) as script:
        script.wait_output("started")
        assert len(script.descendants()) == 4, "supervisor, server, worker and its child"
        os.kill(script.pid, number)
        script.process.wait()
        all_gone(script)


def test_client_killed_while_it_starts(tmp_path: Path) -> None:
    with Script(tmp_path, client("", ["/bin/true"])) as script:
        until(lambda: script.descendants() or script.process.poll() is not None, what="something was started")
        script.process.kill()
        until(lambda: not script.descendants(), GONE_S, "its processes are gone")


@pytest.mark.parametrize(
    "then",
    [
        "",
        "raise SystemExit(3)",
        "raise ValueError('uncaught')",
        "os._exit(0)",
        "os.abort()",
        "del pool; import gc; gc.collect()",
        "loop.run_until_complete(pool.stop())",
        "loop.run_until_complete(pool.stop(wait=False))",
        "loop.run_until_complete(pool.stop()); loop.close()",
    ],
)
def test_client_that_ends_leaves_nothing(tmp_path: Path, then: str) -> None:
    with Script(tmp_path, client(then)) as script:
        script.finish()
        all_gone(script)


def test_normal_exit_waits_until_all_is_gone(tmp_path: Path) -> None:
    with Script(tmp_path, client("")) as script:
        script.finish()
        assert not script.descendants()


def test_ctrl_c_reaches_the_client_only(tmp_path: Path) -> None:
    then = """
try:
    loop.run_forever()
except KeyboardInterrupt:
    from executor.broker.connection import check
    loop.run_until_complete(check(pool.address))
    print("workers", len(pool.status().workers), "restarts", pool.status().restarts)
"""
    with Script(tmp_path, client(then)) as script:
        script.wait_output("started")
        script.interrupt_group()
        script.finish()
        assert "workers 1 restarts 0" in script.output()
        all_gone(script)


def test_a_fork_of_the_client_neither_ends_nor_keeps_the_pool(tmp_path: Path) -> None:
    then = """
pid = os.fork()
if pid == 0:
    sys.exit(0)                 # runs exit handlers: they are the parent's
os.waitpid(pid, 0)
from executor.broker.connection import check
loop.run_until_complete(check(pool.address))
print("still", len(pool.status().workers))
if os.fork() == 0:
    signal.pause()              # outlives its parent
os.kill(os.getpid(), signal.SIGKILL)
"""
    with Script(tmp_path, client(then)) as script:
        script.process.wait()
        assert "still 1" in script.output(), script.errors()
        until(lambda: len(script.descendants()) == 1, GONE_S, "only the fork is left")


def test_output_of_workers_is_the_clients(tmp_path: Path) -> None:
    source = "print('from the worker', flush=True)\n" + STUB
    with Script(tmp_path, client("", stub(source))) as script:
        assert "from the worker" in script.finish().stdout


def test_frozen_worker_is_ended_too(tmp_path: Path) -> None:
    source = STUB.replace("signal.sigwait([signal.SIGUSR1])", "os.kill(os.getpid(), signal.SIGSTOP)")
    with Script(tmp_path, client("loop.run_forever()", stub(source))) as script:
        script.wait_output("started")
        script.process.kill()
        script.process.wait()
        all_gone(script)


def test_no_warnings_from_start_to_end(tmp_path: Path) -> None:
    script = client("loop.run_until_complete(pool.stop()); loop.close()")
    ran = run_script(tmp_path, "import warnings; warnings.simplefilter('error')\n" + script)
    assert ran.returncode == 0
    assert ran.stderr == ""


# ── the real worker ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("who", ["client", "supervisor"])
def test_real_worker_and_its_children_go_with_the(who: str, tmp_path: Path) -> None:
    then = "print('supervisor', pool._supervisor.pid)\nloop.run_forever()"
    with Script(tmp_path, client(then, None)) as script:
        script.wait_output("supervisor")
        assert len(script.descendants()) >= 4, "supervisor, server, worker and a child"
        pid = script.pid if who == "client" else int(script.output().split()[-1])
        os.kill(pid, signal.SIGKILL)
        all_gone(script)
