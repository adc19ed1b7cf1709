"""A simulated machine, and the process of a node on it.

    Clock    what the machine believes the time to be
    Host     the machine: disks, clock, processor. It has a process, or is down
    Process  one life of a node: the real driver, group, core, state machine, dispatcher,
             housekeeper and hub of watches, put together as in kvorum_node/node.py, on a
             NodeLoop and on the host's disks
    Letter   a message to a peer, and what comes with it

Rules: whatever reaches a process comes through `poke`, which decides from the seed when
the process gets the processor; a crash takes the disks away before it cancels the tasks,
so that nothing that a dying task does is seen by anybody.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Protocol

from kvorum.errors import StorageError
from kvorum_node.driver import Driver
from kvorum_node.figures import timed
from kvorum_node.group import Group
from kvorum_node.housekeeping import Housekeeper
from kvorum_node.log_clock import LogClock
from kvorum_node.machine import Machine
from kvorum_node.members import removed_from_cluster
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.core import Raft
from kvorum_node.raft.messages import Heartbeat, HeartbeatReply, Message
from kvorum_node.raft.types import GroupId, HardState, Index, NodeId, Settings, node_name
from kvorum_node.services.dispatch import Answer, Dispatcher
from kvorum_node.snapshots import Chunk, Header
from kvorum_node.storage.data_directory import Identity, Storage
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.recovery import reconcile
from kvorum_node.watches import WatchHub
from kvorum_node.watches.cache import Cache
from kvorumpb.v1.command_pb2 import Record
from kvorumpb.v1.kv_pb2 import Call, Consistency, Reply
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
    history_seconds: float
    """How long revisions can be read, ..."""
    compaction_ticks: int
    """... and how often to look whether some can be forgotten."""

    watch_cache_bytes: int

    def sends(self, host: "Host", letter: "Letter") -> None: ...
    def told(self, lag_us: int) -> None: ...
    def unsteady(self) -> None: ...
    def shows(self, host: "Host", record: Record, asked_ms: int) -> None: ...
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


@dataclass(frozen=True, slots=True)
class Letter:
    message: Message
    log_time_ms: int
    """What log time is by the clock of the sender, if it says so."""
    sent_us: int


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
        self._wall_was_set = False

    def __str__(self) -> str:
        return node_name(self.node)

    @property
    def is_up(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        """Boot the process, on what the disks hold."""
        self.lives += 1
        self.around.note("start", self)
        if self._wall_was_set:  # so it does not tell how long the node was down
            self.around.unsteady()
        try:
            self.process = Process(self)
        except StorageError as error:
            self.around.failed(f"{self} cannot start: {error}")
            return
        if self.lives > 1 and self.process.group.machine.clock is None:
            self.around.unsteady()  # as little as if its wall clock were wrong
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
        if forward_seconds or rate not in (None, self.clock.rate):
            self.around.unsteady()
        self.clock.change(rate=rate, forward_seconds=forward_seconds)
        if self.process is not None:
            self.process.wake()

    def set_wall_clock(self, offset_ms: int) -> None:
        self.clock.wall_offset_ms = offset_ms
        self._wall_was_set = True

    # What comes over the network.

    def hears(self, letter: Letter) -> None:
        process, sender = self.process, letter.message.sender
        if process is None:
            return
        self.around.note("hears", letter.message)
        if process.group.raft.committed_configuration.has_removed(sender):
            self.around.refuses(self, sender)
        else:
            process.call(process.take, letter)

    def asked(self, calls: list[Call], emit: Callable[[Iterable[Reply]], None]) -> None:
        process = self.process
        if process is not None:
            process.call(process.dispatch, calls, emit)

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
        self._wakes_us: int | None = None
        """When it is woken next by its clock."""
        self._threads: dict[int, int] = {}  # until when each executor is busy, by its id
        self.knows_log_has_failed = False
        """Not so before a failed sync was told to its loop, which may be at something else."""
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
        self._housekeeper = Housekeeper(
            self.group, history_seconds=around.history_seconds, flush=self.driver.flush_state
        )
        # A run does not last long enough for the intervals of every day.
        compaction_seconds = around.compaction_ticks * around.tick_us / SECOND
        self._housekeeper._compaction_seconds = compaction_seconds
        self.watches = WatchHub(
            self.group.machine, vouches=self._hears_leader, fail=self.driver.fail
        )
        self.watches._cache = Cache(around.watch_cache_bytes)
        if self.group.raft.configuration.all_voters == {host.node}:
            self.group.raft.campaign()
        self._running = self.loop.create_task(self.driver.run(), name=f"{host} driver")
        self._running.add_done_callback(self._driver_ended)
        self._housekeeping = self._begin(self._housekeeper.run(), "housekeeping")

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
            restarted=log.hard_state() != HardState(),
        )
        clock = LogClock(
            wall_ms=host.clock.wall_ms,
            steady_ns=lambda: int(host.clock.seconds() * 1e9),
            stored=machine.clock,
            applied_ms=machine.log_time_ms,
        )
        return Group(
            GROUP,
            raft,
            machine,
            log,
            clock=clock,
            wake=self.driver.wake,
            tick_seconds=around.tick_us / SECOND,
        )

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """As Node._begin: if it fails, so does the node."""

        def ended(task: "asyncio.Task[None]") -> None:
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Exception):
                self.driver.fail(error)

        task = self.loop.create_task(work, name=f"{self.host} {name}")
        task.add_done_callback(ended)
        return task

    def _hears_leader(self) -> bool:
        """As Node.hears_leader."""
        raft, around = self.group.raft, self.host.around
        if raft.configuration.all_voters == {self.host.node}:
            return raft.leader == self.host.node
        silence = self.time() - self.group.ticked_at
        is_counting = silence < around.settings.election_ticks * around.tick_us / SECOND
        return is_counting and raft.leader is not None

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
            self.watches.close(f"{self.host} is shutting down")
            self._housekeeping.cancel()
            await asyncio.gather(self._housekeeping, return_exceptions=True)
            self.driver.stop()
            await asyncio.gather(self._running, return_exceptions=True)
            self._housekeeper.store_clock()
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
        if self.dead:
            return
        host = self.host
        for message in messages:
            beats = isinstance(message, Heartbeat | HeartbeatReply) and self.group.leads
            letter = Letter(
                message, self.group.now_ms() if beats else 0, host.around.scheduler.now_us
            )
            host.around.sends(host, letter)

    def take(self, letter: Letter) -> None:
        """As RaftService._take, and Node.heed."""
        sender, group = letter.message.sender, self.group
        if letter.log_time_ms:
            if sender == group.raft.leader:
                self.host.around.told(self.host.around.scheduler.now_us - letter.sent_us)
            group.follow_clock(sender, letter.log_time_ms)
        self.driver.receive(GROUP, letter.message)

    def dispatch(self, calls: list[Call], emit: Callable[[Iterable[Reply]], None]) -> None:
        reading = self.group.clock.reading() if self.group.leads else None
        current = {call.id for call in calls if _is_of_now(call)}
        asked_ms = 0 if reading is None else reading.log_time_ms

        def answer(answers: Iterable[Answer]) -> None:
            made = [one if isinstance(one, Reply) else one() for one in answers]
            replies = [one for one in made if one is not None]
            for reply in replies if asked_ms else ():
                if reply.id in current:
                    for record in (*reply.list.records, reply.get.record):
                        self.host.around.shows(self.host, record, asked_ms)
            if not self.dead:
                emit(replies)

        self.dispatcher.dispatch(calls, answer)

    # What the loop asks for.

    def time(self) -> float:
        return self.host.clock.seconds()

    def timer_set(self, when: float) -> None:
        scheduler = self.host.around.scheduler
        delay_us = max(0, self.host.clock.us_until(when))
        at_us = scheduler.now_us + delay_us
        if self._wakes_us is None or at_us < self._wakes_us:
            self._wakes_us = at_us
            scheduler.after(delay_us, self._woken, at_us)

    def _woken(self, at_us: int) -> None:
        if at_us == self._wakes_us:  # or else an earlier time was asked for since
            self._wakes_us = None
            self.wake()

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
        scheduler.after(done_us - scheduler.now_us, self._thread_done, executor, finish, future)

    def _thread_done(
        self, executor: object, finish: Callable[[], Any], future: "asyncio.Future[Any]"
    ) -> None:
        if self.dead:
            return
        self.host.around.note("synced", self.host)
        try:
            result = finish()
        except StorageError as error:
            self.loop.call_soon(self._fail, executor, future, error)
        else:
            self.loop.call_soon(_settle, future, result)
        self.poke()

    def _fail(self, executor: object, future: "asyncio.Future[Any]", error: Exception) -> None:
        if executor is self.driver._log_disk:
            self.knows_log_has_failed = True
        if not future.done():
            future.set_exception(error)

    def unhandled(self, message: str, error: BaseException | None) -> None:
        if not self.dead:
            self.host.around.failed(f"{self.host}: {message}: {error!r}")


def _is_of_now(call: Call) -> bool:
    """Whether it is a read that has to see all that has happened before."""
    match call.WhichOneof("request"):
        case "get":
            return call.get.consistency != Consistency.STALE and not call.get.revision
        case "list":
            is_past = call.list.revision or (call.list.snapshot and call.list.page_token)
            return call.list.consistency != Consistency.STALE and not is_past
        case _:
            return False


def _begun(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin a sync now, so that what is written meanwhile is not covered by it."""
    if isinstance(work, partial) and work.func is timed:
        return partial(timed, _begun(*work.args))
    engine = getattr(work, "__self__", None)
    if isinstance(engine, DiskEngine) and getattr(work, "__name__", "") == "sync":
        mark = engine.disk.begin_sync()
        return partial(engine.finish_sync, mark)
    return work


def _settle(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)
