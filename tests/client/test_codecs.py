"""Keys and values to bytes and back."""

from typing import Any

import pytest

from kvorum import DecodeError, InvalidArgument, LimitExceeded, limits
from kvorum.codecs import (
    ValueType,
    decode_key,
    decode_value,
    encode_bound,
    encode_key,
    encode_value,
)


@pytest.mark.parametrize(
    ("value", "value_type", "data"),
    [
        ({"a": [1, 2.5, None, True]}, "json", b'{"a":[1,2.5,null,true]}'),
        ("Grüße 𝄞", "json", '"Grüße 𝄞"'.encode()),
        (2**100, "json", str(2**100).encode()),
        ("", "json", b'""'),
        ("Grüße", "text", "Grüße".encode()),
        ("", "text", b""),
        (b"\xff\x00", "bytes", b"\xff\x00"),
    ],
)
def test_round_trip(value: Any, value_type: ValueType, data: bytes) -> None:
    assert encode_value(value, value_type, "k") == data
    assert decode_value(data, value_type, "k") == value


def test_bytes_come_from_any_buffer() -> None:
    assert encode_value(bytearray(b"ab"), "bytes", "k") == b"ab"
    assert encode_value(memoryview(b"ab"), "bytes", "k") == b"ab"


def endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "value_type"),
    [
        (object(), "json"),
        (b"bytes", "json"),
        (float("nan"), "json"),
        (float("inf"), "json"),
        (endless(), "json"),
        ("\ud800", "json"),
        (1, "text"),
        ("\ud800", "text"),
        ("text", "bytes"),
        (5, "bytes"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_key(
    value: Any, value_type: ValueType
) -> None:
    with pytest.raises(InvalidArgument, match=f"'the-key' is not valid as {value_type}"):
        encode_value(value, value_type, "the-key")


@pytest.mark.parametrize(
    ("data", "value_type"),
    [
        (b"{", "json"),
        (b"", "json"),
        (b"NaN", "json"),
        (b"[-Infinity]", "json"),
        (b"\xff", "json"),
        (b"\xff", "text"),
        (b"[" * 100_000, "json"),
    ],
)
def test_a_value_of_another_type_is_a_decode_error_with_its_key(
    data: bytes, value_type: ValueType
) -> None:
    with pytest.raises(DecodeError, match=f"'the-key' is not valid as {value_type}") as caught:
        decode_value(data, value_type, "the-key")
    assert caught.value.key == "the-key"


def test_keys_of_any_bytes_come_back_as_they_went() -> None:
    for key in (b"\xff\xfe", b"a\x00b", "ü".encode(), bytes(range(256))):
        assert encode_key(decode_key(key)) == key
        assert encode_key(key) == key


@pytest.mark.parametrize("key", ["", b"", "\ud800", 5, None])
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises(InvalidArgument, match="key"):
        encode_key(key)


def test_a_prefix_may_be_empty() -> None:
    assert encode_bound("") == b""


def test_the_limit_of_a_key() -> None:
    encode_key("k" * limits.MAX_KEY_BYTES)
    with pytest.raises(LimitExceeded) as caught:
        encode_key("k" * (limits.MAX_KEY_BYTES + 1))
    assert caught.value.metadata == {
        "limit": "MAX_KEY_BYTES",
        "maximum": str(limits.MAX_KEY_BYTES),
        "actual": str(limits.MAX_KEY_BYTES + 1),
    }


def test_the_limit_of_a_value() -> None:
    encode_value(bytes(limits.MAX_VALUE_BYTES), "bytes", "k")
    with pytest.raises(LimitExceeded, match="'k' has") as caught:
        encode_value(bytes(limits.MAX_VALUE_BYTES + 1), "bytes", "k")
    assert caught.value.metadata["actual"] == str(limits.MAX_VALUE_BYTES + 1)
