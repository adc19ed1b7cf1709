"""Pages of records in key order.

Rules: a page begins by seeking, so the thousandth costs what the first costs; it
ends before the record that would take it beyond its count or its bytes, but holds
at least one; and it looks one record ahead, so that a page which is full and
the last says that it is the last.
"""

from typing import assert_never

from kvorum import limits
from kvorum.errors import InvalidArgument
from kvorum_node.machine import cursor, records
from kvorum_node.machine.cursor import Selection
from kvorum_node.raft.types import GroupId
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Engine, Family
from kvorum_node.storage.layout import Space
from kvorumpb.v1.kv_pb2 import ListRequest, ListResponse


def list_records(engine: Engine, space: Space, revision: int, request: ListRequest) -> ListResponse:
    """The page that the request asks for. Raises InvalidCursor."""
    selection = select(space.group, request)
    start = selection.start
    if request.page_token:
        # The smallest key above the last one that was returned.
        start = cursor.decode(request.page_token, selection) + b"\0"
    response = ListResponse(revision=revision)
    maximum_records = request.page_size or limits.DEFAULT_PAGE_RECORDS
    page, page_bytes, last = response.records, 0, b""
    for stored_key, stored in engine.scan(
        Family.DATA, *layout.data_range(space, start, selection.end)
    ):
        page_bytes += len(stored_key) + len(stored)
        if page and (len(page) == maximum_records or page_bytes > limits.MAX_PAGE_BYTES):
            response.next_page_token = cursor.encode(last, selection)
            break
        last = layout.without_prefix(stored_key)
        record = page.add()
        record.key = last
        records.load(record, last, stored)
    return response


def select(group: GroupId, request: ListRequest) -> Selection:
    """The keys that the request selects, as one range."""
    match request.WhichOneof("selection"):
        case "prefix":
            return Selection(group, request.prefix, layout.prefix_end(request.prefix))
        case "range":
            return Selection(group, request.range.start, request.range.end or None)
        case "index":
            raise InvalidArgument("lists by index are not served")
        case None:
            return Selection(group, b"", None)
        case unexpected:
            assert_never(unexpected)
