"""What a feature flag says to whom. Pure: nothing here asks a store, a clock or chance.

The rules, in this order; the first one that applies decides:

1. A flag that is not enabled is off, for everybody.
2. It is on for the users of its list, and for a context whose attributes are as `where` has them.
3. It is on for a percentage of the users. 0 is nobody, 100 is everybody. In between, it
   is on for a user whose bucket is below the percentage: so raising it takes nobody away. Where
   no user is known, it is off.

The bucket, one of a million, follows from SHA-256 of the flag's salt and the user's id: it is the
same in each process, on each machine and in each version, and another one for each flag.

A flag that is on has one of its variants. They are shared out by their weights, by another
part of the same hash: so a percentage that changes does not move users from one to another.
Where no user is known, it is the first one by name.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

from kvorum import keys
from kvorum.codecs import JSON
from kvorum.errors import DecodeError, InvalidArgument
from kvorum.value_models import Unfit

BUCKETS: Final = 1_000_000
MAX_WEIGHT: Final = 1_000_000_000
"""Of one variant: so their sum is a number to reckon with."""
_WHOLE: Final = 2.0**64

Scalar = str | int | float | bool | None
"""What an attribute is compared with."""


class Reason(StrEnum):
    """Why a flag has said what it did, in the words of OpenFeature."""

    STATIC = "STATIC"
    """It says the same to everybody."""
    TARGETING_MATCH = "TARGETING_MATCH"
    """The user is on its list, or the attributes are as it has them."""
    SPLIT = "SPLIT"
    """By the bucket of the user."""
    DEFAULT = "DEFAULT"
    """It may say other things to others; nothing in it is about this context."""
    STALE = "STALE"
    """As above, from a copy that may be old."""
    ERROR = "ERROR"
    """It could not be asked."""


@dataclass(frozen=True, slots=True)
class Context:
    """Who asks. An empty `user_id` is none: nobody is known."""

    user_id: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flag:
    """A feature flag as it is stored. Raises `InvalidArgument` if it is none."""

    name: str

    percentage: float = 0
    """Of the users for whom it is on, beside those of the list: 0 to 100."""

    users: frozenset[str] = frozenset()
    """For whom it is on, whatever the percentage is."""

    where: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    """By attribute, its values: on for a context that has one of them for each attribute."""

    variants: Mapping[str, Any] = field(default_factory=dict)
    """By name, the JSON values that it may have where it is on. If empty, it is True or False."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """By name, the share of each variant, from 0 to MAX_WEIGHT. If empty, all have the same."""

    enabled: bool = True
    """False turns it off for everybody, and keeps all else for when it is turned on again."""

    salt: str = ""
    """What the buckets depend on. Flags with one salt are on for the same users."""

    description: str = ""

    revision: int = field(default=0, compare=False)
    """At which it was written, if it was read."""

    def __post_init__(self) -> None:
        keys.check_name(self.name, "a feature flag")
        _check_percentage(self.name, self.percentage)
        _check_texts(self.name, "users", self.users)
        for attribute, values in self.where.items():
            _check_texts(self.name, "attributes", [attribute])
            for value in values:
                if not isinstance(value, Scalar):
                    raise _wrong(self.name, f"the attribute {attribute!r} has a value that is none")
        _check_variants(self.name, self.variants, self.weights)
        _check_texts(self.name, "salt", [self.salt])
        if "\0" in self.salt:
            raise _wrong(self.name, "its salt has a NUL in it")
        _check_kind(self.name, "enabled", self.enabled, bool)
        _check_kind(self.name, "description", self.description, str)

    def encode(self) -> bytes:
        """As JSON. `InvalidArgument` if a variant is no JSON value."""
        fields = {
            "percentage": self.percentage,
            "users": sorted(self.users),
            "where": dict(self.where),
            "variants": dict(self.variants),
            "weights": dict(self.weights),
            "enabled": self.enabled,
            "salt": self.salt,
            "description": self.description,
        }
        try:
            return JSON.encode(fields)
        except Unfit as error:
            raise _wrong(self.name, f"it is not valid as JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a flag says to a context."""

    enabled: bool
    variant: str | None
    """"on" or "off" for a flag without variants; None if it has some, and is off."""
    value: Any
    """Of the variant; None if there is none."""
    reason: Reason
    bucket: int | None
    """Of the user, from 0 to 999,999; None if no user is known."""


