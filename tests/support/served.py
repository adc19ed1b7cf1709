"""One server over its real port."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvorum_node.config import NodeConfig
from kvorum_node.server import serve
from kvorumpb.v1 import kv_pb2
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.wire_client import SERVING, WireClient


def config_at(directory: Path, port: int, **changes: Any) -> NodeConfig:
    address = f"127.0.0.1:{port}"
    settings = {"name": "n1", "data_dir": directory, "listen": address, "cluster": {"n1": address}}
    return NodeConfig.model_validate(settings | changes)


@asynccontextmanager
async def serving(config: NodeConfig) -> AsyncIterator[tuple[WireClient, asyncio.Task[None]]]:
    task = asyncio.create_task(serve(config))
    client = WireClient(config.listen)
    try:
        await until_serving(client, "kvorumpb.v1.Cluster")
        yield client, task
    finally:
        await client.close()
        task.cancel()
        await asyncio.wait([task])


async def until_serving(client: WireClient, service: str = "") -> None:
    """Wait for it. Where others need the processors, a leader may be lost and found before."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await client.health(service) != SERVING:  # noqa: ASYNC110 - of a server
            await asyncio.sleep(0.01)


async def told(watch: Any, status: int) -> None:
    """Wait until a stream of the health service tells it, for the same reason."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await watch.read()).status != status:
            pass


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def put_call(number: int, value: bytes = b"v") -> kv_pb2.Call:
    return kv_pb2.Call(id=number, put=kv_pb2.PutRequest(key=b"%d" % number, value=value))
