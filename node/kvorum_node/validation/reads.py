"""What a read must be like before it is worth a round of the majority."""

from typing import assert_never

from kvorum import limits
from kvorum.errors import InvalidArgument, LimitExceeded
from kvorum_node.validation.parts import (
    shown,
    validate_bound,
    validate_index_name,
    validate_index_value,
    validate_key,
    validate_range,
)
from kvorumpb.v1.kv_pb2 import Consistency, GetRequest, IndexSelection, ListRequest


def validate_get(request: GetRequest) -> None:
    """Raises InvalidArgument or LimitExceeded if the request cannot be answered."""
    validate_key(request.key)
    _validate_reading(request)


def validate_list(request: ListRequest) -> None:
    """Raises InvalidArgument or LimitExceeded if the request cannot be answered.

    The page token is not looked at: kvorum_node.machine.cursor reads it.
    """
    match request.WhichOneof("selection"):
        case "prefix":
            validate_bound("the prefix", request.prefix)
        case "range":
            validate_range(request.range)
        case "index":
            _validate_index_selection(request.index)
            if request.revision or request.snapshot:
                raise InvalidArgument(
                    "a list by index reads the newest state only: leave out revision and snapshot"
                )
        case None:
            pass
        case unexpected:
            assert_never(unexpected)
    _validate_reading(request)
    validate_page_size(request.page_size)


def validate_page_size(page_size: int) -> None:
    """Raises InvalidArgument or LimitExceeded unless it is 0 to MAX_PAGE_RECORDS."""
    if page_size < 0:
        raise InvalidArgument(
            f"the page size is {page_size}: give 1 to {limits.MAX_PAGE_RECORDS:,} "
            f"records, or 0 for {limits.DEFAULT_PAGE_RECORDS:,}"
        )
    if page_size > limits.MAX_PAGE_RECORDS:
        raise LimitExceeded(
            f"the page size is {page_size:,} records, more than "
            f"{limits.MAX_PAGE_RECORDS:,}: ask for less and follow the cursor (page_token)",
            limit="MAX_PAGE_RECORDS",
            maximum=limits.MAX_PAGE_RECORDS,
            actual=page_size,
        )


def _validate_reading(request: GetRequest | ListRequest) -> None:
    """Of what, and how new, the answer is to be."""
    if request.revision < 0:
        raise InvalidArgument(
            f"the revision is {request.revision}: give a revision of the store, or 0 for the newest"
        )
    if request.consistency not in Consistency.values():
        raise InvalidArgument(
            f"the consistency is {request.consistency}, which this node does not know"
        )
    if request.max_staleness_ms < 0:
        raise InvalidArgument(
            f"the staleness is {request.max_staleness_ms} ms at most: give at least 1, or 0 for any"
        )
    if request.max_staleness_ms and request.consistency != Consistency.STALE:
        raise InvalidArgument("only a read with the consistency STALE has a max_staleness_ms")


def _validate_index_selection(selected: IndexSelection) -> None:
    validate_index_name(selected.index)
    match selected.WhichOneof("values"):
        case "value":
            validate_index_value(selected.value)
        case "prefix":
            validate_index_value(selected.prefix)
        case "range":
            start, end = selected.range.start, selected.range.end
            validate_index_value(start)
            validate_index_value(end)
            if end and end < start:
                raise InvalidArgument(
                    f"the range of values ends at {shown(end)}, before its start {shown(start)}:"
                    " swap them, or leave the end empty to list to the last value"
                )
        case None:
            pass
        case unexpected:
            assert_never(unexpected)
