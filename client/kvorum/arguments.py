"""What callers give beside keys and values, checked before anything is sent.

The parameters are objects: a caller without a type checker may give anything.
"""

import math
from typing import Final, Literal, TypedDict

from kvorum import limits
from kvorum.codecs import Key, encode_bound, encode_key
from kvorum.errors import InvalidArgument, InvalidCursor, LimitExceeded
from kvorumpb.v1 import kv_pb2
from kvorumpb.v1.kv_pb2 import GetRequest, ListRequest
from kvorumpb.v1.watch_pb2 import BeginWatch

Consistency = Literal["linearizable", "lease", "stale"]

_CONSISTENCIES: Final[dict[object, kv_pb2.Consistency.ValueType]] = {
    "linearizable": kv_pb2.LINEARIZABLE,
    "lease": kv_pb2.LEASE,
    "stale": kv_pb2.STALE,
}


# What the calls that read take beside what decides the type of their result: so their overloads
# need not repeat it. The last overload of each, and the function, have it in full.


class GetOptions(TypedDict, total=False):
    revision: int | None
    consistency: Consistency
    max_staleness: float | None
    timeout: float | None


class RangeOptions(TypedDict, total=False):
    start: Key | None
    end: Key | None
    limit: int
    cursor: str | None


class ScanOptions(TypedDict, total=False):
    start: Key | None
    end: Key | None
    index: str | None
    value: Key | None
    page_size: int
    reverse: bool
    revision: int | None
    snapshot: bool
    consistency: Consistency
    max_staleness: float | None


class ListOptions(TypedDict, total=False):
    start: Key | None
    end: Key | None
    index: str | None
    value: Key | None
    limit: int
    cursor: str | None
    reverse: bool
    count: bool
    revision: int | None
    snapshot: bool
    consistency: Consistency
    max_staleness: float | None
    timeout: float | None


class WatchOptions(TypedDict, total=False):
    key: Key | None
    start: Key | None
    end: Key | None
    since: int | None
    previous: bool
    puts: bool
    deletes: bool
    expiries: bool
    keys_only: bool


def check_timeout(seconds: object) -> float:
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise InvalidArgument(f"a timeout is a number of seconds above 0, not {seconds!r}")
    return seconds


def check_amount(amount: object) -> int:
    # True is an int to Python, and a mistake here.
    if (
        isinstance(amount, bool)
        or not isinstance(amount, int)
        or not limits.MIN_INTEGER <= amount <= limits.MAX_INTEGER
    ):
        raise InvalidArgument(f"an amount is an int of at most 64 bits, not {amount!r}")
    return amount


def check_revision(revision: object) -> int:
    return check_count("a revision", revision)


def check_count(what: str, number: object) -> int:
    if (
        isinstance(number, bool)
        or not isinstance(number, int)
        or not 0 <= number <= limits.MAX_INTEGER
    ):
        raise InvalidArgument(f"{what} is an int from 0, not {number!r}")
    return number


def check_past_revision(revision: object) -> int:
    """What a read wants for the revision; 0, which is now, for None."""
    if revision is None:
        return 0
    if not isinstance(revision, int) or not 1 <= revision <= limits.MAX_INTEGER:
        raise InvalidArgument(f"the revision to read at is an int from 1, not {revision!r}")
    return revision


def check_index(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"the name of an index is a str that is not empty, not {name!r}")
    return name


def require(request: GetRequest | ListRequest, consistency: object, max_staleness: object) -> None:
    """Write into the request how new its answer has to be."""
    if consistency not in _CONSISTENCIES:
        known = ", ".join(map(str, _CONSISTENCIES))
        raise InvalidArgument(f"a consistency is one of {known}, not {consistency!r}")
    if consistency != "linearizable":
        request.consistency = _CONSISTENCIES[consistency]
    if max_staleness is None:
        return
    if consistency != "stale":
        raise InvalidArgument('max_staleness goes with the consistency "stale" alone')
    if not isinstance(max_staleness, int | float) or not 0 < max_staleness < math.inf:
        raise InvalidArgument(
            f"max_staleness is a number of seconds above 0, not {max_staleness!r}"
        )
    request.max_staleness_ms = max(1, int(max_staleness * 1000))


def check_cursor(cursor: object) -> str:
    """What a request has for it; nothing, which is the first page, for None.

    Raises `InvalidCursor` for what could not even be sent: it may come from anybody.
    """
    if cursor is None:
        return ""
    if not isinstance(cursor, str):
        raise InvalidCursor(f"the cursor is text, not {cursor.__class__.__name__}")
    if not cursor.isascii():
        raise InvalidCursor(
            "the cursor is none: pass on that of the page before exactly as it came, or start "
            "again without"
        )
    return cursor


def check_limit(limit: object) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidArgument(f"the limit of a page is an int from 1, not {limit!r}")
    if limit > limits.MAX_PAGE_RECORDS:
        raise LimitExceeded(
            f"the limit of a page is {limit}; at most {limits.MAX_PAGE_RECORDS} entries are "
            "allowed: go on with the page's cursor, or use scan",
            limit="MAX_PAGE_RECORDS",
            maximum=limits.MAX_PAGE_RECORDS,
            actual=limit,
        )
    return limit


def select(
    request: ListRequest,
    prefix: Key,
    *,
    start: Key | None,
    end: Key | None,
    index: str | None,
    value: Key | None,
) -> None:
    """Write what to list into the request: keys, or values of an index.

    A prefix, or a range; or of an index, one value.
    """
    if index is not None:
        request.index.index = check_index(index)
    if value is not None:
        if index is None:
            raise InvalidArgument("a value is one of an index: name the index")
        if prefix or start is not None or end is not None:
            raise InvalidArgument("a list by index has a value, or a prefix, or a start and an end")
        request.index.value = encode_bound(value)
        return
    target = request if index is None else request.index
    if start is None and end is None:
        if prefix or index is None:
            target.prefix = encode_bound(prefix)
        return
    if prefix:
        raise InvalidArgument("a list has a prefix, or a start and an end, but not both")
    target.range.start = b"" if start is None else encode_bound(start)
    target.range.end = b"" if end is None else encode_bound(end)
    if end is not None and target.range.end <= target.range.start:
        raise InvalidArgument(
            f"the range is empty: its end {end!r} is not after its start {start!r}"
        )


def select_watched(
    begin: BeginWatch, prefix: Key, key: Key | None, start: Key | None, end: Key | None
) -> None:
    """Write what to watch into the request: a key, a prefix, or a range."""
    is_range = start is not None or end is not None
    if (key is not None) + is_range + bool(prefix) > 1:
        raise InvalidArgument("a watch has a prefix, or a key, or a start and an end: give one")
    if key is not None:
        begin.key = encode_key(key)
    elif not is_range:
        begin.prefix = encode_bound(prefix)
    else:
        begin.range.start = b"" if start is None else encode_bound(start)
        begin.range.end = b"" if end is None else encode_bound(end)
        if end is not None and begin.range.end <= begin.range.start:
            raise InvalidArgument(
                f"the range is empty: its end {end!r} is not after its start {start!r}"
            )
