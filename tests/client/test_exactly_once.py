"""Writes carry who makes them and a number, and are sent until they are answered."""

import asyncio

import pytest

import kvorum
from kvorum import (
    KV,
    ClientForgotten,
    Closed,
    DeadlineExceeded,
    KvorumError,
    OutcomeUnknown,
    Overloaded,
    QuotaExceeded,
    ResultForgotten,
    limits,
)
from kvorum.backends.window import Window
from kvorumpb.v1.kv_pb2 import Call, Origin, Reply
from tests.client.conftest import Nodes, backend_of, target_of
from tests.client.test_cancellation import cancel, is_empty
from tests.client.test_cluster import first, silent
from tests.support.eventually import eventually
from tests.support.fake_server import FakeNode, not_leader, succeed


def origins(node: FakeNode) -> list[Origin]:
    """Of all puts that have come."""
    return [call.put.origin for call in node.calls if call.HasField("put")]


def sequences(node: FakeNode) -> list[int]:
    return [origin.sequence for origin in origins(node)]


def ids(node: FakeNode) -> list[int]:
    return [call.register_client.client_id for call in node.registrations]


class TestWindow:
    def test_it_numbers_from_1_and_acknowledges_what_is_settled_without_a_gap(self) -> None:
        window = Window(7)
        assert [window.take() for _ in range(4)] == [1, 2, 3, 4]
        seen = []
        for sequence in (2, 4, 1, 3):
            window.settle(sequence)
            seen.append(window.acknowledged)
        assert seen == [0, 0, 2, 4]

    def test_it_is_full_when_the_store_would_refuse_the_next_write(self) -> None:
        window = Window(7)
        for _ in range(limits.MAX_CLIENT_WINDOW):
            assert not window.is_full
            window.take()
        assert window.is_full
        window.settle(2)
        assert window.is_full
        window.settle(1)
        assert not window.is_full


