"""Keys and values between Python and bytes.

The store keeps bytes. A value type says what they mean to the program:

    json    any JSON value; compact UTF-8, no NaN or infinity     (the default)
    text    str, as UTF-8
    bytes   bytes, as they are

Keys are UTF-8 with surrogateescape (as `os.fsencode` does it), so that every
key of bytes has a str of its own and comes back as it went in.
"""

import json
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Final, Literal, NoReturn

from kvorum import limits
from kvorum.entry import Entry, IndexEntry, Page, instant
from kvorum.errors import DecodeError, InvalidArgument, LimitExceeded
from kvorumpb.v1.command_pb2 import Record
from kvorumpb.v1.kv_pb2 import ListResponse

ValueType = Literal["json", "text", "bytes"]
"""How a value is written and read."""

Key = str | bytes
"""A key; str is encoded."""


def encode_key(key: Key) -> bytes:
    """Raise `InvalidArgument` or `LimitExceeded` if it is no key."""
    data = encode_bound(key)
    if not data:
        raise InvalidArgument("a key cannot be empty")
    if len(data) > limits.MAX_KEY_BYTES:
        raise LimitExceeded(
            f"the key {data[:32]!r}... has {len(data)} bytes; at most {limits.MAX_KEY_BYTES} "
            "are allowed: keep what is long in the value",
            limit="MAX_KEY_BYTES",
            maximum=limits.MAX_KEY_BYTES,
            actual=len(data),
        )
    return data


def encode_bound(key: Key) -> bytes:
    """Encode a prefix or an end of a range: like a key, but it may be empty."""
    if isinstance(key, str):
        try:
            return key.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"the key {key!r} is not valid text: {error}") from None
    if isinstance(key, bytes):
        return key
    raise InvalidArgument(f"a key is str or bytes, not {type(key).__name__}")


def decode_key(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def check_type(value_type: ValueType) -> ValueType:
    if value_type not in _ENCODERS:
        raise InvalidArgument(f'type is "json", "text" or "bytes", not {value_type!r}')
    return value_type


def encode_value(value: Any, value_type: ValueType, key: Key) -> bytes:
    """Raise `InvalidArgument` or `LimitExceeded`, naming the key, if it cannot be stored."""
    try:
        data = _ENCODERS[value_type](value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"the value for {key!r} is not valid as {value_type}: {error}"
        ) from error
    if len(data) > limits.MAX_VALUE_BYTES:
        raise LimitExceeded(
            f"the value for {key!r} has {len(data)} bytes; at most {limits.MAX_VALUE_BYTES} "
            "are allowed: store what changes separately under keys of its own",
            limit="MAX_VALUE_BYTES",
            maximum=limits.MAX_VALUE_BYTES,
            actual=len(data),
        )
    return data


def decode_value(data: bytes, value_type: ValueType, key: str) -> Any:
    """Raise `DecodeError`, naming the key, if the value is not of the type."""
    try:
        return _DECODERS[value_type](data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(
            f"the value of {key!r} is not valid as {value_type}: {error}", key=key, type=value_type
        ) from error


def decode_entry(
    record: Record,
    value_type: ValueType,
    *,
    keys_only: bool = False,
    index_value: bytes | None = None,
) -> Entry[Any]:
    """Read a record as it came from the store. Raise `DecodeError` like `decode_value`."""
    key = decode_key(record.key)
    return Entry(
        key=key,
        value=None if keys_only else decode_value(record.value, value_type, key),
        revision=record.revision,
        created_revision=record.created_revision,
        version=record.version,
        updated_at=instant(record.update_time_ms),
        expires_at=instant(record.expire_time_ms) if record.expire_time_ms else None,
        metadata=record.metadata,
        index_entries=tuple(
            IndexEntry(entry.index, decode_key(entry.value), entry.unique)
            for entry in record.index_entries
        ),
        index_value=None if index_value is None else decode_key(index_value),
    )


def decode_page(response: ListResponse, value_type: ValueType, *, keys_only: bool) -> Page[Any]:
    """Read a page as it came from the store. Raise `DecodeError` like `decode_value`."""
    values: Iterable[bytes | None] = response.index_values or repeat(None)
    return Page(
        entries=tuple(
            decode_entry(record, value_type, keys_only=keys_only, index_value=value)
            for record, value in zip(response.records, values, strict=False)
        ),
        cursor=response.next_page_token or None,
        complete=not response.next_page_token,
        revision=response.revision,
        count=response.count if response.HasField("count") else None,
        at=instant(response.log_time_ms),
    )


_write_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _encode_json(value: Any) -> bytes:
    return _write_json(value).encode()


def _encode_text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"it is {value.__class__.__name__}, not str")
    return value.encode()


def _encode_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"it is {value.__class__.__name__}, not bytes")
    return bytes(value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_read_json = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _decode_json(data: bytes) -> Any:
    return _read_json(data.decode())


_ENCODERS: Final[dict[ValueType, Callable[[Any], bytes]]] = {
    "json": _encode_json,
    "text": _encode_text,
    "bytes": _encode_bytes,
}

_DECODERS: Final[dict[ValueType, Callable[[bytes], Any]]] = {
    "json": _decode_json,
    "text": bytes.decode,
    "bytes": bytes,
}
