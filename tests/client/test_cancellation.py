"""A caller that goes away, a store that closes: nothing leaks, nobody gets another's answer."""

import asyncio

import pytest

import kvorum
from kvorum import KV, Closed, DeadlineExceeded
from tests.client.conftest import Nodes, backend_of, target_of
from tests.client.test_cluster import silent
from tests.support.eventually import eventually
from tests.support.fake_server import FakeNode, not_leader, succeed


def is_empty(kv: KV) -> bool:
    backend = backend_of(kv)
    return not (
        backend._calls
        or backend._unnumbered
        or backend._waiting
        or backend._delayed
        or backend._held_back
        or any(backend._deadlines._buckets.values())
        or any(session.unsent or session.in_flight for session in backend._sessions)
    )


async def cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_while_waiting_for_a_leader(nodes: Nodes, kv: KV) -> None:
    await kv.put("warm", 1)
    for node in nodes:
        node.follow(None, term=2)
        node.script = not_leader()
    task: asyncio.Task[object] = asyncio.create_task(kv.put("a", 1))
    await eventually(lambda: sum(len(node.calls) for node in nodes) > 1)
    await cancel(task)
    assert is_empty(kv)


async def test_before_the_call_was_sent(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    await kv.put("warm", 1)
    task: asyncio.Task[object] = asyncio.create_task(kv.put("a", 1))
    await asyncio.sleep(0)
    await cancel(task)
    assert is_empty(kv)
    await kv.put("b", 1)
    assert [call.put.key for call in n1.calls] == [b"warm", b"b"]


async def test_while_the_call_is_in_flight(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    n1.script = silent
    task: asyncio.Task[object] = asyncio.create_task(kv.get("a"))
    await eventually(lambda: n1.calls)
    await cancel(task)
    assert is_empty(kv)


async def test_while_waiting_to_repeat(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    n1.script = lambda _: kvorum.Overloaded("busy")
    task: asyncio.Task[object] = asyncio.create_task(kv.put("a", 1))
    await eventually(lambda: len(n1.calls) >= 2)
    await cancel(task)
    assert is_empty(kv)


async def test_a_late_answer_reaches_nobody_else(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    n1.script = silent
    gone: asyncio.Task[object] = asyncio.create_task(kv.get("gone"))
    await eventually(lambda: n1.calls)
    await cancel(gone)
    staying = asyncio.create_task(kv.get("staying"))
    await eventually(lambda: len(n1.calls) == 2)
    n1.answer(n1.calls[0])
    n1.answer(n1.calls[1])
    entry = await staying
    assert entry is not None
    assert entry.value == "value of staying"


async def test_a_late_answer_to_an_earlier_attempt_reaches_nobody(nodes: Nodes, kv: KV) -> None:
    n1, n2, _ = nodes
    n1.script = silent
    reading = asyncio.create_task(kv.get("a"))
    await eventually(lambda: n1.calls)
    n2.script = silent
    for node in nodes:
        node.follow(n2, term=2)
    await eventually(lambda: n2.calls)
    assert n1.calls[0].id != n2.calls[0].id
    n2.answer(n1.calls[0])
    await asyncio.sleep(0.05)
    assert not reading.done()
    n2.answer(n2.calls[0])
    await reading


async def test_after_a_timeout_nothing_is_left(nodes: Nodes, kv: KV) -> None:
    await kv.put("warm", 1)
    nodes[0].script = silent
    with pytest.raises(DeadlineExceeded):
        await kv.put("a", 1, timeout=0.02)
    assert is_empty(kv)


async def test_many_cancelled_callers_leave_a_working_store(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    await kv.put("warm", 1)
    for round_ in range(20):
        tasks = [asyncio.create_task(kv.put(f"{round_}:{i}", i)) for i in range(20)]
        for task in tasks[:: 1 + round_ % 3]:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(tasks)
    assert is_empty(kv)
    entry = await kv.get("after")
    assert entry is not None
    assert entry.value == "value of after"
    assert len(n1.calls) > 20


async def test_close_settles_every_call_and_says_which_writes_are_in_doubt(nodes: Nodes) -> None:
    n1, _, _ = nodes
    n1.script = silent
    before = asyncio.all_tasks()
    kv = await kvorum.open(target_of(*nodes))
    write = asyncio.create_task(kv.put("a", 1))
    read = asyncio.create_task(kv.get("a"))
    await eventually(lambda: len(n1.calls) == 2)
    unsent = asyncio.create_task(kv.put("b", 1))
    await asyncio.sleep(0)
    await kv.close()
    doubts = []
    for task in (write, read, unsent):
        with pytest.raises(Closed) as caught:
            await task
        doubts.append(caught.value.maybe_applied)
    assert doubts == [True, False, False]
    assert {
        task for task in asyncio.all_tasks() - before if task.get_name().startswith("kvorum")
    } == set()


async def test_a_closed_store_refuses_calls_and_can_be_closed_again(nodes: Nodes) -> None:
    kv = await kvorum.open(target_of(*nodes))
    await kv.close()
    await kv.close()
    with pytest.raises(Closed):
        await kv.put("a", 1)
    assert repr(kv) == f"<KV {target_of(*nodes)} closed>"


async def test_close_without_a_node(nodes: Nodes) -> None:
    kv = await kvorum.open("kvorum://127.0.0.1:1")
    call = asyncio.create_task(kv.get("a"))
    await asyncio.sleep(0)
    await kv.close()
    with pytest.raises(Closed):
        await call


async def test_close_while_a_failover_is_under_way(nodes: Nodes) -> None:
    n1, _, _ = nodes
    kv = await kvorum.open(target_of(*nodes))
    await kv.put("a", 1)
    await n1.stop()
    call = asyncio.create_task(kv.put("b", 1))
    await asyncio.sleep(0.01)
    await kv.close()
    with pytest.raises(Closed):
        await call


async def test_the_store_outlives_the_task_that_opened_it(nodes: Nodes) -> None:
    kv = await asyncio.create_task(_open(*nodes))
    nodes[0].script = succeed
    await kv.put("a", 1)
    await kv.close()


async def _open(*nodes: FakeNode) -> KV:
    return await kvorum.open(target_of(*nodes))
