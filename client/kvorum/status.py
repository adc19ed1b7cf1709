"""Errors on the wire: between `kvorum.errors` and google.rpc.Status, in both directions.

An error travels as its code, its message, and an ErrorInfo with its reason, the
domain "kvorum" and its metadata. A retryable one brings a RetryInfo: how long to
wait before the next try.

Rule of this file: the classes in errors.py are the table. What a reader cannot
know, it assumes the worst of: an answer that does not say whether a write was
applied leaves it in doubt.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from kvorum.errors import (
    Code,
    DeadlineExceeded,
    InvalidArgument,
    KvorumError,
    NoNodeReachable,
    OperationFailed,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
)

if TYPE_CHECKING:
    from grpc.aio import AioRpcError

DOMAIN: Final = "kvorum"
DEFAULT_RETRY_DELAY_MS: Final = 50
DETAILS_KEY: Final = "grpc-status-details-bin"
"""The trailing metadata in which gRPC carries a Status, by convention of all languages."""


def _family(root: type[KvorumError]) -> Iterator[type[KvorumError]]:
    yield root
    for child in root.__subclasses__():
        yield from _family(child)


_BY_REASON: Final = {cls.reason: cls for cls in _family(KvorumError) if "reason" in cls.__dict__}

# For a reason that only a newer node knows.
_BY_CODE: Final[dict[int, type[KvorumError]]] = {
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.NOT_FOUND: InvalidArgument,
    Code.FAILED_PRECONDITION: OperationFailed,
    Code.OUT_OF_RANGE: OperationFailed,
    Code.UNAVAILABLE: Unavailable,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.ABORTED: OutcomeUnknown,
}

_IN_DOUBT: Final = frozenset({Code.UNKNOWN, Code.INTERNAL})


def to_status(error: KvorumError, *, retry_delay_ms: int | None = None) -> Status:
    """Write an error for the wire; `retry_delay_ms` only means something if it is retryable."""
    status = Status(code=error.code, message=error.message)
    status.details.add().Pack(
        ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    )
    if error.retryable:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(
            DEFAULT_RETRY_DELAY_MS if retry_delay_ms is None else retry_delay_ms
        )
        status.details.add().Pack(retry)
    return status


def from_status(status: Status, *, write: bool = False) -> KvorumError:
    """Read an error from the wire; `write` says whether it answers a write."""
    info = ErrorInfo()
    if not any(detail.Unpack(info) for detail in status.details) or info.domain != DOMAIN:
        return _foreign(status.code, status.message, write=write)
    if write and status.code in _IN_DOUBT:
        return OutcomeUnknown(status.message, **info.metadata)
    cls = _BY_REASON.get(info.reason) or _BY_CODE.get(status.code, KvorumError)
    return _build(cls, status.message, dict(info.metadata), write=write)


def retry_delay_seconds(status: Status) -> float | None:
    """How long the node asks to wait before the next try; None if it does not say."""
    retry = RetryInfo()
    if any(detail.Unpack(retry) for detail in status.details):
        return float(retry.retry_delay.ToMilliseconds()) / 1000
    return None


def from_rpc_error(error: "AioRpcError", *, write: bool = False) -> KvorumError:
    """Read the error of a failed RPC: a node's own if it brings one, else gRPC's."""
    for key, value in error.trailing_metadata():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return from_status(Status.FromString(value), write=write)
    message = error.details() or error.code().name
    return _foreign(int(error.code().value[0]), message, write=write)


def is_from_node(error: "AioRpcError") -> bool:
    """Whether a node has sent the error; or else it is gRPC's own."""
    return any(key == DETAILS_KEY for key, _ in error.trailing_metadata())


def _build(
    cls: type[KvorumError], message: str, metadata: dict[str, str], *, write: bool
) -> KvorumError:
    error: KvorumError
    if issubclass(cls, NoNodeReachable):
        error = cls(message, nodes=metadata.get("nodes", "").split(","))
    elif issubclass(cls, DeadlineExceeded):
        error = cls(message, maybe_applied=write)
    else:
        error = cls(message)
    # Not through the constructor: a metadata key may be the name of one of its parameters.
    error.metadata = metadata
    return error


def _foreign(code: int, message: str, *, write: bool) -> KvorumError:
    """Read an answer that does not come from kvorum: gRPC's own, or a proxy's."""
    if code == Code.DEADLINE_EXCEEDED:
        return DeadlineExceeded(message, maybe_applied=write)
    if write:
        return OutcomeUnknown(message)
    if code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED):
        return Unavailable(message)
    return KvorumError(message)
