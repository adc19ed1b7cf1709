"""Looks at hosts after every event, and tells the checkers what has changed.

    ran        after a process had the processor: its role, commit index and state
    sends      each message, before it leaves
    written    each batch that a log disk takes, and each that becomes durable

Here is all that knows both the node's objects and the checkers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from kvorum_node.log_clock import LogClock
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.core import Raft
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.messages import (
    AppendEntriesReply,
    Message,
    RequestVote,
    RequestVoteReply,
)
from kvorum_node.raft.types import (
    EntryKind,
    HardState,
    Index,
    NodeId,
    Position,
    Term,
    node_name,
)
from kvorum_node.storage import layout
from tests.sim.checkers import (
    CommittedIsForever,
    LogMatching,
    LogTime,
    MembersOfTheLog,
    OneChangeAtATime,
    OneLeaderATerm,
    OneVoteATerm,
    OnTime,
    Promises,
    SameState,
    StateDigest,
    Voters,
)
from tests.sim.disk import Change, Disk
from tests.sim.host import GROUP, Host
from tests.sim.oracle import Oracle, Standing

Report = Callable[[str], None]

NEVER = Index(0)
NO_TERM = Term(0)

_LOG = b"L"
_START = _LOG + layout.start_key(GROUP)
_HARD_STATE = _LOG + layout.hard_state_key(GROUP)
_ENTRY = _LOG + layout.entry_range(GROUP)[0]
_ENTRY_LENGTH = len(_ENTRY) + 8
_SPACE = 5
"""Where the space is in a key of the state, behind the tag and the group."""


class LogView:
    """A log as the changes of a disk tell it."""

    def __init__(self) -> None:
        self.start = Position(Index(0), Term(0))
        self.terms: dict[Index, Term] = {}
        self.hard_state = HardState()

    @property
    def last(self) -> Index:
        return Index(self.start.index + len(self.terms))

    def term(self, index: Index) -> Term | None:
        return self.start.term if index == self.start.index else self.terms.get(index)

    def has(self, index: Index, term: Term) -> bool:
        """Whether the entry is there, or its effect in the state (it was cut)."""
        return index <= self.start.index or self.terms.get(index) == term

    def follow(self, changes: Sequence[Change]) -> bool:
        """Take changes in; returns whether the hard state is among them."""
        voted = False
        for key, value in changes:
            if key.startswith(_ENTRY) and len(key) == _ENTRY_LENGTH:
                index = layout.entry_index(key[1:])
                if value is None:
                    self.terms.pop(index, None)
                else:
                    self.terms[index] = layout.decode_entry(key[1:], value).term
            elif key == _HARD_STATE and value is not None:
                self.hard_state = layout.decode_hard_state(key[1:], value)
                voted = True
            elif key == _START and value is not None:
                self.start = layout.decode_start(key[1:], value)
        return voted


class StateView:
    """What is in the two spaces of a state disk, as a digest of each."""

    def __init__(self, content: Mapping[bytes, bytes] | None = None) -> None:
        self._content: dict[bytes, bytes] = {}
        self._digests = (StateDigest(), StateDigest())
        self.follow(list((content or {}).items()))

    def digest(self, space: int) -> int:
        return self._digests[space].value

    def follow(self, changes: Sequence[Change]) -> None:
        for key, value in changes:
            if len(key) > _SPACE and key[_SPACE] <= 1:  # or else it is in META, beside the spaces
                old = self._content.get(key)
                self._digests[key[_SPACE]].change(key[:1] + key[_SPACE + 1 :], old, value)
                if value is None:
                    self._content.pop(key, None)
                else:
                    self._content[key] = value


@dataclass(slots=True)
class _Seen:
    """What was known of a host when it was last looked at."""

    durable: LogView = field(default_factory=LogView)
    states: StateView = field(default_factory=StateView)
    committed: Index = NEVER
    applied: Index = NEVER
    leads: Term = NO_TERM
    configuration: Configuration = field(default_factory=Configuration)
    knows_time: bool = False
    """It has a stored clock, or has applied something since it was started."""
    changed_in: Term | None = None
    """The term of its entry, if the log has that."""


class Inspector:
    def __init__(
        self,
        report: Report,
        oracle: Oracle,
        founders: Configuration,
        *,
        now_us: Callable[[], int],
    ) -> None:
        self.configuration = founders
        """The last one that is committed."""
        self.one_leader = OneLeaderATerm(report)
        self.one_vote = OneVoteATerm(report)
        self.log_matching = LogMatching(report)
        self.committed = CommittedIsForever(report)
        self.one_change = OneChangeAtATime(report)
        self.members_of_log = MembersOfTheLog(report)
        self.promises = Promises(report)
        self.same_state = SameState(report)
        self.log_time = LogTime(report)
        self.on_time = OnTime(report)
        self._report = report
        self._now_us = now_us
        self._stamped_us: dict[tuple[Index, Term], int] = {}
        """When each entry was first stored: its leader had just stamped it."""
        self._committed_us: dict[Index, int] = {}
        """Of those that were committed, and bring a time."""
        self._oracle = oracle
        self._seen: dict[NodeId, _Seen] = {}

    def watch(self, host: Host) -> None:
        """Follow a host's disks from now on."""
        seen = self._seen[host.node] = _Seen()

        def durable(changes: Sequence[Change]) -> None:
            if seen.durable.follow(changes):
                self.one_vote.keeps(host.node, seen.durable.hard_state)

        host.log_disk.written = partial(self._stores, host)
        host.log_disk.made_durable = durable
        host.state_disk.written = partial(_follows, seen)

    def started(self, host: Host) -> None:
        """A process has opened the disks: what it holds now is what they held."""
        assert host.process is not None
        group = host.process.group
        seen = self._seen[host.node]
        seen.states = StateView(host.state_disk.content)
        seen.applied, seen.leads = Index(0), Term(0)
        seen.knows_time = group.machine.clock is not None
        seen.committed = group.machine.applied
        seen.configuration, seen.changed_in = group.raft.configuration, None
        self.ran(host)

    def ran(self, host: Host) -> None:
        process = host.process
        if process is None:
            return
        seen, group = self._seen[host.node], process.group
        raft = group.raft
        if raft.log.committed > seen.committed:
            self._commits(host.node, raft, seen)
        if isinstance(raft.role, Leader) and seen.leads != raft.term:
            seen.leads = raft.term
            self._leads(host.node, raft, seen, group.clock)
        if group.machine.applied != seen.applied:
            seen.applied = group.machine.applied
            digest = seen.states.digest(group.machine._space.number)
            self.same_state.holds(host.node, seen.applied, digest)
            machine = group.machine
            standing = Standing(machine.revision, machine.log_time_ms, machine.oldest_revision)
            self._oracle.holds(host.node, seen.applied, standing)
            if machine.log_time_ms:
                self._learns_time(machine.applied, seen, leads=isinstance(raft.role, Leader))
        at = raft.log.configuration_index
        found = _term_of(raft, at)
        if raft.configuration is seen.configuration:
            if at >= raft.log.first_index and seen.changed_in is not None:
                self.members_of_log.goes_by(host.node, at, seen.changed_in, found)
        else:
            seen.configuration, seen.changed_in = raft.configuration, found
            if isinstance(raft.role, Leader):
                self._changes_members(host.node, raft)

    def sends(self, host: Host, message: Message) -> None:
        node, durable = host.node, self._seen[host.node].durable
        if host.process is not None and host.process.knows_log_has_failed:
            self.promises.goes_on(node)
        match message:
            case RequestVote(pre=False, term=term):
                self.one_vote.says(node, term, node, durable.hard_state)
            case RequestVoteReply(pre=False, granted=True, term=term, recipient=candidate):
                self.one_vote.says(node, term, candidate, durable.hard_state)
            case AppendEntriesReply(hint=None, term=term, index=index):
                self.promises.acknowledges(node, term, index, durable.hard_state, durable.last)
            case _:
                pass

    def holders(self, index: Index, term: Term) -> list[NodeId]:
        """Whose disks have the entry, whatever happens to their processes."""
        return [node for node, seen in self._seen.items() if seen.durable.has(index, term)]

    def configurations(self) -> list[Configuration]:
        """All that anybody may go by."""
        return [self.configuration, *(seen.configuration for seen in self._seen.values())]

    def _leads(self, node: NodeId, raft: Raft, seen: _Seen, clock: LogClock) -> None:
        if not self.one_leader.leads(node, raft.term):
            return
        if (
            clock.reading() is None
        ):  # it has hardly begun to live: it can but believe its wall clock
            self.log_time.leads_without()
        voted = self.one_vote.voters_of(node, raft.term) | {node}
        self.one_leader.is_elected(node, raft.term, voted, _possible(raft, seen))
        required = self.committed.required_of(raft.term)
        if required is None or required.index < raft.log.first_index:
            return
        if not raft.log.matches(Position(required.index, required.term)):
            self.committed.lacks(node, raft.term, required)

    def _learns_time(self, applied: Index, seen: _Seen, *, leads: bool) -> None:
        if leads:
            self.log_time.begins(self._now_us())
        if not seen.knows_time:  # until its leader speaks of it, it goes by the last entry
            seen.knows_time = True
            while applied not in self._committed_us:
                applied = Index(applied - 1)
            self.log_time.told(self._now_us() - self._committed_us[applied])

    def _changes_members(self, node: NodeId, raft: Raft) -> None:
        log = raft.log
        indexes = [index for index, _ in log._configurations]
        # What a leader has inherited may be of several changes, of which it does not know yet
        # that they are committed.
        if len(indexes) > 1 and log.term(indexes[-1]) == raft.term:
            self.one_change.changes(node, indexes[-1], indexes[-2], log.committed)

    def _commits(self, node: NodeId, raft: Raft, seen: _Seen) -> None:
        log = raft.log
        # Entries that were cut, or came in a snapshot, are vouched for by the one before the log.
        first = max(seen.committed + 1, log.first_index - 1, 1)
        seen.committed = log.committed
        if isinstance(raft.role, Leader) and seen.leads == raft.term:
            self.committed.decides(node, raft.term, log.committed, log.term(log.committed))
        known = min(log.committed, self.committed.last)
        for index in range(first, known + 1):
            self.committed.agrees(node, Index(index), log.term(Index(index)))
        first = max(first, known + 1)
        if first > log.committed:
            return
        if first < log.first_index:
            self._report(f"committed: {node_name(node)} has cut {first}, which it has just applied")
            return
        possible = _possible(raft, seen)
        for entry in log.entries(Index(first), 1 << 30, high=Index(log.committed + 1)):
            holders = self.holders(entry.index, entry.term)
            self.committed.commits(node, raft.term, entry, holders, possible)
            log_time_ms = self._oracle.applies(entry)
            if log_time_ms is not None:
                stamped_us = self._stamped_us[entry.index, entry.term]
                self._committed_us[entry.index] = stamped_us
                self.log_time.commits(entry, stamped_us, log_time_ms)
            if entry.kind is EntryKind.CONFIGURATION:
                self.configuration = Configuration.decode(entry.data)

    def _stores(self, host: Host, changes: Sequence[Change]) -> None:
        for key, value in changes:
            if value is not None and key.startswith(_ENTRY) and len(key) == _ENTRY_LENGTH:
                entry = layout.decode_entry(key[1:], value)
                self._stamped_us.setdefault((entry.index, entry.term), self._now_us())
                before = _term_before(host.log_disk, entry.index)
                if before is not None:
                    self.log_matching.stores(host.node, before, entry)


def _term_before(disk: Disk, index: Index) -> Term | None:
    key = layout.entry_key(GROUP, Index(index - 1))
    value = disk.content.get(_LOG + key)
    if value is not None:
        return layout.decode_entry(key, value).term
    value = disk.content.get(_START)
    start = Position(Index(0), Term(0)) if value is None else layout.decode_start(_START[1:], value)
    return start.term if start.index == index - 1 else None


def _term_of(raft: Raft, index: Index) -> Term | None:
    in_log = raft.log.first_index <= index <= raft.log.last_index
    return raft.log.term(index) if in_log else None


def _follows(seen: _Seen, changes: Sequence[Change]) -> None:
    seen.states.follow(changes)  # not bound once: each start makes a new view


def _possible(raft: Raft, seen: _Seen) -> list[list[Voters]]:
    """The configurations by which a process may have decided while it ran."""
    return [_halves(seen.configuration), _halves(raft.configuration)]


def _halves(configuration: Configuration) -> list[Voters]:
    return [voters for voters in (configuration.voters, configuration.outgoing) if voters]
