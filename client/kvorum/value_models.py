"""Models as values: what pydantic and msgspec know of their classes, to JSON and back.

Neither is imported before a class of it is met: the program has it then. What goes wrong is
told as `Unfit`, without the value: their own errors show it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final


class Unfit(ValueError):
    """Why a value is not of a type, in words that do not show it."""


@dataclass(frozen=True, slots=True)
class Model:
    """A class of a library."""

    to_plain: Callable[[Any], Any]
    """An instance as what json can write. It may hold NaN: who writes it refuses that."""

    from_json: Callable[[bytes], Any]
    """Checks, and makes an instance."""


@lru_cache(maxsize=1024)
def model_of(kind: type) -> Model | None:
    """None if no library knows the class."""
    if hasattr(kind, "__pydantic_fields__"):
        return _pydantic_model(kind)
    if hasattr(kind, "__struct_config__"):
        return _msgspec_model(kind)
    return None


def _pydantic_model(kind: type) -> Model:
    # Slow to import, and not ours to require. A class of it is here, so it is here.
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - see above
    from pydantic_core import PydanticSerializationError  # noqa: PLC0415 - see above

    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    fields: dict[str, Any] = getattr(kind, "__pydantic_fields__")  # noqa: B009 - not of `type`
    names = {*fields, *(field.alias for field in fields.values())}

    def to_plain(instance: Any) -> Any:
        try:
            # By alias and without computed fields: as it is read again.
            return adapter.dump_python(
                instance, mode="json", by_alias=True, round_trip=True, warnings="error"
            )
        except PydanticSerializationError:
            raise Unfit(f"{kind.__name__} has a field that is not of its type") from None

    def from_json(data: bytes) -> Any:
        try:
            return adapter.validate_json(data)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False, include_input=False)
        # Of a place only the field of this class: what lies below may be a key of a dict.
        found = {
            f"{place[0]}: {kind}" if place and place[0] in names else kind
            for place, kind in ((detail["loc"], detail["type"]) for detail in details)
        }
        raise Unfit(", ".join(sorted(found)))

    return Model(to_plain, from_json)


_SAFE: Final = re.compile(r"Expected `|Object missing required field `")
_PLACE: Final = re.compile(r"at `\$[^`]*`$")


def _msgspec_model(kind: type) -> Model:
    import msgspec  # noqa: PLC0415 - as above

    decode: Callable[[bytes], Any] = msgspec.json.Decoder(kind).decode

    def to_plain(instance: Any) -> Any:
        return msgspec.to_builtins(instance, str_keys=True)

    def from_json(data: bytes) -> Any:
        try:
            return decode(data)
        except msgspec.ValidationError as error:
            said = str(error)
        except msgspec.DecodeError:
            raise Unfit("it is not JSON") from None
        # Most messages speak of types and places alone; the others show what they found.
        place = _PLACE.search(said)
        raise Unfit(said if _SAFE.match(said) else f"invalid {place[0]}" if place else "invalid")

    return Model(to_plain, from_json)
