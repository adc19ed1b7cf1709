"""How often calls are repeated that a cluster refuses: the budget, and what a node sees of it."""

import asyncio
from collections import Counter

import pytest

from kvorum import KV, DeadlineExceeded, InvalidArgument, KvorumError, Overloaded, UniqueViolation
from kvorum.backends import cluster, retries
from kvorum.backends.retries import MAX_TOKENS, RETRIES_PER_SECOND, RetryBudget
from kvorumpb.v1.kv_pb2 import Call, Reply
from tests.client.conftest import Nodes, backend_of
from tests.client.test_cluster import silent
from tests.support.eventually import eventually
from tests.support.fake_server import succeed


def overloaded(call: Call) -> Overloaded:
    del call
    return Overloaded("busy")


def take_all(budget: RetryBudget, now: float) -> int:
    taken = 0
    while budget.take(now):
        taken += 1
    return taken


class TestBudget:
    def test_it_begins_full_and_is_emptied(self) -> None:
        assert take_all(RetryBudget(5.0), 5.0) == MAX_TOKENS

    def test_time_brings_tokens_and_no_more_than_it_holds(self) -> None:
        budget = RetryBudget(0.0)
        take_all(budget, 0.0)
        assert take_all(budget, 2.0) == 2 * RETRIES_PER_SECOND
        assert take_all(budget, 2.0 + 0.5 / RETRIES_PER_SECOND) == 0
        assert take_all(budget, 2.0 + 1.0 / RETRIES_PER_SECOND) == 1
        assert take_all(budget, 1e6) == MAX_TOKENS

    def test_an_answer_brings_one_token(self) -> None:
        budget = RetryBudget(0.0)
        take_all(budget, 0.0)
        budget.reward()
        assert take_all(budget, 0.0) == 1
        for _ in range(2 * MAX_TOKENS):
            budget.reward()
        assert budget.is_full
        assert take_all(budget, 0.0) == MAX_TOKENS

    def test_it_is_not_full_when_one_was_taken(self) -> None:
        budget = RetryBudget(0.0)
        assert budget.take(0.0)
        assert not budget.is_full

    def test_the_backoff_of_a_call_grows_to_its_maximum(self) -> None:
        for attempts in range(20):
            backoff = retries.backoff_seconds(attempts, None)
            assert backoff <= 1.25 * retries.MAX_BACKOFF_SECONDS
            assert backoff >= 0.75 * min(0.01 * 2**attempts, retries.MAX_BACKOFF_SECONDS)
        assert retries.backoff_seconds(0, 3.0) >= 0.75 * 3.0
        assert len({retries.backoff_seconds(0, None) for _ in range(9)}) > 1


@pytest.mark.parametrize("what", ["get", "put"])
async def test_a_thousand_refused_calls_share_one_budget(nodes: Nodes, kv: KV, what: str) -> None:
    n1, _, _ = nodes
    await kv.put("warm", 1)
    n1.script = overloaded
    n1.calls.clear()
    loop = asyncio.get_running_loop()
    begun_at = loop.time()
    calls = [
        kv.get(f"k{i}", timeout=2) if what == "get" else kv.put(f"k{i}", 1, timeout=2)
        for i in range(1000)
    ]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    allowed = MAX_TOKENS + RETRIES_PER_SECOND * (loop.time() - begun_at) + 1
    assert {type(end) for end in ends} == {DeadlineExceeded}
    # Without the budget each would have been tried about ten times.
    assert 1000 + MAX_TOKENS <= len(n1.calls) <= 1000 + allowed
    assert not any(end.maybe_applied for end in ends if isinstance(end, DeadlineExceeded))


