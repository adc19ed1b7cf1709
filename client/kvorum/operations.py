"""The operations of a transaction: from arguments to the wire, and back from its results.

One function for each operation makes it, whoever asks: the store's own methods,
`Atomic` and `Transaction`. What is wrong with an argument is said here, before
anything is sent.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from kvorum import limits
from kvorum.arguments import check_amount, check_limit
from kvorum.codecs import Codec, Key, decode_entry, encode_bound, encode_key, encode_value
from kvorum.durations import Duration, encode_ttl, encode_window, to_seconds
from kvorum.entry import IndexEntry, Page
from kvorum.errors import InvalidArgument, KvorumError, LimitExceeded
from kvorum.model import RateLimit, RateLimitResult, RateLimitState, Sum
from kvorum.ranges import encode_range
from kvorumpb.v1 import command_pb2 as pb

_ALGORITHMS: Final = {
    "sliding_log": pb.RateLimit.SLIDING_LOG,
    "sliding_counter": pb.RateLimit.SLIDING_COUNTER,
    "gcra": pb.RateLimit.GCRA,
}


def put(
    key: Key,
    value: Any,
    *,
    ttl: Duration | None = None,
    metadata: bytes | None = None,
    index_entries: Iterable[IndexEntry] | None = None,
    keep_ttl: bool = False,
    codec: Codec[Any],
) -> pb.Operation:
    operation = pb.PutOperation(key=encode_key(key), value=encode_value(value, codec, key))
    # Absent from most puts, and each of them costs something.
    if ttl is not None:
        operation.ttl_ms = encode_ttl(ttl)
    if metadata is not None:
        operation.metadata = encode_metadata(metadata, key)
    if index_entries is not None:
        operation.index_entries.extend(encode_index_entries(index_entries, key))
    if keep_ttl:
        operation.keep_ttl = True
    return pb.Operation(put=operation)


def get(key: Key) -> pb.Operation:
    return pb.Operation(get=pb.GetOperation(key=encode_key(key)))


def list_range(
    prefix: Key,
    start: Key | None,
    end: Key | None,
    *,
    limit: int,
    reverse: bool,
    keys_only: bool,
) -> pb.Operation:
    return pb.Operation(
        list=pb.ListOperation(
            range=encode_range(prefix, start, end),
            limit=check_limit(limit),
            reverse=reverse,
            keys_only=keys_only,
        )
    )


def delete(key: Key, *, return_previous: bool = False) -> pb.Operation:
    return pb.Operation(
        delete=pb.DeleteOperation(key=encode_key(key), return_previous=return_previous)
    )


def delete_range(
    prefix: Key | None, start: Key | None, end: Key | None, limit: int | None
) -> pb.Operation:
    if not prefix and start is None and end is None:
        raise InvalidArgument(
            'an empty prefix would delete every key: give start="" if that is what is meant'
        )
    if limit is not None:
        _count("the limit of delete_range", limit, 1)
    _within("the limit of delete_range", "MAX_RANGE_RECORDS", limits.MAX_RANGE_RECORDS, limit or 0)
    return pb.Operation(
        delete_range=pb.DeleteRangeOperation(
            range=encode_range(prefix or "", start, end), limit=limit or 0
        )
    )


def add(
    key: Key,
    amount: int,
    *,
    min: int | None = None,
    max: int | None = None,
    saturate: bool = False,
    ttl: Duration | None = None,
) -> pb.Operation:
    for bound in (min, max):
        if bound is not None:
            check_amount(bound)
    if min is not None and max is not None and min > max:
        raise InvalidArgument(f"nothing is between min {min} and max {max}: swap them")
    return pb.Operation(
        add=pb.AddOperation(
            key=encode_key(key),
            amount=check_amount(amount),
            min=min,
            max=max,
            saturate=saturate,
            ttl_ms=encode_ttl(ttl),
        )
    )


def touch(key: Key, ttl: object) -> pb.Operation:
    if ttl is None:
        raise InvalidArgument("touch needs a ttl: persist is for a key that is to stay")
    return pb.Operation(touch=pb.TouchOperation(key=encode_key(key), ttl_ms=encode_ttl(ttl)))


def persist(key: Key) -> pb.Operation:
    return pb.Operation(touch=pb.TouchOperation(key=encode_key(key)))


def rate_limit(rules: Sequence[RateLimit]) -> pb.Operation:
    if not rules:
        raise InvalidArgument("rate_limit takes at least one RateLimit")
    _within("the number of rate limits", "MAX_RATE_LIMITS", limits.MAX_RATE_LIMITS, len(rules))
    operation = pb.RateLimitOperation(limits=[_encode_limit(rule) for rule in rules])
    if len({limit.key for limit in operation.limits}) < len(rules):
        raise InvalidArgument("two of the rate limits have the same key: each needs its own")
    return pb.Operation(rate_limit=operation)


def encode_metadata(metadata: object, key: Key) -> bytes:
    if not isinstance(metadata, bytes):
        raise InvalidArgument(
            f"the metadata of {key!r} is {metadata.__class__.__name__}, not bytes"
        )
    what = f"the metadata of {key!r}"
    _within(what, "MAX_METADATA_BYTES", limits.MAX_METADATA_BYTES, len(metadata))
    return metadata


def encode_index_entries(index_entries: Iterable[IndexEntry], key: Key) -> list[pb.IndexEntry]:
    if not isinstance(index_entries, Iterable):
        raise InvalidArgument(f"the index entries of {key!r} are an iterable of IndexEntry")
    entries = [_encode_index_entry(entry, key) for entry in index_entries]
    what = f"the number of index entries of {key!r}"
    _within(what, "MAX_INDEX_ENTRIES", limits.MAX_INDEX_ENTRIES, len(entries))
    if len({(entry.index, entry.value) for entry in entries}) < len(entries):
        raise InvalidArgument(f"two index entries of {key!r} have the same index and value")
    return entries


def read_result(
    operation: pb.Operation, result: pb.OperationResult, revision: int, codec: Codec[Any]
) -> Any:
    """What the store's method of that name returns; `revision` is that of the transaction."""
    match result.WhichOneof("result"):
        case "get":
            return decode_entry(result.get.record, codec) if result.get.HasField("record") else None
        case "put":
            return revision
        case "delete" if operation.delete.return_previous:
            found = result.delete.deleted
            return decode_entry(result.delete.previous, codec) if found else None
        case "delete":
            return result.delete.deleted
        case "add":
            return Sum(result.add.value, result.add.applied)
        case "list":
            return Page(
                entries=tuple(
                    decode_entry(record, codec, keys_only=operation.list.keys_only)
                    for record in result.list.records
                ),
                cursor=None,
                complete=not result.list.more,
                revision=revision,
            )
        case "delete_range":
            return result.delete_range.deleted
        case "touch":
            return result.touch.touched
        case "rate_limit":
            return read_rate_limit(result.rate_limit)
        case other:
            raise KvorumError(f"the node gave a result that this client does not know: {other}")


