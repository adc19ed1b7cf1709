"""Operating a cluster: the Cluster service of its nodes, for the command line and for tests.

    async with ClusterAdmin(["h1:7100", "h2:7100"]) as admin:
        await admin.status("h2:7100")             asks one node about itself
        await admin.survey()                      asks all that can be found
        await admin.add_member("h4:7100")         asks the leader, wherever that is

Rule of this file: a change of members is sent to the leader again only after an
answer which says that it was not made.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc.aio
from google.protobuf.message import Message

from kvorum.arguments import check_revision
from kvorum.channels import Channels
from kvorum.errors import (
    Closed,
    DeadlineExceeded,
    InvalidTarget,
    KvorumError,
    MembershipChangeRefused,
    NoLeader,
    NoNodeReachable,
    OutcomeUnknown,
    Unavailable,
)
from kvorum.status import from_rpc_error, is_from_node
from kvorum.verification import Verification
from kvorumpb.v1 import cluster_pb2, kv_pb2

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

STATUS_TIMEOUT_SECONDS: Final = 2.0
TRANSFER_TIMEOUT_SECONDS: Final = 10.0
COMPACT_TIMEOUT_SECONDS: Final = 30.0
CONTENT_HASH_TIMEOUT_SECONDS: Final = 60.0
"""The whole state is read."""
VERIFY_TIMEOUT_SECONDS: Final = 300.0
"""Each member reads its whole state, beside everything else that it has to do."""
MEMBERSHIP_TIMEOUT_SECONDS: Final = 30.0
"""A new leader may have to be found first, and old and new voters must both agree."""
PAUSE_SECONDS: Final = 0.1
"""Between two looks for the leader."""

_SOME_KEY: Final = b"\0"
"""It is not its value that is read."""

Status = cluster_pb2.GetStatusResponse


@dataclass(frozen=True, slots=True)
class Survey:
    """What the nodes of a cluster said, each of them once."""

    outcomes: Mapping[str, Status | KvorumError]
    """An answer, or why there is none, by the address at which the node was asked."""

    @classmethod
    def of(cls, outcomes: Iterable[tuple[str, Status | KvorumError]]) -> Self:
        """Of a node that was asked at several of its addresses, the first answer counts."""
        distinct: dict[str, Status | KvorumError] = {}
        seen: set[tuple[str, str]] = set()
        for address, outcome in outcomes:
            if isinstance(outcome, Status) and outcome.name:
                node = (outcome.cluster_id, outcome.name)
                if node in seen:
                    continue
                seen.add(node)
            distinct[address] = outcome
        return cls(distinct)

    @property
    def answers(self) -> dict[str, Status]:
        return {
            address: outcome
            for address, outcome in self.outcomes.items()
            if isinstance(outcome, Status)
        }

    @property
    def leader(self) -> str | None:
        """The address of the leader of the highest term: a deposed one may not know it yet."""
        leading = {
            status.term: address
            for address, status in self.answers.items()
            if status.role == cluster_pb2.LEADER
        }
        return leading[max(leading)] if leading else None

    @property
    def led_view(self) -> Status | None:
        """The leader's answer."""
        return None if self.leader is None else self.answers[self.leader]

    @property
    def best(self) -> Status | None:
        """The leader's answer; without one, that of the node which knows the most."""
        if self.led_view is not None:
            return self.led_view
        return max(
            self.answers.values(),
            key=lambda status: (status.commit_index, status.term),
            default=None,
        )

    def view_of(self, member: str) -> Status | None:
        """What the member said itself, in the cluster that `best` is of."""
        best = self.best
        if best is None:
            return None
        nodes = {(one.cluster_id, one.name): one for one in self.answers.values()}
        return nodes.get((best.cluster_id, member))

    def refuse_several_clusters(self) -> None:
        """Raise InvalidTarget if the nodes are not of one cluster: which one is meant?"""
        clusters = {one.cluster_id for one in self.answers.values()}
        if len(clusters) > 1:
            found = ", ".join(
                f"{address} is {one.name} of {one.cluster_id}"
                for address, one in self.answers.items()
            )
            raise InvalidTarget(f"the addresses are of different clusters: {found}")


