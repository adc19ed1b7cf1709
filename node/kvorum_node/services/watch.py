"""The Watch service: many watches on one stream, which the client begins and ends.

Rules: a message is filled when the stream has taken the last one, so that a client that
does not read costs one message; nothing is decided here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from kvorum.errors import KvorumError
from kvorum.status import to_status
from kvorum_node.node import Node
from kvorum_node.services.kv import abort
from kvorum_node.watches import WatchStream
from kvorumpb.v1 import watch_pb2

SERVICE = "kvorumpb.v1.Watch"

Context = grpc.aio.ServicerContext[Any, Any]
Requests = AsyncIterator[watch_pb2.WatchRequest]

logger = logging.getLogger("kvorum.node")


class WatchService:
    def __init__(self, node: Node) -> None:
        self._node = node

    def handler(self) -> grpc.GenericRpcHandler:
        watch: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._watch,
            request_deserializer=watch_pb2.WatchRequest.FromString,
            response_serializer=watch_pb2.WatchResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Watch": watch})

    async def _watch(self, requests: Requests, context: Context) -> None:
        try:
            stream = self._node.watches.open_stream()
        except KvorumError as error:
            await abort(context, to_status(error))
        reader = asyncio.create_task(_read(requests, stream), name="kvorum watch requests")
        try:
            await _write(stream, context)
            if reader.done():
                reader.result()  # what the client has asked for made no sense
        except KvorumError as error:
            await abort(context, to_status(error))
        except grpc.aio.InternalError:
            # gRPC's word for a stream that is dead: the client has dropped it, which is no news.
            logger.debug("%s lost a stream of watches", self._node)
        finally:
            stream.close()
            reader.cancel()
            await asyncio.wait([reader])


async def _read(requests: Requests, stream: WatchStream) -> None:
    """Carry out what the client asks for, until it asks for nothing more: its watches go on."""
    try:
        async for request in requests:
            await stream.take(request)
    except BaseException:
        stream.close()
        raise


async def _write(stream: WatchStream, context: Context) -> None:
    """Send what there is to say, as soon as the stream takes it."""
    while (response := await stream.next()) is not None:
        await context.write(response)
