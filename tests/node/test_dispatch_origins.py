"""Whose a write is: what the dispatcher does with origins, and how each refusal reads."""

import pytest

from kvorum import limits
from kvorum.errors import (
    ClientForgotten,
    InvalidArgument,
    LimitExceeded,
    NamespaceNotFound,
    OutOfBounds,
    RangeTooLarge,
    ResultForgotten,
    UniqueViolation,
)
from kvorum_node.figures import Calls
from kvorum_node.services import dispatch
from kvorum_node.services.dispatch import Dispatcher
from kvorumpb.v1.command_pb2 import (
    IndexEntry,
    OperationError,
    TransactionResult,
)
from kvorumpb.v1.kv_pb2 import Call, Origin, PutRequest, RegisterClientRequest
from tests.support.calls import add, ask, ask_one, delete, error_of, get, put

ALICE = 7


def register(call: int, client_id: int = ALICE) -> Call:
    return Call(id=call, register_client=RegisterClientRequest(client_id=client_id))


def by(call: Call, sequence: int, *, client_id: int = ALICE, acknowledged: int = 0) -> Call:
    """The call, as a write of a client."""
    origin = Origin(client_id=client_id, sequence=sequence, acknowledged=acknowledged)
    match call.WhichOneof("request"):
        case "put":
            call.put.origin.CopyFrom(origin)
        case "delete":
            call.delete.origin.CopyFrom(origin)
        case _:
            call.txn.origin.CopyFrom(origin)
    return call


async def test_a_write_that_comes_again_gets_its_first_answer(dispatcher: Dispatcher) -> None:
    assert (await ask_one(dispatcher, register(1))).HasField("register_client")
    calls = [
        by(put(1, b"k"), 1),
        by(delete(1, b"k"), 2),
        by(add(1, b"n", 3), 3),
    ]
    first = [await ask_one(dispatcher, call) for call in calls]
    again = [await ask_one(dispatcher, call) for call in calls]
    assert again == first
    assert first[1].delete.deleted
    assert (await ask_one(dispatcher, get(2, b"n"))).get.record.value == b"3"


async def test_a_client_registers_and_writes_in_one_message(dispatcher: Dispatcher) -> None:
    replies = await ask(dispatcher, register(1), by(put(2, b"k"), 1), by(put(3, b"k"), 1))
    assert replies[2].put.revision == replies[3].put.revision == 1


async def test_who_is_not_registered_is_refused(dispatcher: Dispatcher) -> None:
    error = error_of(await ask_one(dispatcher, by(put(1, b"k"), 1)))
    assert isinstance(error, ClientForgotten)
    assert not error.maybe_applied
    assert dict(error.metadata) == {}
    assert not (await ask_one(dispatcher, get(2, b"k"))).get.HasField("record")


async def test_what_was_acknowledged_is_not_answered_again(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, register(1), by(put(2, b"k"), 1), by(put(3, b"k"), 2, acknowledged=1))
    error = error_of(await ask_one(dispatcher, by(put(1, b"k"), 1)))
    assert isinstance(error, ResultForgotten)
    assert error.maybe_applied


async def test_the_window_of_a_client_at_its_limit_and_beyond(dispatcher: Dispatcher) -> None:
    await ask_one(dispatcher, register(1))
    window = limits.MAX_CLIENT_WINDOW
    assert (await ask_one(dispatcher, by(put(1, b"k"), window))).put.revision == 1
    far = by(put(1, b"k"), 2**64 - 1, acknowledged=2**64 - 1 - window)
    assert (await ask_one(dispatcher, far)).put.revision == 2
    error = error_of(await ask_one(dispatcher, by(put(1, b"k"), window + 2, acknowledged=1)))
    assert isinstance(error, LimitExceeded)
    assert error.metadata == {
        "limit": "MAX_CLIENT_WINDOW",
        "maximum": str(window),
        "actual": str(window + 1),
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (register(1, 0), "the client id is 0"),
        (by(put(1, b"k"), 1, client_id=0), "the client id is 0"),
        (by(put(1, b"k"), 0), "the sequence of the write is 0"),
        (by(delete(1, b"k"), 3, acknowledged=3), "acknowledge no write before it is answered"),
        (by(add(1, b"k"), 3, acknowledged=4), "acknowledge no write before it is answered"),
        (
            Call(put=PutRequest(key=b"k", value=b"v", origin=Origin())),
            "the client id is 0",
        ),
    ],
)
async def test_an_origin_that_is_none(dispatcher: Dispatcher, call: Call, message: str) -> None:
    error = error_of(await ask_one(dispatcher, call))
    assert isinstance(error, InvalidArgument)
    assert message in error.message


async def test_registering_is_refused_in_another_namespace(dispatcher: Dispatcher) -> None:
    call = Call(register_client=RegisterClientRequest(namespace="other", client_id=1))
    assert isinstance(error_of(await ask_one(dispatcher, call)), NamespaceNotFound)


# What the state machine refuses.


def test_an_operation_error_says_all_that_the_protocol_promises() -> None:
    taken = OperationError(
        reason=OperationError.UNIQUE_VIOLATION,
        operation=3,
        message="taken",
        entry=IndexEntry(index="mail", value=b"a\xff", unique=True),
        owner=b"\xfeowner",
    )
    errors = {
        UniqueViolation: taken,
        OutOfBounds: OperationError(
            reason=OperationError.OUT_OF_BOUNDS, operation=1, message="m", value=-7
        ),
        RangeTooLarge: OperationError(
            reason=OperationError.RANGE_TOO_LARGE, operation=2, message="m"
        ),
    }
    told = {
        kind: error_of(dispatch._result_reply(1, "put", TransactionResult(error=error), Calls()))
        for kind, error in errors.items()
    }
    assert [type(error) for error in told.values()] == list(told)
    violation, bounds, size = told.values()
    assert isinstance(violation, UniqueViolation)
    assert (violation.index, violation.value, violation.owner) == ("mail", "a\\xff", "\\xfeowner")
    assert violation.metadata["operation"] == "3"
    assert isinstance(bounds, OutOfBounds)
    assert (bounds.value, bounds.metadata["operation"]) == (-7, "1")
    assert size.metadata == {"operation": "2"}


def test_every_reason_has_an_error() -> None:
    for name, reason in OperationError.Reason.items():
        if reason != OperationError.REASON_UNSPECIFIED:
            error = OperationError(reason=reason)
            reply = dispatch._result_reply(1, "put", TransactionResult(error=error), Calls())
            told = "OVERLOADED" if name == "ENTRY_TOO_LARGE" else name
            assert error_of(reply).reason == told


def test_what_an_entry_had_no_room_for_may_be_sent_again() -> None:
    error = OperationError(reason=OperationError.ENTRY_TOO_LARGE, message="try again")
    refused = error_of(dispatch._result_reply(1, "delete", TransactionResult(error=error), Calls()))
    assert (refused.retryable, refused.maybe_applied) == (True, False)
    assert refused.metadata["limit"] == "MAX_ENTRY_REPLACED_BYTES"
