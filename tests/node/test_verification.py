"""The corruption check between real nodes: who is right, who stops, and who is waited for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from kvorum.admin import ClusterAdmin
from kvorum.errors import DeadlineExceeded, NoLeader, NotLeader, StateCorrupt
from kvorum_node import verification
from kvorum_node.machine import HASH_FORMAT
from kvorum_node.machine.content_hash import ContentHash, ContentHasher
from kvorum_node.node import Timing
from kvorum_node.raft.configuration import AddLearner, Configuration
from kvorum_node.raft.types import Index, NodeId, node_name
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Family
from kvorum_node.verification import KEPT_HASHES, compare
from kvorumpb.v1.cluster_pb2 import GetVerificationResponse, VerifyRequest, VerifyResponse
from kvorumpb.v1.command_pb2 import Command, Record, Verdict, Verification
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.node_group import Member, NodeGroup

SAME = VerifyResponse.MemberHash.SAME
CORRUPT = VerifyResponse.MemberHash.CORRUPT
UNKNOWN = VerifyResponse.MemberHash.UNKNOWN

VERIFICATION = Command(verification=Verification(format=HASH_FORMAT))


@pytest.fixture
async def group() -> AsyncIterator[NodeGroup]:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        await leader.put(b"a", b"1")
        await leader.put(b"b", b"2")
        await group.same()
        yield group


def alter(member: Member, key: bytes = b"a", value: bytes = b"9") -> None:
    """Have the node's disk hold another value than was written to it."""
    machine = member.node.group.machine
    record = machine.get(key)
    assert record is not None
    write(member, key, Record(value=value, revision=record.revision).SerializeToString())


def write(member: Member, key: bytes, stored: bytes) -> None:
    batch = Batch()
    batch.put(Family.DATA, layout.data_key(member.node.group.machine._space, key), stored)
    member.node.storage.state.write(batch)


async def verify(member: Member, seconds: float = DEADLINE_SECONDS) -> VerifyResponse:
    return await member.node.verifier.verify(deadline=asyncio.get_running_loop().time() + seconds)


def verdicts(response: VerifyResponse) -> dict[str, VerifyResponse.MemberHash.Verdict.ValueType]:
    return {one.name: one.verdict for one in response.members}


def followers(group: NodeGroup) -> tuple[Member, Member]:
    first, second = (one for one in group.members.values() if one.is_up and not one.leads)
    return first, second


async def assert_stops(member: Member) -> None:
    with pytest.raises(StateCorrupt) as raised:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await member.node.wait_failed()
    name = node_name(member.id)
    assert f"the state of {name} differs from what the majority held at index" in str(raised.value)
    assert f"`kvorum member remove {name}`" in str(raised.value)


# What a comparison finds.


def held(digest: bytes) -> GetVerificationResponse:
    return GetVerificationResponse(done=True, hash=digest)


MISSED = GetVerificationResponse(missed=True)
UNREADABLE = GetVerificationResponse(done=True)
THREE = Configuration.of({NodeId(n): f"h{n}:1" for n in (1, 2, 3)})
WITH_LEARNER = Configuration(
    voters=THREE.voters, learners=frozenset({NodeId(4)}), addresses=THREE.addresses
)
JOINT = Configuration(
    voters=frozenset(map(NodeId, (1, 4, 5))), outgoing=THREE.voters, addresses=THREE.addresses
)

CASES: dict[str, tuple[Configuration, dict[int, GetVerificationResponse], bytes, set[int]]] = {
    "all the same": (THREE, {1: held(b"x"), 2: held(b"x"), 3: held(b"x")}, b"x", set()),
    "one differs": (THREE, {1: held(b"x"), 2: held(b"y"), 3: held(b"x")}, b"x", {2}),
    "the first one differs": (THREE, {1: held(b"y"), 2: held(b"x"), 3: held(b"x")}, b"x", {1}),
    "all differ": (THREE, {1: held(b"x"), 2: held(b"y"), 3: held(b"z")}, b"", set()),
    "one says nothing": (THREE, {1: held(b"x"), 2: held(b"x")}, b"x", set()),
    "one has missed it": (THREE, {1: held(b"x"), 2: held(b"x"), 3: MISSED}, b"x", set()),
    "two against each other": (THREE, {1: held(b"x"), 2: held(b"y")}, b"", set()),
    "one alone": (THREE, {1: held(b"x")}, b"", set()),
    "one cannot read": (THREE, {1: UNREADABLE, 2: held(b"x"), 3: held(b"x")}, b"x", {1}),
    "most cannot read": (THREE, {1: UNREADABLE, 2: UNREADABLE, 3: held(b"x")}, b"", set()),
    "a learner differs": (
        WITH_LEARNER,
        {1: held(b"x"), 2: held(b"x"), 3: held(b"x"), 4: held(b"y")},
        b"x",
        {4},
    ),
    "a learner is no vote": (
        WITH_LEARNER,
        {1: held(b"x"), 2: held(b"y"), 4: held(b"x")},
        b"",
        set(),
    ),
    "a majority of one side of a change": (
        JOINT,
        {1: held(b"x"), 2: held(b"y"), 3: held(b"y"), 4: held(b"x"), 5: held(b"x")},
        b"",
        set(),
    ),
    "a majority of both": (
        JOINT,
        {1: held(b"x"), 2: held(b"x"), 3: held(b"y"), 4: held(b"x"), 5: held(b"y")},
        b"x",
        {3, 5},
    ),
    "one that is no member": (
        THREE,
        {1: held(b"x"), 2: held(b"x"), 9: held(b"y")},
        b"x",
        set(),
    ),
}


