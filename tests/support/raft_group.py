"""Raft cores under a test's hand: in-memory disks, an in-memory queue, no clock.

    Host    one member: a `Raft`, its disk, and the law of `Ready` (core.py)
    Group   several hosts and the messages between them

Rules: nothing here waits, hosts and messages are taken in a fixed order, and chance
comes from a seed; so a test says exactly what happens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from kvorum_node.raft.candidate import Candidate
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.core import Raft, Ready
from kvorum_node.raft.follower import Follower
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.log import Snapshot
from kvorum_node.raft.messages import (
    Message,
)
from kvorum_node.raft.read_index import ReadState
from kvorum_node.raft.types import (
    Entry,
    HardState,
    Index,
    NodeId,
    Position,
    Settings,
    Term,
)
from tests.support.raft_disk import Disk
from tests.support.raft_messages import accepted, entries, heartbeat, timeout_now, vote

ELECTION_TICKS = 10
HEARTBEAT_TICKS = 2
SETTINGS = Settings(election_ticks=ELECTION_TICKS, heartbeat_ticks=HEARTBEAT_TICKS)


def lowest(low: int, high: int) -> int:
    """A `randint` without chance."""
    del high
    return low


class Host:
    """One member, run as the law of `Ready` says: write, send, fsync, promise, apply."""

    def __init__(
        self,
        node: int = 1,
        voters: int | Iterable[int] = 3,
        *,
        log: str | Sequence[Entry] = (),
        start: str = "0@0",
        term: int = 0,
        vote: int | None = None,
        commit: int = 0,
        applied: int = 0,
        settings: Settings = SETTINGS,
        randint: Callable[[int, int], int] = lowest,
    ) -> None:
        members = range(1, voters + 1) if isinstance(voters, int) else voters
        self.node = NodeId(node)
        initial = Configuration.of({NodeId(member): "" for member in members})
        self.settings = settings
        self.randint = randint
        hard_state = HardState(Term(term), None if vote is None else NodeId(vote), Index(commit))
        self.disk = Disk(entries(log) if isinstance(log, str) else log, hard_state, start, initial)
        self.up = True
        self.pending: Ready | None = None
        self.applied: list[Entry] = []
        """What the state machine was handed since the process started, in order."""
        self.reads: list[ReadState] = []
        self.installed: list[Snapshot] = []
        """The snapshots that took the place of the state since the process started."""
        self.snapshots_to: list[NodeId] = []
        """Whom the member wants to be sent a snapshot, and the test has not yet reported on."""
        self.raft = self._load(applied)

    @property
    def others(self) -> list[NodeId]:
        return sorted(self.raft.configuration.members - {self.node})

    @property
    def leads(self) -> bool:
        return self.up and isinstance(self.raft.role, Leader)

    # The law, in the two halves that the fsync separates.

    def take(self) -> tuple[Message, ...]:
        """Take a Ready and write it; returns what leaves before the fsync is done."""
        self.pending = ready = self.raft.ready()
        if ready.hard_state is not None:
            self.disk.write(ready.entries, ready.hard_state, ready.snapshot)
        self.snapshots_to.extend(ready.snapshots_to)
        return ready.messages

    def complete(self) -> tuple[Message, ...]:
        """Fsync, apply and advance; returns what had to wait for the fsync."""
        ready, self.pending = self.pending, None
        if ready is None:
            raise AssertionError("nothing was taken")
        if ready.must_sync:
            self.disk.sync()
        if ready.snapshot is not None:
            self.installed.append(ready.snapshot)
        self.applied.extend(ready.committed)
        self.reads.extend(ready.reads)
        self.raft.advance(ready)
        return ready.promises

    def cycle(self) -> Ready:
        """Carry out one Ready, and return it."""
        self.take()
        ready = self.pending
        self.complete()
        if ready is None:
            raise AssertionError("nothing was taken")
        return ready

    def drain(self) -> list[Message]:
        """Carry out all that there is; returns what was said."""
        said: list[Message] = []
        for _ in range(1000):
            if not self.raft.has_ready():
                return said
            said += self.take()
            said += self.complete()
        raise AssertionError(f"n{self.node} always has something more to do")

    def crash(self, *, surviving: int = 0) -> None:
        self.disk.crash(surviving=surviving)
        self.up, self.pending = False, None
        self.applied, self.reads = [], []
        self.installed, self.snapshots_to = [], []

    def restart(self, *, applied: int = 0) -> None:
        """Start again from the disk, with a state machine that holds the entries to `applied`."""
        self.raft = self._load(applied, restarted=self.disk.hard_state != HardState())
        self.up = True

    def _load(self, applied: int, *, restarted: bool = False) -> Raft:
        return Raft(
            self.node,
            self.disk,
            hard_state=self.disk.hard_state,
            applied=Index(applied),
            randint=self.randint,
            settings=self.settings,
            restarted=restarted,
        )

    # Short ways into a role.

    def step(self, *messages: Message) -> None:
        for message in messages:
            self.raft.step(message)

    def ask(self, *messages: Message) -> list[Message]:
        """What the member says to these messages."""
        self.step(*messages)
        return self.drain()

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.raft.tick()

    def follow(self, leader: int, term: int) -> None:
        """Become a follower of the leader by its heartbeat."""
        self.ask(heartbeat(term, sender=leader, to=self.node))

    def stand(self) -> None:
        """Become a candidate at once, in the next term."""
        self.ask(timeout_now(self.raft.term, sender=self.others[0], to=self.node))

    def lead(self) -> list[Message]:
        """Become the leader of the next term, by everybody's vote; returns what it says first."""
        if self.others:
            self.stand()
            for other in self.others:
                self.step(vote(self.raft.term, sender=other, to=self.node))
        else:
            while not self.leads:
                self.raft.tick()
        return self.drain()

    def accept(self, index: int | None = None, *, by: Iterable[int] | None = None) -> None:
        """Have other members (all, unless told) accept the leader's log through the index."""
        through = self.raft.log.last_index if index is None else index
        for other in self.others if by is None else by:
            self.step(accepted(self.raft.term, through, sender=other, to=self.node))

    def lead_established(self) -> None:
        """Become the leader, with an entry of the own term committed and everywhere."""
        self.lead()
        self.accept()
        self.drain()


