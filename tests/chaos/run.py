"""One run: a cluster of real processes, clients, and faults one after the other; then the truth.

    start       nodes, clients; a write has succeeded
    harm        strike, wait, repair, wait until a write succeeds; again until time is up
    heal        everything repaired, every node running
    look        every key that was used is read, the ledger is read, what is left expires, the
                watches are told of the end, all nodes are compared

The order of the faults, their targets and their lengths are drawn from the seed. (What the
processes do meanwhile is their own affair: a seed repeats the harm, and not the run.)
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from signal import SIGKILL, SIGTERM
from typing import Final

import kvorum
from kvorum import KV
from kvorum.cli import processes
from kvorum.cli.cluster_file import ProcessIdentity
from kvorum.cli.local_cluster import PROBE_KEY, tail
from kvorum.cli.processes import ProcessState
from kvorum.errors import KvorumError
from tests.chaos import leases, watches
from tests.chaos.client import LEDGER
from tests.chaos.disks import Disks
from tests.chaos.faults import FAULTS, Arena, find_fake_time
from tests.chaos.judge import Content, Event, Evidence
from tests.chaos.network import Network
from tests.chaos.nodes import Nodes, TooLateError, dies_with_us, until
from tests.chaos.watches import AFTERWARDS, END, LATE, WATCHED, Told
from tests.support.histories import Record, Recorder, load
from tests.support.linearizability_kvorum import Put

QUIET_SECONDS: Final = (0.3, 1.5)
"""Between two faults."""
LOG_LINES: Final = {
    "snapshots taken over": "goes on from the snapshot at",
    "tracebacks": "Traceback (most recent call last)",
}
PROBE_SECONDS: Final = 2.0
WATCHER: Final = "w1"
LAST_LEASE_SECONDS: Final = 5.0
LATE_WATCH_SECONDS: Final = 120.0
"""For reading all history once more."""
ON_TOP: Final = ("kill-leader", "kill-follower", "pause-leader")
UNDERNEATH: Final = ("isolate-leader", "partition", "bridge", "one-way", "loss", "delay")
ON_TOP_CHANCE: Final = 0.3
"""How often one of the faults ON_TOP strikes while one of those UNDERNEATH lasts."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked for."""

    seconds: float
    nodes: int
    faults: tuple[str, ...]
    seed: int
    directory: Path
    clients: int
    calls_per_second: float
    """Of all clients together."""
    node_flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves to the judge, and to the report."""

    evidence: Evidence
    started: float
    """On the clock of the histories."""
    left_out: dict[str, str]
    """Faults that could not be here, with the reason."""
    network: str
    log_lines: dict[str, int]
    """How often what is in LOG_LINES stands in the nodes' logs."""


