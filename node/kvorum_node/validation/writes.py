"""What a write must be like before it is worth a log entry: puts, transactions, origins.

This is on the way of every write. A transaction of one operation is checked in
about a microsecond, which is why sizes that follow from others are not measured.
"""

from collections.abc import Iterable
from typing import assert_never

from kvorum import limits
from kvorum.errors import InvalidArgument, LimitExceeded
from kvorum_node.validation.parts import (
    shown,
    validate_index_entries,
    validate_key,
    validate_range,
    validate_value,
)
from kvorum_node.validation.rate_limits import validate_rate_limit
from kvorum_node.validation.reads import validate_page_size
from kvorumpb.v1.command_pb2 import AddOperation, Check, Operation, PutOperation, Transaction
from kvorumpb.v1.kv_pb2 import Origin, PutRequest


def validate_put(put: PutOperation | PutRequest) -> None:
    """Raises InvalidArgument or LimitExceeded if the record cannot be stored."""
    key = put.key
    validate_key(key)
    validate_value(put.value, key=key)
    # Absent from most puts, and each question costs something.
    if put.ttl_ms:
        validate_ttl(put.ttl_ms, key=key)
    if len(put.metadata) > limits.MAX_METADATA_BYTES:
        raise LimitExceeded(
            f"the metadata of {shown(key)} has {len(put.metadata):,} bytes, more than "
            f"{limits.MAX_METADATA_BYTES:,}: keep what is large in a value",
            limit="MAX_METADATA_BYTES",
            maximum=limits.MAX_METADATA_BYTES,
            actual=len(put.metadata),
        )
    if put.index_entries:
        validate_index_entries(put.index_entries, key=key)


def validate_ttl(ttl_ms: int, *, key: bytes) -> None:
    """Raises InvalidArgument if it is negative, LimitExceeded if it is too long; 0 is for ever."""
    if ttl_ms < 0:
        raise InvalidArgument(
            f"the time to live of {shown(key)} is {ttl_ms} ms: give at least 1, or 0 for ever"
        )
    if ttl_ms > limits.MAX_TTL_MS:
        raise LimitExceeded(
            f"the time to live of {shown(key)} is {ttl_ms:,} ms, more than "
            f"{limits.MAX_TTL_MS:,}: give 0 for ever",
            limit="MAX_TTL_MS",
            maximum=limits.MAX_TTL_MS,
            actual=ttl_ms,
        )


def validate_client(client_id: int) -> None:
    """Raises InvalidArgument if the id is none that a client may have."""
    if not client_id:
        raise InvalidArgument("the client id is 0: draw another one at random")


def validate_origin(origin: Origin) -> None:
    """Raises InvalidArgument or LimitExceeded if the write cannot be remembered by its origin."""
    validate_client(origin.client_id)
    sequence, acknowledged = origin.sequence, origin.acknowledged
    if not sequence:
        raise InvalidArgument("the sequence of the write is 0: number writes from 1")
    if acknowledged >= sequence:
        raise InvalidArgument(
            f"the write has the sequence {sequence}, and acknowledges the writes through "
            f"{acknowledged}: acknowledge no write before it is answered"
        )
    if sequence - acknowledged > limits.MAX_CLIENT_WINDOW:
        raise LimitExceeded(
            f"the write has the sequence {sequence}, more than {limits.MAX_CLIENT_WINDOW:,} above "
            f"{acknowledged}, the last one acknowledged: wait until earlier writes are answered",
            limit="MAX_CLIENT_WINDOW",
            maximum=limits.MAX_CLIENT_WINDOW,
            actual=sequence - acknowledged,
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


def _validate_checks(checks: Iterable[Check]) -> None:
    for position, check in enumerate(checks):
        if check.HasField("range"):
            if check.key:
                raise InvalidArgument(f"check {position} has a key and a range: leave out one")
            validate_range(check.range)
            where = "the range"
        else:
            validate_key(check.key)
            where = shown(check.key)
        match check.WhichOneof("condition"):
            case "revision":
                _validate_number(position, where, "revision", check.revision)
            case "version":
                _validate_number(position, where, "version", check.version)
            case "unchanged_since":
                _validate_number(position, where, "unchanged_since", check.unchanged_since)
            case "exists":
                pass
            case "value":
                validate_value(check.value, key=check.key)
            case None:
                raise InvalidArgument(
                    f"check {position}, of {where}, has no condition that this node knows: set "
                    "revision, exists, version, value or unchanged_since"
                )
            case unexpected:
                assert_never(unexpected)


def _validate_number(position: int, where: str, condition: str, number: int) -> None:
    if number < 0:
        raise InvalidArgument(
            f"check {position} expects {where} at {condition} {number}: give the {condition} of a "
            "record, or 0 for absent"
        )


def _validate_branch(branch: str, operations: Iterable[Operation]) -> None:
    written: set[bytes] = set()
    limited: set[bytes] = set()
    for position, operation in enumerate(operations):
        where = f"{branch}[{position}]"
        match operation.WhichOneof("operation"):
            case "put":
                key = operation.put.key
                validate_put(operation.put)
            case "get":
                validate_key(operation.get.key)
                continue
            case "delete":
                key = operation.delete.key
            case "add":
                key = operation.add.key
                _validate_add(operation.add, where)
            case "touch":
                key = operation.touch.key
                validate_ttl(operation.touch.ttl_ms, key=key)
            case "list":
                validate_range(operation.list.range)
                validate_page_size(operation.list.limit)
                continue
            case "delete_range":
                validate_range(operation.delete_range.range)
                _validate_range_limit(operation.delete_range.limit, where)
                continue
            case "rate_limit":
                validate_rate_limit(operation.rate_limit, where, limited)
                continue
            case None:
                raise InvalidArgument(
                    f"{where} of the transaction is none that this node knows: set get, put, "
                    "delete, add, list, delete_range, touch or rate_limit"
                )
            case unexpected:
                assert_never(unexpected)
        validate_key(key)
        _refuse_second(written, key, where)


def _refuse_second(seen: set[bytes], key: bytes, where: str) -> None:
    if key in seen:
        raise InvalidArgument(
            f"{where} of the transaction writes {shown(key)} a second time: "
            "keep the last write of each key"
        )
    seen.add(key)


def _validate_add(add: AddOperation, where: str) -> None:
    if add.ttl_ms:
        validate_ttl(add.ttl_ms, key=add.key)
    if add.HasField("min") and add.HasField("max") and add.min > add.max:
        raise InvalidArgument(
            f"{where} of the transaction has the bounds {add.min} and {add.max}, which nothing is "
            "between: swap them"
        )


def _validate_range_limit(limit: int, where: str) -> None:
    if limit < 0:
        raise InvalidArgument(
            f"{where} of the transaction has the limit {limit}: give at least 1, or 0 for all"
        )
    if limit > limits.MAX_RANGE_RECORDS:
        raise LimitExceeded(
            f"{where} of the transaction has the limit {limit:,}, more than the "
            f"{limits.MAX_RANGE_RECORDS:,} records that one operation may remove: repeat it",
            limit="MAX_RANGE_RECORDS",
            maximum=limits.MAX_RANGE_RECORDS,
            actual=limit,
        )
