"""A simulated machine, and the process of a node on it.

    Clock    what the machine believes the time to be
    Host     the machine: disks, clock, processor. It has a process, or is down
    Process  one life of a node: the real driver, group, core, state machine and dispatcher,
             on a NodeLoop and on the host's disks

Rules: whatever reaches a process comes through `poke`, which decides from the seed when
the process gets the processor; a crash takes the disks away before it cancels the tasks,
so that nothing that a dying task does is seen by anybody.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from functools import partial
from random import Random
from typing import Any, Protocol

from kvorum.errors import StorageError
from kvorum_node.driver import Driver
from kvorum_node.group import Group
from kvorum_node.log_clock import LogClock
from kvorum_node.machine import Machine
from kvorum_node.members import removed_from_cluster
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.core import Raft
from kvorum_node.raft.messages import Message
from kvorum_node.raft.types import GroupId, Index, NodeId, Settings, node_name
from kvorum_node.services.dispatch import Dispatcher
from kvorum_node.snapshots import Chunk, Header
from kvorum_node.storage.data_directory import Identity, Storage
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.recovery import reconcile
from kvorumpb.v1.kv_pb2 import Call, Reply
from tests.sim.disk import Disk, DiskEngine
from tests.sim.loop import NodeLoop
from tests.sim.scheduler import MILLISECOND, SECOND, Scheduler

GROUP = GroupId(1)
EPOCH_MS = 1_700_000_000_000
SLOWEST_TICKS = 40
"""How long a sync takes at most."""
FULL_SLICE = 30
"""Iterations of the loop after which even a busy process lets others run."""


class Surroundings(Protocol):
    """What a host needs of the simulation."""

    scheduler: Scheduler
    settings: Settings
    tick_us: int
    log_max_bytes: int
    log_max_entries: int
    sync_us: int
    busy_us: int
    """How long a process that was interrupted may wait for the processor."""
    interruption: float
    """How likely that is."""
    founders: Configuration
    """Whom the group begins with."""

    def sends(self, host: "Host", message: Message) -> None: ...
    async def carry(
        self, sender: "Process", peer: NodeId, header: Header, chunks: AsyncIterator[Chunk]
    ) -> Index: ...
    def refuses(self, host: "Host", removed: NodeId) -> None: ...
    def ran(self, host: "Host") -> None: ...
    def started(self, host: "Host") -> None: ...
    def ended(self, host: "Host", error: BaseException | None) -> None: ...
    def died(self, process: "Process") -> None: ...
    def failed(self, what: str) -> None: ...
    def note(self, *what: object) -> None: ...


class Clock:
    """Two clocks: a monotonic one that may run fast or slow, and a wall clock that is anywhere."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.rate = 1.0
        self.wall_offset_ms = 0
        self._scheduler = scheduler
        self._since_us = 0
        self._seconds = 0.0

    def seconds(self) -> float:
        return self._seconds + (self._scheduler.now_us - self._since_us) * self.rate / SECOND

    def wall_ms(self) -> int:
        return EPOCH_MS + self._scheduler.now_us // MILLISECOND + self.wall_offset_ms

    def change(self, *, rate: float | None = None, forward_seconds: float = 0.0) -> None:
        self._seconds = self.seconds() + forward_seconds
        self._since_us = self._scheduler.now_us
        self.rate = self.rate if rate is None else rate

    def us_until(self, seconds: float) -> int:
        return int((seconds - self.seconds()) / self.rate * SECOND) + 1


