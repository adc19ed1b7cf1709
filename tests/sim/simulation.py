"""One run: a cluster and its clients under faults, then healed, as a function of its plan.

    safety      for so many events, whatever the plan has drawn goes wrong. The checkers
                look after each event
    liveness    faults end for a majority, and within LIVELY_TICKS it must elect a leader,
                commit a write, and hold the same state everywhere

A run ends with an Outcome, or raises Violation with all that is needed to repeat it.
"""

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from random import Random
from unittest import mock

from kvorum import limits
from kvorum.errors import RemovedFromCluster
from kvorum_node import wire
from kvorum_node.machine import ContentHash
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.quorum import is_quorum
from kvorum_node.raft.types import Index, NodeId, Settings
from kvorum_node.snapshots import Chunk, Header
from kvorum_node.storage import layout
from kvorumpb.v1.command_pb2 import Record
from kvorumpb.v1.raft_pb2 import RaftMessage
from tests.sim.calls import APART_BYTES
from tests.sim.clients import PATIENCE_TICKS, Client, Operated
from tests.sim.faults import Faults, leads
from tests.sim.history import judge
from tests.sim.host import GROUP, Host, Letter, Process
from tests.sim.inspector import Inspector
from tests.sim.network import Network
from tests.sim.operators import Operators, address_of
from tests.sim.oracle import Oracle
from tests.sim.plan import Plan
from tests.sim.scheduler import MILLISECOND, SECOND, Scheduler
from tests.sim.streams import Streams
from tests.sim.watchers import Watcher
from tests.support.linearizability import Outcome as LinearizabilityOutcome

ELECTION_TICKS = 10
LIVELY_TICKS = 300
NOTICED_TICKS = 100
"""How long a process may go on with a disk that has failed where nothing is promised."""
TOLD_TICKS = 1000
"""How long it takes until all watchers have come to a node that is alive, and are told."""
SETTLED = 0.1
"""The part of the runs in which the end of everything that is under way is waited for, ..."""
SETTLED_TICKS = 3 * ELECTION_TICKS + max(PATIENCE_TICKS)
"""... for so long: the patience of the last client, and of a leader who hears nobody."""
SEARCHED = 0.05
"""The part of the runs whose clients ask for no more than history.py understands, and whose
history is also judged by a search."""
UNSTEADY = frozenset({"clock rate", "clock jump"})
"""Faults by which a clock counts wrong, which is all that log time rests on, ..."""
WALL_CLOCKS = frozenset({"wall clock"})
"""... and those by which a node that restarts is mistaken about the time for which it was down."""
OFFSETS = (5, 1_000, 60_000, 10 * 60_000)
"""By how many milliseconds wall clocks differ from the beginning."""
SMALL_LIMITS = {
    "MAX_WATCH_PENDING_REVISIONS": 4,
    "MAX_WATCH_SCAN_EVENTS": 3,
    "MAX_WATCH_MESSAGE_BYTES": 80,
    "MAX_WATCH_PART_BYTES": 20,
}
"""As runs are short: what is to meet its bound has to meet it soon."""
RECENT = 60
"""How much of the trace a failure shows."""


Event = tuple[int, int, tuple[object, ...]]
"""The number of the event, when it was, and what happened."""


class Violation(Exception):
    """Something that must always hold did not."""

    def __init__(self, plan: Plan, what: str, event: int, story: list[str]) -> None:
        super().__init__(plan, what, event, story)
        self.plan = plan
        self.what = what
        self.event = event
        self.story = story

    def __str__(self) -> str:
        return f"seed {self.plan.seed}, event {self.event}: {self.what}"

    @property
    def rule(self) -> str:
        """Which rule was broken, without the details."""
        return self.what.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    counts: Counter[str]
    history: list[Operated]
    lively_ticks: int
    """How long the healed cluster took."""


@contextmanager
def small_limits() -> Iterator[None]:
    with ExitStack() as patches:
        for name, value in SMALL_LIMITS.items():
            patches.enter_context(mock.patch.object(limits, name, value))
        patches.enter_context(mock.patch.object(layout, "MIN_APART_BYTES", APART_BYTES))
        yield


