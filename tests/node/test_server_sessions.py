"""Sessions with one server over its real port, and what large calls may take of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from kvorum import limits
from kvorum.cli.processes import free_ports
from kvorumpb.v1 import kv_pb2
from kvorumpb.v1.command_pb2 import Transaction
from tests.support import commands
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.served import config_at, failure, put_call, serving
from tests.support.wire_client import WireClient, details, replies_of

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def client(tmp_path: Path) -> AsyncIterator[WireClient]:
    async with serving(config_at(tmp_path / "n1", free_ports(1)[0])) as (client, _):
        yield client


# Sessions.


async def test_the_first_response_says_who_leads(client: WireClient) -> None:
    session = client.session()
    first = await session.read()
    assert isinstance(first, kv_pb2.SessionResponse)
    assert (first.leadership.leader, first.leadership.address) == ("n1", client.address)
    assert first.leadership.term == 1
    session.cancel()


async def test_a_session_answers_each_call_by_its_id_and_ends_when_all_are_answered(
    client: WireClient,
) -> None:
    session = client.session()
    for message in range(10):
        calls = [put_call(100 * message + number) for number in range(100)]
        calls.append(kv_pb2.Call(id=10_000 + message, get=kv_pb2.GetRequest(key=b"")))
        await session.write(kv_pb2.SessionRequest(calls=calls))
    await session.done_writing()
    replies = [reply async for response in session for reply in response.replies]
    assert len(replies) == 1010
    by_id = {reply.id: reply for reply in replies}
    assert sorted(by_id) == [*range(1000), *range(10_000, 10_010)]
    assert sorted(by_id[number].put.revision for number in range(1000)) == list(range(1, 1001))
    assert all(by_id[10_000 + message].HasField("error") for message in range(10))
    assert await session.code() is grpc.StatusCode.OK


async def test_a_session_without_calls_ends_when_it_is_closed(client: WireClient) -> None:
    session = client.session()
    await session.done_writing()
    assert len([response async for response in session]) == 1
    assert await session.code() is grpc.StatusCode.OK


async def test_a_call_that_this_version_does_not_know_is_refused_alone(client: WireClient) -> None:
    session = client.session()
    unknown = kv_pb2.Call.FromString(b"\x08\x07\xa2\x06\x00")  # id 7, and field 100
    await session.write(kv_pb2.SessionRequest(calls=[unknown, put_call(1)]))
    later = put_call(8)
    later.put.MergeFromString(b"\xa2\x06\x00")
    await session.write(kv_pb2.SessionRequest(calls=[later, put_call(2)]))
    await session.done_writing()
    replies = {reply.id: reply async for response in session for reply in response.replies}
    assert replies[1].HasField("put")
    assert replies[2].HasField("put")
    assert replies[7].HasField("error")
    assert "does not know" in replies[8].error.message


async def test_what_is_unknown_outside_of_the_calls_refuses_none_of_them(
    client: WireClient,
) -> None:
    session = client.session()
    request = kv_pb2.SessionRequest(calls=[put_call(1)])
    request.MergeFromString(b"\xa2\x06\x00")  # field 100
    await session.write(request)
    await session.done_writing()
    replies = [reply async for response in session for reply in response.replies]
    assert [reply.HasField("put") for reply in replies] == [True]


async def test_a_client_that_does_not_read_is_not_read_from(
    client: WireClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it asks for does not fill the node's memory."""
    monkeypatch.setattr(limits, "MAX_SESSION_CALLS", 64)
    await client.kv(kv_pb2.PutRequest(key=b"k", value=bytes(limits.MIB)))
    session = client.session()
    get = kv_pb2.GetRequest(key=b"k")
    sent = 0

    async def send() -> None:
        nonlocal sent
        for number in range(200):
            padding = put_call(1000 + number, bytes(limits.MIB))
            calls = [kv_pb2.Call(id=number, get=get), padding]
            await session.write(kv_pb2.SessionRequest(calls=calls))
            sent += 1
        await session.done_writing()

    sender = asyncio.create_task(send())
    await eventually(lambda: sent > 0)
    before = -1
    while before != sent:  # until nothing is taken any more
        before = sent
        await asyncio.sleep(0.5)
    assert sent < 100
    replies = [reply.id async for reply in replies_of(session)]
    await sender
    assert sorted(replies) == [*range(200), *range(1000, 1200)]


async def test_more_large_records_than_fit_a_message_are_answered_one_by_one(
    client: WireClient,
) -> None:
    value = bytes(5 * limits.MIB)
    await client.kv(kv_pb2.PutRequest(key=b"k", value=value))
    session = client.session()
    calls = [kv_pb2.Call(id=n, get=kv_pb2.GetRequest(key=b"k")) for n in range(20)]
    await session.write(kv_pb2.SessionRequest(calls=calls))
    await session.done_writing()
    replies = [reply async for reply in replies_of(session)]
    assert sorted(reply.id for reply in replies) == list(range(20))
    assert all(reply.get.record.value == value for reply in replies)


