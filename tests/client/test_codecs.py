"""Keys and values to bytes and back."""

import math
import sys
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import msgspec
import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, computed_field, field_validator

from kvorum import Codec, DecodeError, InvalidArgument, LimitExceeded, codecs, limits
from kvorum.codecs import (
    BYTES,
    JSON,
    ValueType,
    codec_of,
    decode_key,
    decode_value,
    encode_bound,
    encode_key,
    encode_value,
)


class User(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    age: int
    tags: dict[str, str] = {}
    score: float = 0.0
    home_town: str | None = Field(default=None, alias="homeTown")
    code: str = "x"

    @field_validator("code")
    @classmethod
    def check(cls, code: str) -> str:
        if code == "x-raises":
            raise KeyError("secret")
        if not code.startswith("x"):
            raise ValueError(f"{code} does not begin with x")
        return code

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def is_adult(self) -> bool:
        return self.age >= 18


class Colour(Enum):
    RED = "red"


class Point(msgspec.Struct, forbid_unknown_fields=True):
    x: float
    y: float
    colour: Colour = Colour.RED
    sizes: dict[str, int] = {}


@pydantic.dataclasses.dataclass
class Pair:
    left: str
    right: int


NUMBERS = {"one": b"1"}
OWN = Codec[str]("own", NUMBERS.__getitem__, lambda data: {b"1": "one"}[data])

BUILT_IN: list[tuple[Any, ValueType, bytes]] = [
    ({"a": [1, 2.5, None, True]}, "json", b'{"a":[1,2.5,null,true]}'),
    ("Grüße 𝄞", "json", '"Grüße 𝄞"'.encode()),
    (2**100, "json", str(2**100).encode()),
    ("", "json", b'""'),
    ("Grüße", "text", "Grüße".encode()),
    ("", "text", b""),
    (b"\xff\x00", "bytes", b"\xff\x00"),
    ({"a": [1, b"b", None]}, "msgpack", b"\x81\xa1a\x93\x01\xc4\x01b\xc0"),
    (datetime(2026, 1, 2, tzinfo=UTC), "msgpack", b"\xd6\xff\x69\x57\x0a\x80"),
]


@pytest.mark.parametrize(("value", "value_type", "data"), BUILT_IN)
def test_round_trip(value: Any, value_type: ValueType, data: bytes) -> None:
    codec = codec_of(value_type)
    assert encode_value(value, codec, "k") == data
    assert decode_value(data, codec, "k") == value


def test_bytes_come_from_any_buffer() -> None:
    assert encode_value(bytearray(b"ab"), BYTES, "k") == b"ab"
    assert encode_value(memoryview(b"ab"), BYTES, "k") == b"ab"


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
        ({1: "a"}, "json"),
        ([{"a": ({None: 1},)}], "json"),
        ({("a", "b"): 1}, "json"),
        (datetime(2026, 1, 1), "json"),  # noqa: DTZ001 - a naive one is the point
        (datetime(2026, 1, 1, tzinfo=UTC), "json"),
        (1, "text"),
        ("\ud800", "text"),
        ("text", "bytes"),
        (5, "bytes"),
        (object(), "msgpack"),
        (2**64, "msgpack"),
        (endless(), "msgpack"),
        ("\ud800", "msgpack"),
        ({1: "a"}, "msgpack"),
        ([{"at": datetime(2026, 1, 1)}], "msgpack"),  # noqa: DTZ001 - as above
        ({"name": "a"}, User),
        (Point(1, 2), User),
        (User.model_construct(name="secret", age="secret"), User),
        (User(name="a", age=1, score=math.nan), User),
        (User(name="\ud800", age=1), User),
        (Point(math.nan, 1), Point),
        (Point("\ud800", 1), Point),  # type: ignore[arg-type]  # msgspec does not look
        ({"a": [Point(math.inf, 1)]}, "json"),
        ("secret", OWN),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_key(
    value: Any, value_type: ValueType
) -> None:
    codec = codec_of(value_type)
    with pytest.raises(InvalidArgument, match=f"'the-key' is not valid as {codec.name}") as caught:
        encode_value(value, codec, "the-key")
    tells_no_more_than_it_says(caught.value)


@pytest.mark.parametrize(
    ("data", "value_type"),
    [
        (b"{secret", "json"),
        (b"", "json"),
        (b"NaN", "json"),
        (b"[-Infinity]", "json"),
        (b"\xff", "json"),
        (b"\xff", "text"),
        (b"[" * 100_000, "json"),
        (b"1" * 5_000, "json"),
        (b"", "msgpack"),
        (b"\xc1", "msgpack"),
        (b"\x01secret", "msgpack"),
        (b"\xa1\xff", "msgpack"),
        (b"\x81\x01\x02", "msgpack"),
        (b"\x91" * 10_000, "msgpack"),
        (b"\xc7\x0c\xff" + b"\xff" * 12, "msgpack"),
        (b"secret", User),
        (b'{"name": "secret"}', User),
        (b'{"name": "a", "age": "secret"}', User),
        (b'{"name": "a", "age": 1, "tags": {"secret": 1}}', User),
        (b'{"name": "a", "age": 1, "secret": 2}', User),
        (b'{"name": "a", "age": 1, "code": "secret"}', User),
        (b'{"name": "secret", "age": 1, "code": "x-raises"}', User),
        (b"secret", Point),
        (b'{"x": "secret"}', Point),
        (b'{"x": 1, "y": 2, "colour": "secret"}', Point),
        (b'{"x": 1, "y": 2, "secret": 1}', Point),
        (b'{"x": 1, "y": 2, "sizes": {"secret": "secret"}}', Point),
        (b"secret", OWN),
    ],
)
def test_a_value_of_another_type_is_a_decode_error_with_its_key(
    data: bytes, value_type: ValueType
) -> None:
    codec = codec_of(value_type)
    with pytest.raises(DecodeError, match=f"'the-key' is not valid as {codec.name}") as caught:
        decode_value(data, codec, "the-key")
    assert caught.value.key == "the-key"
    assert caught.value.metadata["type"] == codec.name
    tells_no_more_than_it_says(caught.value)


def tells_no_more_than_it_says(error: BaseException) -> None:
    """What a log would have of it: the text, and all that it was raised from or beside."""
    assert error.__cause__ is None
    assert error.__context__ is None
    assert "secret" not in "".join(traceback.format_exception_only(error))


def test_an_error_says_what_is_wrong_and_where() -> None:
    def reason(data: bytes, value_type: ValueType) -> str:
        codec = codec_of(value_type)
        with pytest.raises(DecodeError) as caught:
            decode_value(data, codec, "k")
        return str(caught.value).partition(f"is not valid as {codec.name}: ")[2]

    assert reason(b'{"age": "?", "tags": {"?": 1}}', User) == (
        "age: int_parsing, name: missing, tags: string_type"
    )
    assert reason(b'{"name": "a", "age": 1, "?": 2}', User) == "extra_forbidden"
    assert reason(b'{"x": 1}', Point) == "Object missing required field `y`"
    assert reason(b'{"x": "?", "y": 1}', Point) == "Expected `float`, got `str` - at `$.x`"
    assert reason(b'{"x": 1, "y": 1, "colour": "?"}', Point) == "invalid at `$.colour`"
    assert reason(b"?", Point) == "it is not JSON"
    assert reason(b"[1,]", "json").startswith("Expecting value: line 1 column 4")


@pytest.mark.parametrize(
    "value",
    [
        User(name="alice", age=7, tags={"a": "b"}),
        User.model_validate({"name": "alice", "age": 7, "homeTown": "Rome"}),
        Point(1, 2.5, Colour.RED, {"a": 1}),
        Pair("a", 1),
    ],
)
def test_a_model_comes_back_as_it_was(value: Any) -> None:
    codec = codec_of(type(value))
    data = encode_value(value, codec, "k")
    assert decode_value(data, codec, "k") == value
    assert encode_value(value, JSON, "k") == data, "a model needs no type to be written"
    assert decode_value(data, JSON, "k") is not None


def test_models_may_be_parts_of_a_value() -> None:
    value = {"user": User(name="a", age=1), "at": [Point(1, 2)]}
    plain = {
        "user": {"name": "a", "age": 1, "tags": {}, "score": 0.0, "homeTown": None, "code": "x"},
        "at": [{"x": 1.0, "y": 2.0, "colour": "red", "sizes": {}}],
    }
    assert decode_value(encode_value(value, JSON, "k"), JSON, "k") == plain
    msgpack = codec_of("msgpack")
    assert decode_value(encode_value(value, msgpack, "k"), msgpack, "k") == plain


def test_a_kind_of_a_model_is_written_whole() -> None:
    class Admin(Point):
        level: int = 3

    assert b'"level":3' in encode_value(Admin(1, 2), codec_of(Point), "k")


class NoModel:
    pass


@dataclass
class Plain:
    name: str


@pytest.mark.parametrize("value_type", ["xml", "", None, 1, int, Plain, NoModel, dict[str, int]])
def test_what_is_no_value_type_is_refused(value_type: Any) -> None:
    with pytest.raises(InvalidArgument, match='type is "json"'):
        codec_of(value_type)


def test_a_codec_of_ones_own() -> None:
    adapter = TypeAdapter(list[User])
    users = Codec(
        "users",
        lambda users: adapter.dump_json(users, by_alias=True, round_trip=True),
        adapter.validate_json,
    )
    value = [User(name="a", age=1)]
    assert decode_value(encode_value(value, users, "k"), codec_of(users), "k") == value


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    codecs._msgpack.cache_clear()
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'kvorum\[msgpack\]'"):
        codec_of("msgpack")


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
    encode_value(bytes(limits.MAX_VALUE_BYTES), BYTES, "k")
    with pytest.raises(LimitExceeded, match=r"'k' has .* kvorum\.patterns\.chunked") as caught:
        encode_value(bytes(limits.MAX_VALUE_BYTES + 1), BYTES, "k")
    assert caught.value.metadata["actual"] == str(limits.MAX_VALUE_BYTES + 1)


@pytest.mark.parametrize("made", ["secret", 5, None])
def test_a_codec_that_does_not_make_bytes_is_told_so(made: Any) -> None:
    wrong: Codec[Any] = Codec("wrong", lambda _: made, bytes)
    with pytest.raises(InvalidArgument, match=r"'k'.*not bytes") as raised:
        encode_value("secret", wrong, "k")
    assert "secret" not in str(raised.value)
