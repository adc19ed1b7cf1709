"""Keys and values between Python and bytes.

The store keeps bytes. A value type says what they mean to the program:

    "json"       any JSON value; compact UTF-8, no NaN or infinity     (the default)
    "text"       str, as UTF-8
    "bytes"      bytes, as they are
    "msgpack"    MessagePack: JSON values, bytes, and times with a zone
    a class      a pydantic or msgspec model, as JSON that is checked when it is read
    a `Codec`    whatever the program wants

Errors about a value name its key, and never show the value, nor an error that does.

Keys are UTF-8 with surrogateescape (as `os.fsencode` does it), so that every
key of bytes has a str of its own and comes back as it went in.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import repeat
from typing import Any, Final, Generic, Literal, NoReturn, TypeAlias, TypeVar

from kvorum import limits
from kvorum.entry import Entry, IndexEntry, Page, instant
from kvorum.errors import DecodeError, InvalidArgument, LimitExceeded
from kvorum.value_models import Unfit, model_of
from kvorumpb.v1.command_pb2 import Record
from kvorumpb.v1.kv_pb2 import ListResponse

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)  # no slots: Codec[User](...) could not be called with them
class Codec(Generic[T]):
    """How values of a type are written and read: for `type`, where no built-in one will do.

        users = Codec("users", adapter.dump_json, adapter.validate_json)
        await kv.put("users", [alice, bob], type=users)

    Whatever `encode` raises is `InvalidArgument`, whatever `decode` raises is `DecodeError`. They
    name the class of the error, and not its text, which may show the value.
    """

    name: str
    """What errors call the type."""

    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


ValueType: TypeAlias = Literal["json", "text", "bytes", "msgpack"] | type[Any] | Codec[Any]
"""How a value is written and read."""

Typed: TypeAlias = type[T] | Codec[T]
"""A value type from which a type checker knows what is read."""

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


def codec_of(value_type: object) -> Codec[Any]:
    """Raise `InvalidArgument` for what is no value type, or needs a library that is missing."""
    match value_type:
        case Codec():
            return value_type
        case "msgpack":
            return _msgpack()
        case str() if value_type in _CODECS:
            return _CODECS[value_type]
        case type() if (codec := _codec_of_model(value_type)) is not None:
            return codec
    raise InvalidArgument(
        'type is "json", "text", "bytes", "msgpack", a pydantic or msgspec model, or a '
        f"kvorum.Codec, not {value_type!r}"
    )


def encode_value(value: Any, codec: Codec[Any], key: Key) -> bytes:
    """Raise `InvalidArgument` or `LimitExceeded`, naming the key, if it cannot be stored."""
    try:
        data: object = codec.encode(value)
    except Exception as error:  # noqa: BLE001 - whatever a codec raises is about the value
        reason = _reason(error)
    else:
        if isinstance(data, bytes):
            return _check_size(data, key)
        reason = f"its codec made {data.__class__.__name__} of it, not bytes"
    # Out here, as the error of the codec may show the value, and is not to come along.
    raise InvalidArgument(f"the value for {key!r} is not valid as {codec.name}: {reason}")


def decode_value(data: bytes, codec: Codec[T], key: str) -> T:
    """Raise `DecodeError`, naming the key, if the value is not of the type."""
    try:
        return codec.decode(data)
    except Exception as error:  # noqa: BLE001 - as above
        reason = _reason(error)
    raise DecodeError(
        f"the value of {key!r} is not valid as {codec.name}: {reason}", key=key, type=codec.name
    )


def decode_entry(
    record: Record,
    codec: Codec[Any],
    *,
    keys_only: bool = False,
    index_value: bytes | None = None,
) -> Entry[Any]:
    """Read a record as it came from the store. Raise `DecodeError` like `decode_value`."""
    key = decode_key(record.key)
    return Entry(
        key=key,
        value=None if keys_only else decode_value(record.value, codec, key),
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


def decode_page(response: ListResponse, codec: Codec[Any], *, keys_only: bool) -> Page[Any]:
    """Read a page as it came from the store. Raise `DecodeError` like `decode_value`."""
    values: Iterable[bytes | None] = response.index_values or repeat(None)
    return Page(
        entries=tuple(
            decode_entry(record, codec, keys_only=keys_only, index_value=value)
            for record, value in zip(response.records, values, strict=False)
        ),
        cursor=response.next_page_token or None,
        complete=not response.next_page_token,
        revision=response.revision,
        count=response.count if response.HasField("count") else None,
        at=instant(response.now_ms),
    )


def _check_size(data: bytes, key: Key) -> bytes:
    if len(data) > limits.MAX_VALUE_BYTES:
        raise LimitExceeded(
            f"the value for {key!r} has {len(data)} bytes; at most {limits.MAX_VALUE_BYTES} "
            "are allowed: store what changes separately under keys of its own, and what must "
            "stay together in chunks, with kvorum.patterns.chunked",
            limit="MAX_VALUE_BYTES",
            maximum=limits.MAX_VALUE_BYTES,
            actual=len(data),
        )
    return data


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Unfit) else error.__class__.__name__


def _telling(work: Callable[[A], B]) -> Callable[[A], B]:
    """For what is built in: the errors of json, msgpack and str do not show the value."""

    def working(given: A) -> B:
        try:
            return work(given)
        except (ArithmeticError, RecursionError, TypeError, ValueError) as error:
            raise Unfit(str(error) or error.__class__.__name__) from None

    return working


def _plain(value: Any) -> Any:
    """What json and msgpack write for what they do not know: for a model, its JSON."""
    model = model_of(value.__class__)
    if model is None:
        raise Unfit(f"it cannot hold {value.__class__.__name__}")
    return model.to_plain(value)


_SEQUENCES: Final = (list, tuple)


def _check_keys(value: Any) -> None:
    """json makes text of other keys, without a word, and msgpack does not read them again."""
    waiting: list[Iterable[Any]] = [(value,)]
    while waiting:
        for one in waiting.pop():
            if isinstance(one, dict):
                for key in one:
                    if not isinstance(key, str):
                        raise Unfit(f"the keys of a dict are str, not {key.__class__.__name__}")
                waiting.append(one.values())
            elif isinstance(one, _SEQUENCES):
                waiting.append(one)


_write_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
).encode


@_telling
def _encode_json(value: Any) -> bytes:
    data = _write_json(value).encode()
    _check_keys(value)  # now that it is known to end
    return data


@_telling
def _encode_text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise Unfit(f"it is {value.__class__.__name__}, not str")
    return value.encode()


def _encode_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise Unfit(f"it is {value.__class__.__name__}, not bytes")
    return bytes(value)


def _refuse_constant(name: str) -> NoReturn:
    raise Unfit(f"{name} is not JSON")


_read_json = json.JSONDecoder(parse_constant=_refuse_constant).decode


@_telling
def _decode_json(data: bytes) -> Any:
    return _read_json(data.decode())


JSON: Final[Codec[Any]] = Codec("json", _encode_json, _decode_json)
TEXT: Final[Codec[str]] = Codec("text", _encode_text, _telling(bytes.decode))
BYTES: Final[Codec[bytes]] = Codec("bytes", _encode_bytes, bytes)

_CODECS: Final[dict[str, Codec[Any]]] = {codec.name: codec for codec in (JSON, TEXT, BYTES)}


@cache
def _msgpack() -> Codec[Any]:
    try:
        import msgpack  # noqa: PLC0415 - an extra, and not needed by most
    except ModuleNotFoundError:
        raise InvalidArgument(
            "type=\"msgpack\" needs the library msgpack: pip install 'kvorum[msgpack]'"
        ) from None

    @_telling
    def encode(value: Any) -> bytes:
        data: bytes = msgpack.packb(value, datetime=True, default=_plain)
        _check_keys(value)
        return data

    @_telling
    def decode(data: bytes) -> Any:
        return msgpack.unpackb(data, timestamp=3)

    return Codec("msgpack", encode, decode)


@lru_cache(maxsize=1024)
def _codec_of_model(kind: type) -> Codec[Any] | None:
    model = model_of(kind)
    if model is None:
        return None

    def encode(value: Any) -> bytes:
        if not isinstance(value, kind):
            raise Unfit(f"it is {value.__class__.__name__}")
        return _encode_json(value)

    return Codec(kind.__name__, encode, model.from_json)
