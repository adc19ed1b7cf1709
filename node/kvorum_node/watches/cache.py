"""The newest changes, kept so that whoever follows at once is told without reading history.

Only a cache: what is not in it is in history. Bounded in bytes.
"""

from kvorum import limits
from kvorum_node.machine import Transition

_EVENT_BYTES = 400
"""What Python needs around an event and its records, about."""


class Cache:
    def __init__(self, max_bytes: int = limits.MAX_WATCH_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[int, tuple[Transition, int]] = {}
        """By revision, which is also their order: the transition, and its bytes."""
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, transition: Transition) -> None:
        if any(one.previous is not None and one.previous.value_apart for one in transition.events):
            return  # history fetches such a value when it is told
        size = 0
        for event in transition.events:
            size += _EVENT_BYTES + len(event.key)
            for record in (event.record, event.previous):
                if record is not None:
                    size += record.ByteSize()
        if size > self._max_bytes:
            return
        self._kept[transition.revision] = (transition, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            oldest = next(iter(self._kept))
            self._bytes -= self._kept.pop(oldest)[1]

    def get(self, revision: int) -> Transition | None:
        kept = self._kept.get(revision)
        return None if kept is None else kept[0]

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0
