"""Members come and go: real nodes, with real gRPC between them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kvorum.errors import (
    DeadlineExceeded,
    KvorumError,
    MembershipChangeRefused,
    NoLeader,
    NotLeader,
    RemovedFromCluster,
)
from kvorum_node.node import DEFAULT_GROUP
from kvorum_node.raft.configuration import Remove
from kvorum_node.raft.types import NodeId
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.node_group import TIMING, Member, NodeGroup
from tests.support.raft_messages import request_vote

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")


async def ended(member: Member) -> KvorumError:
    """What ends the node."""
    with pytest.raises(KvorumError) as caught:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await member.node.wait_failed()
    return caught.value


async def followers(group: NodeGroup) -> list[Member]:
    leader = await group.leader()
    return [one for one in group.members.values() if one is not leader]


async def until_agreed(change: Callable[[], Awaitable[None]]) -> None:
    """Until the leader has completed the last change, and has heard how far a learner is."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                return await change()
            except MembershipChangeRefused:
                await asyncio.sleep(0.01)


# Joining.


async def test_a_node_that_joins_gets_the_state_and_becomes_a_voter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kvorum.node")
    async with NodeGroup(3) as group:
        leader = await group.leader()
        await leader.fill(4000)
        assert leader.first_index > 1
        n4 = await group.make(4)
        assert await leader.node.add_member(n4.address, None, learner=False) == 4
        await n4.start(None)
        assert n4.members == set()
        await eventually(lambda: 4 in leader.node.group.raft.configuration.voters)
        await leader.put(b"k", b"with four")
        await group.same()
        assert n4.members == {1, 2, 3, 4}
        assert n4.node.group.addresses == {one.id: one.address for one in group.members.values()}
        await leader.node.transfer_leadership(NodeId(4))
        assert (await group.leader()) is n4
        await n4.put(b"k", b"by n4")
    assert "members are now voters n1, n2, n3 learners n4 joining n4" in caplog.messages
    assert "members are now voters n1, n2, n3, n4" in caplog.messages


async def test_a_learner_stays_one_until_it_is_promoted() -> None:
    async with NodeGroup(1) as group:
        leader = await group.leader()
        n2 = await group.make(2)
        await leader.node.add_member(n2.address, NodeId(2), learner=True)
        await n2.start(None)
        await leader.put(b"k", b"v")
        await group.same()
        assert leader.node.group.raft.configuration.learners == {2}
        with pytest.raises(MembershipChangeRefused, match="n5 is no member"):
            await leader.node.promote_member(NodeId(5))
        await until_agreed(lambda: leader.node.promote_member(NodeId(2)))
        assert leader.node.group.raft.configuration.voters == {1, 2}


async def test_a_node_that_knows_nobody_answers_whoever_writes_to_it() -> None:
    """Or else it would never get the entry that tells it who the others are."""
    async with NodeGroup(2) as group:
        leader = await group.leader()
        n3 = await group.make(3)
        await n3.start(None)
        await leader.node.add_member(n3.address, NodeId(3), learner=True)
        await eventually(lambda: n3.members == {1, 2, 3})


async def test_joined_nodes_go_on_after_a_restart_without_being_told_of_anybody() -> None:
    async with NodeGroup(1) as group:
        leader = await group.leader()
        n2 = await group.make(2)
        await leader.node.add_member(n2.address, None, learner=False)
        await n2.start(None)
        await eventually(lambda: leader.node.group.raft.configuration.voters == {1, 2})
        await group.same()
        for member in group.members.values():
            await member.stop()
        for member in group.members.values():
            await member.start(None)
        await (await group.leader()).put(b"k", b"again")
        await group.same()