@pytest.mark.parametrize(
    ("configuration", "answers", "right", "corrupt"), CASES.values(), ids=CASES
)
def test_what_a_majority_of_the_voters_holds_is_right(
    configuration: Configuration,
    answers: Mapping[int, GetVerificationResponse],
    right: bytes,
    corrupt: set[int],
) -> None:
    finding = compare(configuration, {NodeId(n): answer for n, answer in answers.items()})
    assert (finding.hash, set(finding.corrupt)) == (right, corrupt)
    for node in configuration.members:
        answer = answers.get(node)
        holds_it = bool(right) and answer is not None and answer.hash == right
        expected = CORRUPT if node in corrupt else SAME if holds_it else UNKNOWN
        assert finding.verdict(node) == expected


# Between nodes.


async def test_a_sound_group_holds_the_same_under_writes(group: NodeGroup) -> None:
    leader = await group.leader()
    done = asyncio.Event()

    async def go_on_writing() -> int:
        number = 0
        while not done.is_set():
            number += 1
            await leader.put(b"w%05d" % number, bytes(200))
        return number

    writing = asyncio.create_task(go_on_writing())
    try:
        responses = [await verify(leader) for _ in range(5)]
    finally:
        done.set()
        written = await writing
    for response in responses:
        assert verdicts(response) == {"n1": SAME, "n2": SAME, "n3": SAME}
        assert len(response.hash) == 32
    indexes = [response.index for response in responses]
    assert indexes == sorted(set(indexes))
    assert 2 <= responses[0].record_count <= responses[-1].record_count <= written + 2
    assert responses[0].revision >= 2
    await group.same()


async def test_a_follower_that_differs_stops_and_the_others_go_on(group: NodeGroup) -> None:
    leader, (sound, corrupt) = await group.leader(), followers(group)
    alter(corrupt)
    response = await verify(leader)
    assert verdicts(response) == {
        node_name(leader.id): SAME,
        node_name(sound.id): SAME,
        node_name(corrupt.id): CORRUPT,
    }
    await assert_stops(corrupt)
    await leader.put(b"c")
    await group.same(leader.id, sound.id)
    again = await verify(leader)
    assert verdicts(again)[node_name(corrupt.id)] == UNKNOWN


async def test_a_leader_that_differs_hands_over_and_stops() -> None:
    """Nobody has to miss it first: an election time-out lasts longer than the test."""
    patient = Timing(tick_seconds=0.05, election_timeout_seconds=20 * DEADLINE_SECONDS)
    async with NodeGroup(3, timing=patient) as group:
        await eventually(lambda: all(map(is_connected, group.members.values())))
        group[2].node.group.raft.campaign()
        group[2].node.driver.wake()
        leader = await group.leader()
        await leader.put(b"a", b"1")
        await group.same()
        alter(leader)
        assert verdicts(await verify(leader)) == {"n1": SAME, "n2": CORRUPT, "n3": SAME}
        await assert_stops(leader)
        others = (group[1], group[3])
        await eventually(lambda: any(one.leads for one in others))
        [successor] = [one for one in others if one.leads]
        await successor.put(b"c")
        assert successor.get(b"a") == b"1"
        await group.same(1, 3)


def is_connected(member: Member) -> bool:
    return all(lane._connected for lane in member.node._transport._lanes.values())


async def test_a_leader_that_differs_serves_nobody_any_more(group: NodeGroup) -> None:
    leader = await group.leader()
    alter(leader)
    await verify(leader)
    assert leader.node.dispatcher._draining


async def test_a_learner_is_compared_too(group: NodeGroup) -> None:
    leader = await group.leader()
    learner = await group.make(4)
    await leader.node.change_members([AddLearner(learner.id, learner.address)])
    await learner.start(None)
    await group.same()
    assert verdicts(await verify(leader))["n4"] == SAME
    alter(learner)
    assert verdicts(await verify(leader)) == {"n1": SAME, "n2": SAME, "n3": SAME, "n4": CORRUPT}
    await assert_stops(learner)


