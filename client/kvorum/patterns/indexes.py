"""What a collection finds its records under: the definitions, and the index entries they come to.

An index value is text, an integer, a time with a zone, or a tuple of them. It is stored so that
it sorts as it does in the program, and so that no two values look alike:

    text               as it is: an operator can read it
    everything else    NUL and `keys.ordered`: before all text

Everything here is plain computing; nothing asks the store.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

from kvorum import keys
from kvorum.codecs import encode_bound
from kvorum.entry import Entry, IndexEntry
from kvorum.errors import InvalidArgument, UniqueViolation

T = TypeVar("T")

IndexValue: TypeAlias = keys.Part | tuple[keys.Part, ...]
"""Under what a record is found."""

IndexedBy: TypeAlias = (
    str | tuple[str, ...] | Callable[[Any], IndexValue | Iterable[IndexValue] | None]
)
"""A field, several fields, or a function of the record's value."""

CATALOG: Final = "collection"
"""The first part of the keys that say which indexes are complete. No collection has this name."""

_TYPED: Final = "\0"
_BEYOND: Final = "\xff"
"""What follows a whole value in `keys.ordered` is below this, what goes on within one is not."""
_SHOWN_CHARACTERS: Final = 48


@dataclass(frozen=True, slots=True)
class Index:
    """Many records may have a value: `Index("city")`, `Index(("city", "age"))`, `Index(function)`.

    A field is a key of a mapping, or an attribute. Several fields make one value, a tuple, in
    their order. A function is given the record's value, and must say the same each time.

    What comes of it is one value; or a list or a set of them, each of which the record is found
    under; or None, if it is to be found under none. A field that a mapping lacks is None, and so
    is a tuple of fields that has one.
    """

    by: IndexedBy

    unique: ClassVar[bool] = False

    @property
    def fields(self) -> list[str] | None:
        """The names of its fields; None for a function, which has no name that can be trusted."""
        match self.by:
            case str():
                return [self.by]
            case tuple():
                return list(self.by)
            case _:
                return None

    def values(self, value: Any) -> Iterator[IndexValue]:
        """Under what a record with this value is found, as the program has it."""
        found: Any
        match self.by:
            case str():
                found = _field(value, self.by)
            case tuple():
                found = tuple(_field(value, name) for name in self.by)
                if None in found:
                    return
            case _:
                found = self.by(value)
        match found:
            case None:
                return
            case list() | set() | frozenset():
                yield from found
            case _:
                yield found


