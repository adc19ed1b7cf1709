"""Pages of records, in the order of their keys or of their values in an index.

Rules: a page begins by seeking, so the thousandth costs what the first costs; it
ends before the record that would take it beyond its count or its bytes, but holds
at least one; and it looks one record ahead, so that a page which is full and
the last says that it is the last. Expired records are passed over.

What is read is the store at one revision: that of the request, that of the first page of
a snapshot, or the newest. So the work can be left and taken up again after other entries
were applied, and is done in slices: to count is to look at each record, and there may be
any number of expired ones before the next that is not. (An index has no history, so
its entries are pinned instead.)

A past revision shows what history says: a record that had expired and was not swept yet
is there. A snapshot has the log time of its first page, too, so that what was there on
one page has not expired on the next.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from kvorum import limits
from kvorum.errors import Compacted, InvalidCursor, StorageError
from kvorum_node.machine import cursor, history, past, records
from kvorum_node.machine.cursor import Cursor, Place, Position, Selection
from kvorum_node.machine.tables import Tables
from kvorum_node.raft.types import GroupId
from kvorum_node.storage import layout
from kvorumpb.v1.command_pb2 import Record
from kvorumpb.v1.kv_pb2 import IndexSelection, ListRequest, ListResponse

SLICE_RECORDS: Final = 250
SLICE_BYTES: Final = 1024 * 1024
"""A slice ends once it has looked at either, beside the page itself: a few milliseconds."""


@dataclass(frozen=True, slots=True)
class View:
    """The state as it is at the moment."""

    tables: Tables
    revision: int
    log_time_ms: int
    oldest_revision: int


class Listing:
    """The answer to a request, under way:

    while not listing.step():
        await asyncio.sleep(0)
    """

    _place: Place
    _page: "_Walk"
    _page_is_complete: bool
    _page_bytes: int
    _counted: "_Walk | None"

    def __init__(
        self,
        request: ListRequest,
        response: ListResponse,
        group: GroupId,
        look: Callable[[], View],
    ) -> None:
        """`response` is filled; `look` gives the state as it is then.

        Raises InvalidCursor, Compacted or FutureRevision.
        """
        self._request = request
        self._response = response
        self._look = look
        self._selection = select(group, request)
        self._begin()

    def step(self) -> bool:
        """Do a slice of the work. True once the response is complete.

        Raises Compacted if the revision that was asked for is gone meanwhile.
        """
        view = self._look()
        try:
            history.require_readable(self._place.revision, view.oldest_revision, view.revision)
        except Compacted:
            if self._request.revision or self._selection.snapshot:
                raise
            self._begin()  # it was the newest one that was wanted
            view = self._look()
        budget = _Budget()
        if not self._page_is_complete:
            self._page_is_complete = self._fill(view, self._page.rows(view, budget))
        if not self._page_is_complete:
            return False
        if self._counted is None:
            return True
        for _, record in self._counted.rows(view, budget):
            self._response.count += 1
            budget.take(record)
            if budget.is_spent:
                break
        return self._counted.is_complete

    def _begin(self) -> None:
        request, selection, view = self._request, self._selection, self._look()
        last: Position | None = None
        place = Place(request.revision, 0)
        if not request.revision:
            place = Place(view.revision, view.log_time_ms)
        if request.page_token:
            told = cursor.decode(request.page_token, selection)
            last = told.last
            if told.place is not None:
                if request.revision not in (0, told.place.revision):
                    raise InvalidCursor(
                        "the cursor (page_token) is of a snapshot at revision"
                        f" {told.place.revision}, not {request.revision}: leave the revision out"
                        " after the first page"
                    )
                place = told.place
        history.require_readable(place.revision, view.oldest_revision, view.revision)
        self._place = place
        self._page = _walk(view, selection, place, last)
        self._page_is_complete = False
        self._page_bytes = 0
        self._counted = _walk(view, selection, place, None) if request.count else None
        response = self._response
        response.Clear()
        response.revision = place.revision
        response.log_time_ms = place.log_time_ms or view.log_time_ms
        if request.count:
            response.count = 0

    def _fill(self, view: View, rows: Iterator[tuple[Position, Record]]) -> bool:
        """Put records into the page. False if the slice has ended before the page."""
        request, response = self._request, self._response
        page, values = response.records, response.index_values
        maximum_records = request.page_size or limits.DEFAULT_PAGE_RECORDS
        for position, record in rows:
            if request.keys_only:
                added = records.without_value(record)
            else:
                added = records.complete(record, record.key, view.tables.values)
            self._page_bytes += added.ByteSize() + len(position.value)
            if page and (len(page) == maximum_records or self._page_bytes > limits.MAX_PAGE_BYTES):
                place = self._place if self._selection.snapshot else None
                last = Position(page[-1].key, values[-1] if values else b"")
                response.next_page_token = cursor.encode(Cursor(last, place), self._selection)
                return True
            page.append(added)
            if self._selection.index:
                values.append(position.value)
        return self._page.is_complete


class _Budget:
    """What a slice may still look at."""

    def __init__(self) -> None:
        self._records = SLICE_RECORDS
        self._bytes = SLICE_BYTES

    def take(self, record: Record | None) -> None:
        """None is for a key that held nothing."""
        self._records -= 1
        if record is not None:
            self._bytes -= len(record.value)

    @property
    def is_spent(self) -> bool:
        return self._records <= 0 or self._bytes <= 0


class _Walk(Protocol):
    """The records of a selection, in slices."""

    is_complete: bool

    def rows(self, view: View, budget: _Budget) -> Iterator[tuple[Position, Record]]:
        """Go on after the last one that was given out.

        Ends when the selection does, and is complete then; or with the budget, of which it
        takes what is not given out.
        """


class _Keys:
    """A walk over keys."""

    def __init__(self, selection: Selection, place: Place, last: Position | None) -> None:
        self.is_complete = False
        self._selection = selection
        self._place = place
        self._last = None if last is None else last.key

    def rows(self, view: View, budget: _Budget) -> Iterator[tuple[Position, Record]]:
        start, end, reverse = self._selection.start, self._selection.end, self._selection.reverse
        if self._last is not None:
            # The smallest key above the last one, or those below it.
            start, end = (start, self._last) if reverse else (self._last + b"\0", end)
        if view.revision == self._place.revision:
            held = view.tables.data.scan(start, end, reverse=reverse)
        else:
            held = past.scan(view.tables, start, end, self._place.revision, reverse=reverse)
        for key, data in held:
            self._last = key
            record = records.read(key, data) if data else None
            if record is not None and not _has_expired(record, self._place):
                yield Position(key), record
                continue
            budget.take(record)
            if budget.is_spent:
                return
        self.is_complete = True


class _Index:
    """A walk over the entries of an index, as they are when it begins."""

    def __init__(
        self, view: View, selection: Selection, place: Place, last: Position | None
    ) -> None:
        self.is_complete = False
        self._name = selection.index
        self._place = place
        start, end = layout.index_range(selection.index, selection.start, selection.end)
        if last is not None:
            position = layout.index_key(selection.index, last.value, last.key)
            start, end = (start, position) if selection.reverse else (position + b"\0", end)
        self._entries = view.tables.index.scan(start, end, reverse=selection.reverse)

    def rows(self, view: View, budget: _Budget) -> Iterator[tuple[Position, Record]]:
        for stored, _ in self._entries:
            value, key = layout.split_index_key(stored, self._name)
            record = history.record_at(view.tables, key, self._place.revision, newest=view.revision)
            if record is None:
                raise StorageError(
                    f"an entry of the index {self._name!r} leads to the key {key[:48]!r}, which"
                    " has no record: the disk has altered it; replace this node"
                )
            if not _has_expired(record, self._place):
                yield Position(key, value), record
                continue
            budget.take(record)
            if budget.is_spent:
                return
        self.is_complete = True


def _walk(view: View, selection: Selection, place: Place, last: Position | None) -> _Walk:
    if selection.index:
        return _Index(view, selection, place, last)
    return _Keys(selection, place, last)


def _has_expired(record: Record, place: Place) -> bool:
    return 0 < record.expire_time_ms <= place.log_time_ms


def select(group: GroupId, request: ListRequest) -> Selection:
    """What the request selects, as one range of keys or of the values of an index."""
    index, start, end = "", b"", None
    match request.WhichOneof("selection"):
        case "prefix":
            start, end = request.prefix, layout.prefix_end(request.prefix)
        case "range":
            start, end = request.range.start, request.range.end or None
        case "index":
            index = request.index.index
            start, end = _values(request.index)
        case None:
            pass
        case unexpected:
            assert_never(unexpected)
    return Selection(
        group, start, end, index=index, reverse=request.reverse, snapshot=request.snapshot
    )


def _values(selected: IndexSelection) -> tuple[bytes, bytes | None]:
    """Start and end of the values; all of them if it does not say which."""
    match selected.WhichOneof("values"):
        case "value":
            return selected.value, selected.value + b"\0"
        case "prefix":
            return selected.prefix, layout.prefix_end(selected.prefix)
        case "range":
            return selected.range.start, selected.range.end or None
        case None:
            return b"", None
        case unexpected:
            assert_never(unexpected)