class TestRegistering:
    async def test_the_client_is_known_before_its_first_write(self, nodes: Nodes, kv: KV) -> None:
        n1, n2, n3 = nodes
        await asyncio.gather(*(kv.put(f"k{i}", i) for i in range(10)))
        assert len(n1.registrations) == 1
        assert n2.registrations == n3.registrations == []
        [client] = {origin.client_id for origin in origins(n1)}
        assert [client] == ids(n1)
        assert client != 0
        assert sorted(sequences(n1)) == list(range(1, 11))

    async def test_who_only_reads_does_not_register(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        await kv.get("a")
        await kv.list("a")
        await kv.atomic().check("a", exists=True).get("a").commit()
        assert n1.registrations == []
        assert not n1.calls[-1].txn.HasField("origin")

    async def test_two_stores_are_two_clients(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        await kv.put("a", 1)
        async with kvorum.open(target_of(*nodes)) as other:
            await other.put("a", 1)
        assert len(set(ids(n1))) == 2

    async def test_each_attempt_draws_an_id_of_its_own(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        n1.on_register = first(silent, times=2)
        writing = asyncio.create_task(kv.put("a", 1))
        for attempt in (1, 2):
            await eventually(lambda: len(n1.registrations) == attempt)  # noqa: B023 - called here
            n1.break_streams()
        await writing
        assert len(set(ids(n1))) == 3
        assert [origin.client_id for origin in origins(n1)] == ids(n1)[-1:]

    @pytest.mark.parametrize(
        "error", [Overloaded("busy"), OutcomeUnknown("lost"), DeadlineExceeded("late")]
    )
    async def test_an_attempt_that_fails_is_repeated(
        self, nodes: Nodes, kv: KV, error: KvorumError
    ) -> None:
        n1, _, _ = nodes
        n1.on_register = first(lambda _: error, times=2)
        await kv.put("a", 1)
        assert len(n1.registrations) == 3

    async def test_the_leader_is_followed(self, nodes: Nodes, kv: KV) -> None:
        n1, n2, _ = nodes
        n1.on_register = not_leader(n2)
        n2.on_register = succeed
        await kv.put("a", 1)
        assert (len(n1.calls), len(n2.calls)) == (0, 1)

    async def test_it_outlasts_an_impatient_caller(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        n1.on_register = silent
        with pytest.raises(DeadlineExceeded) as caught:
            await kv.put("a", 1, timeout=0.05)
        assert not caught.value.maybe_applied
        n1.answer(n1.registrations[0])
        await kv.put("b", 1)
        assert len(n1.registrations) == 1
        assert sequences(n1) == [1]

    async def test_it_is_begun_again_when_it_takes_too_long(
        self, nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "DEFAULT_TIMEOUT_SECONDS", 0.05)
        n1, _, _ = nodes
        n1.on_register = first(silent)
        await kv.put("a", 1)
        assert len(n1.registrations) == 2

    async def test_close_ends_it(self, nodes: Nodes) -> None:
        nodes[0].on_register = silent
        kv = await kvorum.open(target_of(*nodes))
        writing = asyncio.create_task(kv.put("a", 1))
        await eventually(lambda: nodes[0].registrations)
        await kv.close()
        with pytest.raises(Closed) as caught:
            await writing
        assert not caught.value.maybe_applied


class TestAcknowledging:
    async def test_what_is_answered_is_acknowledged(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        for i in range(3):
            await kv.put(f"k{i}", i)
        assert [origin.acknowledged for origin in origins(n1)] == [0, 1, 2]

    async def test_what_is_not_answered_holds_the_window(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        n1.script = first(silent)
        slow = asyncio.create_task(kv.put("slow", 1))
        await eventually(lambda: n1.calls)
        await kv.put("a", 1)
        await kv.put("b", 1)
        assert [origin.acknowledged for origin in origins(n1)] == [0, 0, 0]
        n1.answer(n1.calls[0])
        await slow
        await kv.put("c", 1)
        assert origins(n1)[-1].acknowledged == 3

    async def test_a_cancelled_write_holds_it_no_longer(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        n1.script = first(silent)
        gone: asyncio.Task[object] = asyncio.create_task(kv.put("gone", 1))
        await eventually(lambda: n1.calls)
        await kv.put("a", 1)
        await cancel(gone)
        await kv.put("b", 1)
        assert [origin.acknowledged for origin in origins(n1)] == [0, 0, 2]

    async def test_a_write_out_of_time_holds_it_no_longer(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        await kv.put("warm", 1)
        n1.script = first(silent)
        with pytest.raises(DeadlineExceeded) as caught:
            await kv.put("gone", 1, timeout=0.3)
        assert caught.value.maybe_applied
        await kv.put("a", 1)
        assert origins(n1)[-1].acknowledged == 2

    async def test_a_repeated_write_acknowledges_what_was_answered_meanwhile(
        self, nodes: Nodes, kv: KV
    ) -> None:
        n1, _, _ = nodes
        n1.script = silent
        both = [asyncio.create_task(kv.put(key, 1)) for key in ("a", "b")]
        await eventually(lambda: len(n1.calls) == 2)
        n1.answer(n1.calls[0])
        await both[0]
        n1.script = succeed
        n1.break_streams()
        await both[1]
        assert [(origin.sequence, origin.acknowledged) for origin in origins(n1)] == [
            (1, 0),
            (2, 0),
            (2, 1),
        ]

    async def test_a_full_window_lets_later_writes_wait(
        self, nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_CLIENT_WINDOW", 3)
        n1, _, _ = nodes
        await kv.put("warm", 1)
        n1.script = first(silent)
        tasks: list[asyncio.Task[object]] = [
            asyncio.create_task(kv.put(f"k{i}", i)) for i in range(6)
        ]
        await asyncio.gather(*tasks[1:3])
        assert await kv.get("reads go on") is not None
        assert sequences(n1) == [1, 2, 3, 4]
        await cancel(tasks[3])
        n1.answer(n1.calls[1])
        await asyncio.gather(tasks[0], *tasks[4:])
        assert sequences(n1) == [1, 2, 3, 4, 5, 6]
        assert all(one.sequence - one.acknowledged <= 3 for one in origins(n1))
        assert is_empty(kv)


class TestForgotten:
    async def test_a_write_that_was_never_sent_before_is_sent_by_a_new_client(
        self, nodes: Nodes, kv: KV
    ) -> None:
        n1, _, _ = nodes
        for i in range(3):
            await kv.put(f"k{i}", i)
        n1.script = first(lambda _: ClientForgotten("who?"), times=4)
        await asyncio.gather(*(kv.put(f"l{i}", i) for i in range(4)))
        old, new = ids(n1)
        assert old != new
        assert [one.client_id for one in origins(n1)] == [old] * 7 + [new] * 4
        assert sorted(sequences(n1)[-4:]) == [1, 2, 3, 4]

    async def test_what_was_sent_before_is_in_doubt(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        n1.script = first(silent, then=first(lambda _: ClientForgotten("who?")))
        writing = asyncio.create_task(kv.put("a", 1))
        await eventually(lambda: n1.calls)
        n1.break_streams()
        with pytest.raises(OutcomeUnknown, match="has forgotten this client") as caught:
            await writing
        assert caught.value.maybe_applied
        assert isinstance(caught.value.__cause__, ClientForgotten)
        await kv.put("b", 1)
        assert len(n1.registrations) == 2

    async def test_what_was_certainly_not_applied_before_is_not_in_doubt(
        self, nodes: Nodes, kv: KV
    ) -> None:
        n1, _, _ = nodes
        answers: list[KvorumError] = [Overloaded("busy"), ClientForgotten("who?")]
        n1.script = lambda call: answers.pop(0) if answers else succeed(call)
        await kv.put("a", 1)
        assert len(n1.calls) == 3

    async def test_those_that_wait_for_the_window_get_a_new_one(
        self, nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_CLIENT_WINDOW", 1)
        n1, _, _ = nodes
        n1.script = first(silent, then=first(lambda _: ClientForgotten("who?")))
        ahead = asyncio.create_task(kv.put("a", 1))
        await eventually(lambda: n1.calls)
        waiting = asyncio.create_task(kv.put("b", 1))
        await asyncio.sleep(0)
        n1.break_streams()
        with pytest.raises(OutcomeUnknown):
            await ahead
        await waiting
        assert origins(n1)[-1].client_id == ids(n1)[-1] != ids(n1)[0]

    async def test_a_result_that_is_gone_is_told(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        n1.script = first(silent, then=lambda _: ResultForgotten("too large"))
        writing = asyncio.create_task(kv.put("a", 1))
        await eventually(lambda: n1.calls)
        n1.break_streams()
        with pytest.raises(ResultForgotten) as caught:
            await writing
        assert caught.value.maybe_applied


class TestDoubt:
    """A refusal of the last attempt says nothing about one that was lost."""

    async def lost(self, kv: KV, n1: FakeNode, timeout: float) -> asyncio.Task[int]:
        """A put of which the first attempt was lost."""
        script, n1.script = n1.script, silent
        writing = asyncio.create_task(kv.put("a", 1, timeout=timeout))
        await eventually(lambda: n1.calls)
        n1.script = script
        n1.break_streams()
        return writing

    @pytest.mark.parametrize("error", [Overloaded("busy"), QuotaExceeded("full")])
    async def test_at_the_deadline(self, nodes: Nodes, kv: KV, error: KvorumError) -> None:
        n1, _, _ = nodes
        n1.script = lambda _: error
        writing = await self.lost(kv, n1, timeout=1.0)
        with pytest.raises(DeadlineExceeded, match="may or may not be applied") as caught:
            await writing
        assert caught.value.maybe_applied
        assert len(n1.calls) >= 2

    async def test_when_nobody_is_left_to_ask(self, nodes: Nodes) -> None:
        n1, _, _ = nodes
        async with kvorum.open(target_of(n1)) as kv:
            await kv.put("warm", 1)
            n1.script = silent
            writing = asyncio.create_task(kv.put("a", 1, timeout=1.0))
            await eventually(lambda: len(n1.calls) == 2)
            await n1.stop()
            with pytest.raises(DeadlineExceeded) as caught:
                await writing
        assert caught.value.maybe_applied

    async def test_at_the_close(self, nodes: Nodes) -> None:
        n1, _, _ = nodes
        kv = await kvorum.open(target_of(*nodes))
        n1.script = lambda _: Overloaded("busy")
        writing = await self.lost(kv, n1, timeout=10)
        await eventually(lambda: len(n1.calls) >= 2)
        await kv.close()
        with pytest.raises(Closed) as caught:
            await writing
        assert caught.value.maybe_applied

    async def test_a_first_attempt_that_is_refused_for_the_quota_is_not_repeated(
        self, nodes: Nodes, kv: KV
    ) -> None:
        n1, _, _ = nodes
        n1.script = lambda _: QuotaExceeded("full")
        with pytest.raises(QuotaExceeded):
            await kv.put("a", 1)
        assert len(n1.calls) == 1


async def test_a_store_that_applies_once_counts_once_whatever_is_lost(nodes: Nodes, kv: KV) -> None:
    """Half of all answers are lost with their streams."""
    n1, _, _ = nodes
    answered: dict[int, Reply] = {}
    total = 0

    def apply_once(call: Call) -> Reply | None:
        nonlocal total
        sequence = call.txn.origin.sequence
        if sequence in answered:
            return answered[sequence]
        total += call.txn.transaction.operations[0].add.amount
        answered[sequence] = succeed(call)
        if sequence % 2:
            asyncio.get_running_loop().call_soon(n1.break_streams)
            return None
        return answered[sequence]

    n1.script = apply_once
    for _ in range(4):
        await asyncio.gather(*(kv.add("n", 1) for _ in range(5)))
    assert total == 20
    assert backend_of(kv)._window is not None
