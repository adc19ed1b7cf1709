"""The Raft core: one member of one group, as a function from inputs to effects.

Inputs: `step` (a message arrived), `tick` (time passed), `propose`, `read_index`,
`change_members`, `transfer_leadership`, `report_unreachable`, `report_snapshot`.
Effects: `ready()` returns all of them as one value, and the host reports back with
`advance(ready)`. In between the core waits for nothing and knows nothing of clocks,
sockets and disks.

What a member does depends on its role and on the message: that is the table
`HANDLERS`. The roles are in follower.py, candidate.py and leader.py, each with
the state that only it needs; here is what they share: the term, the vote, the log.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvorum_node.raft import candidate, follower, leader
from kvorum_node.raft.candidate import Candidate
from kvorum_node.raft.configuration import Change, Configuration
from kvorum_node.raft.follower import Follower
from kvorum_node.raft.freshness import Freshness
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.log import LogReader, RaftLog, Snapshot
from kvorum_node.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from kvorum_node.raft.read_index import ReadState
from kvorum_node.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Index,
    NodeId,
    NotLeading,
    Position,
    Settings,
    Term,
)


@dataclass(frozen=True, slots=True)
class Ready:
    """All that the host has to do now, in the order of the fields.

    The law: `messages` may leave at once. `hard_state`, `snapshot` and `entries` are
    written as one, and fsynced, before a single one of `promises` leaves: a vote or an
    acknowledgement that a crash could take back would break the protocol. Then
    `committed` is applied, `reads` are answered as far as the state has reached their
    index, and `advance` is called. The next Ready is taken after that.
    """

    messages: tuple[Message, ...]
    """A leader's appends and heartbeats: they promise nothing, so they need not wait. (Those of
    a term that is new promise the term, and are among `promises`.)"""

    hard_state: HardState | None
    """Replaces the stored one. Set if the term or the vote is new, or there is more to write."""

    snapshot: Snapshot | None
    """Replaces the whole stored log, which begins after it, and the state that was applied:
    with the one that the host had received when it stepped InstallSnapshot."""

    entries: tuple[Entry, ...]
    """Replace whatever the stored log has at or after the first of them."""

    promises: tuple[Message, ...]
    """Votes, acknowledgements and requests that rest on what was just written."""

    committed: tuple[Entry, ...]
    """To apply, in order; each is handed out once, after it is in `entries` or was before."""

    reads: tuple[ReadState, ...]

    snapshots_to: tuple[NodeId, ...]
    """Followers to be sent a snapshot of the state, in the host's own time and way: each of
    them gets nothing else until `report_snapshot`, which must be called for each."""

    @property
    def must_sync(self) -> bool:
        """Whether there is anything to write: all of it is worth an fsync."""
        return self.hard_state is not None


class Raft:
    """One member. Not thread-safe; `randint(low, high)` is its only source of chance."""

    def __init__(
        self,
        node: NodeId,
        log: LogReader,
        *,
        hard_state: HardState,
        applied: Index,
        randint: Callable[[int, int], int],
        settings: Settings | None = None,
        restarted: bool = False,
    ) -> None:
        """Go on where the log and the hard state were left.

        Args:
            restarted: this member may have promised a leader its loyalty a moment ago.
        """
        self.node = node
        self.settings = settings or Settings()
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.log = RaftLog(log, committed=max(hard_state.commit, applied), applied=applied)
        self.role: Follower | Candidate | Leader = Follower()
        self.election_timeout = 0
        self.clock = 0
        """Ticks that have passed by the host's clock: see `keep_time`."""
        self.bound_elapsed = 0 if restarted else self.settings.election_ticks
        """Ticks since a leader was last heard, of whatever term. For an election time-out, this
        member votes for nobody: that is what a leader's lease rests on (read_index.py)."""
        self.freshness = Freshness()
        self.reads: list[ReadState] = []
        self.snapshots_to: list[NodeId] = []
        self._randint = randint
        self._written = (hard_state.term, hard_state.vote)
        self._messages: list[Message] = []
        self._promises: list[Message] = []
        self._awaits_advance = False
        self._keeps_time = False
        self.reset_election_timeout()

    # What the host may ask.

    @property
    def leader(self) -> NodeId | None:
        """The leader of the current term, as far as this member knows."""
        match self.role:
            case Follower(leader=known):
                return known
            case Leader():
                return self.node
            case Candidate():
                return None

    @property
    def configuration(self) -> Configuration:
        """The members: as the last entry that changes them says, committed or not."""
        return self.log.configuration

    @property
    def committed_configuration(self) -> Configuration:
        """The members as far as that cannot be taken back."""
        return self.log.committed_configuration

    @property
    def members_are_changing(self) -> bool:
        """Whether a change of members is not complete: no other one can begin until it is."""
        return self.configuration.is_joint or self.log.configuration_index > self.log.committed

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.log.committed)

    # Inputs.

    def keep_time(self, clock: int) -> None:
        """The host's clock shows this, in ticks, and never goes back.

        It counts what `tick` does not: time in which the process stood still. Call it before
        anything else whenever the host has waited; without it, each tick counts as one.
        """
        self._keeps_time = True
        self.clock = max(self.clock, clock)

    def tick(self) -> None:
        """Let one unit of time pass."""
        if not self._keeps_time:
            self.clock += 1
        self.bound_elapsed += 1
        match self.role:
            case Follower():
                follower.tick(self, self.role)
            case Candidate():
                candidate.tick(self, self.role)
            case Leader():
                leader.tick(self, self.role)

    def step(self, message: Message) -> None:
        """Take in a message from another member.

        The term decides first (section 5.1): a newer one makes a follower of
        everybody, an older one is not listened to.
        """
        if message.recipient != self.node:
            raise AssertionError(f"{message} has reached n{self.node}")
        if message.term > self.term:
            if self._disregards(message):
                return
            if not _is_hypothetical(message):
                self.become_follower(message.term, _leader_by(message))
        elif message.term < self.term:
            self._answer_outdated(message)
            return
        elif isinstance(message, RequestVote) and not message.pre and self._disregards(message):
            return  # the term has risen without an election, and a promise does not end with it
        handler = HANDLERS.get((type(self.role), type(message)))
        if handler is not None:
            handler(self, self.role, message)

    def propose(self, data: bytes, kind: EntryKind = EntryKind.COMMANDS) -> Position:
        """Append an entry as the leader; returns where it stands.

        It is committed if that position is ever handed out to be applied.

        Raises:
            NotLeading, TooManyUncommitted: nothing was appended.
        """
        return leader.propose(self, self._leading(), data, kind)

    def read_index(self, request: int, *, lease: bool = False) -> None:
        """Ask for a linearizable read: Ready.reads will hold the request, unless the role is lost.

        With `lease`, it is so as long as clocks run alike (read_index.py), and mostly at once.

        Raises:
            NotLeading
        """
        leader.read(self, self._leading(), request, lease=lease)

    def change_members(self, changes: Sequence[Change], *, force: bool = False) -> Position:
        """Change the members, in one step of the group; returns where the first entry stands.

        The change is complete when a configuration that is not joint is committed at or
        behind that position: the leader sees to it. With `force`, it may leave the group
        without a majority that is alive, or with voters that lag.

        Raises:
            NotLeading
            ChangeRefused: not so, or not now; nothing was appended.
        """
        return leader.change_members(self, self._leading(), changes, force=force)

    def campaign(self) -> None:
        """Stand for election now, as if the time-out had passed."""
        if not isinstance(self.role, Leader):
            candidate.stand(self, pre=True)

    def transfer_leadership(self, target: NodeId) -> None:
        """Bring the target up to date, and let it stand for election (dissertation, 3.10).

        Proposals are refused meanwhile. Given up after an election time-out.

        Raises:
            NotLeading
            ValueError: the target is no other voter.
        """
        leader.transfer(self, self._leading(), target)

    def report_unreachable(self, node: NodeId) -> None:
        """Messages to the node were probably lost."""
        if isinstance(self.role, Leader) and node in self.role.progress:
            self.role.progress[node].unreachable()

    def report_snapshot(self, node: NodeId, index: Index | None) -> None:
        """The member has the state through the index, or (None) the snapshot did not get there."""
        if isinstance(self.role, Leader):
            leader.report_snapshot(self, self.role, node, index)

    # Effects.

    def has_ready(self) -> bool:
        """Whether `ready` would hold anything."""
        return bool(
            self._messages
            or self._promises
            or self.reads
            or self.log.has_untaken
            or self.log.has_snapshot
            or (self.term, self.vote) != self._written
            or self.log.applied < self.log.committed
            or (isinstance(self.role, Leader) and leader.has_work(self, self.role))
        )

    def ready(self) -> Ready:
        """Take all effects since the last one."""
        if self._awaits_advance:
            raise AssertionError("advance must follow ready before the next one")
        self._awaits_advance = True
        if isinstance(self.role, Leader):
            leader.send_what_is_due(self, self.role)
        snapshot = self.log.take_snapshot()
        entries = self.log.take_unstable()
        changed = (self.term, self.vote) != self._written
        # An only voter stands and leads at once: its term must not be heard of before it is on
        # the disk, or a crash could let it lead the same term again, with other entries.
        at_once, later = ([], self._messages) if changed else (self._messages, [])
        ready = Ready(
            messages=tuple(at_once),
            # A commit index alone is not worth a write: it comes along with the next entries.
            hard_state=self.hard_state if changed or entries or snapshot else None,
            snapshot=snapshot,
            entries=entries,
            promises=(*later, *self._promises),
            committed=tuple(
                self.log.entries(
                    Index(self.log.applied + 1),
                    self.settings.max_apply_bytes,
                    high=Index(self.log.committed + 1),
                )
            ),
            reads=tuple(self.reads),
            snapshots_to=tuple(self.snapshots_to),
        )
        self._written = (self.term, self.vote)
        self._messages.clear()
        self._promises.clear()
        self.reads.clear()
        self.snapshots_to.clear()
        return ready

    def signs_of_life(self) -> Sequence[Heartbeat]:
        """Heartbeats that may be sent at any time, also between `ready` and `advance`.

        None but of a leader that has committed an entry of its term: that term is on the
        disks of a majority, and its own, so these promise nothing that is not written.
        """
        if isinstance(self.role, Leader) and self.role.established:
            return leader.heartbeats(self, self.role)
        return ()

    def advance(self, ready: Ready) -> None:
        """The host has done all that the Ready asked for."""
        if not self._awaits_advance:
            raise AssertionError("advance without a ready")
        self._awaits_advance = False
        if ready.committed:
            self.log.applied = max(self.log.applied, ready.committed[-1].index)
        self.freshness.applied(self.log.applied)
        if ready.snapshot is not None:
            self.log.installed()
        # What was written before a snapshot that came meanwhile goes when that is installed.
        if ready.entries and not self.log.has_snapshot:
            self.log.stable(ready.entries[-1])
            if isinstance(self.role, Leader):
                leader.advance_commit(self, self.role)

    # What the roles share.

    def send(self, message: Message) -> None:
        """Let a message leave at once: it must not rest on anything that is not yet written."""
        self._messages.append(message)

    def promise(self, message: Message) -> None:
        """Let a message leave once everything up to now is on the disk."""
        self._promises.append(message)

    def become_follower(self, term: Term, leader: NodeId | None) -> None:
        if term > self.term:
            self.term, self.vote = term, None
        self.role = Follower(leader)
        self.reset_election_timeout()

    def reset_election_timeout(self) -> None:
        """Draw how long to wait before the next candidacy (section 5.2).

        A follower waits 1.1 to 1.5 election time-outs: above 1, so that the others'
        leases have run out when the first one stands, and not up to 2, so that a lost
        leader is replaced within 2. A candidate that neither wins nor loses knows of
        no leader whom haste could harm, and waits 0.2 to 0.5.
        """
        ticks = self.settings.election_ticks
        if isinstance(self.role, Candidate):
            self.election_timeout = self._randint(max(1, ticks // 5), max(2, ticks // 2))
        else:
            self.election_timeout = self._randint(ticks + max(1, ticks // 10), ticks + ticks // 2)

    def _leading(self) -> Leader:
        if not isinstance(self.role, Leader) or self.role.transfer is not None:
            raise NotLeading
        return self.role

    def _disregards(self, message: Message) -> bool:
        """Whether a request for a vote comes while the leader is well (dissertation, 4.2.3).

        A member that was cut off, or removed, must not unseat a leader whom the
        majority hears.
        """
        if not isinstance(message, RequestVote) or message.transfer:
            return False
        match self.role:
            case Follower():
                return self.bound_elapsed < self.settings.election_ticks
            case Leader():
                return message.term > self.term  # it checks its quorum itself
            case Candidate():
                return False

    def _answer_outdated(self, message: Message) -> None:
        """Tell the sender of an older term about the current one, where silence would block.

        A leader of an older term steps down by it, or else a member at a higher term
        could never follow it; a pre-candidate catches up, or else a longer log at a
        lower term would never win.
        """
        match message:
            case AppendEntries() | Heartbeat() | InstallSnapshot():
                self.promise(
                    HeartbeatReply(sender=self.node, recipient=message.sender, term=self.term)
                )
            case RequestVote(pre=True):
                self.promise(
                    RequestVoteReply(
                        sender=self.node,
                        recipient=message.sender,
                        term=self.term,
                        granted=False,
                        pre=True,
                    )
                )
            case _:
                pass


def _is_hypothetical(message: Message) -> bool:
    """Whether the message's term is one that nobody has entered yet."""
    match message:
        case RequestVote(pre=True) | RequestVoteReply(pre=True, granted=True):
            return True
        case _:
            return False


def _leader_by(message: Message) -> NodeId | None:
    """The leader of the message's term, if the message tells."""
    by_leader = isinstance(message, AppendEntries | Heartbeat | InstallSnapshot)
    return message.sender if by_leader else None


# (role, message) -> handler. What is not in the table is of no interest to the role:
# an answer that comes too late.
HANDLERS: dict[tuple[type, type], Callable[..., None]] = {
    (Follower, RequestVote): candidate.answer_request,
    (Candidate, RequestVote): candidate.answer_request,
    (Leader, RequestVote): candidate.answer_request,
    (Follower, AppendEntries): follower.on_append_entries,
    (Candidate, AppendEntries): candidate.on_leader_appeared,
    (Follower, InstallSnapshot): follower.on_install_snapshot,
    (Candidate, InstallSnapshot): candidate.on_leader_appeared,
    (Follower, Heartbeat): follower.on_heartbeat,
    (Candidate, Heartbeat): candidate.on_leader_appeared,
    (Follower, TimeoutNow): follower.on_timeout_now,
    (Candidate, RequestVoteReply): candidate.on_request_vote_reply,
    (Leader, AppendEntriesReply): leader.on_append_entries_reply,
    (Leader, HeartbeatReply): leader.on_heartbeat_reply,
}
