"""The newest changes, kept so that whoever follows at once is told without reading history.

Only a cache: what is not in it is in history. Bounded in bytes.
"""

from collections import deque

from kvorum import limits
from kvorum_node.machine import Transition

_EVENT_BYTES = 400
"""What Python needs around an event and its records, about."""


class Cache:
    def __init__(self, max_bytes: int = limits.MAX_WATCH_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[int, Transition] = {}
        """By revision."""
        self._sizes: deque[tuple[int, int]] = deque()
        """Revisions in their order, and the bytes of each."""
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, transition: Transition) -> None:
        size = 0
        for _, key, record, previous in transition.events:
            size += _EVENT_BYTES + len(key) + len(record or b"") + len(previous or b"")
        if size > self._max_bytes:
            return
        self._kept[transition.revision] = transition
        self._sizes.append((transition.revision, size))
        self._bytes += size
        while self._bytes > self._max_bytes:
            oldest, size = self._sizes.popleft()
            del self._kept[oldest]
            self._bytes -= size

    def get(self, revision: int) -> Transition | None:
        return self._kept.get(revision)

    def clear(self) -> None:
        self._kept.clear()
        self._sizes.clear()
        self._bytes = 0