def read_rate_limit(result: pb.RateLimitResult) -> RateLimitResult:
    return RateLimitResult(
        allowed=result.allowed,
        states=tuple(
            RateLimitState(
                allowed=state.allowed,
                remaining=state.remaining,
                retry_after=to_seconds(state.retry_after_ms),
                reset_after=to_seconds(state.reset_after_ms),
            )
            for state in result.states
        ),
    )


def written_key(operation: pb.Operation) -> bytes | None:
    """The one key that the operation writes: a branch of a transaction may write a key once."""
    match operation.WhichOneof("operation"):
        case "put":
            return operation.put.key
        case "delete":
            return operation.delete.key
        case "add":
            return operation.add.key
        case "touch":
            return operation.touch.key
        case _:
            return None


def limited_keys(operation: pb.Operation) -> list[bytes]:
    """The keys of its rate limits: a branch may take from each once."""
    return [limit.key for limit in operation.rate_limit.limits]


def check_size(transaction: pb.Transaction) -> None:
    """Raise `LimitExceeded` if it is more than a transaction may be."""
    count = len(transaction.checks) + len(transaction.operations) + len(transaction.otherwise)
    for limit, maximum, actual in (
        ("MAX_TRANSACTION_OPERATIONS", limits.MAX_TRANSACTION_OPERATIONS, count),
        ("MAX_TRANSACTION_BYTES", limits.MAX_TRANSACTION_BYTES, transaction.ByteSize()),
    ):
        if actual > maximum:
            raise LimitExceeded(
                f"the transaction is at {actual} of {maximum} allowed ({limit}): split it",
                limit=limit,
                maximum=maximum,
                actual=actual,
            )


