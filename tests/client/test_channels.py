"""Channels: kept while they work, and made anew when they have failed for a while."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import grpc.aio
import pytest
import pytest_asyncio

from kvorum import channels as module
from kvorum.channels import Channels
from kvorum.cli.processes import free_ports
from tests.support.eventually import eventually

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def channels() -> AsyncIterator[Channels]:
    channels = Channels()
    yield channels
    await channels.close()


@pytest.fixture
def address() -> str:
    """Nobody listens there."""
    return f"127.0.0.1:{free_ports(1)[0]}"


async def call(channel: grpc.aio.Channel, *, wait_for_ready: bool = False) -> bytes:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/any/Method")
    return await method(b"", wait_for_ready=wait_for_ready)


async def ask(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """How a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(channel)
    return raised.value.code()


async def test_a_channel_is_kept_while_its_failure_is_short(
    channels: Channels, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAILING_SECONDS", 3600.0)
    first = channels.to(address)
    for _ in range(3):
        assert await ask(channels.to(address)) is grpc.StatusCode.UNAVAILABLE
        assert channels.to(address) is first
    assert channels.to(address + "0") is not first


async def test_a_channel_that_fails_for_long_is_made_anew_and_nothing_is_left_of_the_old_one(
    channels: Channels, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAILING_SECONDS", 0.05)
    first = weakref.ref(channels.to(address))
    assert await ask(channels.to(address)) is grpc.StatusCode.UNAVAILABLE
    await eventually(lambda: channels.to(address) is not first())
    await eventually(lambda: gc.collect() >= 0 and first() is None)


async def test_a_channel_that_works_again_is_kept(
    channels: Channels, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long ago it has failed before."""
    monkeypatch.setattr(module, "FAILING_SECONDS", 3600.0)
    first = channels.to(address)
    assert await ask(first) is grpc.StatusCode.UNAVAILABLE
    assert channels.to(address) is first
    server = grpc.aio.server()
    server.add_insecure_port(address)
    await server.start()
    await first.channel_ready()
    assert channels.to(address) is first
    await server.stop(None)
    await eventually(
        lambda: first.get_state(try_to_connect=True) is grpc.ChannelConnectivity.TRANSIENT_FAILURE
    )
    monkeypatch.setattr(module, "FAILING_SECONDS", 1e-9)
    assert channels.to(address) is first
    assert channels.to(address) is not first


async def test_calls_that_are_under_way_end_with_the_channels(
    channels: Channels, address: str
) -> None:
    waiting = asyncio.create_task(call(channels.to(address), wait_for_ready=True))
    await asyncio.sleep(0)
    await channels.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
