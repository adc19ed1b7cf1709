"""Asking a node about itself, all nodes about each other, and the leader for a change."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from kvorum import (
    Closed,
    DeadlineExceeded,
    InvalidTarget,
    KvorumError,
    MembershipChangeRefused,
    NoLeader,
    NoNodeReachable,
    NotLeader,
    OutcomeUnknown,
)
from kvorum.admin import ClusterAdmin
from kvorum.status import DETAILS_KEY, to_status
from kvorum.verification import Verdict, Verification
from kvorumpb.v1 import cluster_pb2, kv_pb2

Answer = Message | KvorumError | None
"""What a method returns, raises, or never does."""

METHODS = (
    "GetStatus",
    "GetContentHash",
    "Verify",
    "GetVerification",
    "TransferLeadership",
    "Compact",
    "AddMember",
    "PromoteMember",
    "RemoveMember",
)


class FakeCluster:
    """Answers the methods of the Cluster service with what it is given."""

    def __init__(self) -> None:
        self.answer: Answer = None
        self.answers: dict[str, Callable[[], Answer]] = {}
        """For a method, in place of `answer`."""
        self.requests: list[Message] = []
        self.address = ""

    async def serve(self, request: Message, context: Any) -> Message:
        self.requests.append(request)
        method = type(request).__name__.removesuffix("Request")
        answer = self.answers.get(method, lambda: self.answer)()
        if isinstance(answer, KvorumError):
            status = to_status(answer)
            code = {code.value[0]: code for code in grpc.StatusCode}[status.code]
            details = ((DETAILS_KEY, status.SerializeToString()),)
            await context.abort(code, status.message, trailing_metadata=details)
        if answer is None:
            await asyncio.Event().wait()
        assert isinstance(answer, Message)
        return answer

    def asked(self, kind: type[Message]) -> list[Message]:
        return [request for request in self.requests if isinstance(request, kind)]


@asynccontextmanager
async def serving() -> AsyncIterator[FakeCluster]:
    fake = FakeCluster()
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(
            fake.serve,
            request_deserializer=getattr(cluster_pb2, f"{name}Request").FromString,
            response_serializer=getattr(cluster_pb2, f"{name}Response").SerializeToString,
        )
        for name in METHODS
    }
    get: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        fake.serve,
        request_deserializer=kv_pb2.GetRequest.FromString,
        response_serializer=kv_pb2.GetResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("kvorumpb.v1.Cluster", handlers),
            grpc.method_handlers_generic_handler("kvorumpb.v1.KV", {"Get": get}),
        )
    )
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)


@pytest.fixture
async def node() -> AsyncIterator[FakeCluster]:
    async with serving() as fake:
        yield fake


@pytest.fixture
async def three() -> AsyncIterator[list[FakeCluster]]:
    """n1, n2 and n3: n2 leads."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(serving()) for _ in range(3)]
        for number in range(3):
            describe(nodes, number, leads=number == 1)
        yield nodes


def describe(nodes: list[FakeCluster], number: int, *, leads: bool, term: int = 7) -> None:
    """Let the node give a status that names all of them."""
    members = [
        cluster_pb2.Member(name=f"n{n}", address=node.address, kind=cluster_pb2.Member.VOTER)
        for n, node in enumerate(nodes, 1)
    ]
    status = cluster_pb2.GetStatusResponse(
        name=f"n{number + 1}",
        role=cluster_pb2.LEADER if leads else cluster_pb2.FOLLOWER,
        term=term,
        commit_index=number,
        last_index=10,
        members=members,
    )
    nodes[number].answers["GetStatus"] = lambda: status


async def test_status(node: FakeCluster) -> None:
    node.answer = cluster_pb2.GetStatusResponse(name="n1", role=cluster_pb2.LEADER, term=7)
    async with ClusterAdmin([node.address]) as admin:
        assert await admin.status(node.address) == node.answer
        assert admin.addresses == (node.address,)