def _encode_index_entry(entry: object, key: Key) -> pb.IndexEntry:
    if not isinstance(entry, IndexEntry):
        raise InvalidArgument(f"an index of {key!r} is {entry!r}, not an IndexEntry")
    name = _encode_index_name(entry.index, key)
    what = f"the size of the name of the index {entry.index[:32]!r}"
    _within(what, "MAX_INDEX_NAME_BYTES", limits.MAX_INDEX_NAME_BYTES, len(name))
    value = encode_bound(entry.value)
    what = f"the size of a value for the index {entry.index!r}"
    _within(what, "MAX_INDEX_VALUE_BYTES", limits.MAX_INDEX_VALUE_BYTES, len(value))
    return pb.IndexEntry(index=entry.index, value=value, unique=bool(entry.unique))


def _encode_index_name(name: object, key: Key) -> bytes:
    if not isinstance(name, str) or not name:
        raise InvalidArgument(
            f"the name of an index of {key!r} is text that is not empty, not {name!r}"
        )
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"the name of the index {name!r} is not valid text: {error}"
        ) from None


def _encode_limit(rule: object) -> pb.RateLimit:
    if not isinstance(rule, RateLimit):
        raise InvalidArgument(f"rate_limit takes RateLimits, not {rule!r}")
    if rule.algorithm not in _ALGORITHMS:
        raise InvalidArgument(
            f"the algorithm of the rate limit {rule.key!r} is one of {', '.join(_ALGORITHMS)}, "
            f"not {rule.algorithm!r}"
        )
    what = f"the limit of {rule.key!r}"
    _count(what, rule.limit, 1)
    if rule.algorithm == "sliding_log":
        what += " (sliding_log; sliding_counter and gcra go further)"
        _within(what, "MAX_SLIDING_LOG_LIMIT", limits.MAX_SLIDING_LOG_LIMIT, rule.limit)
    _within(what, "MAX_RATE_LIMIT", limits.MAX_RATE_LIMIT, rule.limit)
    _count(f"the cost of {rule.key!r}", rule.cost, 0, rule.limit)
    if rule.burst is not None:
        if rule.algorithm != "gcra":
            raise InvalidArgument(f"the rate limit {rule.key!r} has a burst, which gcra alone has")
        _count(f"the burst of {rule.key!r}", rule.burst, 1, rule.limit)
        _count(f"the cost of {rule.key!r} in one burst", rule.cost, 0, rule.burst)
    return pb.RateLimit(
        key=encode_key(rule.key),
        algorithm=_ALGORITHMS[rule.algorithm],
        limit=rule.limit,
        window_ms=encode_window(rule.window),
        cost=rule.cost,
        burst=rule.burst or 0,
        reset=bool(rule.reset),
    )


def _count(what: str, number: object, least: int, most: int | None = None) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise InvalidArgument(f"{what} is an int from {least}, not {number!r}")
    if most is not None and number > most:
        raise InvalidArgument(f"{what} is {number}, which the limit of {most} never has room for")


def _within(what: str, limit: str, maximum: int, actual: int) -> None:
    if actual > maximum:
        raise LimitExceeded(
            f"{what} is {actual:,}; at most {maximum:,} is allowed",
            limit=limit,
            maximum=maximum,
            actual=actual,
        )
