"""Keys that are hierarchical and predictable, and that sort as what they were made of.

    build("user", "123", "profile")        user:123:profile
    build("event", 42, now)                event:b42:20261125T190000.000000Z
    ordered("Rome", 41)                    as an index value: sorts by city, then by age

A key is made of parts with a colon between them. A part that is a name of the program is
written as it is; one that comes from outside (an e-mail address, a URL) is given through
`escape`, since a colon in it would be taken for another part. Nothing here asks a store.
"""

from datetime import UTC, datetime
from typing import Final

from kvorum import limits
from kvorum.errors import InvalidArgument

SEPARATOR: Final = ":"

Part = str | int | datetime
"""A part of a key: text, an integer, or an aware time."""

_ESCAPES: Final = {"%": "%25", ":": "%3A", "\0": "%00"}
_ESCAPE: Final = str.maketrans(_ESCAPES)

_MAX_DIGITS: Final = len(str(limits.MAX_INTEGER))
_COMPLEMENT: Final = str.maketrans("0123456789", "9876543210")
_PLAIN_TIME: Final = str.maketrans("", "", "-:")


def build(*parts: Part) -> str:
    """The key of these parts; integers and times sort as they are, not as their digits.

    Raises `InvalidArgument` for no parts, an empty one, a colon, NUL or percent sign in text
    that was not escaped, an integer beyond int64, and a time that is naive.
    """
    if not parts:
        raise InvalidArgument("a key has at least one part")
    return SEPARATOR.join(map(_part, parts))


def prefix(*parts: Part) -> str:
    """What all keys below these parts begin with: `list` takes it. Raises like `build`."""
    return build(*parts) + SEPARATOR


def parse(key: str) -> tuple[str, ...]:
    """The parts of a key, as text without escapes. `InvalidArgument` if one of them is empty."""
    parts = tuple(map(unescape, key.split(SEPARATOR)))
    if not all(parts):
        raise InvalidArgument(f"the key {key!r} has an empty part")
    return parts


def escape(text: str) -> str:
    """Any text as a part of a key; `InvalidArgument` if it is empty.

    Colons, percent signs and NUL are written as in URLs, everything else as it is.
    """
    if not _is_text(text):
        raise InvalidArgument(f"a part of a key is text, and not empty, not {_shown(text)}")
    return text.translate(_ESCAPE)


def unescape(part: str) -> str:
    """What `escape` was given."""
    for text, written in reversed(_ESCAPES.items()):
        part = part.replace(written, text)
    return part


def check_name(name: str, what: str) -> str:
    """A name that the program gives to something; returns it.

    Raises `InvalidArgument`, which says `what` it is, if it is empty or holds a colon, a percent
    sign or NUL.
    """
    if not _is_text(name):
        raise InvalidArgument(f"{what} needs a name, which is text and not empty, not {name!r}")
    for character in _ESCAPES:
        if character in name:
            raise InvalidArgument(f"{what} cannot be named {name!r}: {character!r} is not allowed")
    return name


def integer(number: int) -> str:
    """An int64 as text that sorts as the numbers do; `InvalidArgument` for anything else.

    A letter gives the sign and the number of digits: a7 (7), b12 (12); the digits of a negative
    number are its complements: Z2 (-7), Y87 (-12).
    """
    if not _is_integer(number):
        raise InvalidArgument(f"an integer is wanted, not {_shown(number)}")
    if not limits.MIN_INTEGER <= number <= limits.MAX_INTEGER:
        raise InvalidArgument(f"{number} is beyond the range of int64")
    digits = str(abs(number))
    if number >= 0:
        return chr(ord("a") + len(digits) - 1) + digits
    return chr(ord("Z") - len(digits) + 1) + digits.translate(_COMPLEMENT)


def parse_integer(text: str) -> int:
    """What `integer` was given. `InvalidArgument` for other text."""
    digits = text[1:]
    if len(digits) <= _MAX_DIGITS and digits.isascii() and digits.isdecimal():
        number = int(digits) if text[0].islower() else -int(digits.translate(_COMPLEMENT))
        if limits.MIN_INTEGER <= number <= limits.MAX_INTEGER and integer(number) == text:
            return number
    raise InvalidArgument(f"{text!r} is no integer of a key")


def time(moment: datetime) -> str:
    """A time as text that sorts as times do: UTC, to the microsecond, without colons.

    `InvalidArgument` if it is naive: nobody could tell when that is; or if UTC has it before
    the year 1 or after 9999.
    """
    if not _is_aware(moment):
        raise InvalidArgument(f"a time with a zone is wanted, not {_shown(moment)}")
    try:
        utc = moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise InvalidArgument(f"{moment} is beyond the years 1 to 9999 in UTC") from None
    return utc.isoformat(timespec="microseconds").translate(_PLAIN_TIME) + "Z"


def parse_time(text: str) -> datetime:
    """What `time` was given, in UTC. `InvalidArgument` for other text."""
    try:
        moment = datetime.strptime(text, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidArgument(f"{text!r} is no time of a key") from None
    if time(moment) != text:
        raise InvalidArgument(f"{text!r} is no time of a key")
    return moment


def ordered(*values: str | int | datetime) -> str:
    """Several values as one text that sorts as the tuples of them do, for an index value.

    Unlike a key it may hold any text, and is not meant to be read. Values in the same place
    should be of one type: integers sort before times, and both before text.
    """
    if not values:
        raise InvalidArgument("there is nothing to put in order")
    return "".join(map(_ordered, values))


def _part(part: Part) -> str:
    match part:
        case str():
            return _clean(part)
        case datetime():
            return time(part)
        case _:
            return integer(part)


def _clean(part: str) -> str:
    if not part:
        raise InvalidArgument("a part of a key cannot be empty")
    if part != escape(unescape(part)):
        raise InvalidArgument(
            f"the part {part!r} of a key has a colon, a percent sign or NUL in it: use escape()"
        )
    return part


def _ordered(value: str | int | datetime) -> str:
    # NUL ends a value: so the shorter of two texts comes first, whatever follows it.
    match value:
        case str():
            return "s" + value.replace("\0", "\0\xff") + "\0"
        case datetime():
            return "d" + time(value)
        case _:
            return "c" + integer(value)


# Callers without a type checker may give anything.


def _is_text(given: object) -> bool:
    return isinstance(given, str) and given != ""


def _is_integer(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _shown(given: object) -> str:
    """What errors show of something else: what is given by mistake may be a value."""
    if isinstance(given, str | datetime):
        return repr(given)
    return given.__class__.__name__


def _is_aware(given: object) -> bool:
    return isinstance(given, datetime) and given.utcoffset() is not None
