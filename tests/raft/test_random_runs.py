"""Random schedules: whatever happens, safety holds at every step; once it stops, the group works.

A run is a function of its seed. First a few hundred events: messages are delivered,
lost, repeated, overtaken; links break, in one direction or both; members pause,
crash between the write and the fsync, lose what was not fsynced, restart; logs are
cut; leadership is handed over; clients write and read. After each event the
`Checker` looks at what changed. Then all is healed, and the group must elect a leader
and have a new entry applied by everybody within LIVELY_TICKS.

    RAFT_SEEDS=20000 pytest tests/raft/test_random_runs.py    # more runs than usual
    RAFT_SEEDS=4711:4712 pytest ...                           # one run again, by its seed
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random

import pytest

from kvorum_node.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Message,
    RequestVote,
    RequestVoteReply,
)
from kvorum_node.raft.quorum import majority
from kvorum_node.raft.types import (
    Entry,
    Index,
    NodeId,
    Position,
    ProposalRefused,
    Settings,
    Term,
)
from tests.support.raft_group import Host

EVENTS = 2000
BATCH = 25
ELECTION_TICKS = 10
LIVELY_TICKS = 100
"""Ten election time-outs. Most runs need two; every split vote costs up to one and a half."""


def seeds() -> range:
    first, _, last = os.environ.get("RAFT_SEEDS", "300").rpartition(":")
    return range(int(first or 0), int(last))


class Checker:
    """What must hold in every execution of Raft (figure 3 of the paper, and what clients see)."""

    def __init__(self, hosts: dict[NodeId, Host]) -> None:
        self.hosts = hosts
        self.leaders: dict[Term, NodeId] = {}
        self.votes: dict[tuple[NodeId, Term], NodeId] = {}
        self.entries: dict[tuple[Index, Term], tuple[Term, Entry]] = {}
        self.committed: list[Entry] = []
        self.seen_committed: Counter[NodeId] = Counter()
        self.applied: Counter[NodeId] = Counter()
        self.reads: dict[int, tuple[NodeId, int]] = {}
        self.counts: Counter[str] = Counter()

    # After every event.

    def look_at(self, host: Host) -> None:
        if host.leads:
            self.one_leader_a_term(host)
        self.commits_stay(host)

    def one_leader_a_term(self, host: Host) -> None:
        """Election safety, and with it: leader completeness."""
        known = self.leaders.setdefault(host.raft.term, host.node)
        assert known == host.node, f"n{known} and n{host.node} lead term {host.raft.term}"
        if self.counts["leaders"] < len(self.leaders):
            self.counts["leaders"] = len(self.leaders)
            for entry in self.committed:
                if entry.index > host.disk.start.index:
                    where = Position(entry.index, entry.term)
                    assert host.raft.log.matches(where), f"n{host.node} leads without {entry}"

    def commits_stay(self, host: Host) -> None:
        """State machine safety: an index that was committed once is the same entry for everybody.

        And when it is first committed, a majority of the disks holds it, crash or no crash.
        """
        log, seen = host.raft.log, self.seen_committed[host.node]
        if log.committed <= seen:
            return
        self.seen_committed[host.node] = log.committed
        first = max(seen, host.disk.start.index) + 1
        for entry in log.entries(Index(first), 1 << 30, high=Index(log.committed + 1)):
            if entry.index <= len(self.committed):
                before = self.committed[entry.index - 1]
                assert entry == before, f"n{host.node} commits {entry}, others {before}"
                continue
            assert entry.index == len(self.committed) + 1
            holders = [one.node for one in self.hosts.values() if one.disk.has_synced(entry)]
            assert len(holders) >= majority(host.raft.configuration.voters), (
                f"n{host.node} commits {entry}, which only {holders} have on their disks"
            )
            self.committed.append(entry)

    # At the places where a promise is made, or kept.

    def sends(self, host: Host, message: Message) -> None:
        """A vote is given once a term, and neither it nor an acknowledgement rests on memory."""
        match message:
            case RequestVote(pre=False, term=term):
                self.votes_for(host, term, host.node)
            case RequestVoteReply(pre=False, granted=True, term=term, recipient=candidate):
                self.votes_for(host, term, candidate)
            case AppendEntries(previous=previous, entries=entries):
                self.entries_match(host, previous.term, entries)
            case AppendEntriesReply(hint=None, term=term, index=index):
                disk = host.disk
                if disk.synced_hard_state.term == term:
                    assert disk.start.index + len(disk.synced_log) >= index, (
                        f"n{host.node} acknowledges {index}, its disk has {disk.synced_log}"
                    )
            case _:
                pass

    def votes_for(self, host: Host, term: Term, candidate: NodeId) -> None:
        known = self.votes.setdefault((host.node, term), candidate)
        assert known == candidate, f"n{host.node} votes for n{known} and n{candidate} in {term}"
        kept = host.disk.synced_hard_state
        assert kept.term > term or (kept.term, kept.vote) == (term, candidate), (
            f"n{host.node} votes for n{candidate} in {term}, its disk says {kept}"
        )

    def stores(self, host: Host, entries: tuple[Entry, ...]) -> None:
        if entries:
            self.entries_match(host, host.disk.term(Index(entries[0].index - 1)), entries)

    def entries_match(self, host: Host, before: Term, entries: tuple[Entry, ...]) -> None:
        """Log matching, by induction: an index and a term name one entry, after one other."""
        for entry in entries:
            known = self.entries.setdefault((entry.index, entry.term), (before, entry))
            assert known == (before, entry), f"n{host.node} has {entry} after {before}: {known}"
            before = entry.term

    def applies(self, host: Host, committed: tuple[Entry, ...]) -> None:
        """Each entry once, in order, and only what is committed and on this disk."""
        for entry in committed:
            assert entry.index == self.applied[host.node] + 1
            assert entry == self.committed[entry.index - 1]
            assert host.disk.has_synced(entry)
            self.applied[host.node] = entry.index

    def asks(self, host: Host, request: int) -> None:
        """Whatever anybody knew as committed when a read was asked must be in its answer."""
        self.reads[request] = (host.node, len(self.committed))

    def answers(self, host: Host, requests: Iterable[int], index: Index) -> None:
        for request in requests:
            node, committed = self.reads.pop(request)
            assert node == host.node
            assert index >= committed, f"n{node} reads at {index}, {committed} was committed"
            self.counts["reads"] += 1


class Run:
    """One execution, driven by a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        voters = random.choice((1, 2, 3, 3, 3, 3, 4, 5, 5, 5))
        settings = Settings(
            election_ticks=ELECTION_TICKS,
            heartbeat_ticks=2,
            max_append_bytes=random.choice((1, 4, 100)),
            max_inflight_messages=random.choice((1, 2, 8)),
            max_inflight_bytes=random.choice((4, 1000)),
            max_uncommitted_bytes=random.choice((10, 1000)),
            max_apply_bytes=random.choice((1, 5, 100)),
        )
        self.hosts = {
            NodeId(node): Host(node, voters, settings=settings, randint=random.randint)
            for node in range(1, voters + 1)
        }
        self.checker = Checker(self.hosts)
        self.network: list[Message] = []
        self.delayed: list[Message] = []
        """They come so late that much has changed meanwhile."""
        self.blocked: set[tuple[NodeId, NodeId]] = set()
        self.state_on_disk: Counter[NodeId] = Counter()
        """How far each member's state machine would survive a crash."""
        self.next_request = 0
        self.trace: list[tuple[object, ...]] = []
        self.calm = random.choice((1, 1, 4))
        """How much more often than usual things just work in this run."""
        events: dict[Callable[[], None], int] = {
            self.deliver: 900 * self.calm,
            self.deliver_late: 40,
            self.tick: 120 * self.calm,
            self.work: 150 * self.calm,
            self.propose: 100,
            self.read: 40,
            self.lose: 25,
            self.repeat: 40,
            self.break_links: 6,
            self.mend_links: 20,
            self.overthrow: 12,
            self.crash: 10,
            self.restart: 40,
            self.transfer: 16,
            self.campaign: 8,
            self.lose_contact: 8,
            self.flush_state: 40,
            self.cut: 20,
        }
        self.events, self.weights = list(events), list(events.values())

    # The two phases.

    def unsafe_phase(self, events: int) -> None:
        for event in self.random.choices(self.events, self.weights, k=events):
            event()

    def healed_phase(self) -> int:
        """Stop all faults; returns how many ticks until a new entry is applied by everybody."""
        self.blocked.clear()
        for host in self.hosts.values():
            if not host.up:
                self.start(host)
        self.settle()
        proposed: dict[NodeId, Term] = {}
        for ticks in range(1, LIVELY_TICKS + 1):
            for host in self.hosts.values():
                host.tick()
            self.settle()
            for host in self.hosts.values():
                if host.leads and proposed.get(host.node) != host.raft.term:
                    try:
                        host.raft.propose(b"alive")
                    except ProposalRefused:
                        continue
                    proposed[host.node] = host.raft.term
            self.settle()
            if self.everybody_has_applied(b"alive"):
                return ticks
        raise AssertionError(f"no progress within {LIVELY_TICKS} ticks after healing: {self.hosts}")

    def everybody_has_applied(self, data: bytes) -> bool:
        index = max((e.index for e in self.checker.committed if e.data == data), default=None)
        return index is not None and all(self.checker.applied[node] >= index for node in self.hosts)

    def settle(self) -> None:
        """Deliver all, in order, until nobody says anything."""
        for _ in range(10_000):
            for host in self.hosts.values():
                while host.pending is not None or host.raft.has_ready():
                    self.work_of(host)
            if not self.network:
                return
            arriving, self.network = self.network, []
            for message in arriving:
                self.hosts[message.recipient].step(message)
                self.checker.look_at(self.hosts[message.recipient])
        raise AssertionError("the members never fall silent")

    # Events.

    def one(self, *, up: bool = True) -> Host | None:
        hosts = [host for host in self.hosts.values() if host.up is up]
        return self.random.choice(hosts) if hosts else None

    def note(self, event: str, *details: object) -> None:
        self.trace.append((event, *details))

    def after(self, host: Host, *, at_once: float = 0.7) -> None:
        """The host may turn to its Ready at once, or only when several things have happened."""
        self.checker.look_at(host)
        if self.random.random() < at_once:
            self.work_of(host)

    def deliver(self) -> None:
        if not self.network:
            return
        at = 0 if self.random.random() < 0.7 else self.random.randrange(len(self.network))
        message = self.network.pop(at)
        if (message.sender, message.recipient) not in self.blocked:
            self.arrive(message)
        elif self.random.random() < 0.3:
            self.delayed.append(message)

    def deliver_late(self) -> None:
        if self.delayed:
            self.arrive(self.delayed.pop(self.random.randrange(len(self.delayed))))

    def arrive(self, message: Message) -> None:
        host = self.hosts[message.recipient]
        if host.up:
            self.note("deliver", message)
            host.step(message)
            self.after(host)

    def tick(self) -> None:
        """Time passes: mostly for all, sometimes for one who is ahead of the others."""
        one = self.one()
        if one is None or self.random.random() < 0.6:
            for host in self.hosts.values():
                self.tick_of(host, 1)
        else:
            self.tick_of(one, self.random.choice((1, 1, 2, ELECTION_TICKS)))

    def tick_of(self, host: Host, ticks: int) -> None:
        if host.up:
            self.note("tick", host.node, ticks)
            host.tick(ticks)
            self.after(host)

    def work(self) -> None:
        if (host := self.one()) is not None:
            self.work_of(host)

    def work_of(self, host: Host) -> None:
        """Carry out the first half of a Ready, the second, or both."""
        if host.pending is None:
            if not host.raft.has_ready():
                return
            self.note("take", host.node)
            before = host.disk.log
            self.say(host, host.take())
            self.checker.counts["truncations"] += host.disk.log[: len(before)] != before
            if self.random.random() < 0.3:
                return
        ready = host.pending
        assert ready is not None
        self.note("complete", host.node)
        promises = host.complete()
        self.checker.stores(host, ready.entries)
        self.say(host, promises)
        self.checker.applies(host, ready.committed)
        for state in ready.reads:
            self.checker.answers(host, state.requests, state.index)
        self.checker.look_at(host)

    def say(self, host: Host, messages: Iterable[Message]) -> None:
        for message in messages:
            self.checker.sends(host, message)
            self.network.append(message)

    def propose(self) -> None:
        for host in self.hosts.values():
            if host.leads:
                data = self.random.randbytes(self.random.choice((0, 1, 3, 12)))
                self.note("propose", host.node, data)
                try:
                    host.raft.propose(data)
                except ProposalRefused:
                    self.checker.counts["refused"] += 1
                self.after(host, at_once=0.4)

    def read(self) -> None:
        for host in self.hosts.values():
            if host.leads:
                self.next_request += 1
                self.note("read", host.node, self.next_request)
                try:
                    host.raft.read_index(self.next_request)
                except ProposalRefused:
                    continue
                self.checker.asks(host, self.next_request)
                self.after(host, at_once=0.4)

    def lose(self) -> None:
        if self.network:
            self.note("lose", self.network.pop(self.random.randrange(len(self.network))))

    def repeat(self) -> None:
        if self.network:
            message = self.random.choice(self.network)
            self.note("repeat", message)
            self.delayed.append(message)

    def break_links(self) -> None:
        nodes = list(self.hosts)
        leaders = [host.node for host in self.hosts.values() if host.leads]
        inside = set(self.random.sample(nodes, self.random.randint(1, len(nodes))))
        if leaders and self.random.random() < 0.5:
            inside = {leaders[0]}
        both = self.random.random() < 0.7
        self.note("break", sorted(inside), both)
        cut = [(node, other) for node in inside for other in nodes if other not in inside]
        self.blocked = {*cut, *((other, node) for node, other in cut if both)}

    def overthrow(self) -> None:
        """A leader is cut off while it sleeps, and the others notice long before it does."""
        leaders = [host for host in self.hosts.values() if host.leads and host.others]
        if leaders:
            leader = self.random.choice(leaders)
            self.note("overthrow", leader.node)
            self.blocked = {(leader.node, other) for other in leader.others}
            self.blocked |= {(other, leader.node) for other in leader.others}
            for other in leader.others:
                self.tick_of(self.hosts[other], self.random.randint(ELECTION_TICKS, 16))

    def mend_links(self) -> None:
        self.note("mend")
        self.blocked.clear()

    def crash(self) -> None:
        if (host := self.one()) is not None:
            surviving = self.random.randint(0, host.disk.unsynced_writes)
            self.note("crash", host.node, surviving)
            self.checker.counts["crashes"] += 1
            host.crash(surviving=surviving)
            self.checker.reads = {
                request: asked
                for request, asked in self.checker.reads.items()
                if asked[0] != host.node
            }

    def restart(self) -> None:
        if (host := self.one(up=False)) is not None:
            self.note("restart", host.node)
            self.start(host)

    def start(self, host: Host) -> None:
        applied = self.state_on_disk[host.node]
        host.restart(applied=applied)
        self.checker.applied[host.node] = applied
        self.checker.seen_committed[host.node] = 0
        self.checker.look_at(host)

    def transfer(self) -> None:
        for host in self.hosts.values():
            if host.leads and host.others:
                target = self.random.choice(host.others)
                self.note("transfer", host.node, target)
                try:
                    host.raft.transfer_leadership(target)
                except ProposalRefused:
                    continue
                self.after(host)

    def campaign(self) -> None:
        if (host := self.one()) is not None:
            self.note("campaign", host.node)
            host.raft.campaign()
            self.after(host)

    def lose_contact(self) -> None:
        """The transport reports messages as lost, rightly or wrongly."""
        host = self.one()
        if host is not None and host.others:
            other = self.random.choice(host.others)
            self.note("lose contact", host.node, other)
            host.raft.report_unreachable(other)
            self.after(host)

    def flush_state(self) -> None:
        if (host := self.one()) is not None:
            self.state_on_disk[host.node] = self.checker.applied[host.node]

    def cut(self) -> None:
        """Cut a log, but not so far that somebody would need a snapshot."""
        host = self.one()
        if host is None or host.pending is not None:
            return
        low = host.disk.start.index
        high = min(self.state_on_disk[node] for node in self.hosts)
        if low < high:
            through = self.random.randint(low, high)
            self.note("cut", host.node, through)
            host.disk.cut(through)
            self.checker.counts["cuts"] += 1


