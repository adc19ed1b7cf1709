"""The health service of gRPC: what /readyz says, for whoever asks over gRPC.

    "", KV, Watch     SERVING while the node is ready (probes.py): clients want a leader behind it
    Cluster, Raft     SERVING while the process does: members find their leader over Raft, and an
                      operator whose cluster has none is helped by Cluster
    all of them       NOT_SERVING once the process was told to stop, until it has

The implementation that comes with grpcio-health-checking forgets all who watch a service
when one of them leaves, so those would not be told of a change.
"""

from collections.abc import Collection
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from kvorum_node.probes import Probes
from kvorum_node.services import cluster, peers

Context = grpc.aio.ServicerContext[Any, Any]

_WITHOUT_A_LEADER = frozenset({cluster.SERVICE, peers.SERVICE})


class HealthService(health_pb2_grpc.HealthServicer):
    def __init__(self, probes: Probes, services: Collection[str]) -> None:
        self._probes = probes
        self._services = frozenset({"", *services})

    async def Check(  # noqa: N802 - the name is the protocol's
        self, request: HealthCheckRequest, context: Context
    ) -> HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 - the name is the protocol's
        self, request: HealthCheckRequest, context: Context
    ) -> None:
        said: int | None = None
        while True:
            change = self._probes.change
            status = self._status(request.service)
            if status != said:
                await context.write(HealthCheckResponse(status=status))
            said = status
            await change.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return HealthCheckResponse.SERVICE_UNKNOWN
        serves = self._probes.is_ready or service in _WITHOUT_A_LEADER
        if serves and not self._probes.is_ending:
            return HealthCheckResponse.SERVING
        return HealthCheckResponse.NOT_SERVING
