"""Where the rows of EXPIRY begin.

What has expired is deleted at the front, and each deleted row leaves a tombstone that a scan
from the start has to pass until the engine has compacted it: a million of them take a second.

Rule: in memory only, and never more than a bound that a scan may start at. What is found,
and so what the machine does, is the same without it.
"""

from typing import Final

from kvorum_node.storage.layout import ExpiryKind

NEVER_MS: Final = 2**63 - 1


class Horizon:
    __slots__ = ("first_record_ms", "first_row")

    def __init__(self) -> None:
        self.first_row = b""
        """No row has a smaller key."""
        self.first_record_ms = 0
        """No record that was there by log time expires before."""

    def note(self, row: bytes, expire_time_ms: int, kind: ExpiryKind) -> None:
        """A row is to be put."""
        self.first_row = min(self.first_row, row)
        if kind is ExpiryKind.RECORD:
            self.first_record_ms = min(self.first_record_ms, expire_time_ms)
