"""A record is one line of JSON, and comes back as the bytes it was."""

import json
import random

import pytest

from kvorum import IndexEntry
from kvorum.cli.records import Record, format_record, parse_record
from kvorum.errors import InvalidArgument


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (b'{"name":"alice"}', "value"),
        (b"-7", "value"),
        (b"null", "value"),
        ('"é\u2028"'.encode(), "value"),
        (b'{"a": 1}', "text"),  # JSON, but not as kvorum writes it
        (b'{"a":1,"a":2}', "text"),
        (b"1e400", "text"),
        (b"NaN", "text"),
        (b'"\\ud800"', "text"),
        (b"[" * 100_000, "text"),
        (b"hello\n\x00", "text"),
        (b"", "text"),
        (b"\xff\xfe", "base64"),
    ],
)
def test_a_value_takes_the_most_readable_form_that_is_exact(value: bytes, field: str) -> None:
    record = Record("key", value)
    line = format_record(record)
    assert set(json.loads(line)) == {"key", field}
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_record(line) == record


def test_what_is_beside_the_value_comes_back() -> None:
    entries = (IndexEntry("email", "a@b", unique=True), IndexEntry("raw", "\udcff"))
    record = Record("k", b"1", 0.001, b"\0\xff", entries)
    line = format_record(record)
    assert parse_record(line) == record
    assert json.loads(line) == {
        "key": "k",
        "value": 1,
        "ttl": 0.001,
        "metadata_base64": "AP8=",
        "index_entries": [
            {"index": "email", "value": "a@b", "unique": True},
            {"index": "raw", "value": "\udcff", "unique": False},
        ],
    }


def test_what_is_not_said_is_not_there() -> None:
    assert parse_record(b'{"key": "a", "value": 1}') == Record("a", b"1", None, b"", ())
    line = b'{"key": "a", "value": 1, "index_entries": [{"index": "i", "value": "v"}]}'
    assert parse_record(line).index_entries == (IndexEntry("i", "v"),)


@pytest.mark.parametrize("key", ["a", "ключ", "line\nbreak", "tab\t", "\udcff\udc80 no UTF-8"])
def test_every_key_comes_back(key: str) -> None:
    assert parse_record(format_record(Record(key, b"1"))).key == key


def test_random_bytes_come_back() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        record = Record("k", bytes(chance.choices(b'{}[]":,\\u0123eE.+- \nabn\xc3\xa9', k=6)))
        assert parse_record(format_record(record)) == record


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "not JSON: Expecting value at column 1"),
        (b"\n", "not JSON"),
        (b'{"key": "a", "value": 1', "not JSON"),
        (b'{"key": "\xff"}', "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "a record is"),
        (b'{"key": "a"}', "a record is"),
        (b'{"key": 1, "value": 1}', "a record is"),
        (b'{"value": 1}', "a record is"),
        (b'{"key": "a", "value": 1, "text": "b"}', "a record is"),
        (b'{"key": "a", "ttl": 3}', "a record is"),
        (b'{"key": "a", "value": 1, "lease": 3}', "a record is"),
        (b'{"key": "a", "text": 1}', "not valid as text: it is int"),
        (b'{"key": "a", "base64": 1}', "base64 is a string, not int"),
        (b'{"key": "a", "base64": "\xc3\xa9"}', "base64: "),
        (b'{"key": "a", "value": 1, "ttl": 0}', "ttl is a number of seconds"),
        (b'{"key": "a", "value": 1, "ttl": "3"}', "ttl is a number of seconds"),
        (b'{"key": "a", "value": 1, "ttl": 1e99}', "ttl is 1e"),
        (b'{"key": "a", "value": 1, "metadata_base64": null}', "metadata_base64 is a string"),
        (b'{"key": "a", "value": 1, "metadata_base64": "?"}', "metadata_base64: "),
        (b'{"key": "a", "value": 1, "index_entries": {}}', "index_entries is a list"),
        (b'{"key": "a", "value": 1, "index_entries": ["a"]}', "an index entry is"),
        (b'{"key": "a", "value": 1, "index_entries": [{"index": "i"}]}', "an index entry is"),
        (
            b'{"key": "a", "value": 1, "index_entries": [{"index":"i","value":"","unique":1}]}',
            "an index entry is",
        ),
        (b'{"key": "a", "base64": "?"}', "base64"),
        (b'{"key": "a", "value": NaN}', "not valid as json"),
        (b'{"key": "a", "value": "\\ud800"}', "not valid as json"),
    ],
)
def test_what_is_no_record_is_refused_with_a_reason(line: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_record(line)