@dataclass
class Group:
    """Several members and what is on its way between them, first in, first out."""

    hosts: dict[NodeId, Host]
    queue: list[Message] = field(default_factory=list)
    blocked: set[tuple[NodeId, NodeId]] = field(default_factory=set)
    """Directions (sender, recipient) in which nothing arrives."""
    lost: Callable[[Message], bool] = lambda message: False
    """Which other messages do not arrive."""

    @classmethod
    def of(
        cls,
        voters: int = 3,
        *,
        logs: Mapping[int, str | Sequence[Entry]] | None = None,
        term: int = 0,
        settings: Settings = SETTINGS,
        seed: int = 0,
    ) -> "Group":
        randint = Random(seed).randint
        return cls(
            {
                NodeId(node): Host(
                    node,
                    voters,
                    log=(logs or {}).get(node, ()),
                    term=term,
                    settings=settings,
                    randint=randint,
                )
                for node in range(1, voters + 1)
            }
        )

    def __getitem__(self, node: int) -> Host:
        return self.hosts[NodeId(node)]

    @property
    def leaders(self) -> list[int]:
        return [node for node, host in self.hosts.items() if host.leads]

    @property
    def terms(self) -> list[int]:
        return [host.raft.term for host in self.hosts.values()]

    def run(self) -> int:
        """Deliver until nobody says anything more; returns how often the queue was emptied."""
        rounds = 0
        while True:
            for host in self.hosts.values():
                if host.up:
                    self.queue += host.drain()
            if not self.queue:
                return rounds
            rounds += 1
            if rounds > 1000:
                raise AssertionError("the members never fall silent")
            arriving, self.queue = self.queue, []
            for message in arriving:
                self.deliver(message)

    def deliver(self, message: Message) -> None:
        host = self.hosts[message.recipient]
        if host.up and (message.sender, message.recipient) not in self.blocked:
            if self.lost(message):
                return
            host.raft.step(message)

    def tick(self, count: int = 1, *nodes: int) -> None:
        """Let time pass for the members (all, unless told), and deliver after each tick."""
        for _ in range(count):
            for node, host in self.hosts.items():
                if host.up and (not nodes or node in nodes):
                    host.raft.tick()
            self.run()

    def stand(self, node: int) -> None:
        """Hold an election now, as if a leader had asked the member to stand."""
        host = self[node]
        host.step(timeout_now(max(self.terms), sender=host.others[0], to=node))
        self.run()

    def elect(self, node: int) -> None:
        """Make the member the only leader."""
        self.stand(node)
        if self.leaders != [node]:
            raise AssertionError(f"leaders are {self.leaders}")

    def propose(self, node: int, data: bytes = b"x") -> Position:
        where = self[node].raft.propose(data)
        self.run()
        return where

    def block(self, sender: int, recipient: int) -> None:
        self.blocked.add((NodeId(sender), NodeId(recipient)))

    def isolate(self, *nodes: int) -> None:
        """Cut these members off from all the others, and not from one another."""
        for inside in nodes:
            for outside in self.hosts.keys() - set(nodes):
                self.block(inside, outside)
                self.block(outside, inside)

    def heal(self) -> None:
        self.blocked.clear()
        self.lost = lambda message: False


# Roles, as a test asks for them.


def is_follower(raft: Raft, leader: int | None = None) -> bool:
    return isinstance(raft.role, Follower) and raft.role.leader == leader


def is_candidate(raft: Raft, *, pre: bool = False) -> bool:
    return isinstance(raft.role, Candidate) and raft.role.pre is pre


def is_leader(raft: Raft) -> bool:
    return isinstance(raft.role, Leader)


def as_leader(raft: Raft) -> Leader:
    assert isinstance(raft.role, Leader)
    return raft.role
