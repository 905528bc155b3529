"""Every call settles exactly once, whatever order things happen in: a model against the dispatcher.

The rules are all that can happen: calls and maps come, messages are claimed, answered in parts or twice, split, lost
with their worker, cancelled, and the server forgets everything. At the end the workers do what is left, and every
call must have its one outcome.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from executor.dispatch import recovery
from executor.dispatch.future import CallFuture
from executor.dispatch.map_result import Failed, MapState
from executor.wire import outcome
from tests.unit.dispatch.doubles import Claimed, Client, VirtualLoop, settled


class OddError(Exception):
    """What odd numbers raise."""


def work(x: int) -> int:
    """What the workers do."""
    if x % 5 == 4:
        raise OddError(x)
    return x * 10


class Settling(RuleBasedStateMachine):
    """See the module."""

    claimed = Bundle("claimed")
    futures = Bundle("futures")

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.client = Client(self.loop)
        self.run(self.client.start())
        self.lanes = [
            self.client.lane("f"),
            self.client.lane("f", max_deliveries=1),
            self.client.lane("g", retries=1, backoff=1.0),
        ]
        self.called: Counter[CallFuture[Any]] = Counter()
        self.arguments: dict[CallFuture[Any], int] = {}
        self.maps: list[tuple[MapState, int]] = []
        self.cancelled: set[CallFuture[Any]] = set()
        self.stale: set[Claimed] = set()
        self.number = 0

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    # --- what users do --------------------------------------------------------------------------

    @rule(target=futures, lane=st.integers(0, 2), count=st.integers(1, 12))
    def submit(self, lane: int, count: int) -> Any:
        made = []
        for _ in range(count):
            self.number += 1
            future = self.client.submit(self.lanes[lane], self.number)
            self.arguments[future] = self.number
            future.add_done_callback(lambda done: self.called.update([done]))  # type: ignore[list-item]
            made.append(future)
        return multiple(*made)

    @rule(count=st.integers(0, 40), chunksize=st.none() | st.integers(1, 10))
    def start_map(self, count: int, chunksize: int | None) -> None:
        _, state = self.client.map(list(range(count)), chunksize=chunksize)
        self.maps.append((state, count))

    @rule(future=futures)
    def cancel(self, future: CallFuture[Any]) -> None:
        cancelling = self.client.loop.start(self.client.dispatcher.arbiter.cancel([future]))
        self.run(settled())
        self.run(asyncio.sleep(1))
        if cancelling.result(0):
            self.cancelled.add(future)

    @rule(future=futures)
    def cancel_in_the_buffer(self, future: CallFuture[Any]) -> None:
        if future.root is None and not future.done():
            assert future.cancel()
            self.cancelled.add(future)

    # --- what workers do ------------------------------------------------------------------------

    @rule()
    def let_happen(self) -> None:
        self.run(settled())

    @rule(seconds=st.sampled_from([0.1, 2.5]))
    def let_time_pass(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(target=claimed)
    def claim(self) -> Any:
        self.run(settled())
        one = self.client.broker.claim()
        return multiple() if one is None else one

    @rule(one=claimed, count=st.integers(1, 5), as_values=st.booleans())
    def answer_some(self, one: Claimed, count: int, as_values: bool) -> None:
        if one.done or one in self.stale:
            return
        values = range(one.first, min(one.end, one.first + count))
        if as_values and not one.cancelled and all(one.arguments[index][0] % 5 != 4 for index in values):
            one.values(count, work)
        else:
            one.reply(count, work)

    @rule(one=consumes(claimed))
    def answer_all(self, one: Claimed) -> None:
        if not one.done and one not in self.stale:
            one.reply(work=work)

    @rule(one=claimed, keep=st.integers(1, 5))
    def split(self, one: Claimed, keep: int) -> None:
        if one.end - one.first > keep and one not in self.stale:
            one.split(one.first + keep)

    @rule(one=consumes(claimed))
    def die(self, one: Claimed) -> None:
        if not one.done and one not in self.stale:
            one.envelope = one.envelope._replace(end=one.end)
            one.die()

    @rule(one=consumes(claimed))
    def miss_the_function(self, one: Claimed) -> None:
        if (
            not one.done
            and one not in self.stale
            and one.envelope.first == one.first == 0
            and one.header["n"] == one.end
        ):
            (batch,) = [b for b in self.client.dispatcher.ledger.values() if b.root == one.envelope.root] or [None]
            if batch is not None and not batch.restored and not batch.lane.missed_function:
                one.outcomes([outcome.error("FunctionMissing", "gone")] * one.end)

    # --- what servers do ------------------------------------------------------------------------

    @rule(which=st.integers(0, 10))
    def deliver_a_reply_again(self, which: int) -> None:
        stream = self.client.broker.stream
        if stream:
            self.client.broker.add_raw(stream[which % len(stream)][1])

    @rule(seconds=st.sampled_from([0.5, 20.0]))
    def be_away(self, seconds: float) -> None:
        self.client.broker.down = True
        self.client.broker.arrived.set()
        self.run(asyncio.sleep(seconds))
        self.client.broker.down = False
        self.run(asyncio.sleep(3))

    @rule()
    def lose_all_data(self) -> None:
        self.run(settled())
        self.stale.update(self._held())
        self.client.broker.lose_data()
        self.run(asyncio.sleep(recovery.RESTATE_S + 8))

    def _held(self) -> list[Claimed]:
        return [one for one in self.client.broker.handed_out if not one.done]

    # --- what must hold -------------------------------------------------------------------------

    @invariant()
    def nobody_is_called_back_twice(self) -> None:
        assert not self.called or max(self.called.values()) == 1

    @invariant()
    def nothing_is_broken(self) -> None:
        assert self.client.dispatcher.broken is None

    def teardown(self) -> None:
        try:
            self.run(self._work_off())
            self._check()
        finally:
            self.run(self.client.dispatcher.stop())
            self.loop.close()

    async def _work_off(self) -> None:
        for one in self._held():
            if one not in self.stale:
                one.reply(work=work)
        drained = asyncio.ensure_future(self.client.dispatcher.drained())
        for _ in range(500):
            await asyncio.sleep(0.2)
            for one in self.client.broker.claim_all():
                one.reply(work=work)
            if drained.done():
                break
        assert drained.done(), (self.client.dispatcher.ledger, self.client.broker.batches)
        await settled()

    def _check(self) -> None:
        for future, argument in self.arguments.items():
            assert self.called[future] == 1
            if future in self.cancelled:
                assert future.cancelled()
            elif not future.cancelled():
                self._check_outcome(future.exception(0), None if future.exception(0) else future.result(0), argument)
        for state, count in self.maps:
            assert state.filled == count
            found: list[Any] = []
            while (values := state.next_slice()) is not None:
                found += values
            assert len(found) == count
            for argument, value in enumerate(found):
                failed = isinstance(value, Failed)
                self._check_outcome(value.error if failed else None, None if failed else value, argument)
        assert all(lane.idle for lane in self.lanes)
        assert self.client.dispatcher.ledger == {}

    @staticmethod
    def _check_outcome(error: BaseException | None, value: Any, argument: int) -> None:
        if argument % 5 == 4:
            assert isinstance(error, OddError)
        else:
            assert (error, value) == (None, argument * 10)


Settling.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestSettling = Settling.TestCase
