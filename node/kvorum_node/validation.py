"""What a request must be like before it is worth a log entry.

Rules: a request is refused before it is proposed, so that everything in the log
can be applied; nothing here reads the store, so that the same request is
refused everywhere and always; an error says what is wrong and how to help
oneself, and names the key, shortened, where there is one.

This is on the way of every write. A transaction of one operation is checked in
about a microsecond, which is why sizes that follow from others are not measured.
"""

from collections.abc import Iterable, Sequence
from typing import Final, assert_never

from google.protobuf.unknown_fields import UnknownFieldSet

from kvorum import limits
from kvorum.errors import InvalidArgument, LimitExceeded, NamespaceNotFound
from kvorum_node.rate_limit_validation import validate_rate_limit
from kvorumpb.v1.command_pb2 import (
    AddOperation,
    Check,
    IndexEntry,
    KeyRange,
    Operation,
    PutOperation,
    Transaction,
)
from kvorumpb.v1.kv_pb2 import (
    Consistency,
    GetRequest,
    IndexSelection,
    ListRequest,
    Origin,
    PutRequest,
)
from kvorumpb.v1.watch_pb2 import BeginWatch

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
            f"the metadata of {_shown(key)} has {len(put.metadata):,} bytes, more than "
            f"{limits.MAX_METADATA_BYTES:,}: keep what is large in a value",
            limit="MAX_METADATA_BYTES",
            maximum=limits.MAX_METADATA_BYTES,
            actual=len(put.metadata),
        )
    if put.index_entries:
        _validate_index_entries(put.index_entries, key=key)