class Simulation:
    def __init__(self, plan: Plan, *, keep_trace: bool = False) -> None:
        self.plan = plan
        self.scheduler = Scheduler()
        self.trace: deque[Event] = deque(maxlen=None if keep_trace else RECENT)
        self._keep_trace = keep_trace
        self.counts: Counter[str] = Counter()
        self.history: list[Operated] = []
        self._violation: str | None = None
        random = plan.random("cluster")
        size = random.choice((1, 3, 3, 3, 3, 3, 5, 5, 5))
        self.tick_us = random.choice((10, 20, 20, 50)) * MILLISECOND
        self.history_seconds = random.choice((10, 50, 200, 100_000)) * self.tick_us / SECOND
        self.watch_cache_bytes = random.choice((0, 2_000, 1 << 20))
        self.compaction_ticks = random.choice((5, 20))
        self.log_max_bytes = random.choice((300, 1000, 5000, 1 << 30))
        self.log_max_entries = random.choice((3, 10, 30, 1_000_000))
        self.sync_us = int(random.choice((0.01, 0.1, 0.5)) * self.tick_us)
        self.busy_us = int(random.choice((0.01, 0.1, 0.5)) * self.tick_us)
        self.interruption = random.choice((0.02, 0.3, 0.8))
        self.settings = Settings(
            election_ticks=ELECTION_TICKS,
            heartbeat_ticks=random.choice((2, 3)),
            max_append_bytes=random.choice((1, 100, 1000, 1 << 20)),
            max_inflight_messages=random.choice((1, 2, 8, 64)),
            max_inflight_bytes=random.choice((100, 1000, 64 << 20)),
            max_uncommitted_bytes=random.choice((200, 2000, 128 << 20)),
            max_apply_bytes=random.choice((1, 1, 100, 4 << 20)),
        )
        self.founders = Configuration.of(
            {NodeId(node): address_of(NodeId(node)) for node in range(1, size + 1)}
        )
        self.network = self._draw_network(random)
        self.oracle = Oracle(self.failed)
        self.inspector = Inspector(
            self.failed, self.oracle, self.founders, now_us=lambda: self.scheduler.now_us
        )
        self._truth = plan.random("wire")
        self._kept_down: set[NodeId] = set()
        """Whom the rest has to do without in the end, although their restart may be planned."""
        self.hosts: dict[NodeId, Host] = {}
        self.lost: dict[NodeId, Host] = {}
        self.streams = Streams(
            self.scheduler, self.network, self.hosts, plan.random("streams"), self.note
        )
        for node in sorted(self.founders.members):
            self._add_host(node)
        self._searched = plan.random("history").random() < SEARCHED
        self.clients = self._draw_clients(random)
        self.watchers = self._draw_watchers(random)
        self.operators = Operators(self)
        left_out = random.choice(
            (frozenset[str](), frozenset[str](), UNSTEADY, UNSTEADY | WALL_CLOCKS)
        )
        planned = (fault for fault in plan.faults() if fault.kind not in left_out)
        self.faults = Faults(self, self.operators, planned)

    def _draw_network(self, random: Random) -> Network:
        network = Network(self.scheduler, self.plan.random("network"))
        network.mean_delay_us = int(random.choice((0.01, 0.05, 0.3, 1.0)) * self.tick_us)
        network.late_us = 20 * self.tick_us
        network.ordered = random.random() < 0.5
        network.loss = random.choice((0.0, 0.0, 0.01, 0.05))
        network.duplication = random.choice((0.0, 0.0, 0.01, 0.05))
        network.late = random.choice((0.0, 0.0, 0.01, 0.05))
        return network

    def _draw_clients(self, random: Random) -> list[Client]:
        count = random.choice((3, 4, 6))
        think_us = int(random.choice((0.2, 1, 3)) * self.tick_us)
        return [
            Client(
                number,
                scheduler=self.scheduler,
                network=self.network,
                hosts=self.hosts,
                oracle=self.oracle,
                random=self.plan.random(f"client {number}"),
                think_us=think_us,
                tick_us=self.tick_us,
                plain=self._searched,
                history=self.history,
                note=self.note,
            )
            for number in range(1, count + 1)
        ]

    def _draw_watchers(self, random: Random) -> list[Watcher]:
        return [
            Watcher(
                number,
                scheduler=self.scheduler,
                network=self.network,
                hosts=self.hosts,
                oracle=self.oracle,
                random=self.plan.random(f"watcher {number}"),
                tick_us=self.tick_us,
                note=self.note,
            )
            for number in range(1, 1 + random.choice((0, 1, 2)))
        ]

    # The two phases.

    def run(self) -> Outcome:
        """Both phases. Raises Violation."""
        try:
            with small_limits():
                return self._run()
        finally:
            for host in self.hosts.values():
                host.crash()

    def _run(self) -> Outcome:
        while self.scheduler.events < self.plan.events:
            self._step()
        ticks = self._prove_alive()
        if self._searched:
            verdict = judge(self.history)
            self.counts[f"history {verdict.outcome.value}"] += 1
            if verdict.outcome is LinearizabilityOutcome.VIOLATION:
                self.failed(f"linearizability: {verdict.explanation}")
                self._raise_violation()
        self.counts.update({f"fault {kind}": n for kind, n in self.faults.counts.items()})
        self.counts.update({f"network {kind}": n for kind, n in self.network.counts.items()})
        for client in self.clients:
            self.counts.update({f"client {kind}": n for kind, n in client.counts.items()})
        for watcher in self.watchers:
            self.counts.update({f"watcher {kind}": n for kind, n in watcher.counts.items()})
        self.counts.update({f"snapshot {kind}": n for kind, n in self.streams.counts.items()})
        self.counts.update({f"change {kind}": n for kind, n in self.operators.counts.items()})
        self.counts["terms"] = len(self.inspector.one_leader.leaders)
        self.counts["committed"] = self.inspector.committed.last
        self.counts["revision"] = self.oracle.revision
        self.counts["log times compared"] = self.inspector.log_time.checked
        self.counts["log times compared at takeovers"] = self.inspector.log_time.takeovers
        self.counts["milliseconds"] = self.scheduler.now_us // MILLISECOND
        return Outcome(self.counts, self.history, ticks)

    def _step(self) -> None:
        action = self.scheduler.take()
        if self._keep_trace:
            self.note("event", getattr(action, "__qualname__", "partial"))
        self._raise_violation()

    def _raise_violation(self) -> None:
        if self._violation is not None:
            raise Violation(self.plan, self._violation, self.scheduler.events, self.story())

    def story(self) -> list[str]:
        """What happened, as far as it is kept: one line each."""
        return [
            f"{event:6} {now_us / MILLISECOND:10.3f} ms  " + " ".join(map(str, what))
            for event, now_us, what in self.trace
        ]

    def _prove_alive(self) -> int:
        """Heal a majority, and wait for what it must achieve; returns how many ticks it took."""
        random = self.plan.random("healing")
        self.note("healing")
        self.faults.heal()
        # As fast as the ticks are made for: in a slower network, elections take what they take.
        self.network.calm(mean_delay_us=self.tick_us // 10)
        self.sync_us = min(self.sync_us, self.tick_us // 10)
        dead = self._choose_dead(random)
        for node in sorted(self.hosts):
            host = self.hosts[node]
            host.heal()
            if node in dead:
                self._silence(host, random.choice(("down", "isolated", "deaf")))
            else:
                self.restart(host)
        began_us, deadline_us = self.scheduler.now_us, LIVELY_TICKS * self.tick_us
        acknowledged = self.oracle.acknowledged
        while self.scheduler.now_us < began_us + deadline_us:
            self._step()
            if self.oracle.acknowledged > acknowledged:
                for client in self.clients:
                    client.active = False
                if self._converged(dead):
                    self._compare_contents(dead)
                    ticks = (self.scheduler.now_us - began_us) // self.tick_us
                    self._prove_told()
                    if random.random() < SETTLED:
                        self._prove_settled(dead)
                    return ticks
        self.failed(f"liveness: no progress within {LIVELY_TICKS} ticks: {self._describe()}")
        self._step()
        raise AssertionError("a step raises what was reported")

    def _prove_told(self) -> None:
        """Wait until all watchers have heard of everything; some are at nodes that are dead."""
        for watcher in self.watchers:
            watcher.hurry()
        revision = self.oracle.revision
        until_us = self.scheduler.now_us + TOLD_TICKS * self.tick_us
        while any((one.heard.through or 0) < revision for one in self.watchers):
            if self.scheduler.now_us > until_us:
                self.failed(f"watch: somebody is not told of {revision}: {self._describe()}")
            self._step()

    def _prove_settled(self, dead: frozenset[NodeId]) -> None:
        """Once nobody asks any more, nobody waits for an answer, and no snapshot is on its way."""
        self.counts["settled"] += 1
        self._let_pass(SETTLED_TICKS)
        waiting = [
            (process, future)
            for node in sorted(self.inspector.configuration.members - dead)
            if node in self.hosts and (process := self.hosts[node].process) is not None
            for future in process.group.under_way()
        ]
        if waiting:  # the housekeeper, perhaps, which goes on
            self._let_pass(SETTLED_TICKS)
        for process, future in waiting:
            if not future.done() and not process.dead:
                self.failed(f"settled: somebody waits for {process.host} for ever")
        if self.streams.under_way:
            self.failed(f"settled: {self.streams.under_way} snapshots are on their way for ever")
        self._raise_violation()

    def _let_pass(self, ticks: int) -> None:
        until_us = self.scheduler.now_us + ticks * self.tick_us
        while self.scheduler.now_us < until_us:
            self._step()

    def _choose_dead(self, random: Random) -> frozenset[NodeId]:
        """Some whom the rest can do without, whichever configuration they go by.

        None that joins: it may be made a voter in the moment in which it falls silent, and
        then be one more than the group can do without.
        """
        nodes = sorted(self.hosts)
        chosen = random.sample(nodes, random.randint(0, (len(nodes) - 1) // 2))
        dead = frozenset(chosen).difference(
            *(one.joining for one in self.inspector.configurations())
        )
        alive = self.hosts.keys() - dead
        if all(is_quorum(one, alive) for one in self.inspector.configurations()):
            return dead
        return frozenset()

    def _silence(self, host: Host, how: str) -> None:
        """Let a host be of no use, and perhaps a nuisance, from now on."""
        self.note("stays", how, host)
        others = [node for node in sorted(self.hosts) if node != host.node]
        match how:
            case "down":
                host.crash()
                self._kept_down.add(host.node)
            case "isolated":
                self.restart(host)
                self.network.break_links((host.node, node) for node in others)
                self.network.break_links((node, host.node) for node in others)
            case _:
                self.restart(host)
                self.network.break_links((node, host.node) for node in others)

    def _converged(self, dead: frozenset[NodeId]) -> bool:
        """Whether all living members have applied all that is committed, under one leader."""
        last, configuration = self.inspector.committed.last, self.inspector.configuration
        living = [
            self.hosts[node] for node in sorted(configuration.members - dead) if node in self.hosts
        ]
        return (
            not configuration.is_joint
            and any(leads(host) for host in living)
            and all(
                host.process is not None and host.process.group.machine.applied == last
                for host in living
            )
        )

    def _compare_contents(self, dead: frozenset[NodeId]) -> None:
        """Compare record by record what the checkers have only compared by digests."""
        expected = self.oracle.content()
        hashes: set[ContentHash] = set()
        for node in sorted(self.inspector.configuration.members - dead):
            process = self.hosts[node].process if node in self.hosts else None
            if process is None:
                continue
            machine = process.group.machine
            hasher = machine.content_hash()
            while (content := hasher.step()) is None:
                pass
            hashes.add(content)
            held = {key: machine.get(key) for key in expected}
            there = {
                key: cell.record(key) if self.oracle.is_live(cell) else None
                for key, cell in expected.items()
            }
            if content.record_count != len(expected) or held != there:
                self.failed(f"content: {process.host} holds {held}, not {there}")
        if len(hashes) > 1:
            self.failed(f"content: the nodes differ: {hashes}")
        self._raise_violation()

    def _describe(self) -> str:
        return "; ".join(
            f"{host} {'down' if host.process is None else host.process.group.raft.role}"
            for host in self.hosts.values()
        )

    def add_host(self, node: NodeId) -> None:
        """Have a machine for the node, with its process running; it may be there already."""
        self.scheduler.after(0, self._add_host, node)

    def _add_host(self, node: NodeId) -> None:
        if node not in self.hosts and node not in self.lost:
            host = self.hosts[node] = Host(node, self, self.plan.random(f"host {node}"))
            host.clock.wall_offset_ms = host.random.choice((0, 1, -1)) * host.random.choice(OFFSETS)
            self.inspector.watch(host)
            host.start()

    def lose_disks(self, host: Host) -> bool:
        """Lose a host for good, unless more would be lost by it than anything can survive."""
        gone = self.lost.keys() | {host.node}
        for one in self.inspector.configurations():
            # A joining learner may be made a voter at any time, before anybody notices the loss.
            for voters in (one.voters, one.outgoing, one.voters | one.joining):
                if voters and len(voters & gone) > (len(voters) - 1) // 2:
                    return False
        self.note("lose disks", host)
        host.crash()
        self._retire(host)
        self.lost[host.node] = host
        return True

    def _retire(self, host: Host) -> None:
        del self.hosts[host.node]

    # What hosts, clients and faults tell.

    def failed(self, what: str) -> None:
        """Something that must hold did not; the first one counts."""
        if self._violation is None:
            self._violation = what

    def note(self, *what: object) -> None:
        self.trace.append((self.scheduler.events, self.scheduler.now_us, what))

    def started(self, host: Host) -> None:
        self.counts["starts"] += 1
        self.inspector.log_time.starts()
        self.inspector.started(host)

    def ran(self, host: Host) -> None:
        self.inspector.ran(host)

    def sends(self, host: Host, letter: Letter) -> None:
        message = letter.message
        self.inspector.sends(host, message)
        if self._truth.random() < 0.02:
            data = wire.encode(GROUP, message).SerializeToString()
            decoded = wire.decode(RaftMessage.FromString(data))
            if decoded != message:
                self.failed(f"wire: {message} becomes {decoded}")
            else:
                letter = replace(letter, message=decoded)
        recipient = self.hosts.get(message.recipient)
        if recipient is not None:
            link = (host.node, message.recipient)
            self.network.send(link, letter, recipient.hears, self._lost_by(host))

    def told(self, lag_us: int) -> None:
        self.inspector.log_time.told(lag_us)

    def unsteady(self) -> None:
        self.inspector.log_time.unsteady()

    def shows(self, host: Host, record: Record, asked_ms: int) -> None:
        self.inspector.on_time.reads(host.node, record.key, record.expire_time_ms, asked_ms)

    def _lost_by(self, host: Host) -> Callable[[Letter], None]:
        def lost(letter: Letter) -> None:
            if host.random.random() < 0.3:
                host.lost_contact(letter.message.recipient)

        return lost

    def ended(self, host: Host, error: BaseException | None) -> None:
        """A process has ended by itself: its disk has failed, or it was told to."""
        self.note("ended", host, error)
        if isinstance(error, RemovedFromCluster):
            self._was_removed(host)
            return
        if error is not None and not (host.log_disk.failed or host.state_disk.failed):
            self.failed(f"{host} ended: {error!r}")
            return
        self.counts["ended by its disk" if error is not None else "ended as told"] += 1
        process = host.process
        random = host.random

        def bury() -> None:
            if host.process is process and process is not None:
                host.crash()
                self.scheduler.after(random.randint(0, 20 * self.tick_us), self.restart, host)

        self.scheduler.after(1, bury)

    def expect_end(self, host: Host) -> None:
        """The disk of a process has failed: it must end, whatever else it is doing."""
        process = host.process

        def look() -> None:
            if host.process is not process or process is None:
                return
            if host.paused:
                self.scheduler.after(NOTICED_TICKS * self.tick_us, look)
            else:
                self.inspector.promises.goes_on(host.node)

        self.scheduler.after(NOTICED_TICKS * self.tick_us, look)

    def _was_removed(self, host: Host) -> None:
        """A node has learnt that it is no member any more; its operator deletes it."""
        self.counts["removed"] += 1

        def bury() -> None:
            if not self.inspector.configuration.has_removed(host.node):
                self.failed(f"removed: {host} ended as such, and is none")
            if self.hosts.get(host.node) is host:
                host.crash()
                self._retire(host)

        self.scheduler.after(1, bury)

    def restart(self, host: Host) -> None:
        may_run = self.hosts.get(host.node) is host and host.node not in self._kept_down
        if host.process is None and may_run:
            host.start()

    def refuses(self, host: Host, removed: NodeId) -> None:
        """A process has heard from a node of which it knows that it was removed."""
        other = self.hosts.get(removed)
        if other is not None:
            link = (host.node, removed)
            self.network.send(link, None, lambda _: other.told_of_removal())

    async def carry(
        self, sender: Process, peer: NodeId, header: Header, chunks: AsyncIterator[Chunk]
    ) -> Index:
        return await self.streams.carry(sender, peer, header, chunks)

    def died(self, process: Process) -> None:
        self.streams.died(process)
