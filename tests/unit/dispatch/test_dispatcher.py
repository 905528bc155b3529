"""The dispatcher before a broker that fails in every way it can."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from executor.dispatch import patience, recovery
from executor.dispatch.future import CallFuture
from executor.dispatch.map_result import Failed, MapState
from executor.errors import (
    BrokerRefused,
    BrokerUnavailable,
    CallTimeout,
    FunctionMissing,
    PoolBroken,
    SerializationError,
)
from executor.wire import frame, outcome, pickling
from tests.unit.dispatch.conftest import Run
from tests.unit.dispatch.doubles import Client, VirtualLoop, queued, settled


@pytest.fixture
def client(virtual: VirtualLoop, run: Run) -> Client:
    return run(_started(virtual))  # type: ignore[no-any-return]


async def _started(loop: VirtualLoop) -> Client:
    client = Client(loop)
    await client.start()
    return client


def results(state: MapState) -> list[Any]:
    found: list[Any] = []
    while (values := state.next_slice()) is not None:
        found += values
    return found


async def work_off(client: Client, work: Any = lambda x: x) -> None:
    """Play the workers until nothing is queued any more."""
    await settled()
    while claimed := client.broker.claim():
        claimed.reply(work=work)
        await settled()


# ── the plain way ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_dispatcher_settles_calls(client: Client, run: Run) -> None:
    lane = client.lane()
    futures = [client.submit(lane, n) for n in range(100)]
    run(work_off(client, lambda x: x * x))
    assert [future.result(0) for future in futures] == [n * n for n in range(100)]
    assert lane.idle
    assert client.dispatcher.ledger == {}


def test_dispatcher_settles_calls_that_were_submitted_before_it_started(virtual: VirtualLoop, run: Run) -> None:
    async def scenario() -> None:
        client = Client(virtual)
        future = client.submit(client.lane(), 42)
        await settled()
        await client.start()
        await work_off(client)
        assert future.result(0) == 42

    run(scenario())


def test_dispatcher_publishes_no_more_than_the_slots_call_for(client: Client, run: Run) -> None:
    lane = client.lane(max_deliveries=1)
    futures = [client.submit(lane, n) for n in range(50)]
    run(settled())
    assert len(client.broker.queue) == 4
    assert lane.backlog == 46
    run(work_off(client))
    assert all(future.done() for future in futures)


def test_dispatcher_stores_a_function_once(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane("f")
        for n in range(3):
            client.submit(lane, n)
            await work_off(client)
        stored = frame.opened(client.frames.key, frame.FUNCTION, client.broker.functions.pop("digest-of-f"))
        assert bytes(stored.payload) == b"f"
        client.submit(lane, 4)
        await settled()
        assert client.broker.functions == {}

    run(scenario())


def test_dispatcher_says_when_it_is_busy(client: Client, run: Run) -> None:
    client.submit(client.lane(), 1)
    run(settled())
    assert client.busy == [True]
    run(work_off(client))
    assert client.busy == [True, False]


def test_map_results_come_in_order(client: Client, run: Run) -> None:
    _, state = client.map(list(range(1000)))

    async def backwards() -> None:
        await settled()
        while claimed := client.broker.claim_all():
            for one in reversed(claimed):
                one.values(work=lambda x: -x)
            await settled()

    run(backwards())
    assert results(state) == [-n for n in range(1000)]
    assert state.exhausted


# ── replies of all sorts ────────────────────────────────────────────────────────────────────────────────────────────


def test_partial_and_duplicated_replies_settle_once(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane, state = client.map(list(range(10)), chunksize=10)
        await settled()
        first, second = client.broker.claim(), None
        assert first is not None
        first.values(3)
        first.die()
        second = client.broker.claim()
        assert second is not None
        second.values(6)
        second.values()
        client.broker.stream += [((100 + n, 0), data) for n, (_, data) in enumerate(client.broker.stream)]
        await settled()
        assert results(state) == list(range(10))
        assert state.filled == 10
        assert lane.idle

    run(scenario())


def test_split_is_followed(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane, state = client.map(list(range(10)), chunksize=10)
        await settled()
        first = client.broker.claim()
        assert first is not None
        first.split(4)
        await settled()
        (batch,) = client.dispatcher.ledger.values()
        assert [batch.message_of(index) for index in (0, 3, 4, 9)] == [batch.root, batch.root] + [batch.root + ".4"] * 2
        rest = client.broker.claim()
        assert rest is not None
        rest.values()
        first.values()
        await settled()
        assert results(state) == list(range(10))
        assert lane.idle

    run(scenario())


def test_reply_of_an_unknown_batch_is_ignored(client: Client, run: Run) -> None:
    future = client.submit(client.lane(), 1)
    client.broker.add({"root": "other", "kind": "values", "first": 0, "n": 1, "ns": 1}, pickling.dumps([1]))
    client.broker.add({"root": "other", "kind": "split", "at": 1, "part": "other.1"})
    run(work_off(client))
    assert future.result(0) == 1


@pytest.mark.parametrize("data", [b"", b"nonsense", b"KE\x09" + b"\0" * 100, b"KE\x01\0" + b"\0" * 100])
def test_unsigned_reply_is_ignored(client: Client, run: Run, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    future = client.submit(client.lane(), 1)
    client.broker.add_raw(data)
    run(work_off(client))
    assert future.result(0) == 1
    assert "Ignored a reply" in caplog.text


def test_signed_reply_that_makes_no_sense_is_ignored(
    client: Client, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    future = client.submit(client.lane(), 1)
    run(settled())
    (root,) = client.dispatcher.ledger
    client.broker.add({})
    client.broker.add({"root": root, "kind": "outcomes"})
    run(work_off(client))
    assert future.result(0) == 1
    assert "makes no sense" in caplog.text


class ExplodesWhereOpened:
    def __reduce__(self) -> Any:
        return (_explode, ())


def _explode() -> None:
    raise SystemExit("opened")


def test_value_that_cannot_be_opened_fails_its_call_and_no_other(client: Client, run: Run) -> None:
    futures = [client.submit(lane, n) for lane in [client.lane()] for n in range(4)]
    run(work_off(client, lambda n: ExplodesWhereOpened() if n == 2 else n))
    assert isinstance(futures[2].exception(0), SerializationError)
    assert [future.result(0) for future in futures if future is not futures[2]] == [0, 1, 3]


def test_exception_that_cannot_be_opened_fails_its_call_and_no_other(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        futures = [client.submit(lane, n) for n in range(2)]
        await settled()
        for claimed in client.broker.claim_all():
            claimed.outcomes([outcome.exception(b"not a pickle", "Traceback")] * claimed.end)
        await settled()
        assert all(isinstance(future.exception(0), SerializationError) for future in futures)
        assert lane.idle

    run(scenario())


@pytest.mark.parametrize(
    ("payload", "count"),
    [(pickling.dumps([ExplodesWhereOpened()] * 10), 10), (b"nonsense", 10), (pickling.dumps([1]), 10), (b"", 4)],
    ids=["explodes", "nonsense", "too few", "some"],
)
def test_values_that_cannot_be_opened_fail_their_items_and_hang_nobody(
    client: Client, run: Run, payload: bytes, count: int
) -> None:
    async def scenario() -> None:
        lane, state = client.map(list(range(20)), chunksize=10)
        await settled()
        first, second = client.broker.claim_all()
        first.send_values(payload, count)
        if not first.done:
            first.values()
        second.values()
        await settled()
        found = results(state)
        assert [type(value) is Failed for value in found] == [True] * count + [False] * (20 - count)
        assert state.exhausted
        assert lane.idle

    run(scenario())


def test_outcomes_of_the_wrong_number_fail_their_calls(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        future = client.submit(lane, 1)
        await settled()
        (root,) = client.dispatcher.ledger
        client.broker.add({"root": root, "kind": "outcomes", "first": 0, "n": 1, "ns": 1, "bufs": None}, b"\0\0\0\0")
        await settled()
        assert isinstance(future.exception(0), SerializationError)
        assert lane.idle

    run(scenario())


def test_outcomes_that_took_no_time_say_nothing_of_the_duration(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        client.submit(lane, 1)
        await settled()
        claimed = client.broker.claim()
        assert claimed is not None
        claimed.outcomes([outcome.error("CallTimeout", "late")], ns=0)
        await settled()
        assert lane.durations.seconds == 0.001

    run(scenario())


def test_worker_that_cannot_start_breaks_all(client: Client, run: Run) -> None:
    future = client.submit(client.lane(), 1)
    client.broker.add({"kind": "broken", "message": "the initializer raised"})
    run(settled())
    with pytest.raises(PoolBroken, match="the initializer raised"):
        future.result(0)


# ── publishing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_calls_wait_while_the_server_is_full(client: Client, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        client.broker.refusal = ResponseError("OOM command not allowed when used memory > 'maxmemory'")
        future = client.submit(client.lane(), 1)
        await asyncio.sleep(60)
        assert not future.done()
        client.broker.refusal = None
        await asyncio.sleep(3)
        await work_off(client)
        assert future.result(0) == 1
        assert len(client.broker.published) == 1

    run(scenario())
    assert 20 < caplog.text.count("refuses new calls") < 60  # each at most 2 s after the last


def test_connection_lost_before_publishing_publishes_again(client: Client, run: Run) -> None:
    async def scenario() -> None:
        client.broker.down = True
        future = client.submit(client.lane(), 1)
        await asyncio.sleep(10)
        client.broker.down = False
        await asyncio.sleep(3)
        await work_off(client)
        assert future.result(0) == 1
        assert len(client.broker.published) == 1

    run(scenario())


def test_connection_lost_after_publishing_publishes_nothing_twice(client: Client, run: Run) -> None:
    async def scenario() -> None:
        client.broker.after_publish = RedisConnectionError("reset")
        lane = client.lane()
        futures = [client.submit(lane, n) for n in range(5)]
        await asyncio.sleep(1)
        await work_off(client)
        assert [future.result(0) for future in futures] == list(range(5))
        assert len(client.broker.published) == len(set(client.broker.published))
        assert len(client.broker.published) <= 5

    run(scenario())


def test_connection_lost_after_publishing_and_already_answered_publishes_nothing_again(
    client: Client, run: Run
) -> None:
    async def scenario() -> None:
        client.broker.after_publish = RedisConnectionError("reset")
        future = client.submit(client.lane(), 1)
        await queued(client)
        await work_off(client)
        await asyncio.sleep(1)
        assert future.result(0) == 1
        assert len(client.broker.published) == 1
        assert client.broker.queue == []

    run(scenario())


def test_connection_lost_again_while_asking_what_has_arrived_breaks_nothing(
    client: Client, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RedisConnectionError("again")] * 3)
    real = client.publisher.holders

    async def holders(messages: Any) -> Any:
        for error in failures:
            raise error
        return await real(messages)

    monkeypatch.setattr(client.publisher, "holders", holders)
    client.broker.after_publish = RedisConnectionError("reset")
    future = client.submit(client.lane(), 1)

    async def scenario() -> None:
        await asyncio.sleep(10)
        await work_off(client)
        assert future.result(0) == 1

    run(scenario())
    assert client.dispatcher.broken is None


def test_call_cancelled_while_the_server_is_full_is_never_published(client: Client, run: Run) -> None:
    async def scenario() -> None:
        client.broker.refusal = ResponseError("OOM")
        future = client.submit(client.lane(), 1)
        await asyncio.sleep(1)
        (batch,) = client.dispatcher.ledger.values()
        assert client.dispatcher.settled_without_reply(batch, 0)
        future.mark_cancelled()
        client.broker.refusal = None
        await asyncio.sleep(5)
        assert client.broker.published == []

    run(scenario())


def test_server_that_stays_full_fails_what_was_not_sent_and_the_rest_goes_on(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane(max_deliveries=1)
        out = client.submit(lane, 0)
        await settled()
        client.broker.refusal = ResponseError("OOM")
        late: list[CallFuture[Any]] = []
        futures = [client.submit(lane, n) for n in range(20)]
        for future in futures:
            future.add_done_callback(lambda _: late.append(client.submit(lane, 42)))
        _, state = client.map(list(range(20)))
        await asyncio.sleep(patience.BROKER_TIMEOUT_S - 10)
        assert not any(future.done() for future in futures)
        await asyncio.sleep(20)
        assert all(isinstance(future.exception(0), BrokerRefused) for future in futures)
        assert [type(value.error) for value in results(state)] == [BrokerRefused] * 20
        assert client.dispatcher.broken is None
        assert len(late) == 20
        assert not any(future.done() for future in late)  # their patience has just begun
        client.broker.refusal = None
        await asyncio.sleep(3)
        await work_off(client)
        assert out.result(0) == 0
        assert [future.result(0) for future in late] == [42] * 20
        assert lane.idle

    run(scenario())


@pytest.mark.parametrize(
    ("refusal", "limit_s"),
    [("NOPERM no permissions", patience.REFUSED_S), ("READONLY a replica", patience.BROKER_TIMEOUT_S)],
)
def test_server_that_goes_on_refusing_breaks_the_executor(
    client: Client, run: Run, refusal: str, limit_s: float
) -> None:
    async def scenario() -> None:
        out = client.submit(client.lane(), 0)
        await settled()
        client.broker.refusal = ResponseError(refusal)
        future = client.submit(client.lane("g"), 1)
        await asyncio.sleep(limit_s - 1)
        assert not future.done()
        await asyncio.sleep(4)
        with pytest.raises(BrokerRefused, match=refusal):
            future.result(0)
        assert isinstance(out.exception(0), BrokerRefused)
        assert isinstance(client.dispatcher.broken, BrokerRefused)
        await asyncio.wait_for(client.dispatcher.stop(), 1)

    run(scenario())


@pytest.mark.parametrize("command", ["holders", "last_reply", "is_known"])
def test_question_that_is_refused_for_good_breaks_the_executor(
    client: Client, run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    async def refuse(*_: Any) -> Any:
        raise ResponseError("NOPERM no permissions")

    async def scenario() -> None:
        client.submit(client.lane(), 0)
        await settled()
        monkeypatch.setattr(client.publisher, command, refuse)
        client.broker.after_publish = RedisConnectionError("reset")
        future = client.submit(client.lane("g"), 1)
        await asyncio.sleep(10)
        with pytest.raises(BrokerRefused, match="NOPERM"):
            future.result(0)

    run(scenario())


def test_broker_that_refuses_at_the_start_is_explained(virtual: VirtualLoop, run: Run) -> None:
    async def refuse() -> bool:
        raise ResponseError("NOPERM no permissions")

    async def scenario() -> None:
        client = Client(virtual)
        client.publisher.stay_alive = refuse  # type: ignore[method-assign]
        with pytest.raises(BrokerRefused, match="NOPERM"):
            await client.start()

    run(scenario())


def test_batch_whose_publishing_was_not_answered_is_published_again_after_a_loss_of_data(
    client: Client, run: Run
) -> None:
    async def scenario() -> None:
        client.broker.after_publish = RedisConnectionError("reset")
        future = client.submit(client.lane(), 1)
        await asyncio.sleep(1)
        assert len(client.broker.queue) == 1
        client.broker.lose_data()
        await asyncio.sleep(recovery.RESTATE_S + 2)
        await work_off(client)
        assert future.result(0) == 1

    run(scenario())


def test_call_that_a_full_server_has_not_taken_is_cancelled_here_and_its_neighbours_go_on(
    client: Client, run: Run
) -> None:
    async def scenario() -> None:
        client.broker.refusal = ResponseError("OOM")
        lane = client.lane()
        client.dispatcher.publisher = None  # until all are there, so that they travel together
        futures = [client.submit(lane, n) for n in range(16)]
        await settled()
        client.dispatcher.publisher = client.publisher  # type: ignore[assignment]
        client.dispatcher.flush()
        await asyncio.sleep(1)
        assert max(batch.cargo.count for batch in client.dispatcher.ledger.values()) > 1
        assert await client.dispatcher.arbiter.cancel(futures[1:3]) == 2
        client.broker.refusal = None
        await asyncio.sleep(3)
        await work_off(client)
        assert [future.cancelled() for future in futures] == [False, True, True, *[False] * 13]
        assert [future.result(0) for future in futures if not future.cancelled()] == [0, *range(3, 16)]
        assert lane.idle

    run(scenario())


def test_call_whose_publishing_was_not_answered_is_not_cancelled_here(client: Client, run: Run) -> None:
    async def scenario() -> None:
        client.broker.after_publish = RedisConnectionError("reset")
        future = client.submit(client.lane(), 1)
        await queued(client)
        claimed = client.broker.claim()
        assert claimed is not None
        assert await client.dispatcher.arbiter.cancel([future]) == 0
        claimed.reply()
        await asyncio.sleep(1)
        assert future.result(0) == 1

    run(scenario())


def test_call_may_have_come_to_a_server_that_refuses_for_good(client: Client, run: Run) -> None:
    async def scenario() -> None:
        client.broker.refusal = ResponseError("NOPERM")
        future = client.submit(client.lane(), 1)
        await asyncio.sleep(1)
        assert await client.dispatcher.arbiter.cancel([future]) == 0
        client.broker.refusal = None
        await asyncio.sleep(3)
        await work_off(client)
        assert future.result(0) == 1

    run(scenario())


def test_arguments_that_no_server_takes_fail_their_call_and_no_other(
    client: Client, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executor.dispatch import lanes, map_lane

    monkeypatch.setattr(lanes, "MAX_CALL_BYTES", 1000)
    monkeypatch.setattr(map_lane, "MAX_CALL_BYTES", 1000)

    async def scenario() -> None:
        lane = client.lane()
        large, small = client.submit(lane, b"x" * 2000), client.submit(lane, b"x")
        _, state = client.map([b"a", b"b" * 2000, b"c"], chunksize=3)
        await asyncio.sleep(1)
        await work_off(client)
        assert isinstance(large.exception(0), SerializationError)
        assert small.result(0) == b"x"
        found = results(state)
        assert found[::2] == [b"a", b"c"]
        assert isinstance(found[1].error, SerializationError)

    run(scenario())


# ── the broker goes and comes ───────────────────────────────────────────────────────────────────────────────────────


def test_outcomes_come_after_an_outage(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        futures = [client.submit(lane, n) for n in range(4)]
        await settled()
        claimed = client.broker.claim_all()
        client.broker.down = True
        client.broker.arrived.set()
        await asyncio.sleep(100)
        for one in claimed:
            one.reply()
        client.broker.down = False
        await asyncio.sleep(10)
        await work_off(client)
        assert [future.result(0) for future in futures] == list(range(4))
        assert len(client.broker.published) == len(set(client.broker.published))

    run(scenario())


def test_server_that_has_lost_its_data_gets_the_calls_again(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        futures = [client.submit(lane, n) for n in range(20)]
        _, state = client.map(list(range(20)), chunksize=5)
        await settled()
        client.broker.lose_data()
        await asyncio.sleep(recovery.RESTATE_S + 2)
        assert client.broker.functions.keys() == {"digest-of-f", "digest-of-g"}
        await work_off(client)
        assert [future.result(0) for future in futures] == list(range(20))
        assert results(state) == list(range(20))

    run(scenario())


def test_server_that_has_lost_its_data_gets_no_call_that_somebody_still_runs(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane(max_deliveries=1)
        running, waiting = [client.submit(lane, n) for n in range(2)]
        await settled()
        claimed = client.broker.claim()
        assert claimed is not None
        client.broker.lose_data()
        await asyncio.sleep(1)
        client.broker.batches[claimed.envelope.id] = "w1"  # the worker says what it runs
        await asyncio.sleep(recovery.RESTATE_S + 2)
        assert len(client.broker.queue) == 1
        claimed.reply()
        await work_off(client)
        assert (running.result(0), waiting.result(0)) == (0, 1)
        assert len(client.broker.published) == 3

    run(scenario())


def test_server_that_has_lost_its_data_gets_settled_calls_of_a_batch_not_again(client: Client, run: Run) -> None:
    async def scenario() -> None:
        _, state = client.map(list(range(10)), chunksize=10)
        await settled()
        claimed = client.broker.claim()
        assert claimed is not None
        claimed.values(6)
        await settled()
        client.broker.lose_data()
        await asyncio.sleep(recovery.RESTATE_S + 2)
        again = [argument for one in client.broker.claim_all() for argument in (one.reply(), one.arguments)[1]]
        await settled()
        assert sorted(again) == [(6,), (7,), (8,), (9,)]
        assert results(state) == list(range(10))

    run(scenario())


def test_batch_that_is_just_being_published_is_not_taken_for_lost(client: Client, run: Run) -> None:
    async def scenario() -> None:
        future = client.submit(client.lane(), 0)
        await settled()
        client.broker.refusal = ResponseError("OOM")
        late = client.submit(client.lane("h"), 1)
        client.broker.lose_data()
        await asyncio.sleep(recovery.RESTATE_S + 2)
        client.broker.refusal = None
        await asyncio.sleep(5)
        ran = [argument for one in client.broker.claim_all() for argument in (one.reply(), one.arguments)[1]]
        await settled()
        assert sorted(ran) == [(0,), (1,)]
        assert (future.result(0), late.result(0)) == (0, 1)

    run(scenario())


def test_data_lost_while_catching_up_hangs_nobody(client: Client, run: Run) -> None:
    async def scenario() -> None:
        future = client.submit(client.lane(), 0)
        await settled()
        client.broker.number = 10**6
        client.broker.stream.append(((10**6, 0), b"an entry that is never read"))
        waiting = asyncio.ensure_future(client.dispatcher.inbox.caught_up())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        client.broker.number = 0
        client.broker.lose_data()
        await asyncio.wait_for(waiting, 60)
        await asyncio.sleep(recovery.RESTATE_S + 2)
        await work_off(client)
        assert future.result(0) == 0

    run(scenario())


def test_broker_gone_for_good_fails_every_future_and_later_call(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        futures = [client.submit(lane, n) for n in range(50)]
        map_lane, state = client.map(list(range(50)))
        await settled()
        client.broker.down = True
        client.broker.arrived.set()
        await asyncio.sleep(patience.BROKER_TIMEOUT_S - 10)
        assert not any(future.done() for future in futures)
        await asyncio.sleep(20)
        for future in futures:
            with pytest.raises(BrokerUnavailable, match="has not answered for 300 s"):
                future.result(0)
        assert [type(value.error) for value in results(state)] == [BrokerUnavailable] * 50
        assert isinstance(client.dispatcher.broken, BrokerUnavailable)
        await asyncio.wait_for(client.dispatcher.drained(), 1)
        late = client.submit(lane, 1)
        await settled()
        assert isinstance(late.exception(0), BrokerUnavailable)
        assert map_lane.backlog == 0

    run(scenario())


def test_error_in_the_dispatcher_itself_fails_every_future(
    client: Client, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def explode(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(client.publisher, "publish", explode)
    future = client.submit(client.lane(), 1)
    with caplog.at_level(logging.CRITICAL + 1):
        run(settled())
    with pytest.raises(PoolBroken, match="ZeroDivisionError\\('a bug'\\)"):
        future.result(0)


# ── retries, missing functions ──────────────────────────────────────────────────────────────────────────────────────


def test_call_that_raises_is_run_again_after_a_growing_pause(client: Client, run: Run, virtual: VirtualLoop) -> None:
    async def scenario() -> None:
        lane = client.lane(retries=3, backoff=10.0)
        future = client.submit(lane, 1)
        begun: list[float] = []
        for _ in range(3):
            await queued(client)
            begun.append(virtual.time())
            await work_off(client, lambda _: 1 / 0)
            assert lane.paused == 1
            assert not lane.idle
            assert not client.dispatcher._is_idle()
        await asyncio.sleep(41)
        await work_off(client)
        assert future.result(0) == 1
        assert 5 <= begun[1] - begun[0] <= 10.1 <= begun[2] - begun[1] + 0.2
        assert lane.idle

    run(scenario())


def test_call_that_always_raises_gets_its_last_error(client: Client, run: Run) -> None:
    async def scenario() -> None:
        attempts: list[int] = []

        def work(_: int) -> None:
            attempts.append(len(attempts))
            raise KeyError(attempts[-1])

        future = client.submit(client.lane(retries=2, backoff=0.0), 1)
        _, state = client.map([1], retries=2, backoff=0.0)
        for _ in range(5):
            await asyncio.sleep(0.1)
            await work_off(client, work)
        error = future.exception(0)
        assert isinstance(error, KeyError)
        assert len(attempts) == 6
        assert type(results(state)[0].error) is KeyError

    run(scenario())


@pytest.mark.parametrize(
    ("retry_on", "error", "attempts"),
    [
        (ValueError, KeyError, 1),
        ([KeyError, ValueError], KeyError, 3),
        ((Exception,), KeyboardInterrupt, 1),
    ],
)
def test_only_errors_of_retry_on_are_run_again(
    client: Client, run: Run, retry_on: Any, error: type[BaseException], attempts: int
) -> None:
    seen: list[int] = []

    async def scenario() -> None:
        client.submit(client.lane(retries=2, backoff=0.0, retry_on=retry_on), 1)
        for _ in range(4):
            await asyncio.sleep(0.1)
            for claimed in client.broker.claim_all():
                seen.append(1)
                claimed.outcomes([pickling.exception_outcome(error("no"))])

    run(scenario())
    assert len(seen) == attempts


@pytest.mark.parametrize(
    ("name", "attempts"),
    [
        ("WorkerLost", 1),
        ("VersionMismatch", 1),
        ("BadSignature", 1),
        ("CallTimeout", 3),
    ],
)
def test_deaths_are_not_counted_as_errors_of_the_call(client: Client, run: Run, name: str, attempts: int) -> None:
    seen: list[int] = []

    async def scenario() -> None:
        future = client.submit(client.lane(retries=2, backoff=0.0), 1)
        for _ in range(4):
            await asyncio.sleep(0.1)
            for claimed in client.broker.claim_all():
                seen.append(1)
                claimed.outcomes([outcome.error(name, "as the worker says")])
        await settled()
        assert isinstance(future.exception(0), CallTimeout if name == "CallTimeout" else Exception)
        assert type(future.exception(0)).__name__ == name

    run(scenario())
    assert len(seen) == attempts


def test_many_retries_without_a_pause_overflow_nothing(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane(retries=3000, backoff=0.0)
        future = client.submit(lane, 1)
        future.attempts = 2990
        for _ in range(12):
            await asyncio.sleep(0.01)
            await work_off(client, lambda _: 1 / 0)
        assert isinstance(future.exception(0), ZeroDivisionError)

    run(scenario())


def test_terminating_fails_calls_that_pause_before_their_next_attempt(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane(retries=3, backoff=60.0)
        future = client.submit(lane, 1)
        _, state = client.map([1], retries=3, backoff=60.0)
        await work_off(client, lambda _: 1 / 0)
        assert lane.paused == 1
        client.dispatcher.break_with(PoolBroken("terminated"))
        assert isinstance(future.exception(0), PoolBroken)
        assert isinstance(results(state)[0].error, PoolBroken)
        assert lane.paused == 0

    run(scenario())


def test_missing_function_is_stored_again_for_every_batch_that_was_out(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane(max_deliveries=1)
        futures = [client.submit(lane, n) for n in range(8)]
        await settled()
        client.broker.functions.clear()
        for claimed in client.broker.claim_all():
            claimed.outcomes([outcome.error("FunctionMissing", "gone")])
        await settled()
        assert "digest-of-f" in client.broker.functions
        await work_off(client)
        assert [future.result(0) for future in futures] == list(range(8))

    run(scenario())


def test_function_missing_a_second_time_is_the_users_to_know(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        future = client.submit(lane, 1)
        for expected in (False, True):
            await settled()
            claimed = client.broker.claim()
            assert claimed is not None
            claimed.outcomes([outcome.error("FunctionMissing", "gone")])
            await settled()
            assert future.done() is expected
        assert isinstance(future.exception(0), FunctionMissing)
        assert lane.idle

    run(scenario())


# ── cancelling ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_call_in_the_buffer_is_cancelled_at_once(client: Client, run: Run) -> None:
    lane = client.lane(max_deliveries=1)
    futures = [client.submit(lane, n) for n in range(10)]
    assert all(future.cancel() for future in futures[5:])
    run(work_off(client))
    assert [future.cancelled() for future in futures] == [False] * 5 + [True] * 5
    assert lane.idle


def test_cancel_callback_may_submit_and_use_other_threads(client: Client, run: Run) -> None:
    lane = client.lane()
    future = client.submit(lane, 1)
    more: list[CallFuture[Any]] = []

    def callback(_: object) -> None:
        thread = threading.Thread(target=lambda: more.append(client.submit(lane, 2)))
        thread.start()
        thread.join(10)

    future.add_done_callback(callback)
    assert future.cancel()
    assert len(more) == 1
    run(work_off(client))
    assert more[0].result(0) == 2


def test_queued_call_is_cancelled_and_never_runs(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        future = client.submit(lane, 1)
        await settled()
        assert await client.dispatcher.arbiter.cancel([future]) == 1
        assert future.cancelled()
        claimed = client.broker.claim()
        assert claimed is not None
        assert claimed.cancelled == {0}
        claimed.reply()
        await settled()
        assert lane.idle

    run(scenario())


def test_claimed_call_is_not_cancelled_and_is_known_to_run(client: Client, run: Run) -> None:
    async def scenario() -> None:
        future = client.submit(client.lane(), 1)
        await settled()
        claimed = client.broker.claim()
        assert claimed is not None
        assert await client.dispatcher.arbiter.cancel([future]) == 0
        assert future._state == "RUNNING"
        claimed.reply()
        await settled()
        assert future.result(0) == 1

    run(scenario())


def test_call_on_its_way_to_the_broker_is_cancelled_when_it_has_arrived(client: Client, run: Run) -> None:
    async def scenario() -> None:
        future = client.submit(client.lane(), 1)
        client.dispatcher.flush()
        assert client.broker.published == []
        assert await client.dispatcher.arbiter.cancel([future]) == 1
        assert future.cancelled()

    run(scenario())


def test_calls_behind_the_first_of_a_claimed_batch_are_cancelled_when_it_is_split(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        client.dispatcher.publisher = None  # until all are there, so that they travel together
        futures = [client.submit(lane, n) for n in range(16)]
        await settled()
        client.dispatcher.publisher = client.publisher  # type: ignore[assignment]
        client.dispatcher.flush()
        await settled()
        claimed = client.broker.claim()
        assert claimed is not None
        assert claimed.end > 1
        cancelling = asyncio.ensure_future(client.dispatcher.arbiter.cancel(futures[: claimed.end]))
        await settled()
        claimed.split(1)
        kept = await cancelling
        assert [future.cancelled() for future in futures[: kept + 1]] == [False] + [True] * kept
        assert kept >= 1

    run(scenario())


def test_a_cancel_follows_a_call_that_travels_elsewhere_by_now(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        client.dispatcher.publisher = None  # until all are there, so that they travel together
        lane.durations.add(0.001, 1)
        futures = [client.submit(lane, n) for n in range(4)]
        await settled()
        client.dispatcher.publisher = client.publisher  # type: ignore[assignment]
        client.dispatcher.flush()
        await settled()
        claimed = client.broker.claim()
        assert claimed is not None
        last = claimed.end - 1
        cancelling = asyncio.ensure_future(client.dispatcher.arbiter.cancel([futures[last]]))
        # The rest was split off, and the worker died, before the order to cancel comes; the client has not heard of it.
        claimed.split(1)
        claimed.die()
        assert await cancelling == 1
        assert last in client.broker.cancels[f"{claimed.envelope.root}.1"]

    run(scenario())


def test_expired_call_fails_and_never_runs(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane(max_deliveries=1)
        futures = [client.submit(lane, n) for n in range(6)]
        await settled()
        error = CallTimeout("expired")
        assert await client.dispatcher.arbiter.cancel(futures, error) == 6
        assert all(future.exception(0) is error for future in futures)
        for claimed in client.broker.claim_all():
            assert claimed.cancelled == {0}

    run(scenario())


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_drained_waits_for_calls_in_every_place(client: Client, run: Run) -> None:
    async def scenario() -> None:
        await asyncio.wait_for(client.dispatcher.drained(), 1)
        lane = client.lane(retries=1, backoff=20.0)
        client.submit(lane, 1)
        drained = asyncio.ensure_future(client.dispatcher.drained())
        await settled()
        assert not drained.done()  # out
        await work_off(client, lambda _: 1 / 0)
        assert not drained.done()  # in a pause
        await asyncio.sleep(21)
        assert not drained.done()  # out again
        await work_off(client)
        await asyncio.wait_for(drained, 1)

    run(scenario())


def test_drained_sees_a_call_whose_lane_is_not_flushed_yet(client: Client, run: Run) -> None:
    async def scenario() -> None:
        client.submit(client.lane(), 1)
        drained = asyncio.ensure_future(client.dispatcher.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        await work_off(client)
        await asyncio.wait_for(drained, 1)

    run(scenario())


def test_drained_returns_when_all_calls_were_cancelled(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane(max_deliveries=1)
        futures = [client.submit(lane, n) for n in range(10)]
        await settled()
        await client.dispatcher.arbiter.cancel(futures)
        await asyncio.wait_for(client.dispatcher.drained(), 1)
        await settled()
        assert lane.idle

    run(scenario())


def test_stop_leaves_nothing_and_fails_what_slipped_in(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        out = client.submit(lane, 1)
        await settled()
        await client.dispatcher.stop()
        late = client.submit(lane, 2)
        await settled()
        assert isinstance(out.exception(0), PoolBroken)
        assert isinstance(late.exception(0), PoolBroken)
        assert client.publisher.left
        assert client.publisher.closed
        assert client.replies.closed
        assert len(asyncio.all_tasks()) == 1

    run(scenario())


def test_break_with_is_done_once_and_callbacks_may_submit(client: Client, run: Run) -> None:
    async def scenario() -> None:
        lane = client.lane()
        future = client.submit(lane, 1)
        late: list[CallFuture[Any]] = []
        future.add_done_callback(lambda _: late.append(client.submit(lane, 2)))
        await settled()
        first, second = PoolBroken("first"), PoolBroken("second")
        client.dispatcher.break_with(first)
        client.dispatcher.break_with(second)
        await settled()
        assert future.exception(0) is late[0].exception(0) is first

    run(scenario())


# ── user threads and the loop thread ────────────────────────────────────────────────────────────────────────────────


def test_no_wake_up_is_lost_between_user_threads_and_the_loop(client: Client, run: Run, virtual: VirtualLoop) -> None:
    client.loop.call = virtual.call_soon_threadsafe  # type: ignore[method-assign]
    lanes = [client.lane(f"f{n}") for n in range(4)]
    futures: list[CallFuture[Any]] = []

    def submit(number: int) -> None:
        futures.extend([client.submit(lanes[(number + n) % 4], n) for n in range(300)])

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()

    async def serve() -> None:
        while any(thread.is_alive() for thread in threads) or client.broker.queue or client.dispatcher.ledger:
            for claimed in client.broker.claim_all():
                claimed.reply()
            await asyncio.sleep(0)
        await settled()

    run(serve())
    for thread in threads:
        thread.join()
    assert len(futures) == 1200
    assert all(future.done() for future in futures)
    assert all(lane.idle for lane in lanes)
