"""Every error that kvorum raises, on both sides of the wire.

    KvorumError
    ├── InvalidArgument         the request is wrong; never worth a retry
    │   ├── LimitExceeded       something is larger than its limit
    │   ├── InvalidCursor       the cursor was altered, or belongs to another list
    │   ├── InvalidToken        the token is none that a session store has made
    │   ├── InvalidTarget       `open` was given an address it does not understand
    │   ├── NamespaceNotFound
    │   ├── Compacted           the revision asked for is not kept any more
    │   └── FutureRevision      the revision asked for is not there yet
    ├── OperationFailed         an operation could not be carried out; nothing was written
    │   ├── NotAnInteger
    │   ├── IntegerOverflow
    │   ├── OutOfBounds         an add would leave the bounds it was given
    │   ├── UniqueViolation     another record has the value in a unique index
    │   ├── RangeTooLarge       a transaction looks at more records, or replaces more bytes,
    │   │                       than it may
    │   └── ResultTooLarge      a transaction reads more than it may return
    ├── Conflict                a check of a transaction did not hold; nothing was written
    ├── BatchInterrupted        a batch in bulk has ended early; `done` says where to go on
    ├── DecodeError             a value is not of the type it was asked for
    ├── IndexIncomplete         an index of a collection does not have every record yet
    ├── UnknownFlag             no such feature flag is set
    ├── Unavailable             not applied: a retry is safe, and the client has tried
    │   ├── NotLeader           ... here, but perhaps at the named node
    │   ├── NoLeader
    │   ├── ShuttingDown
    │   ├── Overloaded
    │   ├── TooStale            a stale read of a node that is further behind than it may be
    │   └── NoNodeReachable
    ├── QuotaExceeded           the store or a disk is full; not applied, reads and deletes go on
    ├── ClientForgotten         the store does not know who writes; not applied now
    ├── ResultForgotten         applied by an earlier attempt, and its result is gone
    ├── MembershipChangeRefused the members cannot be changed so, or not now
    ├── RemovedFromCluster      this node is no member any more
    ├── DataDirectoryLost       this node was a member with another data directory
    ├── OutcomeUnknown          a write of which nobody can say any more whether it was applied
    ├── DeadlineExceeded        time ran out; `maybe_applied` says whether a write is in doubt
    ├── Closed                  the store was closed
    └── StorageError            the data directory or the disk
        ├── DataDirectoryInUse
        ├── DataDirectoryMismatch
        └── StateCorrupt        this node holds something else than the majority, and stops

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
    ALREADY_EXISTS = 6
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


class InvalidToken(InvalidArgument):
    """A session token that no session store has made. The token is not in the message."""

    reason = "INVALID_TOKEN"


class InvalidTarget(InvalidArgument):
    reason = "INVALID_TARGET"


class NamespaceNotFound(InvalidArgument):
    """Metadata: `namespace`."""

    reason = "NAMESPACE_NOT_FOUND"
    code = Code.NOT_FOUND


class Compacted(InvalidArgument):
    """Metadata: `revision`, and `oldest_revision`, the oldest that can still be read."""

    reason = "COMPACTED"
    code = Code.OUT_OF_RANGE

    @property
    def oldest_revision(self) -> int:
        return int(self.metadata.get("oldest_revision", 0))


class FutureRevision(InvalidArgument):
    """Metadata: `revision`, and `newest_revision`, that of the store now."""

    reason = "FUTURE_REVISION"
    code = Code.OUT_OF_RANGE


class OperationFailed(KvorumError):
    """Metadata: `operation`, the position of the failed one in its transaction."""

    reason = "OPERATION_FAILED"
    code = Code.FAILED_PRECONDITION


class NotAnInteger(OperationFailed):
    reason = "NOT_AN_INTEGER"


class IntegerOverflow(OperationFailed, OverflowError):
    reason = "INTEGER_OVERFLOW"
    code = Code.OUT_OF_RANGE


class OutOfBounds(OperationFailed):
    """Metadata: also `value`, the integer that stays."""

    reason = "OUT_OF_BOUNDS"
    code = Code.OUT_OF_RANGE

    @property
    def value(self) -> int:
        """The integer as it was, and still is."""
        return int(self.metadata["value"])


class UniqueViolation(OperationFailed):
    """Metadata: also `index`, `value` and `owner`, the key of the record that has the value.

    Bytes that are not UTF-8 are written as `\\xff`, as Python's backslashreplace has them.
    """

    reason = "UNIQUE_VIOLATION"
    code = Code.ALREADY_EXISTS

    @property
    def index(self) -> str:
        return self.metadata["index"]

    @property
    def value(self) -> str:
        return self.metadata["value"]

    @property
    def owner(self) -> str:
        return self.metadata["owner"]


class RangeTooLarge(OperationFailed):
    """A transaction looks at more, or replaces more, than it may: take it in parts.

    The limits are `MAX_RANGE_RECORDS`, `MAX_TRANSACTION_RECORDS` and `MAX_REPLACED_BYTES`.
    """

    reason = "RANGE_TOO_LARGE"


class ResultTooLarge(OperationFailed):
    """A transaction reads more than `limits.MAX_RESULT_BYTES`: read with `get` and `list`."""

    reason = "RESULT_TOO_LARGE"


class Conflict(KvorumError):
    """A check did not hold. `check` is its position, from 0, and `key` its key.

    Of a check on a range, `key` is where it starts, and `range` is start and end. An empty
    end is beyond the last key.
    """

    def __init__(
        self, message: str, *, check: int, key: str, range: tuple[str, str] | None = None
    ) -> None:
        super().__init__(message, check=check, key=key)
        self.check = check
        self.key = key
        self.range = range


class BatchInterrupted(KvorumError):
    """A batch in bulk has ended early; `__cause__` is why.

    The first `done` items are settled. Some of those after them may be written as well.
    """

    def __init__(self, message: str, *, done: int) -> None:
        super().__init__(message, done=done)
        self.done = done

    @property
    def maybe_applied(self) -> bool:
        return True


class IndexIncomplete(KvorumError):
    """A search by this index might miss records. Metadata: `collection` and `index`."""

    reason = "INDEX_INCOMPLETE"
    code = Code.FAILED_PRECONDITION


class UnknownFlag(KvorumError, LookupError):
    """Metadata: `flag`."""

    reason = "UNKNOWN_FLAG"
    code = Code.NOT_FOUND


class DecodeError(KvorumError, ValueError):
    """The value of `key` is not valid as the `type` it was read as. It is not shown."""

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


class TooStale(Unavailable):
    """The node that was asked is further behind the leader than `max_staleness` allows."""

    reason = "TOO_STALE"


class NoNodeReachable(Unavailable):
    """No node of the cluster answered. `nodes` were tried; `__cause__` is the last failure."""

    reason = "NO_NODE_REACHABLE"

    def __init__(self, message: str, *, nodes: Sequence[str]) -> None:
        super().__init__(message, nodes=",".join(nodes))
        self.nodes = tuple(nodes)


class QuotaExceeded(KvorumError):
    """The store has reached its quota, or a disk has too little space left: nothing is written.

    Reads, deletes and compaction go on, and writes do when they have made space.
    Metadata: `node`, whose disk it is, and `limit`, the setting of that node.
    """

    reason = "QUOTA_EXCEEDED"
    code = Code.RESOURCE_EXHAUSTED


class ClientForgotten(KvorumError):
    """The store does not know the client that the write comes from, and has not applied it now.

    It never did, or other clients have taken its place since. Whether an earlier
    attempt was applied cannot be told. The client library deals with it: it begins anew
    with what was sent for the first time, and raises `OutcomeUnknown` for the rest.
    """

    reason = "CLIENT_FORGOTTEN"
    code = Code.FAILED_PRECONDITION


class ResultForgotten(KvorumError):
    """An earlier attempt was applied, and the store does not keep what it returned.

    It keeps results up to `limits.MAX_REMEMBERED_RESULT_BYTES`, and so many of one client as
    `limits.MAX_CLIENT_RESULT_BYTES` hold.
    """

    reason = "RESULT_FORGOTTEN"
    code = Code.FAILED_PRECONDITION

    @property
    def maybe_applied(self) -> bool:
        return True


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
    """Nobody can say any more whether the write was applied, or will be.

    A store sends a write again until it is answered or time is out, and has it applied
    once. So a caller meets this only if the store has forgotten its client meanwhile, as it
    does when there are very many, or if an embedded store has failed. Who changes the
    members, or sends single requests without an origin, meets it when the connection or the
    leader was lost before the answer.
    """

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
    """The store was closed before or while the call was made, or a fork has left it behind."""

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


class StateCorrupt(StorageError):
    """The node's state is not what the majority holds at the same index; it must be replaced."""

    reason = "STATE_CORRUPT"
