"""Which node a call goes to, and what becomes of it when something fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

import kvorum
from kvorum import (
    KV,
    DeadlineExceeded,
    InvalidArgument,
    KvorumError,
    LimitExceeded,
    NoLeader,
    NoNodeReachable,
    OutcomeUnknown,
    Overloaded,
    ShuttingDown,
)
from kvorum.backends import cluster
from kvorum.errors import Code
from kvorumpb.v1.kv_pb2 import Call, Reply
from tests.client.conftest import Nodes, backend_of, target_of
from tests.support.eventually import eventually
from tests.support.fake_server import FakeNode, Script, not_leader, succeed


def silent(call: Call) -> None:
    """Never answer."""


def first(script: Script, *, then: Script = succeed, times: int = 1) -> Script:
    """Follow one script for the first calls, and another one afterwards."""
    left = times

    def run(call: Call) -> Reply | KvorumError | None:
        nonlocal left
        left -= 1
        return script(call) if left >= 0 else then(call)

    return run


class TestFindingTheLeader:
    async def test_calls_go_to_the_leader_alone(self, nodes: Nodes, kv: KV) -> None:
        n1, n2, n3 = nodes
        assert await kv.put("a", 1) > 0
        assert (len(n1.calls), len(n2.calls), len(n3.calls)) == (1, 0, 0)

    async def test_only_the_stream_to_the_leader_stays(self, nodes: Nodes, kv: KV) -> None:
        n1, n2, n3 = nodes
        await kv.put("a", 1)
        await eventually(lambda: n2.open_streams == n3.open_streams == 0)
        assert n1.open_streams == 1

    async def test_one_given_node_leads_to_the_others(self, nodes: Nodes) -> None:
        n1, _, n3 = nodes
        async with kvorum.open(target_of(n3)) as kv:
            await kv.put("a", 1)
        assert len(n1.calls) == 1

    async def test_the_cluster_is_found_when_the_given_nodes_are_gone(self, nodes: Nodes) -> None:
        n1, n2, n3 = nodes
        n1.lead(term=1, members=nodes)
        async with kvorum.open(target_of(n1)) as kv:
            await kv.put("a", 1)
            n2.follow(n3, term=2)
            n3.lead(term=2)
            await n1.stop()  # which never said who would lead after it
            await kv.get("a")
        assert len(n3.calls) == 1

    async def test_the_highest_term_wins(self, nodes: Nodes) -> None:
        n1, n2, n3 = nodes
        n3.follow(n2, term=5)
        n1.script = silent
        async with kvorum.open(target_of(n3, n1)) as kv:
            # n1 still takes itself for the leader of term 1; n3 knows better.
            task = asyncio.create_task(kv.get("a"))
            await eventually(lambda: n2.calls)
            await task

    async def test_a_push_moves_the_next_call(self, nodes: Nodes, kv: KV) -> None:
        n1, n2, _ = nodes
        await kv.put("a", 1)
        for node in nodes:
            node.follow(n2, term=2)
        await eventually(lambda: n1.open_streams == 0)
        await kv.put("b", 1)
        assert (len(n1.calls), len(n2.calls)) == (1, 1)

    async def test_not_leader_is_followed(self, nodes: Nodes, kv: KV) -> None:
        n1, n2, _ = nodes
        n1.script = not_leader(n2)
        await kv.put("a", 1)
        assert (len(n1.calls), len(n2.calls)) == (1, 1)

    async def test_two_nodes_that_point_at_each_other_are_not_hammered(self, nodes: Nodes) -> None:
        n1, n2, _ = nodes
        n1.script, n2.script = not_leader(n2), not_leader(n1)
        async with kvorum.open(target_of(n1, n2)) as kv:
            with pytest.raises(DeadlineExceeded) as caught:
                await kv.put("a", 1, timeout=0.5)
        assert not caught.value.maybe_applied
        assert 2 <= len(n1.calls) + len(n2.calls) <= 40

    async def test_an_advertised_address_out_of_reach_falls_back_to_the_given_ones(
        self, nodes: Nodes
    ) -> None:
        """As when the ports of containers are forwarded: the leader knows another address."""
        n1, n2, n3 = nodes
        for node in nodes:
            node.follow(n1, term=1, address="127.0.0.1:1")
        n2.script = n3.script = not_leader(n1, address="127.0.0.1:1")
        async with kvorum.open(target_of(*nodes)) as kv:
            await kv.put("a", 1)
            messages = len(n1.messages)
            await asyncio.gather(*(kv.put("a", 1) for _ in range(20)))
        assert len(n1.calls) == 21
        assert len(n1.messages) == messages + 1
        assert len(n2.calls) <= 2

    async def test_a_leader_that_refuses_is_sent_single_calls_and_not_the_queue(
        self, nodes: Nodes, kv: KV
    ) -> None:
        for node in nodes:
            node.script = not_leader()
        calls = [kv.put(f"k{i}", i, timeout=0.5) for i in range(200)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, DeadlineExceeded) for end in ends)
        assert 200 <= len(nodes[0].calls) <= 300

    async def test_a_leader_that_is_not_ready_is_asked_again(self, nodes: Nodes, kv: KV) -> None:
        n1, n2, n3 = nodes
        n1.script = first(lambda _: NoLeader("not yet"), times=3)
        n2.script = n3.script = not_leader()
        await kv.put("a", 1)
        assert len(n1.calls) == 4


class TestFailover:
    async def test_writes_resume_with_the_new_leader(self, nodes: Nodes, kv: KV) -> None:
        n1, n2, n3 = nodes
        await kv.put("a", 1)
        n2.script = n3.script = not_leader()
        await n1.stop()
        await eventually(lambda: n2.open_streams and n3.open_streams)
        writing = asyncio.create_task(kv.put("b", 1))
        await eventually(lambda: n2.calls and n3.calls)
        assert not writing.done()
        elected_at = time.monotonic()
        n2.script = succeed
        n2.lead(term=2)
        n3.follow(n2, term=2)
        await writing
        assert time.monotonic() - elected_at < 1.0
        assert n2.calls[-1].put.key == b"b"

    async def test_a_restarted_node_is_found_again(self, nodes: Nodes) -> None:
        n1, _, _ = nodes
        async with kvorum.open(target_of(n1)) as kv:
            await kv.put("a", 1)
            await n1.stop()
            # What is sent on a stream whose end has not been noticed is sent again.
            await eventually(lambda: not backend_of(kv)._sessions)
            writing = asyncio.create_task(kv.put("b", 1))
            await n1.start()
            await writing

    async def test_a_silent_leader_is_left_for_one_of_a_higher_term(
        self, nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A paused process keeps its connections, and answers nothing on them."""
        monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.05)
        monkeypatch.setattr(cluster, "GRACE_SECONDS", 3600.0)
        n1, n2, n3 = nodes
        await kv.put("a", 1)
        n1.script = silent
        reading = asyncio.create_task(kv.get("a"))
        writing = asyncio.create_task(kv.put("b", 1))
        await eventually(lambda: n2.open_streams and n3.open_streams)
        n2.lead(term=2)
        n3.follow(n2, term=2)
        assert await reading is not None
        assert await writing == n2.calls[-1].id
        assert n2.calls[-1].put.origin == n1.calls[-1].put.origin

    async def test_a_deposed_leader_may_still_answer_what_it_was_sent(
        self, nodes: Nodes, kv: KV
    ) -> None:
        n1, n2, _ = nodes
        n1.script = silent
        writing = asyncio.create_task(kv.put("a", 1))
        await eventually(lambda: n1.calls)
        for node in nodes:
            node.follow(n2, term=2)
        await eventually(lambda: n1.half_closed)
        n1.answer(n1.calls[0])
        assert await writing == n1.calls[0].id

    async def test_a_stream_that_ends_by_itself_is_replaced(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        await kv.put("a", 1)
        broken = backend_of(kv)._leader
        n1.break_streams()
        await eventually(lambda: backend_of(kv)._leader is not broken)
        await kv.put("b", 1)
        assert n1.sessions_opened == 2


class TestRepeating:
    async def test_a_sent_write_is_repeated_with_its_origin(self, nodes: Nodes, kv: KV) -> None:
        n1, n2, n3 = nodes
        n1.script = first(silent)
        writing = asyncio.create_task(kv.put("a", 1))
        await eventually(lambda: n1.calls)
        n1.break_streams()
        sent, again = await writing, n1.calls
        assert sent == again[1].id != again[0].id
        assert again[1].put.origin == again[0].put.origin
        assert len(n1.calls) + len(n2.calls) + len(n3.calls) == 2

    @pytest.mark.parametrize("what", ["add", "delete", "atomic"])
    async def test_every_kind_of_write_has_an_origin(self, nodes: Nodes, kv: KV, what: str) -> None:
        n1, _, _ = nodes
        n1.script = first(silent)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "add": lambda: kv.add("a"),
            "delete": lambda: kv.delete("a"),
            "atomic": lambda: kv.atomic().get("a").put("a", 1).commit(),
        }
        writing = asyncio.ensure_future(calls[what]())
        await eventually(lambda: n1.calls)
        n1.break_streams()
        await writing
        one, two = (call.delete if what == "delete" else call.txn for call in n1.calls)
        assert one.origin.sequence == 1
        assert one == two

    @pytest.mark.parametrize("what", ["get", "list", "atomic"])
    async def test_a_sent_read_is_repeated(self, nodes: Nodes, kv: KV, what: str) -> None:
        n1, _, _ = nodes
        n1.script = first(silent)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: kv.get("a"),
            "list": lambda: kv.list("a"),
            "atomic": lambda: kv.atomic().check("a", exists=True).get("a").commit(),
        }
        reading = asyncio.ensure_future(calls[what]())
        await eventually(lambda: n1.calls)
        n1.break_streams()
        await reading
        assert len(n1.calls) == 2
        assert n1.calls[0].id != n1.calls[1].id

    @pytest.mark.parametrize(
        "error", [Overloaded("busy"), ShuttingDown("bye"), NoLeader("election")]
    )
    async def test_what_was_not_applied_is_repeated(
        self, nodes: Nodes, kv: KV, error: KvorumError
    ) -> None:
        n1, n2, n3 = nodes
        n1.script = first(lambda _: error)
        n2.script = n3.script = not_leader()
        await kv.put("a", 1)
        assert len(n1.calls) == 2

    async def test_overload_waits_as_long_as_the_node_asks(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        n1.script = first(lambda _: Overloaded("busy"))
        began = time.monotonic()
        await kv.put("a", 1)
        # The scripted RetryInfo says 20 ms, the jitter is a quarter.
        assert time.monotonic() - began >= 0.015

    @pytest.mark.parametrize(
        "error", [DeadlineExceeded("late"), OutcomeUnknown("lost"), KvorumError("broken")]
    )
    async def test_what_is_in_doubt_is_repeated(
        self, nodes: Nodes, kv: KV, error: KvorumError
    ) -> None:
        n1, _, _ = nodes
        n1.script = first(lambda _: error, times=2)
        await kv.put("a", 1)
        assert len(n1.calls) == 3
        assert {call.put.origin.sequence for call in n1.calls} == {1}
        if error.code is not Code.INTERNAL:
            n1.script = first(lambda _: error, times=2)
            assert await kv.get("a") is not None
            assert len(n1.calls) == 6

    @pytest.mark.parametrize("error", [InvalidArgument("no"), LimitExceeded("big", limit="X")])
    async def test_a_wrong_request_is_not_repeated(
        self, nodes: Nodes, kv: KV, error: KvorumError
    ) -> None:
        n1, _, _ = nodes
        n1.script = lambda _: error
        with pytest.raises(type(error)) as caught:
            await kv.put("a", 1)
        assert caught.value.metadata == error.metadata
        assert len(n1.calls) == 1


class TestDeadlines:
    async def test_a_sent_write_is_in_doubt(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        await kv.put("warm", 1)
        n1.script = silent
        with pytest.raises(DeadlineExceeded, match=r"within 0.05 s: n1 .* leads term 1") as caught:
            await kv.put("a", 1, timeout=0.05)
        assert caught.value.maybe_applied
        assert all(node.address in str(caught.value) for node in nodes)

    async def test_a_read_is_not(self, nodes: Nodes, kv: KV) -> None:
        nodes[0].script = silent
        with pytest.raises(DeadlineExceeded) as caught:
            await kv.get("a", timeout=0.05)
        assert not caught.value.maybe_applied

    async def test_without_a_leader_nothing_was_applied(self, nodes: Nodes, kv: KV) -> None:
        for node in nodes:
            node.follow(None, term=2)
            node.script = not_leader()
        in_doubt = []
        for _ in range(5):
            with pytest.raises(DeadlineExceeded, match="no leader known") as caught:
                await kv.put("a", 1, timeout=0.2)
            in_doubt.append(caught.value.maybe_applied)
        # At its deadline a put may just be on its way to a node; not every one of five is.
        assert False in in_doubt

    async def test_the_node_is_told_the_time_that_is_left(self, nodes: Nodes, kv: KV) -> None:
        n1, _, _ = nodes
        n1.script = first(lambda _: Overloaded("busy"))
        await kv.put("a", 1, timeout=5)
        await kv.put("b", 1, timeout=1000)
        once, again, capped = (call.timeout_ms for call in n1.calls)
        assert 4000 < again < once <= 5000
        assert capped == kvorum.limits.MAX_CALL_TIMEOUT_MS

    async def test_nobody_is_there(self) -> None:
        async with kvorum.open("kvorum://127.0.0.1:1,127.0.0.1:2") as kv:
            with pytest.raises(NoNodeReachable, match="Connection refused") as caught:
                await kv.put("a", 1, timeout=0.2)
        assert set(caught.value.nodes) == {"127.0.0.1:1", "127.0.0.1:2"}
        assert caught.value.__cause__ is not None
        assert not caught.value.maybe_applied

    async def test_a_node_that_says_nothing_at_all_is_not_reachable(self) -> None:
        async with FakeNode("n1") as n1:
            n1.greeting = False
            async with kvorum.open(target_of(n1)) as kv:
                with pytest.raises(NoNodeReachable):
                    await kv.put("a", 1, timeout=0.1)
            assert n1.calls == []
