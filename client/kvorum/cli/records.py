"""A record as one line of JSON, exactly.

    {"key": "user:1", "value": {"name": "alice"}}     a value in kvorum's JSON
    {"key": "note", "text": "hello\\n"}                other UTF-8 text
    {"key": "logo", "base64": "iVBORw0KGgo="}         anything else

and what most records do not have:

    "ttl": 299.5                                      the seconds that are left, from when the line
                                                      is written, or imported
    "metadata_base64": "AAE="
    "index_entries": [{"index": "email", "value": "a@b", "unique": true}]

Rule of this file: what is written is read back to the same bytes. So a stored
value counts as JSON only if encoding it again gives those very bytes; JSON in
another spelling is carried as text.
"""

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from kvorum import codecs
from kvorum.durations import encode_ttl
from kvorum.entry import Entry, IndexEntry
from kvorum.errors import DecodeError, InvalidArgument

_VALUES: Final = {"value", "text", "base64"}
_NAMES: Final = {"key", "ttl", "metadata_base64", "index_entries"} | _VALUES


@dataclass(frozen=True, slots=True)
class Record:
    """A key, the bytes of its value, and what is kept with them."""

    key: str
    value: bytes
    ttl: float | None = None
    """The seconds that are left; None is for ever."""
    metadata: bytes = b""
    index_entries: tuple[IndexEntry, ...] = ()


def of_entry(entry: Entry[bytes], at: datetime | None) -> Record:
    """What the entry is, with the time that is left to it at a log time, if one is given."""
    ttl = None
    if at is not None and entry.expires_at is not None:
        ttl = (entry.expires_at - at).total_seconds()
    return Record(entry.key, entry.value, ttl, entry.metadata, entry.index_entries)


def describe(record: Record) -> dict[str, Any]:
    """The record as an object for JSON."""
    content = {"key": record.key, **_describe_value(record)}
    if record.ttl is not None:
        content["ttl"] = record.ttl
    if record.metadata:
        content["metadata_base64"] = _encode_base64(record.metadata)
    if record.index_entries:
        content["index_entries"] = [
            {"index": one.index, "value": one.value, "unique": one.unique}
            for one in record.index_entries
        ]
    return content


def format_record(record: Record) -> bytes:
    """The record as one line, with its newline."""
    return dump_line(describe(record))


def parse_record(line: bytes) -> Record:
    """The record of a line.

    Raises:
        InvalidArgument: the line is not a record; the message says what is wrong.
    """
    try:
        content: Any = json.loads(line.rstrip(b"\r\n"))
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {error}") from None
    match content:
        case {"key": str(key)} if content.keys() <= _NAMES and len(content.keys() & _VALUES) == 1:
            ttl = content.get("ttl")
            encode_ttl(ttl)  # refuses what is none
            return Record(
                key,
                _parse_value(key, content),
                ttl,
                _decode_base64("metadata_base64", content.get("metadata_base64", "")),
                tuple(_parse_index_entries(content.get("index_entries", []))),
            )
        case _:
            raise InvalidArgument(
                'a record is {"key": "...", "value": ...}, with "text" or "base64" (strings) in'
                ' place of "value" for what is not JSON; it may have "ttl", "metadata_base64" and'
                ' "index_entries", and nothing else'
            )


def dump_line(content: Any) -> bytes:
    """One line of JSON, in UTF-8 as far as it goes: keys may hold bytes that are none."""
    try:
        text = json.dumps(content, ensure_ascii=False)
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(content).encode() + b"\n"


def _describe_value(record: Record) -> dict[str, Any]:
    try:
        text = record.value.decode()
    except UnicodeDecodeError:
        return {"base64": _encode_base64(record.value)}
    with contextlib.suppress(DecodeError, InvalidArgument):
        value = codecs.decode_value(record.value, codecs.JSON, record.key)
        if codecs.encode_value(value, codecs.JSON, record.key) == record.value:
            return {"value": value}
    return {"text": text}


def _parse_value(key: str, content: dict[str, Any]) -> bytes:
    if "value" in content:
        return codecs.encode_value(content["value"], codecs.JSON, key)
    if "text" in content:
        return codecs.encode_value(content["text"], codecs.TEXT, key)
    return _decode_base64("base64", content["base64"])


def _parse_index_entries(content: object) -> Iterator[IndexEntry]:
    if not isinstance(content, list):
        raise InvalidArgument(f"index_entries is a list, not {content.__class__.__name__}")
    for one in content:
        match one:
            case {"index": str(index), "value": str(value), "unique": bool(unique), **rest} if (
                not rest
            ):
                yield IndexEntry(index, value, unique)
            case {"index": str(index), "value": str(value), **rest} if not rest:
                yield IndexEntry(index, value)
            case _:
                raise InvalidArgument(
                    'an index entry is {"index": "...", "value": "...", "unique": true or false},'
                    ' without "unique" false, and nothing else'
                )


def _encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode_base64(name: str, encoded: object) -> bytes:
    if not isinstance(encoded, str):
        raise InvalidArgument(f"{name} is a string, not {encoded.__class__.__name__}")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise InvalidArgument(f"{name}: {error}") from None