async def test_what_was_acknowledged_is_known_by_a_read_of_one_leader(node: FakeCluster) -> None:
    """Of the same term before and after the read: else another one may have answered it."""
    terms = [7, 7, 8, 8, 8, 8]
    asked: list[int] = []

    def status() -> Answer:
        asked.append(terms[min(len(asked), len(terms) - 1)])
        applied = 10 * len(asked)
        return cluster_pb2.GetStatusResponse(
            name="n1", role=cluster_pb2.LEADER, term=asked[-1], applied_index=applied
        )

    node.answers["GetStatus"] = status
    node.answers["Get"] = kv_pb2.GetResponse
    async with ClusterAdmin([node.address]) as admin:
        # Three looks a round: for the leader, before and after the read.
        assert await admin.confirmed_index() == 60
    assert len(node.asked(kv_pb2.GetRequest)) == 2


async def test_without_a_leader_nobody_says_what_was_acknowledged(node: FakeCluster) -> None:
    node.answers["GetStatus"] = lambda: cluster_pb2.GetStatusResponse(name="n1")
    async with ClusterAdmin([node.address]) as admin:
        with pytest.raises(NoLeader):
            await admin.confirmed_index(timeout=2.0)
    assert node.asked(kv_pb2.GetRequest) == []


async def test_content_hash(node: FakeCluster) -> None:
    node.answer = cluster_pb2.GetContentHashResponse(revision=3, hash=b"x", record_count=2)
    async with ClusterAdmin() as admin:
        assert await admin.content_hash(node.address) == node.answer


VERDICTS = cluster_pb2.VerifyResponse.MemberHash


def verified(*verdicts: VERDICTS.Verdict.ValueType, digest: bytes = b"x") -> Answer:
    members = [VERDICTS(name=f"n{n}", verdict=one) for n, one in enumerate(verdicts, 1)]
    return cluster_pb2.VerifyResponse(
        index=9, revision=4, hash=digest, record_count=2, members=members
    )


async def test_a_verification_is_asked_of_the_leader(three: list[FakeCluster]) -> None:
    three[1].answers["Verify"] = lambda: verified(VERDICTS.SAME, VERDICTS.CORRUPT, VERDICTS.UNKNOWN)
    async with ClusterAdmin([three[0].address]) as admin:
        found = await admin.verify()
    assert found == Verification(
        9, 4, b"x", 2, {"n1": Verdict.SAME, "n2": Verdict.CORRUPT, "n3": Verdict.UNKNOWN}
    )
    assert three[1].asked(cluster_pb2.VerifyRequest) == [cluster_pb2.VerifyRequest()]


@pytest.mark.parametrize(
    ("answer", "sound"),
    [
        (verified(VERDICTS.SAME, VERDICTS.SAME), True),
        (verified(VERDICTS.SAME, VERDICTS.UNKNOWN), True),
        (verified(VERDICTS.SAME, VERDICTS.CORRUPT), False),
        (verified(VERDICTS.UNKNOWN, VERDICTS.UNKNOWN, digest=b""), False),
        (verified(VERDICTS.VERDICT_UNSPECIFIED), True),
    ],
)
async def test_what_is_sound(three: list[FakeCluster], answer: Answer, sound: bool) -> None:
    three[1].answers["Verify"] = lambda: answer
    async with ClusterAdmin([three[0].address]) as admin:
        assert (await admin.verify()).is_sound is sound


async def test_a_verification_is_begun_again_at_a_new_leader(three: list[FakeCluster]) -> None:
    def hand_over() -> KvorumError:
        describe(three, 1, leads=False)
        describe(three, 2, leads=True, term=8)
        return NotLeader("n3 leads")

    three[1].answers["Verify"] = hand_over
    three[2].answers["Verify"] = lambda: verified(VERDICTS.SAME)
    async with ClusterAdmin([three[0].address]) as admin:
        assert (await admin.verify()).is_sound


async def test_a_node_is_asked_for_its_own_verification(node: FakeCluster) -> None:
    node.answer = cluster_pb2.GetVerificationResponse(done=True, hash=b"x")
    async with ClusterAdmin() as admin:
        assert await admin.verification(node.address, 7) == node.answer
    assert node.requests == [cluster_pb2.GetVerificationRequest(index=7)]


