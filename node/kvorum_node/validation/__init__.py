"""What a request must be like before it is worth a log entry.

Rules: a request is refused before it is proposed, so that everything in the log
can be applied; nothing here reads the store, so that the same request is
refused everywhere and always; an error says what is wrong and how to help
oneself, and names the key, shortened, where there is one.

    parts.py         keys, values, ranges, index entries: what all requests are made of
    reads.py, writes.py, rate_limits.py, watches.py
    versions.py      what newer versions ask for
"""

from kvorum_node.validation.parts import (
    DEFAULT_NAMESPACE,
    SHOWN_CHARACTERS,
    validate_index_name,
    validate_index_value,
    validate_key,
    validate_namespace,
    validate_range,
    validate_value,
)
from kvorum_node.validation.rate_limits import validate_rate_limit
from kvorum_node.validation.reads import validate_get, validate_list, validate_page_size
from kvorum_node.validation.versions import validate_known
from kvorum_node.validation.watches import validate_begin_watch
from kvorum_node.validation.writes import (
    validate_client,
    validate_origin,
    validate_put,
    validate_transaction,
    validate_ttl,
)

__all__ = [
    "DEFAULT_NAMESPACE",
    "SHOWN_CHARACTERS",
    "validate_begin_watch",
    "validate_client",
    "validate_get",
    "validate_index_name",
    "validate_index_value",
    "validate_key",
    "validate_known",
    "validate_list",
    "validate_namespace",
    "validate_origin",
    "validate_page_size",
    "validate_put",
    "validate_range",
    "validate_rate_limit",
    "validate_transaction",
    "validate_ttl",
    "validate_value",
]
