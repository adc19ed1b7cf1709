"""Every error that kvorum raises, on both sides of the wire.

    KvorumError
    ├── InvalidArgument         the request is wrong; never worth a retry
    │   ├── LimitExceeded       something is larger than its limit
    │   ├── InvalidCursor       the cursor was altered, or belongs to another list
    │   ├── InvalidTarget       `open` was given an address it does not understand
    │   └── NamespaceNotFound
    ├── OperationFailed         an operation could not be carried out; nothing was written
    │   ├── NotAnInteger
    │   ├── IntegerOverflow
    │   └── ResultTooLarge      the gets of a transaction found too much
    ├── Conflict                a check of a transaction did not hold; nothing was written
    ├── DecodeError             a value is not of the type it was asked for
    ├── Unavailable             not applied: a retry is safe, and the client has tried
    │   ├── NotLeader           ... here, but perhaps at the named node
    │   ├── NoLeader
    │   ├── ShuttingDown
    │   ├── Overloaded
    │   └── NoNodeReachable
    ├── MembershipChangeRefused the members cannot be changed so, or not now
    ├── RemovedFromCluster      this node is no member any more
    ├── DataDirectoryLost       this node was a member with another data directory
    ├── OutcomeUnknown          a write that may or may not be applied, now or later
    ├── DeadlineExceeded        time ran out; `maybe_applied` says whether a write is in doubt
    ├── Closed                  the store was closed
    └── StorageError            the data directory or the disk
        ├── DataDirectoryInUse
        └── DataDirectoryMismatch

An error carries the decision that its reader has to make: `retryable` (the
request was certainly not applied, and the same request may succeed later) and
`maybe_applied` (a write may have taken effect, or still may). Both are never
true together.

Rule of this file: a class that can travel has a `reason` and a `code`, the
number of the gRPC status code; `kvorum.status` translates by this table alone.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The gRPC status codes that kvorum uses, by their numbers (google.rpc.Code)."""

    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    INTERNAL = 13
    UNAVAILABLE = 14


class KvorumError(Exception):
    """The root of all errors of kvorum."""

    reason: ClassVar[str] = "INTERNAL"
    code: ClassVar[Code] = Code.INTERNAL
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **metadata: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = {name: str(value) for name, value in metadata.items()}
        """What ErrorInfo carries beside the reason: names, limits, addresses."""

    @property
    def maybe_applied(self) -> bool:
        """True if the write may have taken effect, or still may."""
        return False


class InvalidArgument(KvorumError, ValueError):
    reason = "INVALID_ARGUMENT"
    code = Code.INVALID_ARGUMENT


class LimitExceeded(InvalidArgument):
    """Metadata: `limit` (its name in `kvorum.limits`), `maximum`, `actual`."""

    reason = "LIMIT_EXCEEDED"


class InvalidCursor(InvalidArgument):
    reason = "INVALID_PAGE_TOKEN"


class InvalidTarget(InvalidArgument):
    reason = "INVALID_TARGET"


class NamespaceNotFound(InvalidArgument):
    """Metadata: `namespace`."""

    reason = "NAMESPACE_NOT_FOUND"
    code = Code.NOT_FOUND


class OperationFailed(KvorumError):
    """Metadata: `operation`, the position of the failed one in its transaction."""

    reason = "OPERATION_FAILED"
    code = Code.FAILED_PRECONDITION


class NotAnInteger(OperationFailed):
    reason = "NOT_AN_INTEGER"


class IntegerOverflow(OperationFailed, OverflowError):
    reason = "INTEGER_OVERFLOW"
    code = Code.OUT_OF_RANGE


class ResultTooLarge(OperationFailed):
    """The gets of a transaction found more than `limits.MAX_RESULT_BYTES`: read with `get`."""

    reason = "RESULT_TOO_LARGE"


class Conflict(KvorumError):
    """A check did not hold. `check` is its position, `key` its key."""

    def __init__(self, message: str, *, check: int, key: str) -> None:
        super().__init__(message, check=check, key=key)
        self.check = check
        self.key = key


class DecodeError(KvorumError, ValueError):
    """The value of `key` is not valid as the `type` it was read as."""

    def __init__(self, message: str, *, key: str, type: str) -> None:
        super().__init__(message, key=key, type=type)
        self.key = key


class Unavailable(KvorumError):
    """The request was not applied. The client retries by itself until the deadline."""

    reason = "UNAVAILABLE"
    code = Code.UNAVAILABLE
    retryable = True


class NotLeader(Unavailable):
    """Metadata: `leader` and `address` of the leader, if one is known."""

    reason = "NOT_LEADER"


class NoLeader(Unavailable):
    reason = "NO_LEADER"


class ShuttingDown(Unavailable):
    reason = "SHUTTING_DOWN"


class Overloaded(Unavailable):
    reason = "OVERLOADED"
    code = Code.RESOURCE_EXHAUSTED


class NoNodeReachable(Unavailable):
    """No node of the cluster answered. `nodes` were tried; `__cause__` is the last failure."""

    reason = "NO_NODE_REACHABLE"

    def __init__(self, message: str, *, nodes: Sequence[str]) -> None:
        super().__init__(message, nodes=",".join(nodes))
        self.nodes = tuple(nodes)


class MembershipChangeRefused(KvorumError):
    """The members stay as they are; the message says why they cannot be changed so, or not now.

    Metadata: `endangers_quorum`, "true" or "false".
    """

    reason = "MEMBERSHIP_CHANGE_REFUSED"
    code = Code.FAILED_PRECONDITION

    @property
    def endangers_quorum(self) -> bool:
        """True if the change could be forced, and might leave the cluster without a majority."""
        return self.metadata.get("endangers_quorum") == "true"


class RemovedFromCluster(KvorumError):
    """The node is no member of its cluster any more, and stops."""

    reason = "REMOVED_FROM_CLUSTER"
    code = Code.FAILED_PRECONDITION


class DataDirectoryLost(KvorumError):
    """A node has come back without what it had promised as a member, and stops.

    Metadata: `node`, its name.
    """

    reason = "DATA_DIRECTORY_LOST"
    code = Code.FAILED_PRECONDITION


class OutcomeUnknown(KvorumError):
    """The connection or the leader was lost after the write was sent, before it was answered."""

    reason = "OUTCOME_UNKNOWN"
    code = Code.ABORTED

    @property
    def maybe_applied(self) -> bool:
        return True


class DeadlineExceeded(KvorumError, TimeoutError):
    reason = "TIMEOUT"
    code = Code.DEADLINE_EXCEEDED

    def __init__(self, message: str, *, maybe_applied: bool = False, **metadata: str | int) -> None:
        super().__init__(message, **metadata)
        self._maybe_applied = maybe_applied

    @property
    def maybe_applied(self) -> bool:
        return self._maybe_applied


class Closed(KvorumError):
    """The store was closed before or while the call was made."""

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self._maybe_applied = maybe_applied

    @property
    def maybe_applied(self) -> bool:
        return self._maybe_applied


class StorageError(KvorumError):
    """The disk or the data directory failed; the node stops rather than go on."""

    reason = "STORAGE"


class DataDirectoryInUse(StorageError):
    """Another process has the data directory open."""

    reason = "DATA_DIRECTORY_IN_USE"


class DataDirectoryMismatch(StorageError):
    """The data directory is of another node, another cluster, or a newer format."""

    reason = "DATA_DIRECTORY_MISMATCH"
