"""One Raft group on one node: the core, its log, its state machine, and who waits for what.

The core speaks of entries and reads by number; clients wait for futures. This
file keeps the two together:

    submit  -> queued -> staged into an entry at index@term -> applied: the results
    read    -> queued -> asked of the core as one request   -> confirmed and applied

A read is answered at the machine's log time, and only what that says has expired is
absent: so two reads agree, whoever leads. Where it is behind the clock, and a record expires
in between, an entry brings the time along before the read is answered.

Every future is resolved exactly once: with a result, or with an error that says
whether the write may have been applied. Nothing here awaits; the driver calls
`stage` before it takes a Ready, and `save`, `install` and `apply` when it carries
one out. Who waits for a change of members is in members.py.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from kvorum import limits
from kvorum.errors import (
    DeadlineExceeded,
    KvorumError,
    NoLeader,
    NotLeader,
    ShuttingDown,
    TooStale,
)
from kvorum_node.figures import Figures, clock
from kvorum_node.group_logger import GroupLogger
from kvorum_node.log_clock import LogClock
from kvorum_node.machine import FORMAT, Machine
from kvorum_node.members import ChangeOfMembers, Members
from kvorum_node.raft.candidate import Candidate
from kvorum_node.raft.configuration import Change
from kvorum_node.raft.core import Raft, Ready
from kvorum_node.raft.follower import Follower
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.progress import ProgressState
from kvorum_node.raft.read_index import ReadState
from kvorum_node.raft.types import (
    GroupId,
    Index,
    NodeId,
    NotLeading,
    Position,
    Term,
    TooManyUncommitted,
    node_name,
)
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.waiters import (
    Confirmed,
    Proposal,
    Read,
    Reads,
    Submission,
    Waiters,
    Write,
    cut_into_entries,
    fail,
    in_doubt,
    overloaded,
    settle,
)
from kvorumpb.v1.cluster_pb2 import Role
from kvorumpb.v1.command_pb2 import CommandBatch


class Group:
    def __init__(
        self,
        group: GroupId,
        raft: Raft,
        machine: Machine,
        log: RaftLogStore,
        *,
        clock: LogClock,
        wake: Callable[[], None],
        tick_seconds: float = 0.05,
        figures: Figures | None = None,
    ) -> None:
        self.id = group
        self.raft = raft
        self.machine = machine
        self.log = log
        self.clock = clock
        self.members = Members(raft, log, machine, not_leader=self.not_leader)
        self.logger = GroupLogger(raft, lambda: self.role)
        self.leadership_changed: Callable[[], None] = lambda: None
        self.members_changed: Callable[[], None] = lambda: None
        self.shortage: Callable[[], KvorumError | None] = lambda: None
        """Why writes that take space are refused now; None if they are not."""
        self.ticked_at = 0.0
        """When time was last counted, on the event loop's clock."""
        self.apply_seconds = 0.0
        """What the last entries took that were applied together."""
        self._figures = figures or Figures()
        self._wake = wake
        self._tick_seconds = tick_seconds
        self._waiters = Waiters()
        self._next_read = 0
        self._closed_because: str | None = None
        self._seen: tuple[Term, NodeId | None, Role.ValueType] = (Term(0), None, Role.FOLLOWER)
        self._configurations = (raft.configuration, raft.committed_configuration)
        self._ticks_since_lead = 0

    # What clients want.

    def submit(self, commands: bytes, count: int, *, deadline: float) -> Write:
        """Have commands applied in order; the future gives one result each.

        Args:
            commands: a serialised CommandBatch with nothing but commands.
            deadline: on the event loop's clock.

        Raises:
            NotLeader, NoLeader, Overloaded, ShuttingDown: nothing was taken.
        """
        self._require_leader()
        waiters = self._waiters
        if waiters.queued_bytes and (
            waiters.queued_bytes + len(commands) > limits.MAX_UNCOMMITTED_BYTES
        ):
            raise overloaded()
        future: Write = asyncio.get_running_loop().create_future()
        waiters.queued.append(Submission(commands, count, deadline, future))
        waiters.queued_bytes += len(commands)
        self._wake()
        return future

    def read(self, *, deadline: float, lease: bool = False) -> Read:
        """Wait until the state holds every write acknowledged before this call.

        With `lease`, that is so as long as clocks run alike (raft/read_index.py).

        Raises:
            NotLeader, NoLeader, ShuttingDown
        """
        self._require_leader()
        future: Read = asyncio.get_running_loop().create_future()
        self._waiters.reads_queued.append(Reads(deadline, future, lease))
        self._wake()
        return future

    def require_fresh(self, max_staleness_ms: int) -> None:
        """Let a read that may be stale be answered from the state as it is.

        Args:
            max_staleness_ms: how far behind the leader it may be; 0 is any time. A leader is
                to be asked by `read` instead: it has nobody to measure itself by.

        Raises:
            TooStale, ShuttingDown
        """
        if self._closed_because is not None:
            raise self.not_leader()
        if not max_staleness_ms:
            return
        as_of = self.raft.freshness.as_of
        node = node_name(self.raft.node)
        if as_of is None:
            raise TooStale(f"{node} has not caught up with a leader since it was started")
        behind = asyncio.get_running_loop().time() - as_of * self._tick_seconds
        if behind * 1000 > max_staleness_ms:
            raise TooStale(
                f"{node} may be {behind:.1f} s behind its leader;"
                f" at most {max_staleness_ms / 1000:g} s were asked for"
            )

    def change_members(
        self, changes: Sequence[Change], *, force: bool, deadline: float
    ) -> ChangeOfMembers:
        """Change the members, as Members.change."""
        self._require_leader()
        future = self.members.change(changes, force=force, deadline=deadline)
        self._wake()
        return future

    # What the driver calls.

    def stage(self) -> None:
        """Bring what has been queued to the core: writes as few entries, reads as one request."""
        waiters = self._waiters
        if waiters.reads_queued:
            reads, waiters.reads_queued = waiters.reads_queued, []
            for lease in (False, True):
                self._ask([one for one in reads if one.lease is lease], lease=lease)
        if waiters.queued:
            queued = self._take_queued()
            for submissions in cut_into_entries(queued):
                self._propose(submissions)
        if waiters.time_wanted:  # and no write has brought it along
            self._propose([])

    def _ask(self, reads: list[Reads], *, lease: bool) -> None:
        if not reads:
            return
        self._next_read += 1
        try:
            self.raft.read_index(self._next_read, lease=lease)
        except NotLeading:
            self._fail_reads(reads)
        else:
            self._waiters.reads_asked[self._next_read] = reads

    def _take_queued(self) -> list[Submission]:
        """What is to be proposed now; large submissions wait until those before are applied.

        A small write that comes later finds so many of them before it in the log, and not
        all that there are.
        """
        waiters = self._waiters
        room = limits.MAX_LARGE_ENTRIES - sum(one.large for one in waiters.proposals.values())
        leads = isinstance(self.raft.role, Leader)  # or else they are to be refused at once
        taken: list[Submission] = []
        left: list[Submission] = []
        for one in waiters.queued:
            (left if one.is_large and room <= 0 and leads else taken).append(one)
            room -= one.is_large
        waiters.queued = left
        waiters.queued_bytes = sum(len(one.commands) for one in left)
        return taken

    def save(self, batch: Batch, ready: Ready) -> None:
        """Add what the Ready wants on the disk."""
        if ready.snapshot is not None:
            self.log.restore(batch, ready.snapshot.last, ready.snapshot.configuration)
        if ready.entries:
            self.log.append(batch, ready.entries)
        if ready.hard_state is not None:
            self.log.save_hard_state(batch, ready.hard_state)

    def install(self, ready: Ready) -> None:
        """Let the state that was received be the state, if the Ready says so."""
        if ready.snapshot is None:
            return
        last = ready.snapshot.last
        self.machine.install(last.index)
        self.logger.info("goes on from the snapshot at %s", last)
        proposals = self._waiters.proposals
        self._observe_log_time()
        for index in [index for index in proposals if index <= last.index]:
            self._leave_in_doubt(proposals.pop(index), "the state of another node was taken over")
        self._refuse_replaced(last.term)

    def apply(self, ready: Ready) -> None:
        """Apply what is committed, and answer whoever waits for it."""
        if ready.committed:
            proposals = self._waiters.proposals
            loop = asyncio.get_running_loop()
            # The pauses between sweeps follow from the loop's clock, which a simulation owns; a
            # figure decides nothing, and needs a finer one.
            began, exactly = loop.time(), clock()
            results = self.machine.apply(ready.committed, wanted=proposals.keys())
            self.apply_seconds = loop.time() - began
            self._figures.apply.observe(clock() - exactly)
            self._figures.entries_per_apply.observe(len(ready.committed))
            self._observe_log_time()
            for entry, outcome in zip(ready.committed, results, strict=True):
                proposal = proposals.get(entry.index)
                if proposal is not None and proposal.term == entry.term:
                    del proposals[entry.index]
                    settle(proposal, outcome)
                elif proposals:
                    self._refuse_replaced(entry.term)
            if self._waiters.queued:  # there may be room for them now
                self._wake()
        self._answer_reads(ready.reads)

    def observe(self) -> None:
        """Notice a change of members, role, leader or term: log it, and settle what it settles."""
        self.members.settle()
        self._observe_members()
        raft = self.raft
        seen = (raft.term, raft.leader, self.role)
        if seen == self._seen:
            return
        before, self._seen = self._seen, seen
        if raft.leader is not None and seen[:2] != before[:2]:
            self._figures.leader_changes += 1
        match seen[2], before[2]:
            case Role.LEADER, _:
                self.logger.info("leads")
            case _, Role.LEADER:
                self._ticks_since_lead = 0
                self._fail_all_reads()
                if raft.term == before[0] and raft.node in raft.configuration.voters:
                    self.logger.warning("leads no more: it has heard no majority of the voters")
                else:
                    self.logger.info("leads no more")
            case Role.FOLLOWER, _ if raft.leader is not None:
                self.logger.info("follows %s", node_name(raft.leader))
            case _:
                self.logger.info("knows no leader")
        self.leadership_changed()

    def _observe_members(self) -> None:
        raft = self.raft
        holding, committed = self._configurations
        if holding is raft.configuration and committed is raft.committed_configuration:
            return
        if holding != raft.configuration:
            self.logger.info("members are now %s", raft.configuration)
        self._configurations = (raft.configuration, raft.committed_configuration)
        self.members_changed()

    def tick(self, now: float) -> None:
        self.ticked_at = now
        self.raft.tick()
        self.now_ms()
        self._expire(now)
        self._ticks_since_lead = 0 if self.role == Role.LEADER else self._ticks_since_lead + 1
        if self._waiters.proposals and self._ticks_since_lead > self.raft.settings.election_ticks:
            # By now another leader has committed or replaced them, but where this node
            # hears no leader it cannot know which.
            self._abandon("the leader was lost before it could say")

    def close(self, why: str) -> None:
        """Settle everything that still waits, and take nothing more."""
        self._closed_because = why
        self._refuse(self._waiters.queued)
        self._waiters.queued = []
        self._waiters.queued_bytes = 0
        self._fail_all_reads()
        self._abandon(f"the node stopped before the write was committed: {why}")
        self.members.close(why)

    # What others ask.

    @property
    def addresses(self) -> Mapping[NodeId, str]:
        """Where the members are, as far as this node knows: host:port."""
        return self.members.addresses

    def needed_after(self) -> Index:
        """The log after it is still needed by a follower that is alive, and catching up."""
        role = self.raft.role
        progress = role.progress.values() if isinstance(role, Leader) else ()
        reached = [
            one.match if one.state is ProgressState.REPLICATE else Index(one.next - 1)
            for one in progress
            if one.recently_active and one.state is not ProgressState.SNAPSHOT
        ]
        return min(reached, default=self.machine.applied)

    def now_ms(self) -> int:
        """What log time is now, as far as this node knows: it decides that if it leads."""
        return self.clock.now_ms(leads=isinstance(self.raft.role, Leader))

    def follow_clock(self, leader: NodeId, log_time_ms: int) -> None:
        """A node that leads says what log time is by its clock."""
        if leader == self.raft.leader != self.raft.node:
            self.clock.follow(max(log_time_ms, self.machine.log_time_ms), term=self.raft.term)

    @property
    def leads(self) -> bool:
        """Whether this node leads, as far as it knows."""
        return isinstance(self.raft.role, Leader)

    @property
    def role(self) -> Role.ValueType:
        match self.raft.role:
            case Leader():
                return Role.LEADER
            case Candidate(pre=True):
                return Role.PRE_CANDIDATE
            case Candidate():
                return Role.CANDIDATE
            case Follower():
                return Role.FOLLOWER

    @property
    def proposals_pending(self) -> int:
        """Entries that this node has proposed, and that are not applied yet."""
        return len(self._waiters.proposals)

    def under_way(self) -> "list[Write | Read]":
        """What clients wait for."""
        waiters = self._waiters
        submissions = [
            *waiters.queued,
            *(one for proposal in waiters.proposals.values() for one in proposal.submissions),
        ]
        reads = [*waiters.reads_queued, *self._reads_under_way()]
        futures: list[Write | Read] = [one.future for one in submissions]
        futures += [one.future for one in reads]
        return [future for future in futures if not future.done()]

    def not_leader(self) -> KvorumError:
        """The error that sends a client to the leader, as far as it is known."""
        if self._closed_because is not None:
            return ShuttingDown(f"{node_name(self.raft.node)} stopped: {self._closed_because}")
        leader = self.raft.leader
        if leader is None or leader == self.raft.node:
            return NoLeader(f"{node_name(self.raft.node)} knows no leader now; an election is due")
        address = self.addresses.get(leader)
        if address is None:  # of a configuration that has not got here
            return NoLeader(
                f"{node_name(self.raft.node)} does not know yet where {node_name(leader)} is"
            )
        return NotLeader(
            f"{node_name(self.raft.node)} does not lead; {node_name(leader)} does",
            leader=node_name(leader),
            address=address,
        )

    def _require_leader(self) -> None:
        if self._closed_because is not None or not isinstance(self.raft.role, Leader):
            raise self.not_leader()

    def _propose(self, submissions: list[Submission]) -> None:
        header = CommandBatch(format=FORMAT, log_time_ms=self.now_ms())
        # Serialised messages that are joined parse as one message: a repeated field gets
        # the elements of all (protobuf encoding, "Last One Wins" and merging).
        data = b"".join((header.SerializeToString(), *(one.commands for one in submissions)))
        try:
            position: Position = self.raft.propose(data)
        except NotLeading:
            self._figures.proposals_failed += 1
            self._refuse(submissions)
        except TooManyUncommitted:
            self._figures.proposals_failed += 1
            fail(submissions, overloaded)
        else:
            self._figures.commands_per_entry.observe(sum(one.count for one in submissions))
            proposals = self._waiters.proposals
            replaced = proposals.pop(position.index, None)
            if replaced is not None:  # by a leader in between: others may still hold the entry
                self._leave_in_doubt(replaced, "the entry was replaced in the log of this node")
            large = any(one.is_large for one in submissions)
            proposals[position.index] = Proposal(position.term, submissions, large)
            for one in submissions:
                one.commands = b""  # the log has them now
            self._time_is_on_its_way(position.index)

    def _time_is_on_its_way(self, index: Index) -> None:
        """An entry was stamped after all reads that are confirmed had begun."""
        waiters = self._waiters
        if waiters.time_wanted:
            waiters.time_wanted = False
            for confirmed in waiters.reads_confirmed:
                if not confirmed.timed:
                    confirmed.index, confirmed.timed = index, True

    def _observe_log_time(self) -> None:
        if self.machine.log_time_ms:
            self.clock.observe(self.machine.log_time_ms)

    def _answer_reads(self, confirmed: Sequence[ReadState]) -> None:
        waiters = self._waiters
        for state in confirmed:
            for request in state.requests:
                reads = waiters.reads_asked.pop(request, None)
                if reads is not None:
                    waiters.reads_confirmed.append(Confirmed(state.index, reads))
        machine, confirmed_reads = self.machine, waiters.reads_confirmed
        while confirmed_reads and confirmed_reads[0].index <= machine.applied:
            if not confirmed_reads[0].timed and machine.has_expiring(self.now_ms()):
                waiters.time_wanted = True
                self._wake()
                return
            for read in confirmed_reads.popleft().reads:
                if not read.future.done():
                    read.future.set_result(None)

    def _expire(self, now: float) -> None:
        waiters = self._waiters
        late = [one for one in waiters.queued if one.deadline <= now]
        if late:
            waiters.queued = [one for one in waiters.queued if one.deadline > now]
            waiters.queued_bytes -= sum(len(one.commands) for one in late)
            fail(late, overloaded)
        for proposal in waiters.proposals.values():
            for one in proposal.submissions:
                if one.deadline <= now and not one.future.done():
                    one.future.set_exception(
                        DeadlineExceeded(
                            "the write was not committed in time; it may be yet", maybe_applied=True
                        )
                    )
        for read in self._reads_under_way():
            if read.deadline <= now and not read.future.done():
                read.future.set_exception(
                    DeadlineExceeded("no majority has confirmed the leader in time")
                )
        self.members.expire(now)

    def _refuse(self, submissions: Sequence[Submission]) -> None:
        fail(submissions, self.not_leader)

    def _refuse_replaced(self, term: Term) -> None:
        """Refuse what was proposed in older terms than that of a committed entry.

        Terms never decrease along a log: behind that entry there is no place for them.
        """
        proposals = self._waiters.proposals
        for index in [index for index, one in proposals.items() if one.term < term]:
            self._figures.proposals_failed += 1
            self._refuse(proposals.pop(index).submissions)

    def _leave_in_doubt(self, proposal: Proposal, why: str) -> None:
        self._figures.proposals_failed += 1
        in_doubt(proposal, why)

    def _abandon(self, why: str) -> None:
        proposals, self._waiters.proposals = self._waiters.proposals, {}
        for proposal in proposals.values():
            self._leave_in_doubt(proposal, why)

    def _fail_reads(self, reads: Sequence[Reads]) -> None:
        for read in reads:
            if not read.future.done():
                read.future.set_exception(self.not_leader())

    def _fail_all_reads(self) -> None:
        waiters = self._waiters
        self._fail_reads([*waiters.reads_queued, *self._reads_under_way()])
        waiters.reads_queued = []
        waiters.reads_asked.clear()
        waiters.reads_confirmed.clear()
        waiters.time_wanted = False

    def _reads_under_way(self) -> list[Reads]:
        waiters = self._waiters
        return [
            *(read for reads in waiters.reads_asked.values() for read in reads),
            *(read for confirmed in waiters.reads_confirmed for read in confirmed.reads),
        ]
