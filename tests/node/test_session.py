"""A session stream on one node: calls that come in parts, and replies that leave in parts."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest

from kvorum import limits
from kvorum.errors import (
    InvalidArgument,
    KvorumError,
    LimitExceeded,
    Overloaded,
    Unavailable,
)
from kvorum.limits import MIB
from kvorum.status import from_status, retry_delay_seconds
from kvorum_node.admission import Admission
from kvorum_node.raft.types import Term
from kvorum_node.services import session as session_module
from kvorum_node.services.dispatch import Dispatcher
from kvorum_node.services.session import Session
from kvorumpb.v1.command_pb2 import Transaction
from kvorumpb.v1.kv_pb2 import (
    Call,
    CallPart,
    GetRequest,
    PutRequest,
    Reply,
    SessionRequest,
    SessionResponse,
    TxnRequest,
)
from tests.support import commands
from tests.support.driven_node import DrivenNode
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.wire_client import in_parts

LARGE = 3 * MIB


def put(call: int, key: bytes, value: bytes = b"v") -> Call:
    return Call(id=call, put=PutRequest(key=key, value=value))


def get(call: int, key: bytes) -> Call:
    return Call(id=call, get=GetRequest(key=key))


class Stream:
    """A session, and the stream that the test holds back, reads, and ends."""

    def __init__(self, n1: DrivenNode, admission: Admission) -> None:
        node = SimpleNamespace(
            group=n1.group, admission=admission, dispatcher=Dispatcher(n1.group, admission)
        )
        context = SimpleNamespace(write=self._write)
        self.session = Session(cast("Any", node), cast("Any", context))
        self.admission = admission
        self.responses: list[SessionResponse] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._writer = asyncio.create_task(self.session.write())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.die()
        assert self._writer is not None
        await asyncio.wait([self._writer])
        calls, replies = self.admission.calls, self.admission.replies
        await eventually(lambda: calls.reserved_bytes == replies.reserved_bytes == 0)

    def die(self) -> None:
        assert self._writer is not None
        self._writer.cancel()
        self.session.close()

    async def send(self, *calls: Call, part: CallPart | None = None) -> None:
        request = SessionRequest(calls=calls, part=part)
        await self.session.take(request.SerializeToString())

    async def send_parts(self, call: Call, size_bytes: int = limits.MAX_PART_BYTES) -> None:
        for part in in_parts(call, size_bytes):
            await self.send(part=part)

    async def _write(self, response: SessionResponse) -> None:
        await self.may_write.wait()
        self.responses.append(response)
        await asyncio.sleep(0)

    @property
    def replies(self) -> dict[int, Reply]:
        """Those that are complete."""
        found = {reply.id: reply for one in self.responses for reply in one.replies}
        parts: dict[int, bytes] = {}
        totals: dict[int, int] = {}
        for part in (one.part for one in self.responses if one.HasField("part")):
            totals[part.id] = totals.get(part.id) or part.total_bytes
            parts[part.id] = parts.get(part.id, b"") + part.data
            if len(parts[part.id]) == totals[part.id]:
                found[part.id] = Reply.FromString(parts.pop(part.id))
        return found

    async def reply(self, call: int) -> Reply:
        await eventually(lambda: call in self.replies)
        return self.replies[call]

    async def error(self, call: int) -> KvorumError:
        return from_status((await self.reply(call)).error, write=True)

    def position_of(self, call: int) -> int:
        """The number of the message with which the reply was complete."""
        for position, response in enumerate(self.responses):
            if any(reply.id == call for reply in response.replies):
                return position
        return max(position for position, one in enumerate(self.responses) if one.part.id == call)


@pytest.fixture
async def n1() -> AsyncIterator[DrivenNode]:
    async with DrivenNode(voters=1) as node:
        await eventually(lambda: node.group.machine.applied == 1)
        yield node


@pytest.fixture
async def stream(n1: DrivenNode) -> AsyncIterator[Stream]:
    async with Stream(n1, Admission()) as stream:
        yield stream


# Calls in parts.


async def test_a_call_in_parts_is_carried_out_when_it_is_whole(stream: Stream) -> None:
    value = bytes(LARGE)
    parts = in_parts(put(1, b"large", value))
    assert len(parts) > 10
    for number, part in enumerate(parts):
        assert 1 not in stream.replies
        await stream.send(put(100 + number, b"small %d" % number), part=part)
    assert (await stream.reply(1)).HasField("put")
    assert [(await stream.reply(100 + number)).HasField("put") for number in range(len(parts))] == [
        True
    ] * len(parts)
    await stream.send(get(2, b"large"))
    assert (await stream.reply(2)).get.record.value == value


async def test_calls_in_parts_may_come_side_by_side(stream: Stream) -> None:
    calls = [put(number, b"%d" % number, bytes(LARGE)) for number in (1, 2, 3)]
    for parts in zip(*map(in_parts, calls), strict=True):
        for part in parts:
            await stream.send(part=part)
    for call in calls:
        assert (await stream.reply(call.id)).HasField("put")


async def test_parts_may_be_as_small_as_a_byte(stream: Stream) -> None:
    await stream.send_parts(put(1, b"key", b"value"), size_bytes=1)
    assert (await stream.reply(1)).HasField("put")


async def test_a_call_is_refused_by_its_first_part_and_the_rest_is_ignored(
    stream: Stream, n1: DrivenNode
) -> None:
    budget = stream.admission.calls
    held = budget.reserve(budget.maximum_bytes - LARGE)
    parts = in_parts(put(1, b"large", bytes(LARGE)))
    await stream.send(part=parts[0])
    reply = await stream.reply(1)
    assert type(await stream.error(1)) is Overloaded
    assert retry_delay_seconds(reply.error)
    assert budget.reserved_bytes == held.size_bytes
    for part in parts[1:]:
        await stream.send(part=part)
    await stream.send(put(2, b"small"))
    await stream.reply(2)
    assert sum(one.id == 1 for message in stream.responses for one in message.replies) == 1
    held.release()
    await stream.send_parts(put(3, b"large", bytes(LARGE)))
    assert (await stream.reply(3)).put.revision == 2  # the first one has left no trace


async def test_a_call_is_counted_from_its_first_part_to_its_answer(stream: Stream) -> None:
    call = put(1, b"large", bytes(LARGE))
    parts = in_parts(call)
    await stream.send(part=parts[0])
    budget = stream.admission.calls
    assert budget.reserved_bytes == parts[0].total_bytes
    for part in parts[1:]:
        await stream.send(part=part)
    assert budget.reserved_bytes == parts[0].total_bytes
    await stream.reply(1)
    assert budget.reserved_bytes == 0


async def test_a_large_call_that_comes_whole_is_counted_too(stream: Stream) -> None:
    budget = stream.admission.calls
    held = budget.reserve(budget.maximum_bytes)
    await stream.send(put(1, b"large", bytes(LARGE)), put(2, b"beside it"))
    assert type(await stream.error(1)) is type(await stream.error(2)) is Overloaded
    held.release()
    await stream.send(put(3, b"large", bytes(LARGE)))
    assert budget.reserved_bytes > LARGE
    assert (await stream.reply(3)).HasField("put")
    assert budget.reserved_bytes == 0


async def test_a_call_that_is_abandoned_is_forgotten_without_a_word(stream: Stream) -> None:
    parts = in_parts(put(1, b"large", bytes(LARGE)))
    for part in parts[:-1]:
        await stream.send(part=part)
    await stream.send(part=CallPart(id=1, abandoned=True))
    assert stream.admission.calls.reserved_bytes == 0
    await stream.send(get(2, b"large"))
    assert not (await stream.reply(2)).get.HasField("record")
    assert list(stream.replies) == [2]


async def test_a_stream_that_dies_frees_what_it_held(stream: Stream) -> None:
    parts = in_parts(put(1, b"large", bytes(LARGE)))
    await stream.send(part=parts[0])
    assert stream.admission.calls.reserved_bytes > 0
    stream.die()
    assert stream.admission.calls.reserved_bytes == 0


async def test_a_stream_that_ends_in_good_order_does_not_wait_for_missing_parts(
    stream: Stream,
) -> None:
    await stream.send(put(2, b"small"), part=in_parts(put(1, b"large", bytes(LARGE)))[0])
    async with asyncio.timeout(DEADLINE_SECONDS):
        await stream.session.finish()
    assert stream.admission.calls.reserved_bytes == 0
    assert (await stream.reply(2)).HasField("put")


async def test_parts_that_stop_coming_are_given_up(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "PATIENCE_SECONDS", 0.05)
    await stream.send(part=in_parts(put(1, b"large", bytes(LARGE)))[0])
    error = await stream.error(1)
    assert type(error) is Unavailable
    assert not error.maybe_applied
    assert stream.admission.calls.reserved_bytes == 0


async def test_who_leads_is_said_once_and_again_when_it_has_changed(
    stream: Stream, n1: DrivenNode
) -> None:
    for _ in range(3):
        stream.session.announce()
        await eventually(lambda: stream.responses)
    n1.raft.term = Term(n1.raft.term + 1)
    stream.session.announce()
    await eventually(lambda: len(stream.responses) == 2)
    terms = [response.leadership.term for response in stream.responses]
    assert terms == [n1.raft.term - 1, n1.raft.term]


# Parts that are wrong.


async def test_a_first_part_must_say_how_much_will_come(stream: Stream) -> None:
    await stream.send(part=CallPart(id=1, data=b"x"))
    assert type(await stream.error(1)) is InvalidArgument


async def test_a_call_must_fit_a_message(stream: Stream) -> None:
    total = limits.MAX_MESSAGE_BYTES + 1
    await stream.send(part=CallPart(id=1, data=b"x", total_bytes=total))
    error = await stream.error(1)
    assert type(error) is LimitExceeded
    assert error.metadata == {
        "limit": "MAX_MESSAGE_BYTES",
        "maximum": str(limits.MAX_MESSAGE_BYTES),
        "actual": str(total),
    }
    assert stream.admission.calls.reserved_bytes == 0


async def test_the_largest_call_that_may_come_is_let_begin(stream: Stream) -> None:
    await stream.send(part=CallPart(id=1, data=b"x", total_bytes=limits.MAX_MESSAGE_BYTES))
    assert stream.admission.calls.reserved_bytes == limits.MAX_MESSAGE_BYTES


async def test_more_bytes_than_announced_are_refused(stream: Stream) -> None:
    await stream.send(part=CallPart(id=1, data=b"x" * 9, total_bytes=10))
    await stream.send(part=CallPart(id=1, data=b"xx"))
    error = await stream.error(1)
    assert type(error) is InvalidArgument
    assert "more than the 10 bytes it announced" in error.message
    assert stream.admission.calls.reserved_bytes == 0


async def test_a_call_cannot_begin_twice(stream: Stream) -> None:
    for _ in range(2):
        await stream.send(part=CallPart(id=1, data=b"x", total_bytes=10))
    assert type(await stream.error(1)) is InvalidArgument
    assert stream.admission.calls.reserved_bytes == 0


async def test_parts_that_are_no_call_are_refused(stream: Stream) -> None:
    await stream.send(part=CallPart(id=1, data=b"\xff\xff\xff", total_bytes=3))
    assert type(await stream.error(1)) is InvalidArgument
    assert stream.admission.calls.reserved_bytes == 0


async def test_many_beginnings_are_bounded_however_small_they_are(stream: Stream) -> None:
    budget = stream.admission.calls
    most = budget.maximum_bytes // limits.MAX_BATCH_BYTES
    for number in range(most + 200):
        await stream.send(part=CallPart(id=1 + number, data=b"x", total_bytes=10))
    assert budget.reserved_bytes <= budget.maximum_bytes
    await eventually(lambda: len(stream.replies) == 200)
    assert len(stream.session._arriving._refused) <= 64


async def test_what_a_call_in_parts_asks_for_is_checked_like_any_other(stream: Stream) -> None:
    await stream.send_parts(put(1, b"k", bytes(limits.MAX_VALUE_BYTES + 1)))
    assert type(await stream.error(1)) is LimitExceeded


# Replies in parts.


async def store(stream: Stream, **values: bytes) -> None:
    for number, (key, value) in enumerate(values.items(), 1_000_000):
        await stream.send_parts(put(number, key.encode(), value))
        await stream.reply(number)
    stream.responses.clear()


async def test_a_large_reply_holds_up_no_small_one(stream: Stream) -> None:
    await store(stream, large=bytes(LARGE), small=b"1")
    await stream.send(get(1, b"large"))
    await eventually(lambda: len(stream.responses) >= 2)
    await stream.send(get(2, b"small"))
    assert len((await stream.reply(1)).get.record.value) == LARGE
    assert stream.position_of(2) < stream.position_of(1)
    assert all(len(one.part.data) <= limits.MAX_PART_BYTES for one in stream.responses)
    assert sum(one.part.total_bytes > 0 for one in stream.responses) == 1


async def test_small_replies_do_not_wait_for_large_ones_that_wait(stream: Stream) -> None:
    await store(stream, large=bytes(LARGE), small=b"1")
    held = stream.admission.replies.reserve(stream.admission.replies.maximum_bytes)
    await stream.send(*(get(number, b"large") for number in (1, 2, 3)), get(4, b"small"))
    assert (await stream.reply(4)).get.record.value == b"1"
    assert list(stream.replies) == [4]
    held.release()
    for number in (1, 2, 3):
        assert len((await stream.reply(number)).get.record.value) == LARGE


async def test_one_large_reply_of_a_stream_is_in_memory_at_a_time(stream: Stream) -> None:
    await store(stream, large=bytes(LARGE))
    stream.may_write.clear()
    await stream.send(*(get(number, b"large") for number in range(1, 21)))
    await eventually(lambda: stream.admission.replies.reserved_bytes)
    most = 0
    stream.may_write.set()
    while len(stream.replies) < 20:
        most = max(most, stream.admission.replies.reserved_bytes)
        await asyncio.sleep(0)
    assert LARGE <= most < 2 * LARGE


async def test_a_message_waits_for_one_large_reply_to_be_made_at_most(
    n1: DrivenNode, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a while, in which nothing else goes on."""
    await store(stream, large=bytes(LARGE))
    made = 0
    read = n1.group.machine.get

    def counted(key: bytes, **options: Any) -> Any:
        nonlocal made
        made += 1
        return read(key, **options)

    monkeypatch.setattr(n1.group.machine, "get", counted)
    stream.may_write.clear()
    await stream.send(*(get(number, b"large") for number in range(1, 11)))
    await eventually(lambda: made)
    assert made == 1
    stream.may_write.set()
    await eventually(lambda: len(stream.replies) == 10)


