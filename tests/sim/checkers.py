"""What must hold in every run, each rule a small class that is told facts and judges them.

    OneLeaderATerm       election safety (Raft, figure 3)
    OneVoteATerm         a node gives one vote a term, and its disk knows of it before anybody else
    LogMatching          an index and a term name one entry, behind one other, on every disk
    CommittedIsForever   an index is committed once, from a majority of disks, and every later
                         leader has it: leader completeness and state machine safety
    OneChangeAtATime     a leader changes the members after the last change is committed
    MembersOfTheLog      a node goes by the members that its own log names
    Promises             what a node acknowledges is on its disk
    SameState            two nodes that have applied the same index hold the same
    LogTime              log time goes on as true time does, whoever leads
    OnTime               nobody reads what has expired by the clock of the leader

What clients see is judged in oracle.py. Rules: a checker knows nothing of simulators,
nodes and networks, and costs what has changed, not what there is. It reports to the
function that it was given and goes on: raising would unwind the node that is judged.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvorum_node.raft.quorum import majority
from kvorum_node.raft.types import Entry, HardState, Index, NodeId, Term, node_name

Report = Callable[[str], None]
Voters = frozenset[NodeId]


class OneLeaderATerm:
    def __init__(self, report: Report) -> None:
        self._report = report
        self.leaders: dict[Term, NodeId] = {}

    def leads(self, node: NodeId, term: Term) -> bool:
        """Returns whether this is the first that is heard of it."""
        if term not in self.leaders:
            self.leaders[term] = node
            return True
        if self.leaders[term] != node:
            known = node_name(self.leaders[term])
            self._report(f"one leader a term: {known} and {node_name(node)} lead term {term}")
        return False

    def is_elected(
        self,
        node: NodeId,
        term: Term,
        voted: frozenset[NodeId],
        possible: Iterable[Sequence[Voters]],
    ) -> None:
        """These have voted for a new leader; `possible` are the halves that may have been asked."""
        if not any(
            all(len(voted & voters) >= majority(voters) for voters in halves) for halves in possible
        ):
            self._report(
                f"elected: {node_name(node)} leads term {term} by the votes of {_names(voted)}"
            )


class OneVoteATerm:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._votes: dict[tuple[NodeId, Term], NodeId] = {}

    def says(self, node: NodeId, term: Term, candidate: NodeId, durable: HardState) -> None:
        """The node gives its vote away in a message, while a crash would leave `durable`."""
        self._is(node, term, candidate)
        if durable.term <= term and (durable.term, durable.vote) != (term, candidate):
            self._report(
                f"one vote a term: {node_name(node)} votes for {node_name(candidate)} in {term},"
                f" and its disk says {durable}"
            )

    def keeps(self, node: NodeId, durable: HardState) -> None:
        """The node's disk holds this now."""
        if durable.vote is not None:
            self._is(node, durable.term, durable.vote)

    def voters_of(self, candidate: NodeId, term: Term) -> frozenset[NodeId]:
        """Whoever is known to have voted for the candidate, itself included."""
        return frozenset(
            node for (node, at), voted in self._votes.items() if at == term and voted == candidate
        )

    def _is(self, node: NodeId, term: Term, candidate: NodeId) -> None:
        known = self._votes.setdefault((node, term), candidate)
        if known != candidate:
            self._report(
                f"one vote a term: {node_name(node)} votes for {node_name(known)}"
                f" and {node_name(candidate)} in {term}"
            )


class LogMatching:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._known: dict[tuple[Index, Term], tuple[Term, bytes]] = {}

    def stores(self, node: NodeId, before: Term, entry: Entry) -> None:
        """The node writes the entry behind one of the term `before`."""
        mine = (before, bytes([entry.kind]) + entry.data)
        known = self._known.setdefault((entry.index, entry.term), mine)
        if known != mine:
            self._report(
                f"log matching: {node_name(node)} has {entry} after term {before} as {mine[1]!r},"
                f" others after term {known[0]} as {known[1]!r}"
            )


@dataclass(frozen=True, slots=True)
class Committed:
    entry: Entry
    by: Term
    """The term in which it was."""