class ClusterAdmin:
    """Asks nodes about themselves. The answers are documented in cluster.proto.

    Used as an async context manager, or closed with `close`. Every call raises
    `NoNodeReachable` if there is no node at the address, `DeadlineExceeded` after
    `timeout` seconds, and whatever else the node answers with.
    """

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self.addresses: Final = tuple(addresses)
        """host:port of nodes, through which the others and the leader are found."""
        self._channels = Channels()
        self._closed = False

    async def status(
        self, address: str, *, timeout: float = STATUS_TIMEOUT_SECONDS
    ) -> cluster_pb2.GetStatusResponse:
        """Return the node's view: role, positions, members."""
        return await self._call(
            address,
            "GetStatus",
            cluster_pb2.GetStatusRequest(),
            cluster_pb2.GetStatusResponse,
            timeout=timeout,
        )

    async def survey(self, *, timeout: float = STATUS_TIMEOUT_SECONDS) -> Survey:
        """Ask the nodes at `addresses`, and the members that those name; never raises for a node.

        Takes up to twice the timeout if nodes do not answer. A node of another cluster that
        runs where a member should be is no answer; of those at `addresses`, each one is.
        """

        async def ask(address: str) -> tuple[str, Status | KvorumError]:
            try:
                return address, await self.status(address, timeout=timeout)
            except KvorumError as error:
                return address, error

        given = await asyncio.gather(*map(ask, self.addresses))
        answers = Survey.of(given).answers.values()
        known = {(status.cluster_id, status.name) for status in answers}
        members = {
            member.address: status.cluster_id
            for status in answers
            for member in status.members
            if (status.cluster_id, member.name) not in known
        }
        others = sorted(members.keys() - set(self.addresses))
        found = [
            (address, _of_cluster(members[address], address, outcome))
            for address, outcome in await asyncio.gather(*map(ask, others))
        ]
        return Survey.of([*given, *found])

    async def find_leader(self, *, timeout: float = MEMBERSHIP_TIMEOUT_SECONDS) -> str:
        """Return the address of the node that leads, waiting for an election if there is one.

        Raises:
            NoNodeReachable: nobody answered in time.
            NoLeader: nodes answered, and none of them led in time.
            InvalidTarget: they are of several clusters.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            remaining = max(PAUSE_SECONDS, deadline - loop.time())
            survey = await self.survey(timeout=min(STATUS_TIMEOUT_SECONDS, remaining))
            survey.refuse_several_clusters()
            if survey.leader is not None:
                return survey.leader
            if loop.time() >= deadline:
                asked = tuple(survey.outcomes)
                if not survey.answers:
                    raise NoNodeReachable(f"no node answers: asked {', '.join(asked)}", nodes=asked)
                raise NoLeader(
                    f"no node leads: asked {', '.join(asked)}. Is a majority of the voters running?"
                    " docs/operations/recovering-a-lost-quorum.md says what to do if it never will"
                )
            await asyncio.sleep(PAUSE_SECONDS)

    async def content_hash(
        self, address: str, *, timeout: float = CONTENT_HASH_TIMEOUT_SECONDS
    ) -> cluster_pb2.GetContentHashResponse:
        """Hash the node's state; equal at equal `applied_index`, if the nodes hold the same."""
        return await self._call(
            address,
            "GetContentHash",
            cluster_pb2.GetContentHashRequest(),
            cluster_pb2.GetContentHashResponse,
            timeout=timeout,
        )

    async def confirmed_index(self, *, timeout: float = MEMBERSHIP_TIMEOUT_SECONDS) -> int:
        """Return an index of the log through which all is that was acknowledged before this call.

        Any node that has applied so much has all of it. This asks for a majority: the leader is
        read from, and has led throughout.

        Raises:
            NoNodeReachable, NoLeader, DeadlineExceeded: nobody can say.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            leader = await self.find_leader(timeout=max(0.0, deadline - loop.time()))
            try:
                before = await self.status(leader)
                await self._call(
                    leader,
                    "Get",
                    kv_pb2.GetRequest(key=_SOME_KEY),
                    kv_pb2.GetResponse,
                    service="KV",
                    timeout=max(PAUSE_SECONDS, deadline - loop.time()),
                )
                after = await self.status(leader)
            except Unavailable:
                if loop.time() >= deadline:
                    raise
            else:
                # Of the same term: or else another leader may have answered the read.
                if before.role == after.role == cluster_pb2.LEADER and before.term == after.term:
                    return after.applied_index
            await asyncio.sleep(PAUSE_SECONDS)

    async def snapshot(
        self, address: str
    ) -> AsyncGenerator[cluster_pb2.SaveSnapshotResponse, None]:
        """Yield the node's whole state: a header, chunks, a trailer. Close it to give it up.

        It is what the node has applied, which may be less than was acknowledged
        (`confirmed_index`). What is not asked for is not sent, and takes no memory.

        Raises:
            Overloaded: the node gives as many as it may.
            NoLeader: it has applied nothing yet.
        """
        rpc: grpc.aio.UnaryStreamMultiCallable[
            cluster_pb2.SaveSnapshotRequest, cluster_pb2.SaveSnapshotResponse
        ] = self._channel(address).unary_stream(
            "/kvorumpb.v1.Cluster/SaveSnapshot",
            request_serializer=cluster_pb2.SaveSnapshotRequest.SerializeToString,
            response_deserializer=cluster_pb2.SaveSnapshotResponse.FromString,
        )
        call = rpc(cluster_pb2.SaveSnapshotRequest())
        try:
            async for part in call:
                yield part
        except grpc.aio.AioRpcError as cause:
            raise _translate(cause, address, write=False) from cause
        finally:
            call.cancel()

    async def verify(self, *, timeout: float = VERIFY_TIMEOUT_SECONDS) -> Verification:
        """Have all members hash their state at one index, and compare.

        A minority that differs is stopped by this, for good. Members that are down, or
        lag until the time is up, are `UNKNOWN`. Finds the leader, and begins again at a
        new one.

        Raises:
            NoNodeReachable, NoLeader, Overloaded, DeadlineExceeded: nothing was compared.
        """
        response = await self._call_leader(
            "Verify",
            cluster_pb2.VerifyRequest(),
            cluster_pb2.VerifyResponse,
            timeout=timeout,
            write=False,
        )
        return Verification.of(response)

    async def verification(
        self, address: str, index: int, *, timeout: float = STATUS_TIMEOUT_SECONDS
    ) -> cluster_pb2.GetVerificationResponse:
        """Return what the node has found at the verification at an index, if it has."""
        return await self._call(
            address,
            "GetVerification",
            cluster_pb2.GetVerificationRequest(index=index),
            cluster_pb2.GetVerificationResponse,
            timeout=timeout,
        )

    async def transfer_leadership(
        self, address: str, target: str = "", *, timeout: float = TRANSFER_TIMEOUT_SECONDS
    ) -> str:
        """Have the leader at `address` hand over to `target` ("n2"), and return who leads then.

        Without a target the leader chooses. Raises `NotLeader` if another node leads.
        """
        response = await self._call(
            address,
            "TransferLeadership",
            cluster_pb2.TransferLeadershipRequest(target=target),
            cluster_pb2.TransferLeadershipResponse,
            write=True,
            timeout=timeout,
        )
        return response.leader

    async def compact(self, revision: int, *, timeout: float = COMPACT_TIMEOUT_SECONDS) -> int:
        """Forget history before the revision, and return the oldest that can be read then.

        That is the revision itself, or a later one where that was forgotten before. This
        finds the leader.

        Raises:
            FutureRevision: the store has not come so far; InvalidArgument: below 1.
        """
        check_revision(revision)
        response = await self._call_leader(
            "Compact",
            cluster_pb2.CompactRequest(revision=revision),
            cluster_pb2.CompactResponse,
            timeout=timeout,
        )
        return response.oldest_revision

    async def add_member(
        self,
        address: str,
        *,
        name: str = "",
        learner: bool = False,
        force: bool = False,
        timeout: float = MEMBERSHIP_TIMEOUT_SECONDS,
    ) -> str:
        """Make the node that is to run at `address` a member, and return the name it gets.

        It becomes a voter by itself once it has caught up, unless it is to stay a
        `learner`. Like `promote_member` and `remove_member` this finds the leader, and
        raises `MembershipChangeRefused` if the change must not be made; some of those
        are made with `force`, at the risk that its message names.
        """
        request = cluster_pb2.AddMemberRequest(
            address=address, name=name, learner=learner, force=force
        )
        response = await self._call_leader(
            "AddMember", request, cluster_pb2.AddMemberResponse, timeout=timeout
        )
        return response.name

    async def join(
        self, address: str, *, timeout: float = MEMBERSHIP_TIMEOUT_SECONDS
    ) -> tuple[str, str]:
        """Make the node at `address` a member: its cluster, and the name that it gets there.

        As add_member. Whoever is answered is the only one who ever gets this name.
        """
        response = await self._call_leader(
            "AddMember",
            cluster_pb2.AddMemberRequest(address=address),
            cluster_pb2.AddMemberResponse,
            timeout=timeout,
        )
        return response.cluster_id, response.name

    async def promote_member(
        self, name: str, *, force: bool = False, timeout: float = MEMBERSHIP_TIMEOUT_SECONDS
    ) -> None:
        """Make the learner `name` a voter, and return once it is one."""
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            await self._call_leader(
                "PromoteMember",
                cluster_pb2.PromoteMemberRequest(name=name, force=force),
                cluster_pb2.PromoteMemberResponse,
                timeout=timeout,
            )
        except (OutcomeUnknown, DeadlineExceeded):
            view = await self._settled_view(deadline)
            if view is None or _kinds(view).get(name) != cluster_pb2.Member.VOTER:
                raise

    async def remove_member(
        self, name: str, *, force: bool = False, timeout: float = MEMBERSHIP_TIMEOUT_SECONDS
    ) -> None:
        """Let `name` be a member no longer, and return once that is decided.

        The node stops by itself as soon as it learns of it. A leader is asked to hand
        over first: what it has under way would be in doubt otherwise.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        leader = await self.find_leader(timeout=timeout)
        if (await self.status(leader)).name == name:
            with suppress(KvorumError):  # one that cannot hand over removes itself
                await self.transfer_leadership(
                    leader, timeout=min(TRANSFER_TIMEOUT_SECONDS, deadline - loop.time())
                )
        try:
            await self._call_leader(
                "RemoveMember",
                cluster_pb2.RemoveMemberRequest(name=name, force=force),
                cluster_pb2.RemoveMemberResponse,
                timeout=max(PAUSE_SECONDS, deadline - loop.time()),
            )
        except (OutcomeUnknown, DeadlineExceeded):
            # A leader that has removed itself may be gone before its answer is.
            view = await self._settled_view(deadline)
            if view is None or name in _kinds(view):
                raise

    async def remove_silent_member(
        self, name: str, address: str, *, timeout: float = MEMBERSHIP_TIMEOUT_SECONDS
    ) -> None:
        """Let the member `name` at `address` be one no longer, if it may be taken for gone.

        Raises:
            MembershipChangeRefused: the leader has heard from it lately, or it is no member
                there, or the removal would endanger the quorum.
        """
        await self._call_leader(
            "RemoveMember",
            cluster_pb2.RemoveMemberRequest(name=name, if_silent_at=address),
            cluster_pb2.RemoveMemberResponse,
            timeout=timeout,
        )

    async def wait_until_voter(
        self, name: str, report: Callable[[cluster_pb2.Member, int], None]
    ) -> None:
        """Return once the member is a voter, and the members can be changed again.

        Args:
            report: is told, again and again while a leader is known, what the leader
                says of the member, and how many entries it lacks. What it raises ends
                the wait.

        Raises:
            MembershipChangeRefused: it is no member, or is not to become a voter.
        """
        while True:
            view = (await self.survey()).led_view
            if view is not None:
                member = next((one for one in view.members if one.name == name), None)
                if member is None:
                    raise MembershipChangeRefused(f"{name} is no member")
                is_voter = member.kind == cluster_pb2.Member.VOTER
                if is_voter and not view.members_changing:
                    return
                report(member, max(0, view.last_index - member.match_index))
                if not is_voter and not member.joining:
                    raise MembershipChangeRefused(f"{name} stays a learner until it is promoted")
            await asyncio.sleep(PAUSE_SECONDS)

    async def close(self) -> None:
        """Close the connections. Calls that are under way fail."""
        self._closed = True
        await self._channels.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _settled_view(self, deadline: float) -> Status | None:
        """A leader's view, once no change is under way; None if none is to be had in time."""
        loop = asyncio.get_running_loop()
        while (remaining := deadline - loop.time()) > 0:
            view = (await self.survey(timeout=min(STATUS_TIMEOUT_SECONDS, remaining))).led_view
            if view is not None and not view.members_changing:
                return view
            await asyncio.sleep(PAUSE_SECONDS)
        return None

    async def _call_leader(
        self,
        method: str,
        request: RequestT,
        response_type: type[ResponseT],
        *,
        timeout: float,
        write: bool = True,
    ) -> ResponseT:
        """Make a call that only the leader carries out; `write` if it must not be repeated."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            leader = await self.find_leader(timeout=deadline - loop.time())
            try:
                return await self._call(
                    leader,
                    method,
                    request,
                    response_type,
                    write=write,
                    timeout=max(PAUSE_SECONDS, deadline - loop.time()),
                )
            except Unavailable:
                # It was not carried out: leadership has moved since, or is about to.
                if loop.time() >= deadline:
                    raise
            await asyncio.sleep(PAUSE_SECONDS)

    async def _call(
        self,
        address: str,
        method: str,
        request: RequestT,
        response_type: type[ResponseT],
        *,
        timeout: float,
        write: bool = False,
        service: str = "Cluster",
    ) -> ResponseT:
        rpc: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT] = self._channel(
            address
        ).unary_unary(
            f"/kvorumpb.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response_type.FromString,
        )
        try:
            return await rpc(request, timeout=timeout)
        except grpc.aio.AioRpcError as cause:
            raise _translate(cause, address, write=write, timeout=timeout) from cause

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._closed:
            raise Closed("the ClusterAdmin was closed")
        return self._channels.to(address)


def _kinds(view: Status) -> dict[str, cluster_pb2.Member.Kind.ValueType]:
    return {member.name: member.kind for member in view.members}


def _of_cluster(
    cluster_id: str, address: str, outcome: Status | KvorumError
) -> Status | KvorumError:
    """The answer of a member, unless another cluster's node is in its place."""
    if isinstance(outcome, KvorumError) or outcome.cluster_id == cluster_id:
        return outcome
    return NoNodeReachable(
        f"{address} is {outcome.name} of another cluster, {outcome.cluster_id}", nodes=[address]
    )


def _translate(
    cause: grpc.aio.AioRpcError, address: str, *, write: bool, timeout: float | None = None
) -> KvorumError:
    error = from_rpc_error(cause, write=write)
    if type(error) is DeadlineExceeded and timeout is not None and not is_from_node(cause):
        return DeadlineExceeded(
            f"{address} has not answered within {timeout:.3g} s", maybe_applied=write
        )
    if type(error) is Unavailable:
        return NoNodeReachable(f"{address} does not answer: {error.message}", nodes=[address])
    return error