async def test_a_node_is_not_moved_by_settings_that_have_become_old(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with NodeGroup(1) as group:
        await group.leader()
        await group[1].stop()
        await group[1].start({NodeId(1): "elsewhere:1", NodeId(2): "elsewhere:2"})
        await (await group.leader()).put(b"k")
        assert group[1].members == {1}
    [line] = [one for one in caplog.messages if "told of the members" in one]
    assert "n2=elsewhere:2" in line
    assert f"goes by those that its log knows: n1={group[1].address}" in line


async def test_a_node_that_joins_and_has_voted_begins_no_cluster_of_its_own() -> None:
    async with NodeGroup(0) as group:
        n2 = await group.make(2)
        await n2.start(None)
        n2.node.driver.receive(DEFAULT_GROUP, request_vote(7, sender=1, to=2))
        await eventually(lambda: n2.node.group.log.hard_state().vote == 1)
        await n2.stop()
        await n2.start({n2.id: n2.address})
        assert n2.members == set()


async def test_leadership_is_never_handed_to_a_learner() -> None:
    async with NodeGroup(1) as group:
        leader = await group.leader()
        n2 = await group.make(2)
        await leader.node.add_member(n2.address, NodeId(2), learner=True)
        await n2.start(None)
        await eventually(lambda: n2.members == {1, 2})
        with pytest.raises(ValueError, match="n1 is the only voter"):
            await leader.node.transfer_leadership(None)
        with pytest.raises(ValueError, match="n2 is not another voter"):
            await leader.node.transfer_leadership(NodeId(2))


# Leaving.


async def test_a_follower_that_is_removed_stops(caplog: pytest.LogCaptureFixture) -> None:
    async with NodeGroup(3) as group:
        [gone, stays] = await followers(group)
        leader = await group.leader()
        await leader.node.remove_member(gone.id)
        error = await ended(gone)
        assert isinstance(error, RemovedFromCluster)
        assert f"n{gone.id} was removed from the cluster" in str(error)
        assert "data directory can be deleted" in str(error)
        await leader.put(b"k")
        await group.same(leader.id, stays.id)
        assert leader.members == stays.members == {leader.id, stays.id}


async def test_a_learner_that_is_removed_stops_although_it_asks_nobody_for_a_vote() -> None:
    async with NodeGroup(2) as group:
        leader = await group.leader()
        n3 = await group.make(3)
        await leader.node.add_member(n3.address, NodeId(3), learner=True)
        await n3.start(None)
        await eventually(lambda: n3.members == {1, 2, 3})
        await until_agreed(lambda: leader.node.remove_member(NodeId(3)))
        assert isinstance(await ended(n3), RemovedFromCluster)


async def test_a_node_that_was_removed_while_it_was_away_is_told_when_it_is_back() -> None:
    async with NodeGroup(3) as group:
        [gone, stays] = await followers(group)
        await gone.stop()
        leader = await group.leader()
        await leader.node.remove_member(gone.id)
        term = leader.node.group.raft.term
        raft = stays.node.group.raft
        await eventually(lambda: raft.committed_configuration.has_removed(gone.id))
        await gone.start(None)
        assert isinstance(await ended(gone), RemovedFromCluster)
        await leader.put(b"k")
        assert leader.node.group.raft.term == term
        assert stays.node.group.raft.leader == leader.id


async def test_a_leader_that_removes_itself_hands_over_and_stops() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        others = await followers(group)
        writes = [asyncio.create_task(leader.put(b"%d" % number)) for number in range(20)]
        await leader.node.remove_member(leader.id)
        assert isinstance(await ended(leader), RemovedFromCluster)
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        written = [one for one in outcomes if isinstance(one, int)]
        assert all(isinstance(one, int | KvorumError) for one in outcomes)
        await eventually(lambda: any(one.leads for one in others))
        successor = next(one for one in others if one.leads)
        await successor.put(b"k")
        await group.same(*(one.id for one in others))
        assert successor.node.group.machine.revision >= max(written, default=0) + 1


async def test_a_number_is_never_used_again() -> None:
    async with NodeGroup(3) as group:
        [gone, _] = await followers(group)
        leader = await group.leader()
        await leader.node.remove_member(gone.id)
        with pytest.raises(MembershipChangeRefused, match=f"n{gone.id} was a member once"):
            await leader.node.add_member(gone.address, gone.id, learner=False)
        n4 = await group.make(4)
        assert await leader.node.add_member(n4.address, None, learner=False) == 4


# What is refused.


async def test_a_change_that_endangers_the_quorum_is_refused_unless_it_is_forced() -> None:
    async with NodeGroup(3) as group:
        [gone, stays] = await followers(group)
        leader = await group.leader()
        await gone.stop()
        role = leader.node.group.raft.role
        progress = getattr(role, "progress", {})[gone.id]
        await eventually(lambda: not progress.recently_active)
        with pytest.raises(MembershipChangeRefused) as caught:
            await leader.node.remove_member(stays.id)
        assert caught.value.endangers_quorum
        assert leader.members == {1, 2, 3}
        with pytest.raises(DeadlineExceeded) as late:
            # Of the two voters that are left, one is down: it cannot be completed.
            await leader.node.change_members([Remove(stays.id)], force=True, timeout_seconds=0.3)
        assert late.value.maybe_applied
        await gone.start(None)
        await eventually(lambda: leader.members == {leader.id, gone.id})


async def test_a_change_that_makes_no_sense_is_refused() -> None:
    async with NodeGroup(1) as group:
        leader = await group.leader()
        with pytest.raises(MembershipChangeRefused, match="no voter would be left") as caught:
            await leader.node.remove_member(NodeId(1))
        assert not caught.value.endangers_quorum
        with pytest.raises(MembershipChangeRefused, match="n7 is no member"):
            await leader.node.remove_member(NodeId(7))


async def test_only_the_leader_changes_members() -> None:
    async with NodeGroup(3) as group:
        [one, _] = await followers(group)
        leader = await group.leader()
        await eventually(lambda: one.node.group.raft.leader == leader.id)
        with pytest.raises(NotLeader) as caught:
            await one.node.remove_member(NodeId(3))
        assert caught.value.metadata["address"] == leader.address


async def test_a_leader_that_was_just_elected_takes_a_change_as_soon_as_it_can() -> None:
    async with NodeGroup(1) as group:
        await eventually(lambda: group[1].leads)
        assert await group[1].node.add_member("127.0.0.1:1", None, learner=True) == 2


async def test_changes_that_are_asked_for_at_once_are_made_one_after_the_other() -> None:
    """The core refuses a second one while a first is under way; that is no answer for a caller."""
    async with NodeGroup(3) as group:
        node = (await group.leader()).node
        async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as tasks:
            added = [
                tasks.create_task(node.add_member(f"127.0.0.1:{port}", None, learner=True))
                for port in range(1, 6)
            ]
        assert sorted(one.result() for one in added) == [4, 5, 6, 7, 8]
        assert node.group.raft.committed_configuration.learners == {4, 5, 6, 7, 8}


async def test_a_new_member_gets_the_next_number_of_the_moment_in_which_it_is_added() -> None:
    """Not of that in which it was asked for: another one may have been added in between."""
    async with NodeGroup(1) as group:
        node = (await group.leader()).node
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(node.group, "read", lambda **_: confirmed)
            slow = asyncio.create_task(node.add_member("127.0.0.1:1", None, learner=True))
            named = asyncio.create_task(node.add_member("127.0.0.1:3", NodeId(2), learner=True))
            await asyncio.sleep(0)
        assert await node.add_member("127.0.0.1:2", None, learner=True) == 2
        confirmed.set_result(None)
        assert await slow == 3
        with pytest.raises(MembershipChangeRefused, match="n2 is a member already"):
            await named


# A member that may be taken for gone: a node without its disk asks to be put in its place.


async def test_a_member_is_removed_as_gone_only_where_and_when_it_is() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        [gone, stays] = await followers(group)
        await eventually(lambda: len(leader.members) == 3)
        remove = leader.node.remove_member
        for alive in (leader, gone, stays):
            with pytest.raises(MembershipChangeRefused, match=f"n{alive.id} was heard from lately"):
                await remove(alive.id, if_silent_at=alive.address)
        await gone.stop()
        with pytest.raises(MembershipChangeRefused, match="heard from lately"):  # a moment ago
            await remove(gone.id, if_silent_at=gone.address)
        role = leader.node.group.raft.role
        progress = getattr(role, "progress", {})[gone.id]
        await eventually(lambda: not progress.recently_active)
        with pytest.raises(MembershipChangeRefused, match=f"no member n{gone.id} at h:1"):
            await remove(gone.id, if_silent_at="h:1")
        with pytest.raises(MembershipChangeRefused, match="no member n9 at h:1"):
            await remove(NodeId(9), if_silent_at="h:1")
        assert leader.members == {1, 2, 3}
        await remove(gone.id, if_silent_at=gone.address)
        assert leader.members == {leader.id, stays.id}


async def test_a_new_leader_takes_nobody_for_gone() -> None:
    """It has heard from nobody; that says nothing of them."""
    async with NodeGroup(3) as group:
        [silent, _] = await followers(group)
        await silent.link.cut()
        _, successor = await handed_over(group, silent=silent)
        role = successor.node.group.raft.role
        progress = getattr(role, "progress", {})[silent.id]
        assert not progress.is_alive
        with pytest.raises(MembershipChangeRefused, match="heard from lately"):
            await successor.node.remove_member(silent.id, if_silent_at=silent.address)
        silent.link.heal()


async def test_a_leader_that_is_cut_off_removes_nobody() -> None:
    """To it, everybody else is silent. It has to be confirmed by a majority first."""
    async with NodeGroup(3) as group:
        cut_off = await group.leader()
        others = await followers(group)
        for one in (cut_off, *others):
            await one.link.cut()
        with pytest.raises((NotLeader, NoLeader)):
            async with asyncio.timeout(DEADLINE_SECONDS):
                await cut_off.node.remove_member(others[0].id, if_silent_at=others[0].address)
        for one in (cut_off, *others):
            one.link.heal()
        leader = await group.leader()
        await leader.put(b"k")
        assert leader.members == {1, 2, 3}


# A leader that was just elected.


async def handed_over(group: NodeGroup, *, silent: Member) -> tuple[Member, Member]:
    """The leader before, and the next one, who has not heard from the third."""
    before = await group.leader()
    [successor] = [one for one in group.members.values() if one not in (before, silent)]
    await before.node.transfer_leadership(successor.id)
    return before, successor


async def test_a_new_leader_waits_until_it_has_heard_from_everybody_who_is_alive() -> None:
    """As when a leader is to be removed: it hands over, and its successor removes it."""
    async with NodeGroup(3) as group:
        [silent, _] = await followers(group)
        await silent.link.cut()
        before, successor = await handed_over(group, silent=silent)
        removing = asyncio.create_task(successor.node.remove_member(before.id))
        await asyncio.sleep(2 * TIMING.tick_seconds)  # it may ask several times meanwhile
        assert not removing.done()
        silent.link.heal()
        await removing
        assert isinstance(await ended(before), RemovedFromCluster)
        await successor.put(b"k")
        await group.same(successor.id, silent.id)


async def test_a_leader_stays_a_member_while_the_others_alone_are_no_majority() -> None:
    async with NodeGroup(3) as group:
        [dead, _] = await followers(group)
        await dead.stop()
        before, successor = await handed_over(group, silent=dead)
        with pytest.raises(MembershipChangeRefused, match=f"n{dead.id} cannot be reached") as why:
            await successor.node.remove_member(before.id)
        assert why.value.endangers_quorum
        assert successor.members == {1, 2, 3}
        await successor.put(b"k", b"goes on")
        await group.same(before.id, successor.id)
