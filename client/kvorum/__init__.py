"""kvorum: a replicated, strongly consistent key-value store.

    kv = await kvorum.open("memory:")                            # in process, nothing on disk
    kv = await kvorum.open("./data")                             # in process, durable
    kv = await kvorum.open("kvorum://h1:7100,h2:7100,h3:7100")   # a cluster

    await kv.put("user:1", {"name": "alice"})
    entry = await kv.get("user:1")

`open_sync` gives the same API without `await`.

Rule of this file: importing kvorum is cheap. What needs protobuf or gRPC is
imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvorum import errors, keys, limits
from kvorum.errors import (
    BatchInterrupted,
    ClientForgotten,
    Closed,
    Compacted,
    Conflict,
    DataDirectoryInUse,
    DataDirectoryLost,
    DataDirectoryMismatch,
    DeadlineExceeded,
    DecodeError,
    FutureRevision,
    IndexIncomplete,
    IntegerOverflow,
    InvalidArgument,
    InvalidCursor,
    InvalidTarget,
    InvalidToken,
    KvorumError,
    LimitExceeded,
    MembershipChangeRefused,
    NamespaceNotFound,
    NoLeader,
    NoNodeReachable,
    NotAnInteger,
    NotLeader,
    OperationFailed,
    OutcomeUnknown,
    OutOfBounds,
    Overloaded,
    QuotaExceeded,
    RangeTooLarge,
    RemovedFromCluster,
    ResultForgotten,
    ResultTooLarge,
    ShuttingDown,
    StateCorrupt,
    StorageError,
    TooStale,
    Unavailable,
    UniqueViolation,
    UnknownFlag,
)

if TYPE_CHECKING:
    from kvorum.atomic import Atomic, AtomicResult, SyncAtomic
    from kvorum.codecs import Codec
    from kvorum.entry import Entry, IndexEntry, Page
    from kvorum.kv import KV
    from kvorum.model import RateLimit, RateLimitResult, RateLimitState, Sum
    from kvorum.opening import open, open_sync  # noqa: A004 - kvorum.open is meant to read like open
    from kvorum.sync import SyncKV
    from kvorum.transaction import Attempts, SyncAttempts, SyncTransaction, Transaction
    from kvorum.watching import Change, Changes, SyncWatch, Watch

    __version__: str

__all__ = [
    "KV",
    "Atomic",
    "AtomicResult",
    "Attempts",
    "BatchInterrupted",
    "Change",
    "Changes",
    "ClientForgotten",
    "Closed",
    "Codec",
    "Compacted",
    "Conflict",
    "DataDirectoryInUse",
    "DataDirectoryLost",
    "DataDirectoryMismatch",
    "DeadlineExceeded",
    "DecodeError",
    "Entry",
    "FutureRevision",
    "IndexEntry",
    "IndexIncomplete",
    "IntegerOverflow",
    "InvalidArgument",
    "InvalidCursor",
    "InvalidTarget",
    "InvalidToken",
    "KvorumError",
    "LimitExceeded",
    "MembershipChangeRefused",
    "NamespaceNotFound",
    "NoLeader",
    "NoNodeReachable",
    "NotAnInteger",
    "NotLeader",
    "OperationFailed",
    "OutOfBounds",
    "OutcomeUnknown",
    "Overloaded",
    "Page",
    "QuotaExceeded",
    "RangeTooLarge",
    "RateLimit",
    "RateLimitResult",
    "RateLimitState",
    "RemovedFromCluster",
    "ResultForgotten",
    "ResultTooLarge",
    "ShuttingDown",
    "StateCorrupt",
    "StorageError",
    "Sum",
    "SyncAtomic",
    "SyncAttempts",
    "SyncKV",
    "SyncTransaction",
    "SyncWatch",
    "TooStale",
    "Transaction",
    "Unavailable",
    "UniqueViolation",
    "UnknownFlag",
    "Watch",
    "__version__",
    "errors",
    "keys",
    "limits",
    "open",
    "open_sync",
]

_HOMES = {
    "Atomic": "kvorum.atomic",
    "AtomicResult": "kvorum.atomic",
    "Attempts": "kvorum.transaction",
    "Change": "kvorum.watching",
    "Changes": "kvorum.watching",
    "Codec": "kvorum.codecs",
    "Entry": "kvorum.entry",
    "IndexEntry": "kvorum.entry",
    "KV": "kvorum.kv",
    "Page": "kvorum.entry",
    "RateLimit": "kvorum.model",
    "RateLimitResult": "kvorum.model",
    "RateLimitState": "kvorum.model",
    "Sum": "kvorum.model",
    "SyncAtomic": "kvorum.atomic",
    "SyncAttempts": "kvorum.transaction",
    "SyncKV": "kvorum.sync",
    "SyncTransaction": "kvorum.transaction",
    "Transaction": "kvorum.transaction",
    "SyncWatch": "kvorum.watching",
    "Watch": "kvorum.watching",
    "open": "kvorum.opening",
    "open_sync": "kvorum.opening",
}


if not TYPE_CHECKING:  # a type checker takes a module with __getattr__ to have every name

    def __getattr__(name: str) -> Any:
        """Import what is asked for (PEP 562), once."""
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415 - slow, and seldom asked

            value: Any = version("kvorum")
        elif name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module 'kvorum' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