async def test_a_state_that_cannot_be_read_differs(
    group: NodeGroup, caplog: pytest.LogCaptureFixture
) -> None:
    leader, (corrupt, _) = await group.leader(), followers(group)
    write(corrupt, b"a", b"\x12\xff")
    assert verdicts(await verify(leader))[node_name(corrupt.id)] == CORRUPT
    await assert_stops(corrupt)
    assert "cannot hash its state at" in caplog.text


async def test_where_nobody_can_say_who_is_right_nobody_stops(
    group: NodeGroup, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2, 3):
        alter(group[number], value=b"%d" % number)
    leader = await group.leader()
    with caplog.at_level(logging.ERROR):
        response = await verify(leader)
    assert verdicts(response) == {"n1": UNKNOWN, "n2": UNKNOWN, "n3": UNKNOWN}
    assert (response.hash, response.record_count) == (b"", 0)
    assert "no majority holds the same" in caplog.text
    await leader.put(b"c")
    await eventually(lambda: all(group[number].get(b"c") == b"" for number in (1, 2, 3)))


async def test_a_member_that_is_down_is_unknown_and_not_waited_for(group: NodeGroup) -> None:
    leader, (away, _) = await group.leader(), followers(group)
    await away.stop()
    async with asyncio.timeout(DEADLINE_SECONDS):
        response = await verify(leader, seconds=3600.0)
    assert verdicts(response)[node_name(away.id)] == UNKNOWN
    assert list(verdicts(response).values()).count(SAME) == 2


