"""When a node is alive, and when it is ready: each reason, and what is none."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from kvorum_node import exposition
from kvorum_node import probes as module
from kvorum_node.node import Node, Timing
from kvorum_node.probes import LOOK_SECONDS, STUCK_SECONDS, Probes, Unanswered, why_not_ready
from kvorum_node.raft.types import Index, NodeId
from kvorum_node.storage.data_directory import Identity, Storage
from kvorumpb.v1.command_pb2 import Command, CommandBatch, Transaction
from tests.support.commands import put
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.node_group import NodeGroup
from tests.support.scripted_disk import ScriptedDisk

ENOUGH_LOOKS = round(STUCK_SECONDS / LOOK_SECONDS)


@pytest.fixture
def disk() -> ScriptedDisk:
    return ScriptedDisk()


@pytest.fixture
async def n1(disk: ScriptedDisk) -> AsyncIterator[Node]:
    """The only member, on a disk that the test can hold back."""
    storage = replace(Storage.memory(Identity("test", NodeId(1))), log=disk)
    timing = Timing(tick_seconds=0.01, election_timeout_seconds=0.1)
    node = Node(storage, {NodeId(1): "h1:7100"}, timing=timing, log_max_bytes=1 << 20)
    node.start()
    await eventually(lambda: not why_not_ready(node, 5.0))
    yield node
    disk.release()
    await node.stop()


def write(node: Node) -> "asyncio.Future[Any]":
    commands = CommandBatch(commands=[Command(transaction=Transaction(operations=[put(b"k")]))])
    deadline = asyncio.get_running_loop().time() + 3600
    return node.group.submit(commands.SerializeToString(), 1, deadline=deadline)


# Alive.


async def test_a_node_without_peers_is_alive() -> None:
    timing = Timing(tick_seconds=0.01, election_timeout_seconds=0.1)
    storage = Storage.memory(Identity("test", NodeId(1)))
    addresses = {NodeId(number): f"127.0.0.1:{number}" for number in (1, 2, 3)}
    node = Node(storage, addresses, timing=timing, log_max_bytes=1 << 20)
    node.start()
    probes = Probes("n1")
    probes.serving(node)
    for _ in range(ENOUGH_LOOKS + 2):
        counted = node.group.ticked_at
        await eventually(lambda: node.group.ticked_at != counted)  # noqa: B023 - it is awaited here
        probes.look()
    assert probes.why_not_alive() == []
    assert probes.why_not_ready() == ["n1 hears no leader"]
    await node.stop()


async def test_a_disk_that_takes_long_is_no_reason_and_one_that_hangs_is(
    n1: Node, disk: ScriptedDisk
) -> None:
    probes = Probes("n1")
    probes.serving(n1)
    assert probes.why_not_ready() == []
    disk.hold()
    writing = write(n1)
    begun = disk.syncs_done + 1
    await eventually(lambda: disk.syncs_begun == begun)
    probes.look()
    for _ in range(ENOUGH_LOOKS - probes._looks_in_turn):  # it has seen the tick before, perhaps
        probes.look()
        assert probes.why_not_alive() == []
    probes.look()
    assert probes.why_not_alive() == ["the driver has been in one turn for 121 s: its disk hangs"]
    disk.release()
    await writing
    ticked = n1.group.ticked_at
    await eventually(lambda: n1.group.ticked_at != ticked)
    probes.look()
    assert probes.why_not_alive() == []


async def test_a_process_that_starts_or_ends_is_alive_whatever_its_disk_does(
    n1: Node, disk: ScriptedDisk
) -> None:
    probes = Probes("n1")
    for _ in range(2 * ENOUGH_LOOKS):
        probes.look()
    assert probes.why_not_alive() == []
    probes.serving(n1)
    disk.hold()
    writing = write(n1)
    probes.ending()
    for _ in range(2 * ENOUGH_LOOKS):
        probes.look()
    assert probes.why_not_alive() == []
    disk.release()
    await writing


async def test_a_loop_that_is_blocked_is_not_alive_until_it_comes_on() -> None:
    probes = Probes("n1", stuck_seconds=0.05)
    found: list[str] = []
    condemned = threading.Event()

    def ask() -> None:
        end = time.monotonic() + DEADLINE_SECONDS
        while not found and time.monotonic() < end:
            found.extend(probes.why_not_alive())
        condemned.set()

    asking = asyncio.create_task(asyncio.to_thread(ask))
    await asyncio.sleep(0)
    condemned.wait(30)  # on the event loop, which does nothing else meanwhile
    await asking
    assert len(found) == 1
    assert found[0].startswith("the event loop has not come on for ")
    probes.look()
    assert probes.why_not_alive() == []


async def test_a_process_that_stood_still_as_a_whole_is_asked_before_it_is_condemned() -> None:
    """As after SIGCONT: the clock has gone on, and nobody has looked."""
    probes = Probes("n1")
    probes._looked_at -= 2 * STUCK_SECONDS
    assert await asyncio.to_thread(probes.why_not_alive) == []
    [silent] = await asyncio.to_thread(lambda: probes.why_not_ready()[1:])
    assert silent == "the event loop has not come on for 240 s"


# Ready.


async def test_a_process_that_starts_says_what_it_does() -> None:
    probes = Probes("n1")
    assert probes.why_not_ready() == ["n1 is starting"]
    probes.starting("it opens d")
    assert probes.why_not_ready() == ["n1 is starting: it opens d"]
    assert not probes.is_ready


async def test_one_that_ends_is_not_ready_at_once(n1: Node) -> None:
    probes = Probes("n1")
    probes.serving(n1)
    assert probes.is_ready
    change = probes.change
    probes.ending()
    assert probes.why_not_ready() == ["n1 is shutting down"]
    assert change.is_set()
    probes.look()
    assert probes.why_not_ready() == ["n1 is shutting down"]


async def test_one_that_is_told_to_stop_while_it_starts_is_never_ready(n1: Node) -> None:
    probes = Probes("n1")
    probes.ending()
    probes.serving(n1)
    assert probes.why_not_ready() == ["n1 is shutting down"]


async def test_members_are_ready_while_a_majority_is_there() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        nodes = [member.node for member in group.members.values()]
        await eventually(lambda: not any(why_not_ready(node, 5.0) for node in nodes))
        probes = Probes("n")
        probes.serving(leader.node)
        for member in group.members.values():
            if member is not leader:
                await member.stop()
        # Told by the node: nobody looks here (and that may be among the reasons).
        lost = f"n{leader.id} hears no leader"
        await eventually(lambda: lost in probes.why_not_ready())
        assert probes.why_not_alive() == []
        probes.close()


async def test_a_node_that_joins_is_ready_once_it_is_a_voter() -> None:
    async with NodeGroup(2) as group:
        leader = await group.leader()
        added = await group.make(3)
        await added.start(None)
        whys: set[str] = {*why_not_ready(added.node, 5.0)}
        assert whys == {"n3 is no member, as far as it knows", "n3 hears no leader"}
        forget = added.node.listen(lambda: whys.update(why_not_ready(added.node, 5.0)))
        await leader.node.add_member(added.address, NodeId(3), learner=False)
        await eventually(lambda: not why_not_ready(added.node, 5.0))
        forget()
        assert "n3 is joining: it is no voter yet" in whys
        assert NodeId(3) in added.node.group.raft.configuration.voters


async def test_a_learner_that_is_to_stay_one_is_ready() -> None:
    async with NodeGroup(1) as group:
        leader = await group.leader()
        added = await group.make(2)
        await added.start(None)
        await leader.node.add_member(added.address, NodeId(2), learner=True)
        await eventually(lambda: not why_not_ready(added.node, 5.0))
        assert added.node.group.raft.configuration.joining == frozenset()


async def test_a_follower_that_is_behind_is_not_ready() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        follower = next(one for one in group.members.values() if one is not leader)
        await eventually(lambda: not why_not_ready(follower.node, 5.0))
        freshness = follower.node.group.raft.freshness
        [why] = why_not_ready(follower.node, -1.0)
        assert f"n{follower.id} may be " in why
        freshness.as_of = None
        assert why_not_ready(follower.node, 5.0) == [
            f"n{follower.id} has not caught up with a leader since it was started"
        ]


async def test_what_is_committed_is_to_be_applied(n1: Node) -> None:
    log = n1.group.raft.log
    committed = log.committed
    try:
        log.committed = Index(n1.group.machine.applied + 1_001)
        assert why_not_ready(n1, 5.0) == ["n1 has 1,001 committed entries to apply"]
        log.committed = Index(n1.group.machine.applied + 1_000)
        assert why_not_ready(n1, 5.0) == []
    finally:
        log.committed = committed


async def test_a_leader_is_ready_once_a_majority_has_confirmed_it(
    n1: Node, disk: ScriptedDisk
) -> None:
    role: Any = n1.group.raft.role
    role.established = False
    assert why_not_ready(n1, 5.0) == ["n1 leads, and no majority has confirmed it yet"]
    role.established = True


# Metrics.


async def test_metrics_are_made_on_the_loop_if_that_answers(
    n1: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "METRICS_SECONDS", 0.1)
    loop = threading.get_ident()
    rendered: list[tuple[Node | None, int]] = []

    def render(node: Node | None) -> bytes:
        rendered.append((node, threading.get_ident()))
        return b"metrics"

    monkeypatch.setattr(exposition, "render", render)
    probes = Probes("n1")
    assert await asyncio.to_thread(probes.metrics) == b"metrics"
    probes.serving(n1)
    assert await asyncio.to_thread(probes.metrics) == b"metrics"
    assert rendered == [(None, loop), (n1, loop)]
    refused = threading.Event()

    def ask() -> None:
        with pytest.raises(Unanswered, match="the event loop has not answered within 0 s"):
            probes.metrics()
        refused.set()

    asking = asyncio.create_task(asyncio.to_thread(ask))
    await asyncio.sleep(0)
    refused.wait(30)
    await asking
    assert rendered[2:] == []  # and what came too late is not made any more