async def test_transfer_leadership(node: FakeCluster) -> None:
    node.answer = cluster_pb2.TransferLeadershipResponse(leader="n2")
    async with ClusterAdmin() as admin:
        assert await admin.transfer_leadership(node.address, "n2") == "n2"
    assert node.requests == [cluster_pb2.TransferLeadershipRequest(target="n2")]


async def test_a_node_that_does_not_lead_says_so(node: FakeCluster) -> None:
    node.answer = NotLeader("n2 leads", leader="n2", address="h2:7100")
    async with ClusterAdmin() as admin:
        with pytest.raises(NotLeader) as caught:
            await admin.transfer_leadership(node.address)
    assert caught.value.metadata == {"leader": "n2", "address": "h2:7100"}


# All nodes.


async def test_a_survey_asks_the_members_that_the_given_nodes_name(
    three: list[FakeCluster],
) -> None:
    async with ClusterAdmin([three[2].address]) as admin:
        survey = await admin.survey()
    assert {status.name for status in survey.answers.values()} == {"n1", "n2", "n3"}
    assert next(iter(survey.outcomes)) == three[2].address
    assert survey.leader == three[1].address
    assert survey.best is not None
    assert survey.best.name == "n2"


async def test_a_survey_says_who_did_not_answer(three: list[FakeCluster]) -> None:
    three[1].answers["GetStatus"] = lambda: None
    async with ClusterAdmin([three[0].address]) as admin:
        survey = await admin.survey(timeout=0.2)
    silent = survey.outcomes[three[1].address]
    assert isinstance(silent, DeadlineExceeded)
    assert silent.message == f"{three[1].address} has not answered within 0.2 s"
    assert survey.leader is None
    assert survey.best is not None
    assert survey.best.name == "n3"  # it knows of the most commits


async def test_a_node_that_is_asked_at_two_addresses_is_counted_once(
    three: list[FakeCluster],
) -> None:
    port = three[1].address.rpartition(":")[2]
    aliases = [f"localhost:{port}", three[1].address]
    for given in (aliases, aliases[:1]):
        async with ClusterAdmin(given) as admin:
            survey = await admin.survey()
        assert sorted(status.name for status in survey.answers.values()) == ["n1", "n2", "n3"]
        assert survey.leader == aliases[0]


async def test_another_cluster_at_the_address_of_a_member_is_no_answer(
    three: list[FakeCluster],
) -> None:
    stranger = cluster_pb2.GetStatusResponse(name="n7", cluster_id="d", role=cluster_pb2.LEADER)
    three[2].answers["GetStatus"] = lambda: stranger
    async with ClusterAdmin([three[0].address]) as admin:
        survey = await admin.survey()
        assert await admin.find_leader() == three[1].address
    assert survey.view_of("n2") is not None
    assert survey.view_of("n3") is survey.view_of("n7") is None
    outcome = survey.outcomes[three[2].address]
    assert str(outcome) == f"{three[2].address} is n7 of another cluster, d"


async def test_addresses_of_several_clusters_are_refused(three: list[FakeCluster]) -> None:
    stranger = cluster_pb2.GetStatusResponse(name="n7", cluster_id="d", role=cluster_pb2.LEADER)
    three[2].answers["GetStatus"] = lambda: stranger
    async with ClusterAdmin([three[0].address, three[2].address]) as admin:
        with pytest.raises(InvalidTarget, match=f"{three[2].address} is n7 of d"):
            await admin.add_member("h4:7100")
    assert not any(node.asked(cluster_pb2.AddMemberRequest) for node in three)


async def test_the_leader_of_the_highest_term_is_believed(three: list[FakeCluster]) -> None:
    describe(three, 0, leads=True, term=6)
    async with ClusterAdmin([three[0].address]) as admin:
        assert await admin.find_leader() == three[1].address


async def test_where_nobody_leads_this_is_said(three: list[FakeCluster]) -> None:
    describe(three, 1, leads=False)
    async with ClusterAdmin([three[0].address]) as admin:
        with pytest.raises(NoLeader, match=r"no node leads: asked 127.*majority of the voters"):
            await admin.find_leader(timeout=0.3)