async def test_a_member_that_was_restarted_since_is_not_waited_for(
    group: NodeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, (restarted, _) = await group.leader(), followers(group)
    release = hold_hashing(restarted, monkeypatch)
    verifying = asyncio.create_task(verify(leader, seconds=3600.0))
    await eventually(lambda: restarted.node.verifier._newest > 0)
    await restarted.stop()
    await restarted.start(None)
    release.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        response = await verifying
    assert verdicts(response)[node_name(restarted.id)] == UNKNOWN


async def test_a_member_that_lags_is_waited_for_until_the_deadline(
    group: NodeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, (slow, _) = await group.leader(), followers(group)
    release = hold_hashing(slow, monkeypatch)
    assert verdicts(await verify(leader, seconds=0.3))[node_name(slow.id)] == UNKNOWN
    verifying = asyncio.create_task(verify(leader))
    await eventually(lambda: len(leader.node.verifier._hashes) == 2)
    assert not verifying.done()
    release.set()
    assert verdicts(await verifying)[node_name(slow.id)] == SAME


def hold_hashing(member: Member, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let the node begin no hash before the event is set."""
    release = asyncio.Event()
    verifier = member.node.verifier
    hash_now = verifier._hash

    async def hash_later(hasher: ContentHasher) -> None:
        await release.wait()
        await hash_now(hasher)

    monkeypatch.setattr(verifier, "_hash", hash_later)
    return release


# What a node says, and what it stops for.


async def test_what_a_node_says_of_a_verification() -> None:
    async with NodeGroup(1) as group:
        member = await group.leader()
        await member.put(b"a")
        answer = member.node.verifier.answer
        ahead = Index(member.applied + 1)
        assert answer(Index(1)) == MISSED
        assert answer(ahead) == GetVerificationResponse()
        await member.propose([VERIFICATION])
        await eventually(lambda: answer(ahead).done)
        content = member.content()
        assert isinstance(content, ContentHash)
        assert answer(ahead) == GetVerificationResponse(
            done=True, revision=1, hash=content.digest, record_count=1
        )
        async with ClusterAdmin() as admin:
            assert await admin.verification(member.address, ahead) == answer(ahead)
            assert await admin.verification(member.address, 1) == MISSED
        await member.stop()
        await member.start(None)
        assert member.node.verifier.answer(ahead).missed


async def test_a_newer_verification_takes_the_place_of_an_older_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with NodeGroup(1) as group:
        member = await group.leader()
        release = hold_hashing(member, monkeypatch)
        for _ in range(3):
            await member.propose([VERIFICATION])
        last = Index(member.applied)
        answer = member.node.verifier.answer
        assert [answer(Index(last - back)).missed for back in (2, 1, 0)] == [True, True, False]
        release.set()
        await eventually(lambda: answer(last).done)
        assert set(member.node.verifier._hashes) == {last}


async def test_only_the_newest_hashes_are_kept() -> None:
    async with NodeGroup(1) as group:
        member = await group.leader()
        verifier = member.node.verifier
        for _ in range(KEPT_HASHES + 2):
            await verify(member)
        assert len(verifier._hashes) == KEPT_HASHES
        assert max(verifier._hashes) == verifier._newest


async def test_a_node_whose_own_hash_is_right_does_not_stop(group: NodeGroup) -> None:
    """Whatever a leader says: another cluster's node may have answered in its place."""
    leader = await group.leader()
    response = await verify(leader)
    await leader.propose(
        [Command(verdict=Verdict(index=response.index, hash=response.hash, corrupt=[1, 2, 3]))]
    )
    await leader.put(b"c")
    await group.same()
    assert verdicts(await verify(leader)) == {"n1": SAME, "n2": SAME, "n3": SAME}


async def test_a_node_that_has_no_hash_does_not_stop(
    group: NodeGroup, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have taken over the state of a sound one since."""
    leader = await group.leader()
    await leader.propose([Command(verdict=Verdict(index=1, hash=b"x", corrupt=[1, 2, 3]))])
    await leader.put(b"c")
    await group.same()
    assert caplog.text.count("held something else than the majority at 1") == 3


async def test_a_condemned_data_directory_is_not_opened_again(tmp_path: Path) -> None:
    async with NodeGroup(3, tmp_path) as group:
        leader = await group.leader()
        await leader.put(b"a", b"1")
        await group.same()
        corrupt, _ = followers(group)
        alter(corrupt)
        await verify(leader)
        await assert_stops(corrupt)
        await corrupt.stop()
        for _ in range(2):
            with pytest.raises(StateCorrupt, match=f"Replace n{corrupt.id}"):
                await corrupt.start(None)
        said = (tmp_path / f"n{corrupt.id}" / "CORRUPT").read_text()
        assert said.startswith(f"the state of n{corrupt.id} differs")


# Who may ask, and when.


async def test_only_the_leader_verifies(group: NodeGroup) -> None:
    leader, (follower, _) = await group.leader(), followers(group)
    with pytest.raises(NotLeader):
        await verify(follower)
    async with ClusterAdmin(one.address for one in group.members.values()) as admin:
        with pytest.raises(NotLeader) as raised:
            await admin._call(
                follower.address,
                "Verify",
                VerifyRequest(),
                VerifyResponse,
                timeout=DEADLINE_SECONDS,
            )
        assert raised.value.metadata["address"] == leader.address


async def test_a_leader_that_was_deposed_meanwhile_does_not_judge(
    group: NodeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, (slow, _) = await group.leader(), followers(group)
    hold_hashing(slow, monkeypatch)
    verifying = asyncio.create_task(verify(leader))
    await eventually(lambda: leader.node.verifier._hashes)
    await leader.node.transfer_leadership(None)
    with pytest.raises((NotLeader, NoLeader)):  # it may not know yet who leads instead
        await verifying


async def test_verifications_wait_for_each_other(group: NodeGroup) -> None:
    leader = await group.leader()
    responses = await asyncio.gather(*(verify(leader) for _ in range(4)))
    assert len({response.index for response in responses}) == 4
    for response in responses:
        assert set(verdicts(response).values()) == {SAME}


async def test_a_verification_does_not_wait_beyond_its_deadline(
    group: NodeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, (slow, _) = await group.leader(), followers(group)
    hold_hashing(slow, monkeypatch)
    first = asyncio.create_task(verify(leader, seconds=3600.0))
    await eventually(lambda: leader.node.verifier._hashes)
    with pytest.raises(DeadlineExceeded, match="another verification is under way"):
        await verify(leader, seconds=0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert set(verdicts(await verify(leader, seconds=0.3)).values()) == {SAME, UNKNOWN}


async def test_the_leader_verifies_regularly(
    group: NodeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "RETRY_SECONDS", 0.01)
    leader, (corrupt, other) = await group.leader(), followers(group)
    tasks = [
        asyncio.create_task(one.node.verifier.verify_regularly(0.05))
        for one in group.members.values()
    ]
    try:
        await eventually(lambda: len(other.node.verifier._hashes) >= 2)
        alter(corrupt)
        await assert_stops(corrupt)
        await leader.put(b"c")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_all_nodes_count_from_the_last_verification(group: NodeGroup) -> None:
    """So a leader that has just been elected has no need to begin anew."""
    leader = await group.leader()
    await verify(leader)
    for one in group.members.values():
        assert one.node.verifier._last_seconds is not None


async def test_a_node_alone_does_not_verify_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    interval_seconds, rests = 0.0025, 0
    sleep = asyncio.sleep

    async def count_rests(seconds: float) -> None:
        nonlocal rests
        rests += seconds == interval_seconds
        await sleep(seconds)

    async with NodeGroup(1) as group:
        member = await group.leader()
        before = member.node.group.raft.log.last_index
        monkeypatch.setattr(asyncio, "sleep", count_rests)
        task = asyncio.create_task(member.node.verifier.verify_regularly(interval_seconds))
        await eventually(lambda: rests > 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert member.node.group.raft.log.last_index == before
        assert verdicts(await verify(member)) == {"n1": SAME}