class CommittedIsForever:
    """`entries` is the one log that all agree on, from index 1."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.entries: list[Committed] = []

    @property
    def last(self) -> Index:
        return Index(len(self.entries))

    def commits(
        self,
        node: NodeId,
        term: Term,
        entry: Entry,
        holders: Iterable[NodeId],
        possible: Iterable[Sequence[Voters]],
    ) -> None:
        """A node is the first to commit the entry, which the holders have on their disks.

        `possible` are the configurations of which one was in force, each as the sets of
        voters of which it takes a majority each.
        """
        if entry.index != self.last + 1:
            self._report(f"committed: {node_name(node)} commits {entry} after {self.last}")
            return
        on_disk = frozenset(holders)
        possible = tuple(possible)
        if not any(
            all(len(on_disk & voters) >= majority(voters) for voters in halves)
            for halves in possible
        ):
            needed = " or ".join(
                " && ".join(_names(voters) for voters in halves) for halves in possible
            )
            self._report(
                f"committed is durable: {node_name(node)} commits {entry} in term {term}, and only"
                f" {_names(on_disk)} have it on their disks, of {needed}"
            )
        self.entries.append(Committed(entry, term))

    def decides(self, leader: NodeId, term: Term, index: Index, of: Term) -> None:
        """A leader has raised its commit index to an entry of the term `of` (section 5.4.2)."""
        if of != term:
            self._report(
                f"own term: {node_name(leader)} leads {term} and commits {index}@{of} by itself"
            )

    def agrees(self, node: NodeId, index: Index, term: Term) -> None:
        """A node commits what was committed before."""
        known = self.entries[index - 1].entry
        if known.term != term:
            self._report(
                f"committed is forever: {node_name(node)} commits {index}@{term}, not {known}"
            )

    def required_of(self, term: Term) -> Entry | None:
        """The last entry that a leader of the term must have had when it was elected.

        By log matching, it has everything before that, too.
        """
        for known in reversed(self.entries):
            if known.by < term:
                return known.entry
        return None

    def lacks(self, node: NodeId, term: Term, entry: Entry) -> None:
        self._report(f"leader completeness: {node_name(node)} leads {term} without {entry}")


class OneChangeAtATime:
    def __init__(self, report: Report) -> None:
        self._report = report

    def changes(self, leader: NodeId, index: Index, before: Index, committed: Index) -> None:
        """A leader's entry at the index changes the members, and that at `before` did last."""
        if before > committed:
            self._report(
                f"one change at a time: {node_name(leader)} changes the members at {index}, and"
                f" the change at {before} is not committed"
            )


class MembersOfTheLog:
    def __init__(self, report: Report) -> None:
        self._report = report

    def goes_by(self, node: NodeId, index: Index, term: Term, found: Term | None) -> None:
        """A node goes by the members of the entry index@term; in its log there is `found`."""
        if found != term:
            self._report(
                f"members of the log: {node_name(node)} goes by those of {index}@{term}, which is"
                " not in its log any more"
            )


class Promises:
    def __init__(self, report: Report) -> None:
        self._report = report

    def acknowledges(
        self, node: NodeId, term: Term, index: Index, durable: HardState, durable_last: Index
    ) -> None:
        """The node says that it has the log through the index, in this term."""
        if durable.term == term and durable_last < index:
            self._report(
                f"promises: {node_name(node)} acknowledges {index}, its disk ends at {durable_last}"
            )

    def goes_on(self, node: NodeId) -> None:
        """The node does something although its disk has failed."""
        self._report(f"promises: {node_name(node)} goes on with a disk that has failed")


