"""What a watch must be like before it is begun."""

from typing import assert_never

from kvorum import limits
from kvorum.errors import InvalidArgument
from kvorum_node.validation.parts import (
    shown,
    validate_bound,
    validate_key,
    validate_namespace,
)
from kvorum_node.validation.versions import validate_known
from kvorumpb.v1.watch_pb2 import BeginWatch


def validate_begin_watch(begin: BeginWatch) -> None:
    """Raises InvalidArgument, LimitExceeded or NamespaceNotFound if it cannot be served."""
    validate_known(begin, "the watch")
    validate_namespace(begin.namespace)
    match begin.WhichOneof("selection"):
        case "key":
            validate_key(begin.key)
        case "prefix":
            validate_bound("the prefix", begin.prefix)
        case "range":
            start, end = begin.range.start, begin.range.end
            validate_bound("the start of the range", start)
            validate_bound("the end of the range", end)
            if end and end <= start:
                raise InvalidArgument(
                    f"the range ends at {shown(end)}, not after its start {shown(start)}: no key"
                    " could ever be told of"
                )
        case None:
            pass
        case unexpected:
            assert_never(unexpected)
    if begin.HasField("after_revision") and begin.after_revision < 0:
        raise InvalidArgument(
            f"the watch is to begin after revision {begin.after_revision}: give one from 0"
        )
    if begin.no_puts and begin.no_deletes and begin.no_expiries:
        raise InvalidArgument("the watch leaves out puts, deletes and expiries: nothing is left")
    interval_ms = begin.progress_interval_ms
    shortest, longest = limits.MIN_PROGRESS_INTERVAL_MS, limits.MAX_PROGRESS_INTERVAL_MS
    if interval_ms and not shortest <= interval_ms <= longest:
        raise InvalidArgument(
            f"the progress interval is {interval_ms} ms: give {shortest:,} to {longest:,}, or 0"
            f" for {limits.DEFAULT_PROGRESS_INTERVAL_MS:,}"
        )
