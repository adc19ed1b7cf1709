"""The Cluster service: what this node knows of itself and the others, and who is to be a member."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

import kvorum
from kvorum.errors import DeadlineExceeded, InvalidArgument, KvorumError
from kvorum.status import to_status
from kvorum_node import validation
from kvorum_node.backups import STALLED_SECONDS
from kvorum_node.config import check_member_address, parse_name
from kvorum_node.figures import Figures, Histogram
from kvorum_node.node import Node
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import Index, NodeId, node_name
from kvorum_node.services.kv import abort
from kvorum_node.verification import MAX_VERIFY_SECONDS
from kvorumpb.v1 import cluster_pb2

SERVICE = "kvorumpb.v1.Cluster"

_ANSWER_SECONDS = 1.0
"""Of the time that a caller gives, so much is kept for the answer to reach it."""

Context = grpc.aio.ServicerContext[Any, Any]
RequestT = TypeVar("RequestT", bound=Message)
T = TypeVar("T")


class ClusterService:
    def __init__(self, node: Node) -> None:
        self._node = node

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetStatus": _method(self._get_status, cluster_pb2.GetStatusRequest),
                "GetContentHash": _method(
                    self._get_content_hash, cluster_pb2.GetContentHashRequest
                ),
                "Verify": _method(self._verify, cluster_pb2.VerifyRequest),
                "GetVerification": _method(
                    self._get_verification, cluster_pb2.GetVerificationRequest
                ),
                "TransferLeadership": _method(
                    self._transfer_leadership, cluster_pb2.TransferLeadershipRequest
                ),
                "Compact": _method(self._compact, cluster_pb2.CompactRequest),
                "AddMember": _method(self._add_member, cluster_pb2.AddMemberRequest),
                "PromoteMember": _method(self._promote_member, cluster_pb2.PromoteMemberRequest),
                "RemoveMember": _method(self._remove_member, cluster_pb2.RemoveMemberRequest),
                "SaveSnapshot": grpc.unary_stream_rpc_method_handler(
                    self._save_snapshot,
                    request_deserializer=cluster_pb2.SaveSnapshotRequest.FromString,
                    response_serializer=cluster_pb2.SaveSnapshotResponse.SerializeToString,
                ),
            },
        )

    async def _get_status(
        self, request: cluster_pb2.GetStatusRequest, context: Context
    ) -> cluster_pb2.GetStatusResponse:
        await _check_namespace(request.namespace, context)
        group = self._node.group
        raft = group.raft
        return cluster_pb2.GetStatusResponse(
            name=str(self._node),
            cluster_id=self._node.cluster_id,
            version=kvorum.__version__,
            role=group.role,
            term=raft.term,
            leader="" if raft.leader is None else node_name(raft.leader),
            first_index=raft.log.first_index,
            last_index=raft.log.last_index,
            commit_index=raft.log.committed,
            applied_index=group.machine.applied,
            revision=group.machine.revision,
            log_bytes=group.log.log_bytes(),
            members=[self._member(node) for node in sorted(raft.configuration.members)],
            members_changing=raft.members_are_changing,
            oldest_revision=group.machine.oldest_revision,
            log_time_ms=group.machine.log_time_ms,
            store_bytes=self._node.watchman.space.store_bytes,
            quota_bytes=self._node.watchman.bounds.quota_bytes,
            free_bytes=self._node.watchman.space.free_bytes,
            min_free_bytes=self._node.watchman.bounds.min_free_bytes,
            alarms=self._node.alarms,
            watches=self._node.watches.count,
            activity=_activity(self._node.figures),
        )

    def _member(self, node: NodeId) -> cluster_pb2.Member:
        raft = self._node.group.raft
        configuration = raft.configuration
        member = cluster_pb2.Member(
            name=node_name(node),
            address=configuration.addresses[node],
            kind=_kind(configuration, node),
            joining=node in configuration.joining,
        )
        if isinstance(raft.role, Leader):
            if node == self._node.id:
                member.match_index = raft.log.stable_index
                member.active = True
            else:
                progress = raft.role.progress[node]
                member.match_index = progress.match
                member.active = progress.is_alive
        return member

    async def _get_content_hash(
        self, request: cluster_pb2.GetContentHashRequest, context: Context
    ) -> cluster_pb2.GetContentHashResponse:
        await _check_namespace(request.namespace, context)
        hasher = self._node.group.machine.content_hash()
        while (content := hasher.step()) is None:  # noqa: ASYNC110 - no event ends the work
            await asyncio.sleep(0)  # the node goes on between two slices
        return cluster_pb2.GetContentHashResponse(
            revision=content.revision,
            hash=content.digest,
            record_count=content.record_count,
            applied_index=content.applied,
        )

    async def _verify(
        self, request: cluster_pb2.VerifyRequest, context: Context
    ) -> cluster_pb2.VerifyResponse:
        await _check_namespace(request.namespace, context)
        deadline = asyncio.get_running_loop().time() + _verify_seconds(context)
        return await _carry_out(self._node.verifier.verify(deadline=deadline), context)

    async def _get_verification(
        self, request: cluster_pb2.GetVerificationRequest, context: Context
    ) -> cluster_pb2.GetVerificationResponse:
        await _check_namespace(request.namespace, context)
        return self._node.verifier.answer(Index(request.index))

    async def _save_snapshot(
        self, request: cluster_pb2.SaveSnapshotRequest, context: Context
    ) -> None:
        await _check_namespace(request.namespace, context)
        try:
            async with aclosing(self._node.backups.save()) as parts:
                async for part in parts:
                    async with asyncio.timeout(STALLED_SECONDS):
                        await context.write(part)  # returns when the caller has room for it
        except TimeoutError:
            stalled = DeadlineExceeded(f"no part was taken for {STALLED_SECONDS:g} s: given up")
            await abort(context, to_status(stalled))
        except grpc.aio.InternalError:
            # gRPC's word for a stream that is dead: the caller has gone.
            self._node.group.logger.debug("lost the caller that a snapshot was for")
        except KvorumError as error:
            await abort(context, to_status(error))

    async def _transfer_leadership(
        self, request: cluster_pb2.TransferLeadershipRequest, context: Context
    ) -> cluster_pb2.TransferLeadershipResponse:
        target = await _node_id(request.target, context) if request.target else None
        await _check_namespace(request.namespace, context)
        leader = await _carry_out(self._node.transfer_leadership(target), context)
        return cluster_pb2.TransferLeadershipResponse(leader=node_name(leader))

    async def _compact(
        self, request: cluster_pb2.CompactRequest, context: Context
    ) -> cluster_pb2.CompactResponse:
        await _check_namespace(request.namespace, context)
        oldest = await _carry_out(self._node.compact(request.revision), context)
        return cluster_pb2.CompactResponse(oldest_revision=oldest)

    async def _add_member(
        self, request: cluster_pb2.AddMemberRequest, context: Context
    ) -> cluster_pb2.AddMemberResponse:
        await _check_namespace(request.namespace, context)
        node = await _node_id(request.name, context) if request.name else None
        try:
            address = check_member_address(request.address)
        except ValueError as error:
            await abort(context, to_status(InvalidArgument(str(error))))
        added = await _carry_out(
            self._node.add_member(address, node, learner=request.learner, force=request.force),
            context,
        )
        return cluster_pb2.AddMemberResponse(
            name=node_name(added), cluster_id=self._node.cluster_id
        )

    async def _promote_member(
        self, request: cluster_pb2.PromoteMemberRequest, context: Context
    ) -> cluster_pb2.PromoteMemberResponse:
        await _check_namespace(request.namespace, context)
        node = await _node_id(request.name, context)
        await _carry_out(self._node.promote_member(node, force=request.force), context)
        return cluster_pb2.PromoteMemberResponse()

    async def _remove_member(
        self, request: cluster_pb2.RemoveMemberRequest, context: Context
    ) -> cluster_pb2.RemoveMemberResponse:
        await _check_namespace(request.namespace, context)
        node = await _node_id(request.name, context)
        removing = self._node.remove_member(
            node, force=request.force, if_silent_at=request.if_silent_at
        )
        await _carry_out(removing, context)
        return cluster_pb2.RemoveMemberResponse()


def _method(
    behavior: Callable[[RequestT, Context], Awaitable[Message]], request: type[RequestT]
) -> "grpc.RpcMethodHandler[RequestT, Message]":
    return grpc.unary_unary_rpc_method_handler(
        behavior,
        request_deserializer=request.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


def _activity(figures: Figures) -> cluster_pb2.Activity:
    reads, writes = figures.reads, figures.writes
    return cluster_pb2.Activity(
        uptime_ms=round(figures.uptime_seconds * 1000),
        reads=reads.count,
        writes=writes.count,
        failures=reads.node_failures + writes.node_failures,
        changes_told=figures.changes_told,
        read_latency=_latencies(reads.seconds),
        write_latency=_latencies(writes.seconds),
        sync_latency=_latencies(figures.sync),
        apply_latency=_latencies(figures.apply),
    )


def _latencies(histogram: Histogram) -> cluster_pb2.Latencies:
    return cluster_pb2.Latencies(
        bounds_seconds=histogram.bounds,
        counts=histogram.counts,
        count=histogram.count,
        sum_seconds=histogram.total,
    )


def _kind(configuration: Configuration, node: NodeId) -> cluster_pb2.Member.Kind.ValueType:
    if node in configuration.voters:
        return cluster_pb2.Member.VOTER
    if node in configuration.outgoing:
        return cluster_pb2.Member.OUTGOING
    return cluster_pb2.Member.LEARNER


def _verify_seconds(context: Context) -> float:
    remaining = cast("float | None", context.time_remaining())  # None without a deadline
    if remaining is None:
        return MAX_VERIFY_SECONDS
    return min(MAX_VERIFY_SECONDS, max(remaining / 2, remaining - _ANSWER_SECONDS))


async def _carry_out(work: Awaitable[T], context: Context) -> T:
    try:
        return await work
    except KvorumError as error:
        await abort(context, to_status(error))
    except ValueError as error:
        await abort(context, to_status(InvalidArgument(str(error))))


async def _node_id(name: str, context: Context) -> NodeId:
    try:
        return parse_name(name)
    except ValueError as error:
        await abort(context, to_status(InvalidArgument(str(error))))


async def _check_namespace(namespace: str, context: Context) -> None:
    try:
        validation.validate_namespace(namespace)
    except KvorumError as error:
        await abort(context, to_status(error))
