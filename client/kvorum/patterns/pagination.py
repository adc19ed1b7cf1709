"""A list in pages, with a token for the next one, as a web page or an API shows it.

Writes no keys: it lists those of others, by their prefix or by an index.

Rule of this file: where a page ends is in its cursor, which the store has made and checks. Nothing
is read beyond the page, and nothing for each entry of it.
"""

from collections.abc import AsyncIterator
from typing import Any, Final, Generic, Literal, TypeVar, overload

from kvorum.arguments import check_limit
from kvorum.codecs import Codec, Typed, ValueType, codec_of
from kvorum.entry import Page
from kvorum.errors import InvalidArgument
from kvorum.kv import KV

T = TypeVar("T")

DEFAULT_PAGE_SIZE: Final = 20
DEFAULT_MAX_PAGE_SIZE: Final = 100


class Paginator(Generic[T]):
    """The keys with a prefix, or the records of an index, a page at a time.

    With `index`, in the order of its values: those that begin with `prefix`, or exactly `value`.

    Guarantee: no entry that stays is skipped or comes twice, whatever is written meanwhile;
    entries that come or go are in the list or not. With `snapshot` all pages are of the revision
    of the first one, until the store does not know it any more (`Compacted`, after an hour
    by default); not with an index, which has no past. The last page says `complete`, also if it
    is exactly full. A cursor is URL-safe, good on every node and after any failover, and
    `InvalidCursor` if it was altered, or is of another list, direction or mode.

    Cost: one round trip for a page, values included, and what the page holds, however deep it is;
    no write. Limits: 10,000 entries or 4 MiB a page; a page of large values is shorter.
    """

    @overload
    def __init__(
        self: "Paginator[str]",
        kv: KV,
        prefix: str = "",
        *,
        index: str | None = None,
        value: str | None = None,
        page_size: int | None = None,
        max_page_size: int = DEFAULT_MAX_PAGE_SIZE,
        snapshot: bool = False,
        reverse: bool = False,
        type: Literal["text"],
    ) -> None: ...

    @overload
    def __init__(
        self: "Paginator[bytes]",
        kv: KV,
        prefix: str = "",
        *,
        index: str | None = None,
        value: str | None = None,
        page_size: int | None = None,
        max_page_size: int = DEFAULT_MAX_PAGE_SIZE,
        snapshot: bool = False,
        reverse: bool = False,
        type: Literal["bytes"],
    ) -> None: ...

    @overload
    def __init__(
        self: "Paginator[T]",
        kv: KV,
        prefix: str = "",
        *,
        index: str | None = None,
        value: str | None = None,
        page_size: int | None = None,
        max_page_size: int = DEFAULT_MAX_PAGE_SIZE,
        snapshot: bool = False,
        reverse: bool = False,
        type: Typed[T],
    ) -> None: ...

    @overload
    def __init__(
        self: "Paginator[Any]",
        kv: KV,
        prefix: str = "",
        *,
        index: str | None = None,
        value: str | None = None,
        page_size: int | None = None,
        max_page_size: int = DEFAULT_MAX_PAGE_SIZE,
        snapshot: bool = False,
        reverse: bool = False,
        type: ValueType | None = None,
    ) -> None: ...

    def __init__(
        self,
        kv: KV,
        prefix: str = "",
        *,
        index: str | None = None,
        value: str | None = None,
        page_size: int | None = None,
        max_page_size: int = DEFAULT_MAX_PAGE_SIZE,
        snapshot: bool = False,
        reverse: bool = False,
        type: ValueType | None = None,
    ) -> None:
        self._kv = kv
        if value is not None and index is None:
            raise InvalidArgument("a value is one of an index: name the index")
        if snapshot and index is not None:
            raise InvalidArgument("a snapshot cannot be listed by an index, which has no past")
        self._prefix, self._index, self._value = prefix, index, value
        self._max_page_size = check_limit(max_page_size)
        self._page_size = min(DEFAULT_PAGE_SIZE, max_page_size)
        if page_size is not None:
            self._page_size = check_limit(page_size)
        if self._page_size > max_page_size:
            raise InvalidArgument(
                f"page_size is {page_size}, more than max_page_size, which is {max_page_size}"
            )
        self._snapshot, self._reverse = snapshot, reverse
        self._codec: Codec[T] = codec_of(kv.value_type if type is None else type)

    async def page(
        self,
        cursor: str | None = None,
        size: int | None = None,
        *,
        count: bool = False,
        timeout: float | None = None,
    ) -> Page[T]:
        """Read the first page, or the one after that which gave the cursor.

        Both may be as a client sent them: without a cursor, or with an empty one, this is the
        first page; a `size` beyond 1 to `max_page_size` is taken as the nearer of these. With
        `count`, `Page.count` says how many entries there are in all: the store looks at each.
        """
        return await self._kv.list(
            self._prefix,
            index=self._index,
            value=self._value,
            limit=self._clamp(size),
            cursor=cursor,
            reverse=self._reverse,
            count=count,
            snapshot=self._snapshot,
            type=self._codec,
            timeout=timeout,
        )

    async def pages(
        self, cursor: str | None = None, size: int | None = None, *, timeout: float | None = None
    ) -> AsyncIterator[Page[T]]:
        """Iterate over all pages, or those that follow the cursor; `timeout` is that of each."""
        complete = False
        while not complete:
            page = await self.page(cursor, size, timeout=timeout)
            yield page
            cursor, complete = page.cursor, page.complete

    def __repr__(self) -> str:
        selected = f"index {self._index}" if self._index else f"prefix {self._prefix!r}"
        return f"<Paginator of {selected}, {self._page_size} a page>"

    def _clamp(self, size: object) -> int:
        if size is None:
            return self._page_size
        if isinstance(size, bool) or not isinstance(size, int):
            raise InvalidArgument(f"the size of a page is an int, not {size!r}")
        return min(max(size, 1), self._max_page_size)