async def test_where_nobody_answers_this_is_said() -> None:
    async with ClusterAdmin(["127.0.0.1:1"]) as admin:
        with pytest.raises(NoNodeReachable, match="no node answers: asked 127"):
            await admin.find_leader(timeout=0.3)


async def test_a_compaction_goes_to_the_leader_whoever_is_asked(three: list[FakeCluster]) -> None:
    three[1].answers["Compact"] = lambda: cluster_pb2.CompactResponse(oldest_revision=7)
    async with ClusterAdmin([three[0].address]) as admin:
        assert await admin.compact(5) == 7
    assert three[1].asked(cluster_pb2.CompactRequest) == [cluster_pb2.CompactRequest(revision=5)]


# Changes of members.


async def test_a_change_goes_to_the_leader_whoever_is_asked(three: list[FakeCluster]) -> None:
    three[1].answers["AddMember"] = lambda: cluster_pb2.AddMemberResponse(name="n4")
    three[1].answers["PromoteMember"] = cluster_pb2.PromoteMemberResponse
    three[1].answers["RemoveMember"] = cluster_pb2.RemoveMemberResponse
    async with ClusterAdmin([three[0].address]) as admin:
        assert await admin.add_member("h4:7100", learner=True) == "n4"
        await admin.promote_member("n4", force=True)
        await admin.remove_member("n4")
    changes = [
        one for one in three[1].requests if not isinstance(one, cluster_pb2.GetStatusRequest)
    ]
    assert changes == [
        cluster_pb2.AddMemberRequest(address="h4:7100", learner=True),
        cluster_pb2.PromoteMemberRequest(name="n4", force=True),
        cluster_pb2.RemoveMemberRequest(name="n4"),
    ]


async def test_a_change_follows_a_leader_that_has_moved(three: list[FakeCluster]) -> None:
    def hand_over() -> KvorumError:
        describe(three, 1, leads=False)
        describe(three, 2, leads=True, term=8)
        return NotLeader("n3 leads")

    three[1].answers["PromoteMember"] = hand_over
    three[2].answers["PromoteMember"] = cluster_pb2.PromoteMemberResponse
    async with ClusterAdmin([three[0].address]) as admin:
        await admin.promote_member("n3")
    assert len(three[2].asked(cluster_pb2.PromoteMemberRequest)) == 1


async def test_a_change_that_may_have_been_made_is_not_asked_for_again(
    three: list[FakeCluster],
) -> None:
    three[1].answers["AddMember"] = lambda: OutcomeUnknown("leadership was lost")
    async with ClusterAdmin([three[0].address]) as admin:
        with pytest.raises(OutcomeUnknown):
            await admin.add_member("h4:7100")
    assert len(three[1].asked(cluster_pb2.AddMemberRequest)) == 1


@pytest.mark.parametrize("hands_over", [True, False])
async def test_a_leader_hands_over_before_it_is_removed_if_it_can(
    three: list[FakeCluster], hands_over: bool
) -> None:
    def transfer() -> Answer:
        if not hands_over:
            return NoLeader("nobody took over in time")
        describe(three, 1, leads=False)
        describe(three, 2, leads=True, term=8)
        return cluster_pb2.TransferLeadershipResponse(leader="n3")

    for node in three:
        node.answers["TransferLeadership"] = transfer
        node.answers["RemoveMember"] = cluster_pb2.RemoveMemberResponse
    async with ClusterAdmin([three[0].address]) as admin:
        await admin.remove_member("n2")
        await admin.remove_member("n1")
    removals = [len(node.asked(cluster_pb2.RemoveMemberRequest)) for node in three]
    assert removals == ([0, 0, 2] if hands_over else [0, 2, 0])
    assert len(three[1].asked(cluster_pb2.TransferLeadershipRequest)) == 1


