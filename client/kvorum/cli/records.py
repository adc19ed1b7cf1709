"""A key and its value as one line of JSON, exactly.

    {"key": "user:1", "value": {"name": "alice"}}     a value in kvorum's JSON
    {"key": "note", "text": "hello\\n"}                other UTF-8 text
    {"key": "logo", "base64": "iVBORw0KGgo="}         anything else

Rule of this file: what is written is read back to the same bytes. So a stored
value counts as JSON only if encoding it again gives those very bytes; JSON in
another spelling is carried as text.
"""

import base64
import binascii
import contextlib
import json
from dataclasses import dataclass
from typing import Any

from kvorum import codecs
from kvorum.errors import DecodeError, InvalidArgument


@dataclass(frozen=True, slots=True)
class Record:
    """A key and the bytes of its value."""

    key: str
    value: bytes


def describe(record: Record) -> dict[str, Any]:
    """The record as an object for JSON."""
    try:
        text = record.value.decode()
    except UnicodeDecodeError:
        return {"key": record.key, "base64": base64.b64encode(record.value).decode("ascii")}
    with contextlib.suppress(DecodeError, InvalidArgument):
        value = codecs.decode_value(record.value, "json", record.key)
        if codecs.encode_value(value, "json", record.key) == record.value:
            return {"key": record.key, "value": value}
    return {"key": record.key, "text": text}


def format_record(record: Record) -> bytes:
    """The record as one line, with its newline."""
    return dump_line(describe(record))


def parse_record(line: bytes) -> Record:
    """The record of a line.

    Raises:
        InvalidArgument: the line is not a record; the message says what is wrong.
    """
    try:
        content = json.loads(line.rstrip(b"\r\n"))
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {error}") from None
    match content:
        case {"key": str(key), "value": value, **rest} if not rest:
            return Record(key, codecs.encode_value(value, "json", key))
        case {"key": str(key), "text": str(text), **rest} if not rest:
            return Record(key, codecs.encode_value(text, "text", key))
        case {"key": str(key), "base64": str(encoded), **rest} if not rest:
            return Record(key, _decode_base64(encoded))
        case _:
            raise InvalidArgument(
                'a record is {"key": "...", "value": ...}, with "text" or "base64" (strings) in'
                ' place of "value" for what is not JSON, and nothing else'
            )


def dump_line(content: Any) -> bytes:
    """One line of JSON, in UTF-8 as far as it goes: keys may hold bytes that are none."""
    try:
        text = json.dumps(content, ensure_ascii=False)
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(content).encode() + b"\n"


def _decode_base64(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise InvalidArgument(f"base64: {error}") from None