class SameState:
    """What is compared is a digest that follows every change of the state: see StateDigest."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._known: dict[Index, tuple[NodeId, int]] = {}

    def holds(self, node: NodeId, applied: Index, digest: int) -> None:
        other, known = self._known.setdefault(applied, (node, digest))
        if known != digest:
            self._report(
                f"same state: {node_name(node)} and {node_name(other)} have applied {applied},"
                " and hold different records"
            )


class StateDigest:
    """A sum over all records of a map, kept up to date change by change.

    The order of the changes does not matter, only what is there in the end. Digests are
    compared within one process only: Python's own hash will do.
    """

    def __init__(self) -> None:
        self.value = 0

    def change(self, key: bytes, old: bytes | None, new: bytes | None) -> None:
        if old is not None:
            self.value ^= hash((key, old))
        if new is not None:
            self.value ^= hash((key, new))

    @classmethod
    def of(cls, records: Mapping[bytes, bytes]) -> "StateDigest":
        digest = cls()
        for key, value in records.items():
            digest.change(key, None, value)
        return digest


class LogTime:
    """What leaders stamp on entries, held against the true time at which they did.

    The difference of the two is the offset. While one leads, it changes by the slew alone, one
    part in 2,000. Who takes over may be behind by the way of the last message that told it of
    the leader's clock (`told`), be it the first entry that it applies; and each start of a node
    costs a part of a millisecond, as clocks are stored in whole ones. All that as long as no
    steady clock runs fast or slow, and no wall clock is set before a start (`unsteady`). The
    beginning is not looked at:
    until its first entry is applied, a cluster has no time but its leader's wall clock, and
    from then on that of the entry.

    A record so lives as long as its time to live says, but for the bound, on any leader.
    """

    SLEW = 2000
    TOLERANCE_US = 2_000

    def __init__(self, report: Report) -> None:
        self._report = report
        self._first: tuple[Term, int, int] | None = None
        """The term, the true time and the offset of the first stamp."""
        self._last: tuple[Term, int, int] = (Term(0), 0, 0)
        self._lag_us = 0
        self._starts = 0
        self._is_steady = True
        self._began_us: int | None = None
        self.checked = 0
        self.takeovers = 0

    def unsteady(self) -> None:
        """A clock counts wrong, or nobody knows what it did while its node was down."""
        self._is_steady = False

    def starts(self) -> None:
        """A node goes on with its stored clock."""
        self._starts += 1

    def leads_without(self) -> None:
        """A node leads that knows no log time: one that has just been made."""
        if self._began_us is not None:
            self.unsteady()

    def begins(self, now_us: int) -> None:
        """A node has applied something with a log time."""
        if self._began_us is None:
            self._began_us = now_us

    def told(self, lag_us: int) -> None:
        """A follower goes by what its leader said so long ago."""
        self._lag_us = max(self._lag_us, lag_us)

    def commits(self, entry: Entry, stamped_us: int, log_time_ms: int) -> None:
        """The next entry that is committed, in the order of the log."""
        if self._began_us is None or stamped_us <= self._began_us:
            return
        stamp = (entry.term, stamped_us, log_time_ms * 1000 - stamped_us)
        if self._first is None:
            self._first = stamp
        elif self._is_steady:
            self.checked += 1
            if entry.term == self._last[0]:
                self._goes_on(entry, stamped_us, stamp[2])
            else:
                self.takeovers += 1
            self._is_within(entry, stamped_us, stamp[2], self._first)
        self._last = stamp

    def _goes_on(self, entry: Entry, now_us: int, offset_us: int) -> None:
        _, then_us, before_us = self._last
        bound_us = (now_us - then_us) // self.SLEW + self.TOLERANCE_US
        if abs(offset_us - before_us) > bound_us:
            self._report(
                f"log time: its leader stamps {entry} {offset_us - before_us} us off the time that"
                f" has passed since its last one"
            )

    def _is_within(
        self, entry: Entry, now_us: int, offset_us: int, first: tuple[Term, int, int]
    ) -> None:
        term, then_us, base_us = first
        slew_us = (now_us - then_us) // self.SLEW + self.TOLERANCE_US * (1 + self._starts)
        ahead_us = offset_us - base_us
        if not -slew_us - self._lag_us * (entry.term - term) <= ahead_us <= slew_us + self._lag_us:
            self._report(
                f"log time: {entry} is stamped {ahead_us} us ahead of the time that has passed"
                f" since the first entry; {self._lag_us} us is what a leader's word took at most"
            )


class OnTime:
    def __init__(self, report: Report) -> None:
        self._report = report

    def reads(self, node: NodeId, key: bytes, expire_time_ms: int, asked_ms: int) -> None:
        """A node answers a read with a record, by whose leader's clock it was asked then."""
        if 0 < expire_time_ms < asked_ms:
            self._report(
                f"on time: {node_name(node)} was asked at {asked_ms} by its clock, and shows"
                f" {key!r}, which had expired at {expire_time_ms}"
            )


def _names(nodes: Iterable[NodeId]) -> str:
    return ", ".join(node_name(node) for node in sorted(nodes)) or "nobody"
