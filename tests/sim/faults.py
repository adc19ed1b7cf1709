"""What can go wrong, and how it is put right again.

Each kind of fault in plan.py is a method here, which does the harm and returns what will
end it. `heal` ends all of them at once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Protocol

from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import NodeId, ProposalRefused
from tests.sim.host import Host
from tests.sim.network import Link, Network
from tests.sim.operators import Operators
from tests.sim.plan import KINDS, Fault
from tests.sim.scheduler import Scheduler

End = Callable[[], None]


def nothing() -> None:
    """A fault that is over when it begins, or that found nobody to hit."""


class Surroundings(Protocol):
    scheduler: Scheduler
    network: Network
    hosts: dict[NodeId, Host]
    tick_us: int

    def restart(self, host: Host) -> None: ...
    def lose_disks(self, host: Host) -> bool: ...
    def expect_end(self, host: Host) -> None: ...
    def note(self, *what: object) -> None: ...


class Faults:
    def __init__(
        self, around: Surroundings, operators: Operators, planned: Iterator[Fault]
    ) -> None:
        self.counts: Counter[str] = Counter()
        """Faults that did happen, by kind."""
        self.begun: list[int] = []
        """Their numbers."""
        self._around = around
        self._operators = operators
        self._planned = planned
        self._open: dict[int, End] = {}
        self._over = False
        self._kinds: dict[str, Callable[[Random], End]] = {
            kind: getattr(self, f"_{kind.replace(' ', '_')}") for kind in KINDS
        }
        self._plan_next()

    def heal(self) -> None:
        """End all faults, and begin no more."""
        self._over = True
        self._operators.go_home()
        for number in sorted(self._open):
            self._end(number)

    def _plan_next(self) -> None:
        fault = next(self._planned, None)
        if fault is not None:
            scheduler = self._around.scheduler
            begins_us = int(fault.begins * self._around.tick_us)
            scheduler.after(begins_us - scheduler.now_us, self._begin, fault)

    def _begin(self, fault: Fault) -> None:
        if self._over:
            return
        self._around.note("fault", fault.number, fault.kind)
        end = self._kinds[fault.kind](Random(fault.seed))
        if end is not nothing:
            self.counts[fault.kind] += 1
            self.begun.append(fault.number)
            self._open[fault.number] = end
            lasts_us = int(fault.lasts * self._around.tick_us)
            self._around.scheduler.after(lasts_us, self._end, fault.number)
        self._plan_next()

    def _end(self, number: int) -> None:
        if number in self._open:
            self._around.note("fault is over", number)
            self._open.pop(number)()

    # Whom it hits.

    def _hosts(self) -> list[Host]:
        return [self._around.hosts[node] for node in sorted(self._around.hosts)]

    def _running(self) -> list[Host]:
        return [host for host in self._hosts() if host.is_up and not host.paused]

    def _leaders(self) -> list[Host]:
        return [host for host in self._running() if leads(host)]

    def _victim(self, random: Random, hosts: Sequence[Host]) -> Host | None:
        """Somebody; mostly only as long as a majority of all is left."""
        idle = len(self._hosts()) - len(self._running())
        spare = (len(self._hosts()) - 1) // 2
        if not hosts or (idle >= spare and random.random() < 0.8):
            return None
        return random.choice(hosts)

    # Processes.

    def _crash(self, random: Random) -> End:
        return self._crash_one(self._victim(random, self._running()))

    def _crash_leader(self, random: Random) -> End:
        return self._crash_one(self._victim(random, self._leaders()))

    def _crash_one(self, host: Host | None) -> End:
        if host is None:
            return nothing
        host.crash()
        return lambda: self._around.restart(host)

    def _power_loss(self, random: Random) -> End:
        del random
        hosts = [host for host in self._hosts() if host.is_up]
        for host in hosts:
            host.crash()

        def end() -> None:
            for host in hosts:
                self._around.restart(host)

        return end

    def _stop(self, random: Random) -> End:
        host = self._victim(random, self._running())
        if host is None or host.process is None:
            return nothing
        self._around.note("stop", host)
        host.process.stop()
        return lambda: None  # it is started again when it has ended

    def _pause(self, random: Random) -> End:
        return self._pause_one(self._victim(random, self._running()))

    def _pause_leader(self, random: Random) -> End:
        return self._pause_one(self._victim(random, self._leaders()))

    def _pause_one(self, host: Host | None) -> End:
        if host is None:
            return nothing
        host.pause()
        return host.resume

    # Links.

    def _cut(self, links: list[Link]) -> End:
        network = self._around.network
        network.break_links(links)
        return lambda: network.mend_links(links)

    def _isolate(self, random: Random) -> End:
        return self._isolate_one(random, self._hosts())

    def _isolate_leader(self, random: Random) -> End:
        return self._isolate_one(random, self._leaders())

    def _isolate_one(self, random: Random, hosts: Sequence[Host]) -> End:
        if not hosts:
            return nothing
        inside = [random.choice(hosts).node]
        return self._cut(self._between(inside, both=True))

    def _overthrow(self, random: Random) -> End:
        """A leader is cut off while time passes slowly for it: the others elect another one."""
        leaders = self._leaders()
        if not leaders:
            return nothing
        host = random.choice(leaders)
        host.set_clock(rate=0.1)
        mend = self._cut(self._between([host.node], both=True))

        def end() -> None:
            mend()
            host.set_clock(rate=1.0)

        return end

    def _split(self, random: Random) -> End:
        nodes = sorted(self._around.hosts)
        inside = random.sample(nodes, random.randint(1, max(1, len(nodes) - 1)))
        return self._cut(self._between(sorted(inside), both=True))

    def _one_way(self, random: Random) -> End:
        """Some are heard and do not hear, or hear and are not heard."""
        nodes = sorted(self._around.hosts)
        inside = random.sample(nodes, random.randint(1, max(1, len(nodes) - 1)))
        return self._cut(self._between(sorted(inside), both=False))

    def _ring(self, random: Random) -> End:
        """Everybody hears the neighbours alone: no two agree on who is there."""
        nodes = random.sample(sorted(self._around.hosts), len(self._around.hosts))
        count = len(nodes)
        return self._cut(
            [
                (a, b)
                for m, a in enumerate(nodes)
                for n, b in enumerate(nodes)
                if (m - n) % count not in (0, 1, count - 1)
            ]
        )

    def _between(self, inside: Sequence[NodeId], *, both: bool) -> list[Link]:
        outside = [node for node in sorted(self._around.hosts) if node not in inside]
        links: list[Link] = [(a, b) for a in inside for b in outside]
        return [*links, *((b, a) for a, b in links)] if both else links

    def _loss(self, random: Random) -> End:
        return self._change_network("loss", random.uniform(0.05, 0.5))

    def _duplication(self, random: Random) -> End:
        return self._change_network("duplication", random.uniform(0.05, 0.5))

    def _delay(self, random: Random) -> End:
        return self._change_network("late", random.uniform(0.05, 0.5))

    def _change_network(self, what: str, by: float) -> End:
        network = self._around.network
        setattr(network, what, getattr(network, what) + by)
        return lambda: setattr(network, what, max(0.0, getattr(network, what) - by))

    # Disks.

    def _slow_disk(self, random: Random) -> End:
        host = random.choice(self._hosts())
        host.slowness = random.choice((10.0, 50.0, 200.0))

        def end() -> None:
            host.slowness = 1.0

        return end

    def _sync_error(self, random: Random) -> End:
        return self._break_disk("fail_sync", random)

    def _write_error(self, random: Random) -> End:
        return self._break_disk("fail_write", random)

    def _break_disk(self, what: str, random: Random) -> End:
        """The next use of the disk fails, and with it the process; then the disk works again."""
        host = self._victim(random, self._running())
        if host is None:
            return nothing
        disk = random.choice((host.log_disk, host.log_disk, host.state_disk))
        process = host.process
        setattr(disk, what, True)

        def end() -> None:
            setattr(disk, what, False)
            if disk.failed and host.process is process and not host.paused:
                self._around.expect_end(host)

        return end

    # Clocks.

    def _clock_rate(self, random: Random) -> End:
        host = random.choice(self._hosts())
        host.set_clock(rate=random.choice((0.2, 0.5, 0.9, 1.1, 2.0, 5.0)))
        return lambda: host.set_clock(rate=1.0)

    def _clock_jump(self, random: Random) -> End:
        """A virtual machine was asleep: its clock comes back later than it went."""
        host = random.choice(self._hosts())
        host.set_clock(forward_seconds=random.choice((0.1, 1.0, 100.0)))
        return lambda: None

    def _wall_clock(self, random: Random) -> End:
        host = random.choice(self._hosts())
        offset_ms = random.choice((-1, 1)) * random.choice((10, 1000, 5 * 60_000, 10**7))
        host.set_wall_clock(offset_ms)
        return lambda: None

    # What operators do.

    def _transfer(self, random: Random) -> End:
        """Hand leadership over, to anybody."""
        leaders = self._leaders()
        if not leaders:
            return nothing
        host = random.choice(leaders)
        assert host.process is not None
        raft = host.process.group.raft
        others = sorted(raft.configuration.voters - {host.node})
        if not others:
            return nothing
        try:
            raft.transfer_leadership(random.choice(others))
        except ProposalRefused:
            return nothing
        host.process.driver.wake()
        host.process.poke()
        return lambda: None

    def _change_members(self, random: Random) -> End:
        leaders = self._leaders()
        if not leaders:
            return nothing
        process = random.choice(leaders).process
        assert process is not None
        self._operators.change_members(process, random)
        return lambda: None

    def _lose_disks(self, random: Random) -> End:
        """A machine burns: its node is never to come back under its id."""
        hosts = self._hosts()
        return (lambda: None) if self._around.lose_disks(random.choice(hosts)) else nothing


def leads(host: Host) -> bool:
    """Whether the process there takes itself for the leader."""
    return host.process is not None and isinstance(host.process.group.raft.role, Leader)
