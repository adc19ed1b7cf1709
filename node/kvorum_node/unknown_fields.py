"""Whether a message says anything that this version does not know.

protobuf keeps what it does not know and passes it on, without a word. For the log that is
not good enough: a node that carries out a put, and not what a newer version has added to it,
parts from the others. So an unknown field is looked for, at any depth.

To look at each message costs as much as all else that is done about a small one, but never
touches the bytes of a value. So of small ones, is_all_known comes first, and mostly says enough.
"""

from typing import Final, NamedTuple

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet


class _Places(NamedTuple):
    """Where a message has other messages in it."""

    choices: tuple[tuple[str, frozenset[str]], ...]
    """Its oneofs, and the fields of each that are messages."""
    single: tuple[str, ...]
    repeated: tuple[str, ...]


_PLACES: Final[dict[str, _Places]] = {}
"""By the full name of the message. Only a cache: what is in it is the same for ever."""


def is_all_known(message: Message, data: bytes) -> bool:
    """Whether the message, made of the data, says all of it; what it does not know, it loses.

    What is left then is as long as the data, or shorter. False may also be said of an encoding
    that is longer than it need be: make the message again, and ask has_unknown_fields.
    """
    message.DiscardUnknownFields()
    return message.ByteSize() == len(data)


def has_unknown_fields(message: Message) -> bool:
    """Whether the message, or one in it, has a field that this version does not know."""
    if len(UnknownFieldSet(message)):
        return True
    choices, single, repeated = _places(message)
    for choice, names in choices:
        chosen = message.WhichOneof(choice)
        if chosen in names and has_unknown_fields(getattr(message, chosen)):
            return True
    for name in single:
        if message.HasField(name) and has_unknown_fields(getattr(message, name)):
            return True
    for name in repeated:
        for one in getattr(message, name):
            if has_unknown_fields(one):
                return True
    return False


def _places(message: Message) -> _Places:
    descriptor = message.DESCRIPTOR
    places = _PLACES.get(descriptor.full_name)
    if places is None:
        fields = [field for field in descriptor.fields if field.message_type is not None]
        repeated = tuple(
            field.name for field in fields if not isinstance(getattr(message, field.name), Message)
        )
        choices = tuple(
            (choice.name, names)
            for choice in descriptor.oneofs
            if (names := frozenset(one.name for one in fields if one.containing_oneof == choice))
        )
        single = tuple(
            field.name
            for field in fields
            if field.containing_oneof is None and field.name not in repeated
        )
        places = _PLACES[descriptor.full_name] = _Places(choices, single, repeated)
    return places