def make(
    name: str,
    *,
    percentage: float,
    users: Iterable[str],
    where: Mapping[str, Iterable[Scalar]],
    variants: Mapping[str, Any],
    weights: Mapping[str, float],
    enabled: bool,
    salt: str | None,
    description: str,
) -> Flag:
    """A flag from what a program, or a stored record, has for it. Raises `InvalidArgument`."""
    try:
        return Flag(
            name=name,
            percentage=percentage,
            users=frozenset(_several(users)),
            where={attribute: tuple(_several(values)) for attribute, values in where.items()},
            variants=dict(variants),
            weights=dict(weights),
            enabled=enabled,
            salt=name if salt is None else salt,
            description=description,
        )
    except (TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise _wrong(name, str(error)) from error


def decode(key: str, name: str, data: bytes, revision: int) -> Flag:
    """Read a record. `DecodeError` if it is no flag, or has rules that are not known here."""
    try:
        return replace(make(name, **json.loads(data)), revision=revision)
    except (TypeError, ValueError, RecursionError) as error:
        raise DecodeError(
            f"the value of {key!r} is no feature flag: {error}", key=key, type="flag"
        ) from error


def read_context(given: object) -> Context:
    """A context, or a mapping of attributes with a `user_id` among them; None is nobody.

    Raises `InvalidArgument`.
    """
    match given:
        case Context():
            context = given
        case None:
            context = Context()
        case Mapping():
            attributes = dict(given)
            context = Context(attributes.pop("user_id", None), attributes)
        case _:
            raise InvalidArgument(
                f"the context of a flag is a Context or a mapping, not {type(given).__name__}"
            )
    user: object = context.user_id
    if user is not None and not isinstance(user, str):
        raise InvalidArgument(f"the user_id of a context is text, not {type(user).__name__}")
    others: object = context.attributes
    if not isinstance(others, Mapping):
        raise InvalidArgument(
            f"the attributes of a context are a mapping, not {type(others).__name__}"
        )
    return context


def decide(flag: Flag, context: Context) -> Decision:
    """What the flag says to the context."""
    user = context.user_id or None
    bucket, point = (None, 0.0) if user is None else _place(flag.salt, user)
    is_targeted = bool(flag.users or flag.where)
    if not flag.enabled:
        enabled, reason = False, Reason.STATIC
    elif user in flag.users or _matches(flag.where, context.attributes):
        enabled, reason = True, Reason.TARGETING_MATCH
    elif flag.percentage in (0, 100):
        enabled = flag.percentage == 100
        reason = Reason.DEFAULT if is_targeted else Reason.STATIC
    elif bucket is None:
        enabled, reason = False, Reason.DEFAULT
    else:
        enabled, reason = bucket < flag.percentage * (BUCKETS / 100), Reason.SPLIT
    if not flag.variants:
        return Decision(enabled, "on" if enabled else "off", enabled, reason, bucket)
    if not enabled:
        return Decision(False, None, None, reason, bucket)
    if len(flag.variants) > 1 and reason is not Reason.TARGETING_MATCH:
        reason = Reason.DEFAULT if bucket is None else Reason.SPLIT
    variant = _variant(flag, point)
    return Decision(True, variant, flag.variants[variant], reason, bucket)


def _place(salt: str, user: str) -> tuple[int, float]:
    """The bucket, and where the user is among the variants, from 0 to 1: independent numbers."""
    # A salt has no NUL: so each pair of salt and user has a text of its own.
    digest = sha256(f"{salt}\0{user}".encode("utf-8", "surrogatepass")).digest()
    return (
        int.from_bytes(digest[:8]) % BUCKETS,
        int.from_bytes(digest[8:16]) / _WHOLE,
    )


def _variant(flag: Flag, point: float) -> str:
    names = sorted(flag.variants)  # not as they were given: their order says nothing
    weights = [flag.weights.get(name, 0.0) if flag.weights else 1.0 for name in names]
    left = point * sum(weights)
    for name, weight in zip(names, weights, strict=True):
        if left < weight:
            return name
        left -= weight
    return max(name for name, weight in zip(names, weights, strict=True) if weight)


def _matches(where: Mapping[str, tuple[Scalar, ...]], attributes: Mapping[str, Any]) -> bool:
    return bool(where) and all(
        attribute in attributes and any(_is_same(attributes[attribute], one) for one in values)
        for attribute, values in where.items()
    )


def _is_same(given: object, wanted: Scalar) -> bool:
    # True is 1 to Python, and not to who writes a rule. Other objects may refuse to be compared.
    is_alike = isinstance(given, Scalar) and isinstance(given, bool) is isinstance(wanted, bool)
    return is_alike and given == wanted


def _check_percentage(name: str, percentage: object) -> None:
    is_number = isinstance(percentage, int | float) and not isinstance(percentage, bool)
    if not is_number or not 0 <= percentage <= 100:  # type: ignore[operator]  # a number, here
        raise _wrong(name, f"its percentage is a number from 0 to 100, not {percentage!r}")


def _check_kind(name: str, what: str, given: object, kind: type) -> None:
    if not isinstance(given, kind):
        raise _wrong(name, f"{what} is {kind.__name__}, not {type(given).__name__}")


def _check_texts(name: str, what: str, texts: Iterable[object]) -> None:
    for text in texts:
        if not isinstance(text, str) or not text:
            raise _wrong(name, f"its {what} are text, and not empty: {text!r}")


def _check_variants(
    name: str, variants: Mapping[str, object], weights: Mapping[str, object]
) -> None:
    _check_texts(name, "variants", variants)
    if weights and weights.keys() != variants.keys():
        raise _wrong(name, "there is a weight for each variant, or none at all")
    for variant, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight <= MAX_WEIGHT:  # type: ignore[operator]  # a number, here
            raise _wrong(
                name,
                f"the weight of {variant!r} is a number from 0 to {MAX_WEIGHT:,}, not {weight!r}",
            )
    if weights and not any(weights.values()):
        raise _wrong(name, "one of its variants has a weight above 0")


def _several(values: Iterable[Any]) -> Iterable[Any]:
    if isinstance(values, str):
        raise TypeError(f"several are wanted, not the text {values!r}")
    return values


def _wrong(name: object, why: str) -> InvalidArgument:
    return InvalidArgument(f"the feature flag {name!r} is wrong: {why}")
