"""Who leads, as far as nodes have said.

Rules: the highest term wins, for a term has one leader at most (Raft, section
5.2). A leader that says it leads no more is not believed to lead that term
again, whatever others still say of it.
"""


class LeaderView:
    """What one client knows of the leader. Pure: it is told, and it is asked."""

    def __init__(self) -> None:
        self.term = 0
        self.leader = ""
        """Its name; empty if none is known."""
        self.address = ""
        self._disclaimed_term = -1

    def observe(self, term: int, leader: str, address: str) -> None:
        """A node says who leads at `term`; an empty leader means it knows of none."""
        if term < self.term or (term == self.term and (self.leader or not leader)):
            return
        self.term = term
        known = bool(leader and address) and term > self._disclaimed_term
        self.leader = leader if known else ""
        self.address = address if known else ""

    def disclaim(self) -> None:
        """The node we took for the leader says that it is not."""
        self._disclaimed_term = self.term
        self.leader = self.address = ""

    def __str__(self) -> str:
        if self.leader:
            return f"{self.leader} ({self.address}) leads term {self.term}"
        return f"no leader known at term {self.term}"
