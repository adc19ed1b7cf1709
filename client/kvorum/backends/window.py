"""Whose writes these are, and their numbers: so that the store applies each of them once.

A window is one client id that the store knows, and the writes made with it. A write takes
a number once, and keeps it however often it is sent. It is settled when nobody will send it
any more: it was answered, or its caller has given it up. `acknowledged` is the number through
which all are settled, and travels with each write: the store forgets their results. So a
write whose caller has gone holds up no other.

"""

from kvorum import limits


class Window:
    """Numbers writes from 1."""

    __slots__ = ("_settled", "acknowledged", "client_id", "last")

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id
        self.last = 0
        """The highest number taken."""
        self.acknowledged = 0
        """All writes through this one are settled."""
        self._settled: set[int] = set()
        """Those above it that are settled."""

    @property
    def is_full(self) -> bool:
        """Tell whether the next write would be further ahead than the store allows."""
        return self.last - self.acknowledged >= limits.MAX_CLIENT_WINDOW

    def take(self) -> int:
        """Return the number of the next write. Not while the window is full."""
        self.last += 1
        return self.last

    def settle(self, sequence: int) -> None:
        """Nobody will send this write again."""
        settled = self._settled
        settled.add(sequence)
        while self.acknowledged + 1 in settled:
            self.acknowledged += 1
            settled.remove(self.acknowledged)
