"""The conditions of a transaction: from arguments to the wire, and to `Conflict`."""

from collections.abc import Mapping
from typing import Any

from kvorum.arguments import check_count
from kvorum.codecs import Codec, Key, decode_key, encode_key, encode_value
from kvorum.errors import Conflict, InvalidArgument
from kvorum.ranges import describe_range
from kvorumpb.v1.command_pb2 import Check, KeyRange

ANY_VALUE: Any = ...
"""Stands for a value that was not given: None is one, null in JSON."""


def check_key(
    key: Key,
    *,
    revision: int | None = None,
    exists: bool | None = None,
    version: int | None = None,
    value: Any = ANY_VALUE,
    unchanged_since: int | None = None,
    codec: Codec[Any],
) -> Check:
    """A check of one key, which has exactly one of the conditions. Raises `InvalidArgument`."""
    check, what = Check(key=encode_key(key)), f"the check of {key!r}"
    data = None if value is ANY_VALUE else encode_value(value, codec, key)
    _condition(
        check,
        what,
        exists=exists,
        value=data,
        numbers={"revision": revision, "version": version, "unchanged_since": unchanged_since},
    )
    return check


def check_range(
    selected: KeyRange,
    *,
    revision: int | None = None,
    exists: bool | None = None,
    version: int | None = None,
    value: Any = ANY_VALUE,
    unchanged_since: int | None = None,
    codec: Codec[Any],
) -> Check:
    """A check of all records in a range; otherwise like `check_key`."""
    check, what = Check(range=selected), f"the check of {describe_range(selected)}"
    data = None if value is ANY_VALUE else encode_value(value, codec, selected.start)
    _condition(
        check,
        what,
        exists=exists,
        value=data,
        numbers={"revision": revision, "version": version, "unchanged_since": unchanged_since},
    )
    return check


def conflict(check: Check, position: int) -> Conflict:
    """The error of a check that did not hold."""
    is_range = check.HasField("range")
    key = decode_key(check.range.start if is_range else check.key)
    where = describe_range(check.range) if is_range else repr(key)
    return Conflict(
        f"the check of {where} did not hold: {_failure(check)}; nothing was written",
        check=position,
        key=key,
        range=(key, decode_key(check.range.end)) if is_range else None,
    )


def _condition(
    check: Check,
    what: str,
    *,
    exists: object,
    value: bytes | None,
    numbers: Mapping[str, object],
) -> None:
    """Put the one that is given into the check."""
    conditions = {"exists": exists, "value": value, **numbers}
    given = {name: wanted for name, wanted in conditions.items() if wanted is not None}
    if len(given) != 1:
        raise InvalidArgument(
            f"{what} takes one of revision, exists, version, value and unchanged_since: check "
            "twice to have two"
        )
    name, wanted = given.popitem()
    if name == "exists" and not isinstance(wanted, bool):
        raise InvalidArgument(f"{what} takes exists as True or False, not {wanted!r}")
    if name in numbers:
        check_count("a version" if name == "version" else "a revision", wanted)
    setattr(check, name, wanted)


def _failure(check: Check) -> str:
    is_range = check.HasField("range")
    every = "not every record is" if is_range else "it is not"
    match check.WhichOneof("condition"):
        case "revision" if check.revision == 0 and not is_range:
            return "it is not absent"
        case "revision":
            return f"{every} at revision {check.revision}"
        case "exists" if is_range:
            return "it has no record" if check.exists else "it has a record"
        case "exists":
            return "it does not exist" if check.exists else "it exists"
        case "version":
            return f"{every} at version {check.version}"
        case "value":
            return "not every record has the value" if is_range else "it does not have the value"
        case _:
            return f"it has, or may have, changed since revision {check.unchanged_since}"
