"""Large calls and replies on a session: in parts, beside the small ones."""

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from kvorum import KV, DeadlineExceeded, NoNodeReachable, Overloaded, limits
from kvorum.backends import cluster, session
from kvorum.limits import MIB
from kvorumpb.v1.kv_pb2 import Call, CallPart, Reply, ReplyPart, SessionResponse
from tests.client.conftest import Nodes, backend_of
from tests.client.test_cluster import first, silent
from tests.support.eventually import eventually
from tests.support.fake_server import FakeNode, succeed

LARGE = 3 * MIB


def parts_of(node: FakeNode) -> list[CallPart]:
    return [message.part for message in node.messages if message.HasField("part")]


def large_reply(call: Call) -> Reply:
    reply = succeed(call)
    reply.get.record.value = bytes(LARGE)
    reply.id = call.id
    return reply


def in_parts(reply: Reply) -> Sequence[SessionResponse]:
    data = reply.SerializeToString()
    size = limits.MAX_PART_BYTES
    return [
        SessionResponse(
            part=ReplyPart(
                id=reply.id,
                data=data[start : start + size],
                total_bytes=0 if start else len(data),
            )
        )
        for start in range(0, len(data), size)
    ]


async def test_a_large_call_travels_in_parts(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    value = bytes(range(256)) * (LARGE // 256)
    await kv.put("large", value, type="bytes")
    [call] = n1.calls
    assert call.put.value == value
    parts = parts_of(n1)
    assert {part.id for part in parts} == {call.id}
    assert all(len(part.data) <= limits.MAX_PART_BYTES for part in parts)
    assert [bool(part.total_bytes) for part in parts] == [True] + [False] * (len(parts) - 1)
    assert sum(len(message.calls) for message in n1.messages) == 0


async def test_a_call_of_a_batch_travels_whole(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    await kv.put("k", bytes(limits.MAX_BATCH_BYTES - 100), type="bytes")
    assert parts_of(n1) == []


async def test_small_calls_do_not_wait_for_large_ones(nodes: Nodes, kv: KV) -> None:
    """They leave with the parts, or between them."""
    n1, _, _ = nodes
    await kv.put("warm", 1)
    n1.reading.clear()
    large = asyncio.create_task(kv.put("large", bytes(25 * MIB), type="bytes"))
    leader = backend_of(kv)._leader
    assert leader is not None
    await eventually(lambda: leader._large.is_sending)
    small = asyncio.create_task(kv.put("small", 1))
    n1.reading.set()
    await small
    answered_with = len(parts_of(n1))
    await large
    assert answered_with < len(parts_of(n1))


def has_begun(node: FakeNode, count: int) -> bool:
    """Whether so many calls have come, of which none is incomplete."""
    assert len({part.id for part in parts_of(node)}) <= count
    return len(node.calls) == count


async def test_the_answer_to_a_large_call_is_not_one_to_the_small_ones(
    nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These wait for the answers to the last message of their own."""
    monkeypatch.setattr(session, "SEND_INTERVAL_SECONDS", 60.0)
    n1, _, _ = nodes
    n1.script = silent
    first_call = asyncio.create_task(kv.put("first", 1))
    await eventually(lambda: n1.calls)
    n1.script = succeed
    large = asyncio.create_task(kv.put("large", bytes(LARGE), type="bytes"))
    leader = backend_of(kv)._leader
    assert leader is not None
    leader._sent_at = 0.0  # as if long ago: so that the large one is looked at
    await large
    leader._sent_at = asyncio.get_running_loop().time()
    second_call = asyncio.create_task(kv.put("second", 1))
    for _ in range(20):
        await asyncio.sleep(0)
    assert [call.put.key for call in n1.calls] == [b"first", b"large"]
    n1.answer(n1.calls[0])
    await asyncio.gather(first_call, second_call)


async def test_few_large_calls_are_under_way_at_once(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    n1.script = silent
    writes = [
        asyncio.create_task(kv.put(f"k{i}", bytes(2 * MIB), type="bytes", timeout=30))
        for i in range(5)
    ]
    for answered in range(5):
        await eventually(partial(has_begun, n1, min(answered + limits.MAX_LARGE_CALLS, 5)))
        n1.answer(n1.calls[answered])
    await asyncio.gather(*writes)


async def test_a_large_call_that_is_refused_early_is_tried_again(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    refused: list[int] = []

    def refuse(part: CallPart) -> Overloaded | None:
        if not part.total_bytes or len(refused) == 2:
            return None
        refused.append(part.id)
        return Overloaded("not now")

    n1.refuse_part = refuse
    await kv.put("large", bytes(25 * MIB), type="bytes", timeout=30)
    assert len(refused) == 2
    assert len(n1.calls) == 1
    sent = [sum(part.id == call for part in parts_of(n1)) for call in refused]
    assert all(count < 25 * MIB // limits.MAX_PART_BYTES for count in sent)  # it has stopped early
    assert [part.id for part in parts_of(n1) if part.abandoned] == refused


async def test_a_caller_who_gives_up_leaves_the_rest_unsent(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    await kv.put("warm", 1)
    n1.reading.clear()
    write = asyncio.create_task(kv.put("large", bytes(25 * MIB), type="bytes"))
    leader = backend_of(kv)._leader
    assert leader is not None
    await eventually(lambda: leader._large.is_sending)
    write.cancel()
    await asyncio.wait([write])
    n1.reading.set()
    await eventually(lambda: any(part.abandoned for part in parts_of(n1)))
    await kv.put("other", bytes(LARGE), type="bytes")
    assert [call.put.key for call in n1.calls] == [b"warm", b"other"]


async def test_a_large_call_that_was_not_whole_is_repeated_when_its_stream_breaks(
    nodes: Nodes, kv: KV
) -> None:
    n1, _, _ = nodes
    await kv.put("warm", 1)
    n1.reading.clear()
    write = asyncio.create_task(kv.put("large", bytes(25 * MIB), type="bytes", timeout=30))
    leader = backend_of(kv)._leader
    assert leader is not None
    await eventually(lambda: leader._large.is_sending)
    n1.break_streams()
    n1.reading.set()
    await write
    assert [call.put.key for call in n1.calls] == [b"warm", b"large"]


async def test_a_large_call_that_was_whole_is_the_same_write_after_its_stream_broke(
    nodes: Nodes, kv: KV
) -> None:
    n1, _, _ = nodes
    n1.script = silent
    write = asyncio.create_task(kv.put("large", bytes(LARGE), type="bytes"))
    await eventually(lambda: n1.calls)
    n1.script = succeed
    n1.break_streams()
    await write
    first, second = (call.put.origin for call in n1.calls)
    assert first == second
    assert first.sequence == 1


async def test_a_call_that_never_was_whole_is_not_in_doubt(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    await kv.put("warm", 1)
    n1.reading.clear()
    with pytest.raises((DeadlineExceeded, NoNodeReachable)) as caught:
        await kv.put("large", bytes(25 * MIB), type="bytes", timeout=0.3)
    assert not caught.value.maybe_applied
    n1.reading.set()


async def test_a_leader_that_takes_no_more_parts_is_looked_for_elsewhere(
    nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.05)
    n1, n2, n3 = nodes
    await kv.put("warm", 1)
    n1.reading.clear()
    write = asyncio.create_task(kv.put("large", bytes(25 * MIB), type="bytes", timeout=30))
    leader = backend_of(kv)._leader
    assert leader is not None
    await eventually(lambda: leader._large.is_sending)
    for node in (n2, n3):
        node.follow(n2, term=2)
    await write
    assert [call.put.key for call in n2.calls] == [b"large"]
    n1.reading.set()


async def test_a_large_reply_is_put_together(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    n1.script = silent
    reads = [asyncio.create_task(kv.get(key, type="bytes")) for key in ("a", "b")]
    await eventually(lambda: len(n1.calls) == 2)
    n1.script = succeed
    for one, other in zip(*(in_parts(large_reply(call)) for call in n1.calls), strict=True):
        n1.say(one)
        n1.say(other)
    for read in reads:
        entry = await read
        assert entry is not None
        assert len(entry.value) == LARGE


async def test_small_replies_come_between_the_parts_of_a_large_one(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    n1.script = first(silent)
    large = asyncio.create_task(kv.get("large", type="bytes"))
    await eventually(lambda: n1.calls)
    parts = in_parts(large_reply(n1.calls[0]))
    for part in parts[:-1]:
        n1.say(part)
    await kv.get("small")
    assert not large.done()
    n1.say(parts[-1])
    await large


async def test_a_reply_that_breaks_off_is_asked_for_again(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    n1.script = first(silent, then=large_reply)
    read = asyncio.create_task(kv.get("large", type="bytes"))
    await eventually(lambda: n1.calls)
    n1.say(in_parts(large_reply(n1.calls[0]))[0])
    n1.break_streams()
    entry = await read
    assert entry is not None
    assert len(entry.value) == LARGE
