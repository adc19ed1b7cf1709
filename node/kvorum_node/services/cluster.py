"""The Cluster service: what this node knows of itself and the others, and leadership transfer."""

import asyncio
from typing import Any

import grpc
import grpc.aio

import kvorum
from kvorum.errors import InvalidArgument, KvorumError
from kvorum.status import to_status
from kvorum_node import validation
from kvorum_node.config import parse_name
from kvorum_node.node import Node
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import NodeId, node_name
from kvorum_node.services.kv import abort
from kvorumpb.v1 import cluster_pb2

SERVICE = "kvorumpb.v1.Cluster"

Context = grpc.aio.ServicerContext[Any, Any]


class ClusterService:
    def __init__(self, node: Node) -> None:
        self._node = node

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetStatus": grpc.unary_unary_rpc_method_handler(
                    self._get_status,
                    request_deserializer=cluster_pb2.GetStatusRequest.FromString,
                    response_serializer=cluster_pb2.GetStatusResponse.SerializeToString,
                ),
                "GetContentHash": grpc.unary_unary_rpc_method_handler(
                    self._get_content_hash,
                    request_deserializer=cluster_pb2.GetContentHashRequest.FromString,
                    response_serializer=cluster_pb2.GetContentHashResponse.SerializeToString,
                ),
                "TransferLeadership": grpc.unary_unary_rpc_method_handler(
                    self._transfer_leadership,
                    request_deserializer=cluster_pb2.TransferLeadershipRequest.FromString,
                    response_serializer=cluster_pb2.TransferLeadershipResponse.SerializeToString,
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
            members=[self._member(node) for node in sorted(group.addresses)],
        )

    def _member(self, node: NodeId) -> cluster_pb2.Member:
        raft = self._node.group.raft
        member = cluster_pb2.Member(name=node_name(node), address=self._node.group.addresses[node])
        if isinstance(raft.role, Leader):
            if node == self._node.id:
                member.match_index = raft.log.stable_index
                member.active = True
            else:
                progress = raft.role.progress[node]
                member.match_index = progress.match
                member.active = progress.active
        return member

    async def _get_content_hash(
        self, request: cluster_pb2.GetContentHashRequest, context: Context
    ) -> cluster_pb2.GetContentHashResponse:
        await _check_namespace(request.namespace, context)
        hasher = self._node.group.machine.content_hash()
        while (content := hasher.step()) is None:  # noqa: ASYNC110 - no event ends the work
            await asyncio.sleep(0)  # the node goes on between two slices
        return cluster_pb2.GetContentHashResponse(
            revision=content.revision, hash=content.digest, record_count=content.record_count
        )

    async def _transfer_leadership(
        self, request: cluster_pb2.TransferLeadershipRequest, context: Context
    ) -> cluster_pb2.TransferLeadershipResponse:
        await _check_namespace(request.namespace, context)
        try:
            target = parse_name(request.target) if request.target else None
            leader = await self._node.transfer_leadership(target)
        except KvorumError as error:
            await abort(context, to_status(error))
        except ValueError as error:
            await abort(context, to_status(InvalidArgument(str(error))))
        return cluster_pb2.TransferLeadershipResponse(leader=node_name(leader))


async def _check_namespace(namespace: str, context: Context) -> None:
    try:
        validation.validate_namespace(namespace)
    except KvorumError as error:
        await abort(context, to_status(error))
