"""Errors on the wire and back."""

from collections.abc import Iterator

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from kvorum import (
    DeadlineExceeded,
    InvalidArgument,
    KvorumError,
    LimitExceeded,
    NoNodeReachable,
    NotLeader,
    OutcomeUnknown,
    StorageError,
    Unavailable,
)
from kvorum.errors import Code
from kvorum.status import DETAILS_KEY, from_rpc_error, from_status, retry_delay_seconds, to_status


def travelling(root: type[KvorumError] = KvorumError) -> Iterator[type[KvorumError]]:
    if "reason" in root.__dict__:
        yield root
    for child in root.__subclasses__():
        yield from travelling(child)


# Classes that a test may define elsewhere do not count.
CLASSES = [cls for cls in travelling() if cls.__module__ == "kvorum.errors"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_with_a_reason_comes_back_as_itself(cls: type[KvorumError]) -> None:
    error = (
        cls("why", nodes=["n1:1", "n2:1"]) if cls is NoNodeReachable else cls("why", leader="n2")
    )
    back = from_status(Status.FromString(to_status(error).SerializeToString()))
    assert type(back) is cls
    assert str(back) == "why"
    assert back.metadata == error.metadata
    assert back.retryable == error.retryable


def test_reasons_are_unique() -> None:
    assert len({cls.reason for cls in CLASSES}) == len(CLASSES)


def test_a_retryable_error_says_how_long_to_wait_and_another_does_not() -> None:
    assert retry_delay_seconds(to_status(NotLeader("x"))) == 0.05
    assert retry_delay_seconds(to_status(NotLeader("x"), retry_delay_ms=1500)) == 1.5
    assert retry_delay_seconds(to_status(LimitExceeded("x"), retry_delay_ms=5)) is None


def test_metadata_may_have_any_name() -> None:
    status = to_status(NotLeader("x"))
    info = ErrorInfo(
        reason="NOT_LEADER", domain="kvorum", metadata={"message": "m", "self": "s", "nodes": "n"}
    )
    status.details[0].Pack(info)
    assert from_status(status).metadata == {"message": "m", "self": "s", "nodes": "n"}


def test_a_timeout_leaves_a_write_in_doubt_and_not_a_read() -> None:
    status = to_status(DeadlineExceeded("late"))
    assert from_status(status, write=True).maybe_applied
    assert not from_status(status, write=False).maybe_applied


@pytest.mark.parametrize("error", [KvorumError("bug"), StorageError("disk")])
def test_an_internal_error_leaves_a_write_in_doubt(error: KvorumError) -> None:
    assert isinstance(from_status(to_status(error), write=True), OutcomeUnknown)
    assert type(from_status(to_status(error), write=False)) is type(error)


def test_a_reason_of_a_newer_node_is_read_by_its_code() -> None:
    status = to_status(InvalidArgument("new"))
    status.details[0].Pack(ErrorInfo(reason="NEWER", domain="kvorum"))
    assert type(from_status(status)) is InvalidArgument
    status.code = Code.UNAVAILABLE
    assert type(from_status(status)) is Unavailable


def test_what_is_not_from_kvorum_says_nothing_about_a_write() -> None:
    status = Status(code=Code.UNAVAILABLE, message="from a proxy")
    assert isinstance(from_status(status, write=True), OutcomeUnknown)
    assert type(from_status(status)) is Unavailable


def rpc_error(code: grpc.StatusCode, *metadata: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), "details")


def test_an_rpc_error_brings_its_status_along() -> None:
    status = to_status(NotLeader("n2 leads", leader="n2"))
    error = rpc_error(grpc.StatusCode.UNAVAILABLE, (DETAILS_KEY, status.SerializeToString()))
    back = from_rpc_error(error)
    assert isinstance(back, NotLeader)
    assert back.metadata == {"leader": "n2"}


def test_an_rpc_error_without_one_is_read_by_its_code() -> None:
    assert type(from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE))) is Unavailable
    assert type(from_rpc_error(rpc_error(grpc.StatusCode.UNIMPLEMENTED))) is KvorumError
    assert isinstance(
        from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE), write=True), OutcomeUnknown
    )
    assert isinstance(
        from_rpc_error(rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED)), DeadlineExceeded
    )