async def test_a_large_reply_that_never_gets_its_turn_is_refused(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(stream, large=bytes(LARGE))
    held = stream.admission.replies.reserve(stream.admission.replies.maximum_bytes)
    monkeypatch.setattr(session_module, "PATIENCE_SECONDS", 0.05)
    await stream.send(get(1, b"large"))
    assert type(await stream.error(1)) is Overloaded
    held.release()


async def test_a_reply_that_had_to_wait_is_as_new_as_it_leaves(stream: Stream) -> None:
    await store(stream, large=bytes(LARGE))
    held = stream.admission.replies.reserve(stream.admission.replies.maximum_bytes)
    await stream.send(get(1, b"large"), get(2, b"large"))
    await stream.send(put(3, b"large", b"now small"))
    await stream.reply(3)
    held.release()
    assert (await stream.reply(1)).get.record.value == b"now small"
    assert (await stream.reply(2)).get.record.value == b"now small"


async def test_what_a_transaction_returns_is_counted_and_not_made_again(stream: Stream) -> None:
    await store(stream, large=bytes(LARGE))
    replies = stream.admission.replies
    held = replies.reserve(replies.maximum_bytes - 1)
    stream.may_write.clear()
    read: Transaction = commands.transaction(commands.get(b"large"), commands.put(b"other"))
    call = TxnRequest(transaction=read)
    await stream.send(Call(id=1, txn=call))
    await eventually(lambda: replies.is_exhausted)
    await stream.send(Call(id=2, txn=call))
    stream.may_write.set()
    assert type(await stream.error(2)) is Overloaded
    result = (await stream.reply(1)).txn.result
    assert len(result.results[0].get.record.value) == LARGE
    held.release()


async def test_a_stream_that_dies_gives_back_its_place_among_the_replies(
    n1: DrivenNode, stream: Stream
) -> None:
    await store(stream, large=bytes(LARGE))
    replies = stream.admission.replies
    held = replies.reserve(replies.maximum_bytes)
    async with Stream(n1, stream.admission) as other:
        await other.send(get(1, b"large"))
        await stream.send(get(1, b"large"))
        await eventually(lambda: len(replies._waiting) == 2)
        other.die()
        held.release()
        assert len((await stream.reply(1)).get.record.value) == LARGE


async def test_reads_that_take_long_let_others_have_their_turn(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction may look at 20,000 records and return few: it is not the size that tells."""
    monkeypatch.setattr("kvorum_node.services.session.FILL_SECONDS", 0.0)
    await stream.send(*(Call(id=number, get=GetRequest(key=b"k")) for number in range(1, 11)))
    await eventually(lambda: len(stream.replies) == 10)
    assert all(len(response.replies) <= 1 for response in stream.responses)
