"""Ranges of keys: what a caller may give, and what travels."""

from kvorum import limits
from kvorum.codecs import Key, decode_key, encode_bound
from kvorum.errors import InvalidArgument, LimitExceeded
from kvorumpb.v1.command_pb2 import KeyRange


def encode_range(prefix: Key, start: Key | None, end: Key | None) -> KeyRange:
    """The keys that begin with `prefix`, or those from `start` (included) to `end` (excluded).

    Raises `InvalidArgument` if both are given, or if the range is empty, and `LimitExceeded`.
    """
    if start is None and end is None:
        first = _bound(prefix)
        return KeyRange(start=first, end=prefix_end(first))
    if prefix:
        raise InvalidArgument("give a prefix, or a start and an end, but not both")
    selected = KeyRange(
        start=b"" if start is None else _bound(start), end=b"" if end is None else _bound(end)
    )
    if end is not None and selected.end <= selected.start:
        raise InvalidArgument(
            f"the range is empty: its end {end!r} is not after its start {start!r}"
        )
    return selected


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with the prefix; empty if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b""


def contains(selected: KeyRange, key: bytes) -> bool:
    return selected.start <= key and (not selected.end or key < selected.end)


def describe_range(selected: KeyRange) -> str:
    start, end = decode_key(selected.start), decode_key(selected.end)
    if not selected.end:
        return f"the range from {start!r}" if start else "the range of all keys"
    return f"the range from {start!r} to {end!r}"


def _bound(key: Key) -> bytes:
    data = encode_bound(key)
    if len(data) > limits.MAX_KEY_BYTES:
        raise LimitExceeded(
            f"the bound {data[:32]!r}... has {len(data)} bytes; at most {limits.MAX_KEY_BYTES} "
            "are allowed, as in a key",
            limit="MAX_KEY_BYTES",
            maximum=limits.MAX_KEY_BYTES,
            actual=len(data),
        )
    return data