async def test_a_client_that_vanishes_leaves_nothing_behind(client: WireClient) -> None:
    for _ in range(5):
        session = client.session()
        await session.write(kv_pb2.SessionRequest(calls=[put_call(n) for n in range(100)]))
        session.cancel()

    def handlers() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if "_session" in repr(task.get_coro())]

    await eventually(lambda: not handlers())
    await client.kv(kv_pb2.PutRequest(key=b"k"))


async def test_a_client_that_drops_its_session_is_no_news(
    client: WireClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in the middle of an answer: gRPC lets the write fail before it cancels the handler."""
    await client.kv(kv_pb2.PutRequest(key=b"k", value=bytes(200_000)))
    calls = [kv_pb2.Call(id=n, get=kv_pb2.GetRequest(key=b"k")) for n in range(1, 21)]
    for round_number in range(60):
        session = client.session()
        await session.write(kv_pb2.SessionRequest(calls=calls))
        for _ in range(round_number):
            await asyncio.sleep(0)
        session.cancel()
    await client.kv(kv_pb2.GetRequest(key=b"k"))
    assert [one for one in caplog.messages if "servicer method" in one or "status" in one] == []


async def test_unary_calls_that_do_not_arrive_are_bounded_and_hold_up_no_other(
    client: WireClient,
) -> None:
    slow: list[Any] = [
        client.channel.stream_unary("/kvorumpb.v1.KV/Put")(timeout=DEADLINE_SECONDS)
        for _ in range(20)
    ]
    room = limits.MAX_ARRIVAL_BYTES // limits.MAX_MESSAGE_BYTES
    try:
        await eventually(lambda: sum(call.done() for call in slow) == len(slow) - room)
        for call in slow:
            if call.done():
                error = await failure(call)
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                info, retry = details(error)
                assert info.reason == "OVERLOADED"
                assert retry is not None
        assert (await client.kv(kv_pb2.PutRequest(key=b"k"))).revision == 1
    finally:
        for call in slow:
            call.cancel()


async def test_large_unary_calls_are_counted_and_let_go(client: WireClient) -> None:
    """More than fit at a time: each is carried out or refused, and in the end there is room."""
    value = bytes(limits.MAX_VALUE_BYTES)
    outcomes = await asyncio.gather(
        *(client.kv(kv_pb2.PutRequest(key=b"%d" % n, value=value), seconds=60) for n in range(12)),
        return_exceptions=True,
    )
    for outcome in outcomes:
        if isinstance(outcome, grpc.aio.AioRpcError):
            assert details(outcome)[0].reason == "OVERLOADED"
        else:
            assert isinstance(outcome, kv_pb2.PutResponse)
    assert any(isinstance(outcome, kv_pb2.PutResponse) for outcome in outcomes)
    await client.kv(kv_pb2.PutRequest(key=b"k", value=value), seconds=60)
    got = await client.kv(kv_pb2.GetRequest(key=b"k"), seconds=60)
    assert len(got.record.value) == len(value)


async def test_a_request_that_is_none_is_refused(client: WireClient) -> None:
    for name in ("Put", "Get"):
        put: Any = client.channel.unary_unary(f"/kvorumpb.v1.KV/{name}")
        error = await failure(put(b"\xff\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    session: Any = client.channel.stream_stream("/kvorumpb.v1.KV/Session")()
    await session.write(kv_pb2.SessionRequest(calls=[put_call(1)]).SerializeToString())
    await session.write(b"\xff\xff")
    answered: list[int] = []

    async def read() -> None:
        async for response in session:
            answered.extend(one.id for one in kv_pb2.SessionResponse.FromString(response).replies)

    error = await failure(read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert answered == [1]  # what came before is answered


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "may write"])
async def test_large_answers_of_unary_transactions_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """One that only reads is refused when there is no room; no entry holds it up before that."""
    monkeypatch.setattr("kvorum.limits.MAX_REPLY_BYTES_UNDER_WAY", limits.MAX_BATCH_BYTES)
    transaction = Transaction(operations=[commands.get(b"k")])
    if not reads:
        transaction.otherwise.append(commands.put(b"other"))
    asked = kv_pb2.TxnRequest(transaction=transaction)
    async with serving(config_at(tmp_path / "n1", free_ports(1)[0])) as (client, _):
        await client.kv(kv_pb2.PutRequest(key=b"k", value=bytes(limits.MAX_VALUE_BYTES)))
        unread = client.session()
        call = kv_pb2.Call(id=1, get=kv_pb2.GetRequest(key=b"k"))
        await unread.write(kv_pb2.SessionRequest(calls=[call]))

        async def is_refused() -> bool:
            try:
                await client.kv(asked, seconds=60)
            except grpc.aio.AioRpcError as error:
                return bool(details(error)[0].reason == "OVERLOADED")
            return False

        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await is_refused():  # the reply that nobody reads takes all the room
                pass
        unread.cancel()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await is_refused():
                pass
