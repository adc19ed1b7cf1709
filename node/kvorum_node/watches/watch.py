"""One watch.

Where it is with respect to the revisions of the store:

    told of ──> noted in `pending` ──> through here it is known what is to be noted ──> newest
                                       (`scanned`)

    LIVE       everything is known: the hub notes what it wants as it happens
    BEHIND     it is led through the history from `scanned` on
    FULL       as BEHIND, but no number more may be noted before it has been told of some
    EARLY      it begins at a revision that this node has not reached
"""

from enum import Enum, auto
from typing import Protocol

from google.rpc.status_pb2 import Status

from kvorum import limits
from kvorum_node.storage.layout import EventKind
from kvorum_node.watches.selection import kinds_of, selection_of
from kvorumpb.v1.watch_pb2 import BeginWatch, WatchUpdate


class State(Enum):
    LIVE = auto()
    BEHIND = auto()
    FULL = auto()
    EARLY = auto()


class Owner(Protocol):
    """The stream that the watch is on."""

    def rouse(self, watch: "Watch") -> None:
        """The watch has something to be told."""

    def notify(self, update: WatchUpdate) -> None:
        """Say this before any changes."""

    def end(self, watch: "Watch", status: Status) -> None:
        """The watch is over at once."""


class Budget:
    """How many numbers are noted at all watches together."""

    __slots__ = ("noted",)

    def __init__(self) -> None:
        self.noted = 0


class Watch:
    __slots__ = (
        "budget",
        "ended",
        "id",
        "interval_ms",
        "keys_only",
        "kinds",
        "offset",
        "ordinal",
        "owner",
        "pending",
        "previous",
        "scanned",
        "selection",
        "state",
    )

    def __init__(self, begin: BeginWatch, owner: Owner, *, scanned: int, budget: Budget) -> None:
        """`scanned` is the revision after which it is to be told; `begin` has been validated."""
        self.budget = budget
        self.id = begin.watch_id
        self.owner = owner
        self.selection = selection_of(begin)
        self.kinds = kinds_of(begin)
        self.previous = begin.previous
        self.keys_only = begin.keys_only
        self.interval_ms = begin.progress_interval_ms or limits.DEFAULT_PROGRESS_INTERVAL_MS
        self.state = State.BEHIND
        self.scanned = scanned
        """What is before is told or noted. Not kept up while it is LIVE."""
        self.pending: list[int] = []
        """The next revisions that it is to be told of."""
        self.ordinal = 0
        """Of the first of them, the next event to be looked at."""
        self.offset = 0
        """Of that event, so many bytes of the values have been told."""
        self.ended: Status | None = None
        """With what it ends, once it has been told of what is noted."""

    @property
    def is_full(self) -> bool:
        count = len(self.pending)
        return count >= limits.MIN_WATCH_PENDING_REVISIONS and (
            count >= limits.MAX_WATCH_PENDING_REVISIONS
            or self.budget.noted >= limits.MAX_PENDING_REVISIONS
        )

    @property
    def has_room(self) -> bool:
        """Enough that it is worth while to walk through history for it."""
        return 2 * len(self.pending) <= limits.MIN_WATCH_PENDING_REVISIONS or (
            2 * len(self.pending) <= limits.MAX_WATCH_PENDING_REVISIONS
            and 2 * self.budget.noted <= limits.MAX_PENDING_REVISIONS
        )

    def forget(self) -> None:
        """It is over."""
        self.budget.noted -= len(self.pending)
        self.pending.clear()

    def wants(self, kind: EventKind, key: bytes) -> bool:
        return self.kinds[kind] and self.selection.covers(key)

    def note(self, revision: int) -> bool:
        """It is to be told of the revision, once. False if that has no room."""
        pending = self.pending
        if not pending or pending[-1] != revision:
            if self.is_full:
                return False
            pending.append(revision)
            self.budget.noted += 1
            self.owner.rouse(self)
        return True

    def finish(self) -> None:
        """It has been told of the first of its revisions."""
        del self.pending[0]
        self.budget.noted -= 1
        self.ordinal = 0
        self.offset = 0