def validate_ttl(ttl_ms: int, *, key: bytes) -> None:
    """Raises InvalidArgument if it is negative, LimitExceeded if it is too long; 0 is for ever."""
    if ttl_ms < 0:
        raise InvalidArgument(
            f"the time to live of {_shown(key)} is {ttl_ms} ms: give at least 1, or 0 for ever"
        )
    if ttl_ms > limits.MAX_TTL_MS:
        raise LimitExceeded(
            f"the time to live of {_shown(key)} is {ttl_ms:,} ms, more than "
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


def validate_list(request: ListRequest) -> None:
    """Raises InvalidArgument or LimitExceeded if the request cannot be answered.

    The page token is not looked at: kvorum_node.machine.cursor reads it.
    """
    match request.WhichOneof("selection"):
        case "prefix":
            _validate_bound("the prefix", request.prefix)
        case "range":
            validate_range(request.range)
        case "index":
            _validate_index_selection(request.index)
            if request.revision or request.snapshot:
                raise InvalidArgument(
                    "a list by index reads the newest state only: leave out revision and snapshot"
                )
        case None:
            pass
        case unexpected:
            assert_never(unexpected)
    _validate_reading(request)
    validate_page_size(request.page_size)


def validate_range(selected: KeyRange) -> None:
    """Raises InvalidArgument if it ends before it begins, LimitExceeded if a bound is too long."""
    start, end = selected.start, selected.end
    _validate_bound("the start of the range", start)
    _validate_bound("the end of the range", end)
    if end and end < start:
        raise InvalidArgument(
            f"the range ends at {_shown(end)}, before its start {_shown(start)}: "
            "swap them, or leave the end empty to go to the last key"
        )


def validate_page_size(page_size: int) -> None:
    """Raises InvalidArgument or LimitExceeded unless it is 0 to MAX_PAGE_RECORDS."""
    if page_size < 0:
        raise InvalidArgument(
            f"the page size is {page_size}: give 1 to {limits.MAX_PAGE_RECORDS:,} "
            f"records, or 0 for {limits.DEFAULT_PAGE_RECORDS:,}"
        )
    if page_size > limits.MAX_PAGE_RECORDS:
        raise LimitExceeded(
            f"the page size is {page_size:,} records, more than "
            f"{limits.MAX_PAGE_RECORDS:,}: ask for less and follow the page token",
            limit="MAX_PAGE_RECORDS",
            maximum=limits.MAX_PAGE_RECORDS,
            actual=page_size,
        )


def validate_get(request: GetRequest) -> None:
    """Raises InvalidArgument or LimitExceeded if the request cannot be answered."""
    validate_key(request.key)
    _validate_reading(request)


def _validate_reading(request: GetRequest | ListRequest) -> None:
    """Of what, and how new, the answer is to be."""
    if request.revision < 0:
        raise InvalidArgument(
            f"the revision is {request.revision}: give a revision of the store, or 0 for the newest"
        )
    if request.consistency not in Consistency.values():
        raise InvalidArgument(
            f"the consistency is {request.consistency}, which this node does not know"
        )
    if request.max_staleness_ms < 0:
        raise InvalidArgument(
            f"the staleness is {request.max_staleness_ms} ms at most: give at least 1, or 0 for any"
        )
    if request.max_staleness_ms and request.consistency != Consistency.STALE:
        raise InvalidArgument("only a read with the consistency STALE has a max_staleness_ms")


def _validate_index_selection(selected: IndexSelection) -> None:
    validate_index_name(selected.index)
    match selected.WhichOneof("values"):
        case "value":
            validate_index_value(selected.value)
        case "prefix":
            validate_index_value(selected.prefix)
        case "range":
            start, end = selected.range.start, selected.range.end
            validate_index_value(start)
            validate_index_value(end)
            if end and end < start:
                raise InvalidArgument(
                    f"the range of values ends at {_shown(end)}, before its start {_shown(start)}:"
                    " swap them, or leave the end empty to list to the last value"
                )
        case None:
            pass
        case unexpected:
            assert_never(unexpected)


def validate_begin_watch(begin: BeginWatch) -> None:
    """Raises InvalidArgument, LimitExceeded or NamespaceNotFound if it cannot be served."""
    # To watch something else than what was asked for, or more of it, would be worse than to refuse.
    if len(UnknownFieldSet(begin)):
        raise InvalidArgument("the watch asks for something that this version does not know")
    validate_namespace(begin.namespace)
    match begin.WhichOneof("selection"):
        case "key":
            validate_key(begin.key)
        case "prefix":
            _validate_bound("the prefix", begin.prefix)
        case "range":
            start, end = begin.range.start, begin.range.end
            _validate_bound("the start of the range", start)
            _validate_bound("the end of the range", end)
            if end and end <= start:
                raise InvalidArgument(
                    f"the range ends at {_shown(end)}, not after its start {_shown(start)}: no key"
                    " could ever be told of"
                )
        case None:
            pass
        case unexpected:
            assert_never(unexpected)
    if begin.HasField("after_revision") and begin.after_revision < 0:
        raise InvalidArgument(
            f"the watch is to begin after revision {begin.after_revision}: give one from 0"
        )
    if begin.no_puts and begin.no_deletes and begin.no_expiries:
        raise InvalidArgument("the watch leaves out puts, deletes and expiries: nothing is left")
    interval_ms = begin.progress_interval_ms
    shortest, longest = limits.MIN_PROGRESS_INTERVAL_MS, limits.MAX_PROGRESS_INTERVAL_MS
    if interval_ms and not shortest <= interval_ms <= longest:
        raise InvalidArgument(
            f"the progress interval is {interval_ms} ms: give {shortest:,} to {longest:,}, or 0"
            f" for {limits.DEFAULT_PROGRESS_INTERVAL_MS:,}"
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
            where = _shown(check.key)
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
                validate_rate_limit(operation.rate_limit, where)
                for limit in operation.rate_limit.limits:
                    _refuse_second(limited, limit.key, where, "takes from the rate limit")
                continue
            case None:
                raise InvalidArgument(
                    f"{where} of the transaction is none that this node knows: set get, put, "
                    "delete, add, list, delete_range, touch or rate_limit"
                )
            case unexpected:
                assert_never(unexpected)
        validate_key(key)
        _refuse_second(written, key, where, "writes")


def _refuse_second(seen: set[bytes], key: bytes, where: str, what: str) -> None:
    if key in seen:
        raise InvalidArgument(
            f"{where} of the transaction {what} {_shown(key)} a second time: "
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


def _validate_index_entries(entries: Sequence[IndexEntry], *, key: bytes) -> None:
    if len(entries) > limits.MAX_INDEX_ENTRIES:
        raise LimitExceeded(
            f"the record {_shown(key)} has {len(entries):,} index entries, more than "
            f"{limits.MAX_INDEX_ENTRIES}: leave some out",
            limit="MAX_INDEX_ENTRIES",
            maximum=limits.MAX_INDEX_ENTRIES,
            actual=len(entries),
        )
    seen: set[tuple[str, bytes]] = set()
    for entry in entries:
        validate_index_name(entry.index)
        validate_index_value(entry.value)
        if (entry.index, entry.value) in seen:
            raise InvalidArgument(
                f"the record {_shown(key)} has the same entry of the index {entry.index!r} twice"
            )
        seen.add((entry.index, entry.value))


def validate_index_name(name: str) -> None:
    """Raises InvalidArgument if it is empty, LimitExceeded if it is too long."""
    if not name:
        raise InvalidArgument("the name of an index is empty: it must have at least one character")
    if (size := len(name.encode())) > limits.MAX_INDEX_NAME_BYTES:
        raise LimitExceeded(
            f"the name of the index {name[:SHOWN_CHARACTERS]!r}… has {size:,} bytes, more than "
            f"{limits.MAX_INDEX_NAME_BYTES}: shorten it",
            limit="MAX_INDEX_NAME_BYTES",
            maximum=limits.MAX_INDEX_NAME_BYTES,
            actual=size,
        )


def validate_index_value(value: bytes) -> None:
    """Raises LimitExceeded if it is too long. It may be empty."""
    if len(value) > limits.MAX_INDEX_VALUE_BYTES:
        raise LimitExceeded(
            f"the index value {_shown(value)} has {len(value):,} bytes, more than "
            f"{limits.MAX_INDEX_VALUE_BYTES:,}: use a hash of it",
            limit="MAX_INDEX_VALUE_BYTES",
            maximum=limits.MAX_INDEX_VALUE_BYTES,
            actual=len(value),
        )


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