async def test_what_was_refused_is_sent_when_the_cluster_has_recovered(
    nodes: Nodes, kv: KV
) -> None:
    """An answer pays for the next repetition: with the tokens of time alone it took minutes."""
    n1, _, _ = nodes
    n1.script = overloaded
    tasks = [asyncio.create_task(kv.put(f"k{i}", i, timeout=60)) for i in range(1000)]
    await eventually(lambda: len(backend_of(kv)._held_back) > 500)
    n1.script = succeed
    await asyncio.gather(*tasks)
    tries = Counter(call.put.origin.sequence for call in n1.calls)
    assert sorted(tries) == list(range(1, 1001))
    assert backend_of(kv)._held_back == {}


async def test_first_attempts_and_other_answers_are_not_held_back(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes

    def script(call: Call) -> Reply | KvorumError:
        return overloaded(call) if call.get.key.startswith(b"refused") else succeed(call)

    n1.script = script
    refused = [asyncio.create_task(kv.get(f"refused{i}", timeout=60)) for i in range(500)]
    await eventually(lambda: backend_of(kv)._held_back)
    assert await kv.get("served", timeout=5) is not None
    for task in refused:
        task.cancel()
    await asyncio.wait(refused)
    assert backend_of(kv)._held_back == {}


async def test_a_cancelled_repetition_leaves_the_queue(nodes: Nodes, kv: KV) -> None:
    nodes[0].script = overloaded
    tasks = [asyncio.create_task(kv.put(f"k{i}", i)) for i in range(300)]
    await eventually(lambda: len(backend_of(kv)._held_back) > 100)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert backend_of(kv)._held_back == {}


async def test_a_call_whose_streams_always_break_is_held_back(
    nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss may be a failover, and is repeated at once; the second is trouble."""
    delays: list[int] = []

    def backoff(attempts: int, asked_seconds: float | None) -> float:
        delays.append(attempts)
        return retries.jitter(0.01)

    monkeypatch.setattr(cluster, "backoff_seconds", backoff)
    n1, _, _ = nodes
    n1.script = silent
    writing = asyncio.create_task(kv.put("a", 1))
    await eventually(lambda: len(n1.calls) == 1)
    n1.break_streams()
    await eventually(lambda: len(n1.calls) == 2)
    assert delays == []
    n1.break_streams()
    await eventually(lambda: len(n1.calls) == 3)
    assert delays == [0]
    n1.answer(n1.calls[-1])
    await writing


async def test_a_client_that_cannot_be_registered_fails_the_writes_that_wait(
    nodes: Nodes, kv: KV
) -> None:
    nodes[0].on_register = lambda _: InvalidArgument("no such request")
    ends = await asyncio.gather(*(kv.put(f"k{i}", i) for i in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [InvalidArgument] * 3
    assert nodes[0].calls == []


async def test_no_error_names_what_was_answered_to_another_call(nodes: Nodes, kv: KV) -> None:
    """As the owner and the value of a unique index."""
    n1, _, _ = nodes
    n1.script = lambda _: UniqueViolation("bob@example.com belongs to user:7")
    with pytest.raises(UniqueViolation):
        await kv.put("user:8", 1)
    n1.script = silent
    with pytest.raises(DeadlineExceeded) as caught:
        await kv.get("a", timeout=0.05)
    assert "user:7" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("nobody_leads", [False, True])
async def test_a_write_is_never_under_way_at_two_nodes(
    nodes: Nodes, kv: KV, nobody_leads: bool
) -> None:
    """No hedging: however long the leader is silent, the others are not given its writes."""
    n1, n2, n3 = nodes
    await kv.put("warm", 1)
    n1.script = silent
    if nobody_leads:
        n2.follow(None, term=1)
        n3.follow(None, term=1)
    writing = asyncio.create_task(kv.put("a", 1))
    stale = asyncio.create_task(kv.get("b", consistency="stale"))
    # Its stale read is given to another node, which shows that the client has lost patience.
    assert await stale is not None
    await eventually(lambda: n2.open_streams and n3.open_streams)
    assert [call.WhichOneof("request") for call in (*n2.calls, *n3.calls)] == ["get"]
    assert not writing.done()
    n1.answer(next(call for call in n1.calls if call.put.key == b"a"))
    await writing
