"""How many messages calls become."""

import asyncio

import pytest

from kvorum import KV, limits
from kvorum.backends import session
from tests.client.conftest import Nodes, backend_of
from tests.client.test_cluster import silent
from tests.support.eventually import eventually
from tests.support.fake_server import succeed


async def test_calls_of_one_turn_of_the_loop_are_one_message(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    await kv.put("warm", 1)
    await asyncio.gather(*(kv.put(f"k{i}", i) for i in range(limits.MAX_BATCH_CALLS)))
    assert [len(message.calls) for message in n1.messages] == [1, limits.MAX_BATCH_CALLS]


async def test_calls_made_while_one_is_in_flight_share_the_next_message(
    nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SEND_INTERVAL_SECONDS", 60.0)
    n1, _, _ = nodes
    n1.script = silent
    calls = [asyncio.create_task(kv.put("k0", 0))]
    await eventually(lambda: n1.calls)
    for index in range(1, 11):
        calls.append(asyncio.create_task(kv.put(f"k{index}", index)))
        await asyncio.sleep(0)
    assert len(n1.messages) == 1
    n1.script = succeed
    n1.answer(n1.calls[0])
    await asyncio.gather(*calls)
    assert [len(message.calls) for message in n1.messages] == [1, 10]


async def test_a_call_that_is_not_answered_holds_up_no_other(
    nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for the second call to be made within it.
    monkeypatch.setattr(session, "SEND_INTERVAL_SECONDS", 0.2)
    n1, _, _ = nodes
    n1.script = silent
    slow = asyncio.create_task(kv.put("slow", 1))
    await eventually(lambda: n1.calls)
    fast = asyncio.create_task(kv.put("fast", 1))
    await eventually(lambda: len(n1.messages) == 2)
    n1.answer(n1.calls[1])
    assert await fast == n1.calls[1].id
    assert not slow.done()
    n1.answer(n1.calls[0])
    await slow


async def test_a_message_holds_so_many_calls(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    await kv.put("warm", 1)
    await asyncio.gather(*(kv.put(f"k{i}", i) for i in range(limits.MAX_BATCH_CALLS + 1)))
    assert [len(message.calls) for message in n1.messages] == [1, limits.MAX_BATCH_CALLS, 1]


async def test_a_message_holds_so_many_bytes(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    await kv.put("warm", 1)
    value = bytes(limits.MAX_BATCH_BYTES // 4)
    await asyncio.gather(*(kv.put(f"k{i}", value, type="bytes") for i in range(8)))
    assert [len(message.calls) for message in n1.messages] == [1, 3, 3, 2]


async def test_a_node_that_does_not_read_is_not_written_to(nodes: Nodes, kv: KV) -> None:
    """gRPC's flow control reaches the writer, and what waits, waits here."""
    n1, _, _ = nodes
    await kv.put("warm", 1)
    n1.reading.clear()
    value = bytes(limits.MAX_BATCH_BYTES - 100)
    await kv.put("read before the pause", 1)
    writes = [asyncio.create_task(kv.put(f"k{i}", value, type="bytes")) for i in range(50)]
    leader = backend_of(kv)._leader
    assert leader is not None
    await eventually(lambda: leader.in_flight)
    await asyncio.sleep(100 * session.SEND_INTERVAL_SECONDS)
    assert len(leader.unsent) > 30
    n1.reading.set()
    await asyncio.gather(*writes)
    assert len(n1.calls) == 52