class Host:
    def __init__(self, node: NodeId, around: Surroundings, random: Random) -> None:
        self.node = node
        self.around = around
        self.random = random
        self.log_disk = Disk()
        self.state_disk = Disk()
        self.clock = Clock(around.scheduler)
        self.process: Process | None = None
        self.paused = False
        self.is_founder = node in around.founders.members
        self.slowness = 1.0
        """How many times as long as usual a sync takes."""
        self.lives = 0

    def __str__(self) -> str:
        return node_name(self.node)

    @property
    def is_up(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        """Boot the process, on what the disks hold."""
        self.lives += 1
        self.around.note("start", self)
        try:
            self.process = Process(self)
        except StorageError as error:
            self.around.failed(f"{self} cannot start: {error}")
            return
        self.around.started(self)
        self.process.poke()

    def crash(self) -> None:
        """Lose the process, and what the disks had not synced."""
        process, self.process = self.process, None
        lost = self.log_disk.crash(self.random), self.state_disk.crash(self.random)
        self.around.note("crash", self, *lost)
        self.paused = False
        if process is not None:
            process.die()

    def pause(self) -> None:
        self.around.note("pause", self)
        self.paused = True

    def resume(self) -> None:
        if self.paused:
            self.around.note("resume", self)
            self.paused = False
            if self.process is not None:
                self.process.wake()

    def heal(self) -> None:
        """Let nothing be wrong with the machine any more; a process that is down stays down."""
        self.slowness = 1.0
        for disk in (self.log_disk, self.state_disk):
            disk.fail_sync = disk.fail_write = False
        self.set_clock(rate=1.0)
        self.resume()

    def set_clock(self, *, rate: float | None = None, forward_seconds: float = 0.0) -> None:
        self.clock.change(rate=rate, forward_seconds=forward_seconds)
        if self.process is not None:
            self.process.wake()

    # What comes over the network.

    def hears(self, message: Message) -> None:
        process = self.process
        if process is None:
            return
        self.around.note("hears", message)
        if process.group.raft.committed_configuration.has_removed(message.sender):
            self.around.refuses(self, message.sender)
        else:
            process.call(process.driver.receive, GROUP, message)

    def asked(self, calls: list[Call], emit: Callable[[Iterable[Reply]], None]) -> None:
        process = self.process
        if process is not None:
            process.call(process.dispatcher.dispatch, calls, partial(process.answer, emit))

    def lost_contact(self, other: NodeId) -> None:
        if self.process is not None:
            self.process.call(self.process.driver.unreachable, other)

    def told_of_removal(self) -> None:
        """A peer says that this node is no member any more."""
        if self.process is not None:
            self.process.call(self.process.driver.fail, removed_from_cluster(self.node))


class Process:
    """Raises StorageError if the disks hold what a node cannot start on."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.dead = False
        self.loop = NodeLoop(self)
        self._planned = False
        self._threads: dict[int, int] = {}  # until when each executor is busy, by its id
        around = host.around
        self.storage = Storage(
            Identity("simulated", host.node),
            host.log_disk.open(),
            host.state_disk.open(),
            ExitStack(),
        )
        self.driver = Driver(
            self.storage,
            send=self._send,
            stream=partial(around.carry, self),
            tick_seconds=around.tick_us / SECOND,
            log_max_bytes=around.log_max_bytes,
            log_max_entries=around.log_max_entries,
        )
        self.group = self._open_group()
        self.driver.groups[GROUP] = self.group
        self.dispatcher = Dispatcher(self.group)
        if self.group.raft.configuration.all_voters == {host.node}:
            self.group.raft.campaign()
        self._running = self.loop.create_task(self.driver.run(), name=f"{host} driver")
        self._running.add_done_callback(self._driver_ended)

    def _open_group(self) -> Group:
        host, around = self.host, self.host.around
        log = RaftLogStore(self.storage.log, GROUP)
        if log.is_new() and host.is_founder:
            batch = Batch()
            log.bootstrap(batch, around.founders)
            self.storage.log.write(batch)
            self.storage.log.sync()
        machine = Machine(self.storage.state, GROUP)
        reconcile(log, machine)
        raft = Raft(
            host.node,
            log,
            hard_state=log.hard_state(),
            applied=machine.applied,
            randint=host.random.randint,
            settings=around.settings,
        )
        clock = LogClock(
            wall_ms=host.clock.wall_ms,
            steady_ns=lambda: int(host.clock.seconds() * 1e9),
            stored=machine.clock,
            applied_ms=machine.log_time_ms,
        )
        return Group(GROUP, raft, machine, log, clock=clock, wake=self.driver.wake)

    # The processor.

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Have the process call something that comes from outside."""
        if not self.dead:
            self.loop.call_soon(function, *arguments)
            self.poke()

    def poke(self) -> None:
        """Something has arrived: run now, or a little later, so that more may arrive."""
        host = self.host
        if self._planned or host.paused or self.dead:
            return
        if host.random.random() < 0.8:
            self._run()
        else:
            self._plan()

    def wake(self) -> None:
        """Look at the clock, too."""
        if not self.host.paused and not self.dead:
            self.loop.wake_timers()
            self.poke()

    def _plan(self) -> None:
        self._planned = True
        around = self.host.around
        around.scheduler.after(self.host.random.randint(1, around.busy_us), self._planned_run)

    def _planned_run(self) -> None:
        self._planned = False
        if not self.host.paused and not self.dead:
            self._run()

    def _run(self) -> None:
        random = self.host.random
        interrupted = random.random() < self.host.around.interruption
        self.loop.run(iterations=random.randint(1, 4) if interrupted else FULL_SLICE)
        self.host.around.ran(self.host)
        if self.loop.has_work and not self.dead:
            self._plan()

    # Its end.

    def die(self) -> None:
        self.dead = True
        self.host.around.died(self)
        self.loop.end()
        self.driver.close()

    def stop(self) -> None:
        """End as after SIGTERM."""

        async def stop() -> None:
            await self.dispatcher.close()
            self.driver.stop()
            await asyncio.gather(self._running, return_exceptions=True)
            await self.driver.flush_state()

        def stopped(task: "asyncio.Task[None]") -> None:
            if not self.dead:
                error = None if task.cancelled() else task.exception()
                self.host.around.ended(self.host, error)

        self.loop.create_task(stop()).add_done_callback(stopped)
        self.poke()

    def _driver_ended(self, task: "asyncio.Task[None]") -> None:
        if not self.dead and not task.cancelled() and task.exception() is not None:
            self.host.around.ended(self.host, task.exception())

    # What the process does to the world.

    def _send(self, group: GroupId, messages: Iterable[Message]) -> None:
        del group
        if not self.dead:
            for message in messages:
                self.host.around.sends(self.host, message)

    def answer(self, emit: Callable[[Iterable[Reply]], None], replies: Iterable[Reply]) -> None:
        if not self.dead:
            emit(replies)

    # What the loop asks for.

    def time(self) -> float:
        return self.host.clock.seconds()

    def timer_set(self, when: float) -> None:
        self.host.around.scheduler.after(self.host.clock.us_until(when), self.wake)

    def in_thread(
        self, executor: object, work: Callable[[], Any], future: "asyncio.Future[Any]"
    ) -> None:
        """Sync in simulated time: an executor has one thread, which does one thing at a time."""
        scheduler = self.host.around.scheduler
        finish = _begun(work)
        around = self.host.around
        mean_us = around.sync_us * self.host.slowness
        took_us = min(
            int(self.host.random.expovariate(1.0) * mean_us), SLOWEST_TICKS * around.tick_us
        )
        began_us = max(scheduler.now_us, self._threads.get(id(executor), 0))
        done_us = began_us + 20 + took_us
        self._threads[id(executor)] = done_us
        scheduler.after(done_us - scheduler.now_us, self._thread_done, finish, future)

    def _thread_done(self, finish: Callable[[], Any], future: "asyncio.Future[Any]") -> None:
        if self.dead:
            return
        self.host.around.note("synced", self.host)
        try:
            result = finish()
        except StorageError as error:
            self.loop.call_soon(_fail, future, error)
        else:
            self.loop.call_soon(_settle, future, result)
        self.poke()

    def unhandled(self, message: str, error: BaseException | None) -> None:
        if not self.dead:
            self.host.around.failed(f"{self.host}: {message}: {error!r}")


def _begun(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin a sync now, so that what is written meanwhile is not covered by it."""
    engine = getattr(work, "__self__", None)
    if isinstance(engine, DiskEngine) and getattr(work, "__name__", "") == "sync":
        mark = engine.disk.begin_sync()
        return partial(engine.finish_sync, mark)
    return work


def _settle(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
