"""How far a follower may be behind its leader: for reads that it answers by itself.

That a heartbeat arrives says little about now: it may have waited in a buffer while this
process, or the leader's, was suspended. So a follower measures from its own question to
the answer. Its reply to a heartbeat carries what its clock shows, and a later heartbeat
brings that back (`echo`), with how far the leader had committed by then. Once all of that is
applied, the follower has whatever was committed before the moment of its question.

This costs no message, and makes a follower look a heartbeat or two older than it is. A leader
that was replaced and does not know it yet is still believed: for as long as it does not miss
the majority, less than two election time-outs.
"""

from collections import deque
from typing import Final

from kvorum_node.raft.types import Index

MAX_PROMISES: Final = 64
"""What is kept for a state that is behind: newer news have to wait until it has caught up."""


class Freshness:
    __slots__ = ("_news", "as_of")

    def __init__(self) -> None:
        self.as_of: int | None = None
        """The state holds what was committed before the clock showed this; None: nobody knows."""
        self._news: deque[tuple[Index, int]] = deque()

    def learn(self, committed: Index, echo: int) -> None:
        """What was committed before the clock showed `echo` is within `committed`."""
        newest = self._news[-1][1] if self._news else self.as_of or 0
        if committed and echo > newest and len(self._news) < MAX_PROMISES:
            self._news.append((committed, echo))

    def applied(self, index: Index) -> None:
        """The state has come to this index."""
        while self._news and self._news[0][0] <= index:
            self.as_of = self._news.popleft()[1]
