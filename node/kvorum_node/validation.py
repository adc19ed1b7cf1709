"""What a request must be like before it is worth a log entry.

Rules: a request is refused before it is proposed, so that everything in the log
can be applied; nothing here reads the store, so that the same request is
refused everywhere and always; an error says what is wrong and how to help
oneself, and names the key, shortened, where there is one.

This is on the way of every write. A transaction of one operation is checked in
about a microsecond, which is why sizes that follow from others are not measured.
"""

from collections.abc import Iterable
from typing import Final, assert_never

from kvorum import limits
from kvorum.errors import InvalidArgument, LimitExceeded, NamespaceNotFound
from kvorumpb.v1.command_pb2 import Check, Operation, Transaction
from kvorumpb.v1.kv_pb2 import ListRequest

DEFAULT_NAMESPACE: Final = "default"

SHOWN_CHARACTERS: Final = 48
"""How much of a key or a name an error repeats."""


def validate_namespace(name: str) -> None:
    """Raises NamespaceNotFound unless `name` is empty or "default"."""
    if name not in ("", DEFAULT_NAMESPACE):
        shown = name[:SHOWN_CHARACTERS]
        raise NamespaceNotFound(
            f"there is no namespace {shown!r}: this version serves "
            f"{DEFAULT_NAMESPACE!r} alone; leave the namespace empty",
            namespace=shown,
        )


def validate_key(key: bytes) -> None:
    """Raises InvalidArgument if the key is empty, LimitExceeded if it is too long."""
    if not key:
        raise InvalidArgument("a key is empty: it must have at least one byte")
    if len(key) > limits.MAX_KEY_BYTES:
        raise _too_long("the key", key)


def validate_value(value: bytes, *, key: bytes) -> None:
    """Raises LimitExceeded, naming `key`, if the value is too large."""
    if len(value) > limits.MAX_VALUE_BYTES:
        raise LimitExceeded(
            f"the value of {_shown(key)} has {len(value):,} bytes, more than the "
            f"{limits.MAX_VALUE_BYTES:,} of a record: split it over several keys",
            limit="MAX_VALUE_BYTES",
            maximum=limits.MAX_VALUE_BYTES,
            actual=len(value),
        )


def validate_transaction(transaction: Transaction) -> None:
    """Raises InvalidArgument or LimitExceeded if the transaction must not be proposed.

    A branch may write each key once: of two writes at one revision only the last
    could ever be seen. It may read and check any key as often as it likes.
    """
    checks, operations, otherwise = (
        transaction.checks,
        transaction.operations,
        transaction.otherwise,
    )
    count = len(checks) + len(operations) + len(otherwise)
    if count == 0:
        raise InvalidArgument("the transaction is empty: add an operation or a check")
    if count > limits.MAX_TRANSACTION_OPERATIONS:
        raise LimitExceeded(
            f"the transaction has {count:,} checks and operations, more than "
            f"{limits.MAX_TRANSACTION_OPERATIONS:,}: split it into several transactions",
            limit="MAX_TRANSACTION_OPERATIONS",
            maximum=limits.MAX_TRANSACTION_OPERATIONS,
            actual=count,
        )
    if checks:
        _validate_checks(checks)
    _validate_branch("operations", operations)
    if otherwise:
        _validate_branch("otherwise", otherwise)
    # A key and a value within their limits make less than a transaction may hold,
    # and measuring costs as much as encoding.
    if count > 1 and (size := transaction.ByteSize()) > limits.MAX_TRANSACTION_BYTES:
        raise LimitExceeded(
            f"the transaction has {size:,} bytes, more than "
            f"{limits.MAX_TRANSACTION_BYTES:,}: split it into several transactions",
            limit="MAX_TRANSACTION_BYTES",
            maximum=limits.MAX_TRANSACTION_BYTES,
            actual=size,
        )


def validate_list(request: ListRequest) -> None:
    """Raises InvalidArgument or LimitExceeded if the request cannot be answered.

    The page token is not looked at: kvorum_node.machine.cursor reads it.
    """
    match request.WhichOneof("selection"):
        case "prefix":
            _validate_bound("the prefix", request.prefix)
        case "range":
            start, end = request.range.start, request.range.end
            _validate_bound("the start of the range", start)
            _validate_bound("the end of the range", end)
            if end and end < start:
                raise InvalidArgument(
                    f"the range ends at {_shown(end)}, before its start {_shown(start)}: "
                    "swap them, or leave the end empty to list to the last key"
                )
        case None:
            pass
        case unexpected:
            assert_never(unexpected)
    if request.page_size < 0:
        raise InvalidArgument(
            f"the page size is {request.page_size}: give 1 to {limits.MAX_PAGE_RECORDS:,} "
            f"records, or 0 for {limits.DEFAULT_PAGE_RECORDS:,}"
        )
    if request.page_size > limits.MAX_PAGE_RECORDS:
        raise LimitExceeded(
            f"the page size is {request.page_size:,} records, more than "
            f"{limits.MAX_PAGE_RECORDS:,}: ask for less and follow the page token",
            limit="MAX_PAGE_RECORDS",
            maximum=limits.MAX_PAGE_RECORDS,
            actual=request.page_size,
        )


def _validate_checks(checks: Iterable[Check]) -> None:
    for position, check in enumerate(checks):
        validate_key(check.key)
        match check.WhichOneof("condition"):
            case "revision":
                if check.revision < 0:
                    raise InvalidArgument(
                        f"check {position} expects {_shown(check.key)} at revision "
                        f"{check.revision}: give the revision of a record, or 0 for absent"
                    )
            case "exists":
                pass
            case None:
                raise InvalidArgument(
                    f"check {position}, of {_shown(check.key)}, has no condition that this "
                    "node knows: set revision or exists"
                )
            case unexpected:
                assert_never(unexpected)


def _validate_branch(branch: str, operations: Iterable[Operation]) -> None:
    written: set[bytes] = set()
    for position, operation in enumerate(operations):
        match operation.WhichOneof("operation"):
            case "put":
                put = operation.put
                key = put.key
                validate_value(put.value, key=key)
            case "get":
                validate_key(operation.get.key)
                continue
            case "delete":
                key = operation.delete.key
            case "add":
                key = operation.add.key
            case None:
                raise InvalidArgument(
                    f"{branch}[{position}] of the transaction is none that this node knows: "
                    "set get, put, delete or add"
                )
            case unexpected:
                assert_never(unexpected)
        validate_key(key)
        if key in written:
            raise InvalidArgument(
                f"{branch}[{position}] of the transaction writes {_shown(key)} a second time: "
                "keep the last write of each key"
            )
        written.add(key)


def _validate_bound(what: str, key: bytes) -> None:
    if len(key) > limits.MAX_KEY_BYTES:
        raise _too_long(what, key)


def _too_long(what: str, key: bytes) -> LimitExceeded:
    return LimitExceeded(
        f"{what} {_shown(key)} has {len(key):,} bytes, more than the "
        f"{limits.MAX_KEY_BYTES:,} of a key: shorten it, or use a hash of it",
        limit="MAX_KEY_BYTES",
        maximum=limits.MAX_KEY_BYTES,
        actual=len(key),
    )


def _shown(key: bytes) -> str:
    """The key as the client writes it, in quotes, cut to what fits a message."""
    text = key.decode(errors="surrogateescape")
    shown = repr(text[:SHOWN_CHARACTERS])
    return shown if len(text) <= SHOWN_CHARACTERS else shown + "…"