async def test_a_removed_leader_need_not_live_to_say_so(three: list[FakeCluster]) -> None:
    def remove() -> KvorumError:
        describe(three, 1, leads=False)
        remaining = [three[0], three[2]]
        describe(remaining, 0, leads=True, term=8)
        return OutcomeUnknown("the connection was lost")

    three[1].answers["RemoveMember"] = remove
    async with ClusterAdmin([three[0].address]) as admin:
        await admin.remove_member("n3")  # the two that remain are described as n1 and n2


async def test_a_removal_that_nobody_knows_of_is_in_doubt(three: list[FakeCluster]) -> None:
    three[1].answers["RemoveMember"] = lambda: OutcomeUnknown("the connection was lost")
    async with ClusterAdmin([three[0].address]) as admin:
        with pytest.raises(OutcomeUnknown):
            await admin.remove_member("n3")


async def test_a_promotion_in_doubt_is_looked_up(three: list[FakeCluster]) -> None:
    """The node gives up sooner than the caller, and goes on with the change."""
    three[1].answers["PromoteMember"] = lambda: DeadlineExceeded("too slow", maybe_applied=True)
    async with ClusterAdmin([three[0].address]) as admin:
        await admin.promote_member("n3")
        let_join(three[1], kind=cluster_pb2.Member.LEARNER)
        with pytest.raises(DeadlineExceeded, match="too slow"):
            await admin.promote_member("n4")
        let_join(three[1], changing=True, kind=cluster_pb2.Member.VOTER)
        with pytest.raises(DeadlineExceeded, match="too slow"):
            await admin.promote_member("n4", timeout=0.5)


async def test_a_refusal_says_whether_force_would_help(three: list[FakeCluster]) -> None:
    three[1].answers["RemoveMember"] = lambda: MembershipChangeRefused(
        "n1 does not answer", endangers_quorum="true"
    )
    async with ClusterAdmin([three[0].address]) as admin:
        with pytest.raises(MembershipChangeRefused, match="does not answer") as caught:
            await admin.remove_member("n3")
    assert caught.value.endangers_quorum


def let_join(node: FakeCluster, *, changing: bool = False, **member: Any) -> None:
    """Let the node lead, and say this of n4."""
    status = cluster_pb2.GetStatusResponse(
        name="n2", role=cluster_pb2.LEADER, term=9, last_index=50, members_changing=changing
    )
    status.members.add(name="n4", address=node.address, **member)
    node.answers["GetStatus"] = lambda: status


async def test_waiting_for_a_voter_reports_what_it_lacks(node: FakeCluster) -> None:
    learner, voter = cluster_pb2.Member.LEARNER, cluster_pb2.Member.VOTER
    let_join(node, kind=learner, joining=True, match_index=20, active=True)
    reports = []

    def report(member: cluster_pb2.Member, lag: int) -> None:
        reports.append((member.kind, lag))
        let_join(node, kind=voter, match_index=45, changing=len(reports) == 1)

    async with ClusterAdmin([node.address]) as admin:
        await admin.wait_until_voter("n4", report)
        # A voter already in the second, by a change that was not complete.
        assert reports == [(learner, 30), (voter, 5)]
        let_join(node, kind=learner)
        with pytest.raises(MembershipChangeRefused, match="stays a learner"):
            await admin.wait_until_voter("n4", lambda member, lag: None)
        with pytest.raises(MembershipChangeRefused, match="n5 is no member"):
            await admin.wait_until_voter("n5", lambda member, lag: None)


# What can go wrong.


async def test_nobody_is_there() -> None:
    async with ClusterAdmin() as admin:
        with pytest.raises(NoNodeReachable, match=r"127\.0\.0\.1:1 does not answer") as caught:
            await admin.status("127.0.0.1:1")
    assert caught.value.nodes == ("127.0.0.1:1",)


async def test_a_node_that_does_not_answer(node: FakeCluster) -> None:
    async with ClusterAdmin() as admin:
        with pytest.raises(DeadlineExceeded):
            await admin.status(node.address, timeout=0.1)


async def test_a_closed_one_refuses(node: FakeCluster) -> None:
    admin = ClusterAdmin()
    await admin.close()
    with pytest.raises(Closed):
        await admin.status(node.address)