def execute(seed: int, events: int = EVENTS) -> tuple[Run, int]:
    """One whole run; returns it, and how many ticks it needed after healing."""
    run = Run(seed)
    try:
        run.unsafe_phase(events)
        ticks = run.healed_phase()
    except AssertionError as error:
        story = "\n".join(" ".join(map(str, event)) for event in run.trace[-40:])
        raise AssertionError(f"seed {seed}, event {len(run.trace)}: {error}\n{story}") from error
    return run, ticks


@pytest.mark.parametrize("first", range(seeds().start, seeds().stop, BATCH))
def test_safety_holds_at_every_step_and_a_healed_group_makes_progress(first: int) -> None:
    for seed in range(first, min(first + BATCH, seeds().stop)):
        execute(seed)


def test_the_runs_are_worth_something() -> None:
    """What they are to be safe from does happen in them."""
    counts: Counter[str] = Counter()
    for seed in range(BATCH):
        run, ticks = execute(seed)
        counts += run.checker.counts
        counts["committed"] += len(run.checker.committed)
        counts["slowest"] = max(counts["slowest"], ticks)

    assert counts["leaders"] > 3 * BATCH
    assert counts["committed"] > 10 * BATCH
    assert counts["reads"] > BATCH
    assert counts["crashes"] > 3 * BATCH
    assert counts["truncations"] > BATCH / 4
    assert counts["cuts"] > BATCH / 5
    assert counts["refused"] > 0


@pytest.mark.parametrize("seed", [0, 3, 17])
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    (one, ticks), (again, ticks_again) = execute(seed), execute(seed)

    assert one.trace == again.trace
    assert ticks == ticks_again
    assert [host.disk.log for host in one.hosts.values()] == [
        host.disk.log for host in again.hosts.values()
    ]
    assert one.trace != execute(seed + 1)[0].trace