@dataclass(frozen=True, slots=True)
class Unique(Index):
    """No two records may have the same value; otherwise like `Index`.

    Values are compared as they are: to have `A@b` and `a@b` taken for the same, give a function
    that folds them, `Unique(lambda user: user["email"].casefold())`.
    """

    unique: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is found in one of the indexes."""

    index: str
    value: IndexValue
    entry: IndexEntry
    """What the store keeps of it, under the name that the index has there."""


class Schema:
    """What the records of one collection are called, and what they are found under."""

    def __init__(self, name: str, indexes: Mapping[str, Index]) -> None:
        self.name: Final = keys.check_name(name, "a collection")
        if name == CATALOG:
            raise InvalidArgument(
                f"a collection cannot be named {name!r}: the catalog has this name"
            )
        for index, definition in indexes.items():
            keys.check_name(index, "an index")
            _check_index(index, definition)
        self.indexes: Final = dict(indexes)
        self.prefix: Final = keys.prefix(name)
        self.catalog_key: Final = keys.build(CATALOG, name)

    def definition(self) -> dict[str, Any]:
        """What the indexes are, as far as it can be told and compared."""
        return {
            name: {"unique": index.unique, "fields": index.fields}
            for name, index in self.indexes.items()
        }

    def key(self, id: str) -> str:
        return self.prefix + keys.escape(id)

    def id_of(self, key: str) -> str:
        """The id of a record of this collection; another key stays as it is."""
        return keys.unescape(key.removeprefix(self.prefix)) if key.startswith(self.prefix) else key

    def index_of(self, name: str) -> Index:
        if name not in self.indexes:
            known = ", ".join(self.indexes) or "none"
            raise InvalidArgument(f"{self.name!r} has no index {name!r}; it has: {known}")
        return self.indexes[name]

    def stored_name(self, index: str) -> str:
        """What the store calls an index: two collections may each have an "email"."""
        return self.prefix + index

    def places(self, value: Any) -> list[Place]:
        """Where a record with this value is found, each place once."""
        found: dict[IndexEntry, Place] = {}
        for name, index in self.indexes.items():
            for one in index.values(value):
                entry = IndexEntry(self.stored_name(name), encode(one, name), index.unique)
                found.setdefault(entry, Place(name, one, entry))
        return list(found.values())

    def entries(self, value: Any, kept: Iterable[IndexEntry] = ()) -> list[IndexEntry]:
        """The index entries of a record; what it has in the indexes of others is kept."""
        others = [one for one in kept if not one.index.startswith(self.prefix)]
        return others + [place.entry for place in self.places(value)]

    def own(self, entries: Iterable[IndexEntry]) -> tuple[IndexEntry, ...]:
        """Those in the collection's indexes, under the names that the program has given them."""
        return tuple(
            replace(one, index=one.index.removeprefix(self.prefix))
            for one in entries
            if one.index.startswith(self.prefix)
        )

    def entry(self, entry: Entry[T]) -> Entry[T]:
        """An entry of the store as the collection gives it: with the id for a key."""
        return replace(
            entry, key=self.id_of(entry.key), index_entries=self.own(entry.index_entries)
        )

    def taken(self, error: UniqueViolation, value: Any) -> Place | None:
        """The place that a record with this value wanted, and another one has."""
        for place in self.places(value):
            # An error is text: bytes that are none are written out in it.
            shown = encode_bound(place.entry.value).decode(errors="backslashreplace")
            if (place.entry.index, shown) == (error.index, error.value):
                return place
        return None

    def violation(self, error: UniqueViolation, value: Any) -> UniqueViolation:
        """The error in the words of the program: its index, its value, the owner's id."""
        place = self.taken(error, value)
        if place is None:
            return error
        shown, owner = str(place.value), self.id_of(error.owner)
        return UniqueViolation(
            f"{self.name} {owner!r} has the value {shown[:_SHOWN_CHARACTERS]!r} in the unique "
            f"index {place.index!r}; nothing was written",
            index=place.index,
            value=shown,
            owner=owner,
            operation=error.metadata.get("operation", 0),
        )

    def selection(
        self,
        index: str,
        value: object = ...,
        start: object = None,
        end: object = None,
        prefix: object = None,
    ) -> dict[str, Any]:
        """What `list` and `scan` of the store are to look for."""
        self.index_of(index)
        selected: dict[str, Any] = {"index": self.stored_name(index)}
        if value is not ...:
            selected["value"] = encode(value, index)
        if start is not None:
            selected["start"] = encode(start, index)
        if end is not None:
            selected["end"] = encode(end, index)
        match prefix:
            case None:
                pass
            case str() if not prefix.startswith(_TYPED):
                selected["prefix"] = prefix
            case tuple() if start is None and end is None:
                whole = encode(prefix, index)
                selected |= {"start": whole, "end": whole + _BEYOND}
            case _:
                raise InvalidArgument(
                    f"a prefix for the index {index!r} is text, or the first values of its tuples, "
                    "and not together with a start or an end"
                )
        return selected


def encode(value: object, index: str) -> str:
    """An index value as it is stored. `InvalidArgument`, which does not show it, if it is none."""
    match value:
        case str() if not value.startswith(_TYPED):
            return value
        case tuple():
            parts = value
        case _:
            parts = (value,)
    try:
        return _TYPED + keys.ordered(*parts)
    except InvalidArgument:
        kinds = ", ".join(part.__class__.__name__ for part in parts)
        raise InvalidArgument(
            f"the index {index!r} has text, integers of 64 bits, times with a zone, and tuples of "
            f"them, and not this: {kinds or 'an empty tuple'}"
        ) from None


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    try:
        return getattr(value, name)
    except AttributeError:
        raise InvalidArgument(
            f"an index is by the field {name!r}, which {value.__class__.__name__} does not have"
        ) from None


def _check_index(name: str, given: object) -> None:
    if not isinstance(given, Index):
        raise InvalidArgument(f"the index {name!r} is {given!r}, and not an Index or a Unique")
    names = given.fields
    if names is None and not callable(given.by):
        raise InvalidArgument(
            f"the index {name!r} is by a field, a tuple of fields, or a function, not {given.by!r}"
        )
    if names is not None and not (names and all(map(_is_name, names))):
        raise InvalidArgument(f"the index {name!r} is by a field without a name: {given.by!r}")


def _is_name(given: object) -> bool:
    return isinstance(given, str) and given != ""