class Run:
    """A run under way."""

    def __init__(self, options: Options, network: Network, nodes: Nodes, disks: Disks) -> None:
        self._options = options
        self._chance = Random(options.seed)
        self._arena = Arena(nodes, network, disks)
        self._nodes = nodes
        self._clients: dict[str, ProcessIdentity] = {}
        self._watcher: ProcessIdentity | None = None
        self._late: list[Told] = []
        self._events: list[Event] = []
        self._accidents: list[str] = []
        self._ledger: dict[str, object] = {}
        self._contents: dict[str, Content] = {}
        self._last_leases: list[leases.LeaseCall] = []
        self._last_reads: list[Record] = []

    async def carry_out(self, progress: Callable[[str], None]) -> Outcome:
        started = time.monotonic()
        left_out = {
            name: reason
            for name in self._options.faults
            if (reason := FAULTS[name].lacks(self._arena))
        }
        try:
            for name in self._nodes.members:
                self._nodes.start(name)
            async with kvorum.open(self._nodes.target, timeout=PROBE_SECONDS) as kv:
                await self._gather(kv, set(left_out), progress)
        finally:
            self._nodes.look_for_accidents()
            self._nodes.kill_all()
            await self._end_clients()
            processes.send(self._watcher, SIGKILL)
        evidence = Evidence(
            records=[*self._recorded(), *self._last_reads],
            events=self._events,
            ledger=self._ledger,
            contents=self._contents,
            leases=[*self._lease_calls(), *self._last_leases],
            watches={**self._watched(), LATE: self._late},
            accidents=[*self._accidents, *self._nodes.accidents],
        )
        logs = [node.log_file for node in self._nodes.nodes.values() if node.log_file.exists()]
        text = "".join(log.read_text("utf-8", "replace") for log in logs)
        log_lines = {what: text.count(line) for what, line in LOG_LINES.items()}
        return Outcome(evidence, started, left_out, self._arena.network.kind, log_lines)

    async def _gather(self, kv: KV, left_out: set[str], progress: Callable[[str], None]) -> None:
        """Start, harm, heal and look; what fails or comes too late ends its step."""
        possible = [name for name in self._options.faults if name not in left_out]

        async def start() -> None:
            await self._writable(kv)
            self._start_watcher()
            await self._start_clients()

        for step in (
            start,
            lambda: self._harm(kv, possible, progress),
            lambda: self._heal(kv),
            self._end_clients,
            lambda: self._look(kv),
        ):
            try:
                await step()
            except (TooLateError, TimeoutError, KvorumError) as error:
                self._accidents.append(f"{type(error).__name__}: {error}")

    # Clients.

    async def _start_clients(self) -> None:
        options = self._options
        rate = options.calls_per_second / options.clients
        for number in range(1, options.clients + 1):
            name = f"c{number}"
            command = [
                *dies_with_us(),
                *(sys.executable, "-m", "tests.chaos.client", self._nodes.target, name),
                *(str(options.directory), str(rate)),
            ]
            self._clients[name] = processes.start(command, options.directory / f"{name}.log")

        async def all_call() -> bool:
            files = [options.directory / f"{name}.jsonl" for name in self._clients]
            return all(file.exists() and file.stat().st_size for file in files)

        await until("all clients have made a call", all_call)

    async def _end_clients(self) -> None:
        clients, self._clients = self._clients, {}
        for name, client in clients.items():
            if not processes.send(client, SIGTERM):
                lines = "\n".join(tail(self._options.directory / f"{name}.log", 10))
                self._accidents.append(f"client {name} ended by itself:\n{lines}")

        async def have_ended() -> bool:
            return all(processes.state(one) is ProcessState.DEAD for one in clients.values())

        await until("the clients end", have_ended)

    def _recorded(self) -> Iterator[Record]:
        for number in range(1, self._options.clients + 1):
            path = self._options.directory / f"c{number}.jsonl"
            if path.exists():
                yield from load(path)

    def _lease_calls(self) -> Iterator[leases.LeaseCall]:
        for number in range(1, self._options.clients + 1):
            path = self._options.directory / f"c{number}.leases.jsonl"
            if path.exists():
                yield from leases.load(path)

    # The watcher.

    def _start_watcher(self) -> None:
        directory = self._options.directory
        command = [
            *dies_with_us(),
            *(sys.executable, "-m", "tests.chaos.watcher"),
            *(self._nodes.target, WATCHER, str(directory)),
        ]
        self._watcher = processes.start(command, directory / f"{WATCHER}.log")

    async def _watcher_ends(self) -> None:
        async def has_ended() -> bool:
            return processes.state(self._watcher) is ProcessState.DEAD

        await until("the watches come to the end", has_ended)
        text = (self._options.directory / f"{WATCHER}.log").read_text("utf-8", "replace")
        if LOG_LINES["tracebacks"] in text:
            self._accidents.append(f"the watcher has ended by itself:\n{text}")

    def _watched(self) -> dict[str, Sequence[Told]]:
        paths = {name: self._options.directory / f"{WATCHER}.{name}.jsonl" for name in WATCHED}
        return {name: watches.load(path) for name, path in paths.items() if path.exists()}

    # Harm.

    async def _harm(self, kv: KV, possible: Sequence[str], progress: Callable[[str], None]) -> None:
        """Until time is up, and each kind has struck once, however short the time."""
        deadline = time.monotonic() + self._options.seconds
        order = self._chance.sample(possible, len(possible))
        is_first_round = True
        while order and (is_first_round or time.monotonic() < deadline):
            await asyncio.sleep(self._chance.uniform(*QUIET_SECONDS))
            names = [order.pop()]
            on_top = [name for name in ON_TOP if name in possible]
            if names[0] in UNDERNEATH and on_top and self._chance.random() < ON_TOP_CHANCE:
                names.append(self._chance.choice(on_top))
            if not any(FAULTS[name].lacks(self._arena) for name in names):
                event = await self._strike(kv, names)
                self._events.append(event)
                progress(f"{event.fault}: {event.what}")
            if not order:
                is_first_round = False
                left = [name for name in possible if not FAULTS[name].lacks(self._arena)]
                order = self._chance.sample(left, len(left))

    async def _strike(self, kv: KV, names: Sequence[str]) -> Event:
        struck = time.monotonic()
        async with AsyncExitStack() as harms:
            whats = [
                await harms.enter_async_context(FAULTS[name].strike(self._arena, self._chance))
                for name in names
            ]
            await asyncio.sleep(self._chance.uniform(*FAULTS[names[0]].seconds))
        repaired = time.monotonic()
        await self._writable(kv)
        return Event("+".join(names), "; ".join(whats), struck, repaired, time.monotonic())

    async def _writable(self, kv: KV) -> None:
        """Return once a write has succeeded. It leaves nothing behind: the key never exists."""

        async def succeeds() -> bool:
            self._nodes.look_for_accidents()
            with contextlib.suppress(KvorumError):
                await kv.delete(PROBE_KEY)
                return True
            return False

        await until("a write succeeds", succeeds)

    # The end.

    async def _heal(self, kv: KV) -> None:
        await self._arena.network.set({})
        for name in self._nodes.members:
            self._arena.disks.speed_up(name)
            self._arena.disks.free(name)
        await self._nodes.revive()
        await self._writable(kv)

    async def _look(self, kv: KV) -> None:
        recorder = Recorder(kv, client=AFTERWARDS)
        self._last_reads = recorder.records
        keys = {
            step.key for record in self._recorded() for step in record.operation.request.operations
        }
        for key in sorted(key for key in keys if not key.startswith(LEDGER)):
            await recorder.get(key)
        self._ledger = {entry.key: entry.value async for entry in kv.scan(LEDGER)}

        await self._see_one_expire(kv)

        async def is_removed() -> bool:
            """What has expired, and is not removed yet, is there in the past."""
            page = await kv.list(leases.LEASES, limit=1)
            past = await kv.list(leases.LEASES, limit=1, revision=page.revision)
            return not page.entries and not past.entries

        await until("all that expires is removed", is_removed)
        await recorder.transact(*(Put(key, key) for key in END))
        await self._watcher_ends()
        async with asyncio.timeout(LATE_WATCH_SECONDS):
            await watches.write_down(kv, "", self._late.append)
        await until("all nodes have applied the same", self._is_applied)
        await until("all nodes have hashed the same index", self._is_hashed)

    async def _see_one_expire(self, kv: KV) -> None:
        """However short the run was: a key lives, and then is gone."""
        recorder = leases.LeaseRecorder(kv, client=AFTERWARDS, note=self._last_leases.append)
        key = f"{leases.LEASES}{AFTERWARDS}"
        await recorder.put(key, AFTERWARDS, LAST_LEASE_SECONDS)
        await recorder.get(key)

        async def is_gone() -> bool:
            await recorder.get(key)
            return self._last_leases[-1].found is False

        await until("a key expires", is_gone)

    async def _is_applied(self) -> bool:
        statuses = await asyncio.gather(*map(self._nodes.status, self._nodes.members))
        known = [status for status in statuses if status is not None]
        positions = {(status.last_index, status.applied_index) for status in known}
        return len(known) == len(statuses) and len(positions) == 1 and len(set(*positions)) == 1

    async def _is_hashed(self) -> bool:
        """Only what was hashed at one index can be compared: it is a part of the hash."""
        answers = {
            name: await self._nodes.admin.content_hash(self._nodes.places[name].listen)
            for name in self._nodes.members
        }
        for name, answer in answers.items():
            self._contents[name] = Content(answer.revision, answer.hash.hex())
        return len({answer.applied_index for answer in answers.values()}) == 1


async def run_on(
    options: Options,
    join: Callable[[Callable[[str], int | None]], AbstractAsyncContextManager[Network]],
    *,
    may_mount: bool,
    progress: Callable[[str], None],
) -> Outcome:
    """Carry out a run; `join` makes the network, with a way to find the pid of a node."""
    nodes: Nodes | None = None

    def pid_of(name: str) -> int | None:
        return None if nodes is None else nodes.pid_of(name)

    async with join(pid_of) as network:
        disks = Disks(options.directory / "nodes", network.places, may_mount=may_mount)
        nodes = Nodes(
            options.directory,
            network.places,
            list(network.places)[: options.nodes],
            disks,
            flags=options.node_flags,
            fake_time_library=find_fake_time(),
        )
        try:
            return await Run(options, network, nodes, disks).carry_out(progress)
        finally:
            await nodes.admin.close()
            disks.remove()
