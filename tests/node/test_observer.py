"""What a server counts by method: what began, what it ended with, nothing that a caller invents."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from kvorum.channels import connect
from kvorum.cli.processes import free_ports
from kvorum_node.figures import Figures, Rpc
from kvorum_node.services.observer import Observer
from tests.support.eventually import eventually
from tests.support.served import failure

pytestmark = pytest.mark.asyncio(loop_scope="session")

Context = grpc.aio.ServicerContext[bytes, bytes]


class Scripted:
    """A server with a method of each kind, which does as the request says."""

    def __init__(self) -> None:
        self.figures = Figures()
        self.waiting = asyncio.Event()
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self.server = grpc.aio.server(interceptors=[Observer(self.figures)])
        self.server.add_insecure_port(self.address)
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "Scripted",
                    {
                        "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                        "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
                        "Converse": grpc.stream_stream_rpc_method_handler(self.converse),
                        "Generate": grpc.unary_stream_rpc_method_handler(self.generate),
                    },
                ),
            )
        )

    async def unary(self, request: bytes, context: Context) -> bytes:
        match request:
            case b"abort":
                await context.abort(grpc.StatusCode.ABORTED, "scripted")
            case b"fail":
                raise ZeroDivisionError
            case b"wait":
                self.waiting.set()
                await asyncio.Event().wait()
        return request

    async def collect(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b"".join([request async for request in requests])

    async def converse(self, requests: AsyncIterator[bytes], context: Context) -> None:
        async for request in requests:
            await context.write(request)

    async def generate(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for one in request:
            if not one:
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, "scripted")
            yield bytes([one])

    def rpc(self, method: str) -> Rpc:
        return self.figures.rpcs["Scripted", method]

    async def handled(self, method: str) -> dict[str, int]:
        """Once nothing of the method is under way."""
        rpc = self.rpc(method)
        await eventually(lambda: sum(rpc.handled.values()) == rpc.started)
        assert rpc.seconds.count == rpc.started
        return dict(rpc.handled)


@pytest_asyncio.fixture(loop_scope="session")
async def scripted() -> AsyncIterator[Scripted]:
    one = Scripted()
    await one.server.start()
    yield one
    await one.server.stop(None)


@pytest_asyncio.fixture(loop_scope="session")
async def channel(scripted: Scripted) -> AsyncIterator[grpc.aio.Channel]:
    async with connect(scripted.address) as channel:
        yield channel


async def test_a_call_is_counted_by_what_it_ended_with(
    scripted: Scripted, channel: grpc.aio.Channel
) -> None:
    call: Any = channel.unary_unary("/Scripted/Unary")
    assert await call(b"a") == b"a"
    assert await call(b"b") == b"b"
    aborted, failed = await failure(call(b"abort")), await failure(call(b"fail"))
    assert (aborted.code(), failed.code()) == (grpc.StatusCode.ABORTED, grpc.StatusCode.UNKNOWN)
    assert await scripted.handled("Unary") == {"OK": 2, "ABORTED": 1, "UNKNOWN": 1}


async def test_a_call_that_is_given_up_is_counted(
    scripted: Scripted, channel: grpc.aio.Channel
) -> None:
    method: Any = channel.unary_unary("/Scripted/Unary")
    call = method(b"wait")
    await scripted.waiting.wait()
    assert scripted.rpc("Unary").started == 1
    assert scripted.rpc("Unary").seconds.count == 0
    call.cancel()
    assert await scripted.handled("Unary") == {"CANCELLED": 1}


async def test_streams_are_counted_as_one_call_each(
    scripted: Scripted, channel: grpc.aio.Channel
) -> None:
    collect: Any = channel.stream_unary("/Scripted/Collect")
    assert await collect(iter([b"a", b"b"])) == b"ab"
    converse: Any = channel.stream_stream("/Scripted/Converse")
    assert [one async for one in converse(iter([b"a", b"b", b"c"]))] == [b"a", b"b", b"c"]
    generate: Any = channel.unary_stream("/Scripted/Generate")
    assert [one async for one in generate(b"ab")] == [b"a", b"b"]
    assert await scripted.handled("Collect") == {"OK": 1}
    assert await scripted.handled("Converse") == {"OK": 1}
    assert await scripted.handled("Generate") == {"OK": 1}
    stream = generate(b"a\0")
    assert await stream.read() == b"a"
    assert (await failure(stream.read())).code() is grpc.StatusCode.OUT_OF_RANGE
    assert await scripted.handled("Generate") == {"OK": 1, "OUT_OF_RANGE": 1}


async def test_what_a_caller_invents_is_not_counted(
    scripted: Scripted, channel: grpc.aio.Channel
) -> None:
    for path in ("/Scripted/Other", "/Other/Unary"):
        call: Any = channel.unary_unary(path)
        error = await failure(call(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert scripted.figures.rpcs == {}
