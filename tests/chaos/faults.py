"""The faults: each a context that harms the cluster on entering, and repairs it on leaving.

    async with kill_leader(arena, chance) as what: ...     what: "n2", for the report

Rules of this file: everything that is drawn comes from `chance`; what the repair must know is
kept in local variables. A fault that cannot be on this machine says why in FAULTS, and the
report says so too: nothing is left out in silence.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from kvorum.admin import ClusterAdmin
from kvorum.cli.processes import ProcessState
from kvorumpb.v1 import cluster_pb2
from tests.chaos.disks import Disks
from tests.chaos.network import BLOCKED, Network, Quality, between
from tests.chaos.nodes import Nodes, until

LOSS: Final = 0.2
DELAY_MS: Final = 80
SLOW_WRITES_PER_SECOND: Final = 8
CLOCK_OFFSETS_SECONDS: Final = (-86_400, -3_600, -30, -2, 2, 30, 3_600, 86_400)
FAKE_TIME: Final = "libfaketime.so.1"


@dataclass(frozen=True, slots=True)
class Arena:
    """What there is to harm."""

    nodes: Nodes
    network: Network
    disks: Disks


Strike = Callable[[Arena, Random], AbstractAsyncContextManager[str]]


@dataclass(frozen=True, slots=True)
class Fault:
    strike: Strike
    seconds: tuple[float, float]
    """How long it lasts, at least and at most."""
    lacks: Callable[[Arena], str] = lambda _: ""
    """Why it cannot be here; "" if it can."""


# Processes.


@asynccontextmanager
async def kill_leader(arena: Arena, _: Random) -> AsyncIterator[str]:
    """SIGKILL, and a start afterwards."""
    async with _killed(arena, await arena.nodes.leader()) as what:
        yield what


@asynccontextmanager
async def kill_follower(arena: Arena, chance: Random) -> AsyncIterator[str]:
    async with _killed(arena, chance.choice(await arena.nodes.followers())) as what:
        yield what


@asynccontextmanager
async def kill_all(arena: Arena, _: Random) -> AsyncIterator[str]:
    """All at once: what was acknowledged is on the disks alone."""
    async with _killed(arena, *arena.nodes.members) as what:
        yield what


@asynccontextmanager
async def _killed(arena: Arena, *names: str) -> AsyncIterator[str]:
    for name in names:
        arena.nodes.kill(name)
    yield ", ".join(names)
    for name in names:
        arena.nodes.start(name)


@asynccontextmanager
async def pause_leader(arena: Arena, _: Random) -> AsyncIterator[str]:
    """SIGSTOP: it wakes up in its past."""
    async with _paused(arena, await arena.nodes.leader()) as what:
        yield what


@asynccontextmanager
async def pause_majority(arena: Arena, chance: Random) -> AsyncIterator[str]:
    members = arena.nodes.members
    async with _paused(arena, *chance.sample(members, len(members) // 2 + 1)) as what:
        yield what


@asynccontextmanager
async def _paused(arena: Arena, *names: str) -> AsyncIterator[str]:
    for name in names:
        arena.nodes.pause(name)
    yield ", ".join(names)
    for name in names:
        arena.nodes.resume(name)


@asynccontextmanager
async def rolling_restart(arena: Arena, _: Random) -> AsyncIterator[str]:
    """SIGTERM and a start, one node after the other, as in an upgrade."""
    names = tuple(arena.nodes.members)
    for name in names:
        await arena.nodes.restart(name)
    yield ", ".join(names)


# The network.


@asynccontextmanager
async def isolate_leader(arena: Arena, _: Random) -> AsyncIterator[str]:
    """The leader alone on one side; clients reach both."""
    leader = await arena.nodes.leader()
    others = tuple(name for name in arena.nodes.members if name != leader)
    await arena.network.set(between((leader,), others))
    yield f"{leader} | {', '.join(others)}"
    await arena.network.set({})


@asynccontextmanager
async def partition(arena: Arena, chance: Random) -> AsyncIterator[str]:
    """A minority and a majority, drawn by chance."""
    members = list(arena.nodes.members)
    chance.shuffle(members)
    cut = (len(members) - 1) // 2
    minority, majority = tuple(members[:cut]), tuple(members[cut:])
    await arena.network.set(between(minority, majority))
    yield f"{', '.join(minority)} | {', '.join(majority)}"
    await arena.network.set({})


@asynccontextmanager
async def bridge(arena: Arena, chance: Random) -> AsyncIterator[str]:
    """Two sides that share one node: both may find a majority with it."""
    members = list(arena.nodes.members)
    chance.shuffle(members)
    middle, *others = members
    left, right = tuple(others[::2]), tuple(others[1::2])
    await arena.network.set(between(left, right))
    yield f"{', '.join(left)} | {middle} | {', '.join(right)}"
    await arena.network.set({})


@asynccontextmanager
async def one_way(arena: Arena, chance: Random) -> AsyncIterator[str]:
    """One direction only: the leader is heard and does not hear, or the other way round."""
    leader = await arena.nodes.leader()
    others = [name for name in arena.nodes.members if name != leader]
    deaf = chance.random() < 0.5
    pairs = [(other, leader) if deaf else (leader, other) for other in others]
    await arena.network.set(dict.fromkeys(pairs, BLOCKED))
    yield f"{leader} {'hears nobody' if deaf else 'is heard by nobody'}"
    await arena.network.set({})


@asynccontextmanager
async def loss(arena: Arena, _: Random) -> AsyncIterator[str]:
    async with _everywhere(arena, Quality(loss=LOSS)):
        yield f"{LOSS:.0%} of the packets between nodes"


@asynccontextmanager
async def delay(arena: Arena, _: Random) -> AsyncIterator[str]:
    async with _everywhere(arena, Quality(delay_ms=DELAY_MS)):
        yield f"{DELAY_MS} ms between nodes"


@asynccontextmanager
async def _everywhere(arena: Arena, quality: Quality) -> AsyncIterator[None]:
    members = arena.nodes.members
    pairs = [(one, other) for one in members for other in members if one != other]
    await arena.network.set(dict.fromkeys(pairs, quality))
    yield
    await arena.network.set({})


# Disks and clocks.


@asynccontextmanager
async def full_disk(arena: Arena, _: Random) -> AsyncIterator[str]:
    """The leader's. It stops by itself when it notices; else it is killed before the repair."""
    name = await arena.nodes.leader()
    arena.nodes.nodes[name].may_be_down = True
    arena.disks.fill(name)
    yield name
    if arena.nodes.nodes[name].state is not ProcessState.DEAD:
        arena.nodes.kill(name)
    arena.disks.free(name)
    arena.nodes.start(name)


@asynccontextmanager
async def slow_disk(arena: Arena, chance: Random) -> AsyncIterator[str]:
    """The leader's or a follower's: so few writes per second that each fsync waits."""
    leader = await arena.nodes.leader()
    name = leader if chance.random() < 0.5 else chance.choice(await arena.nodes.followers())
    pid = arena.nodes.pid_of(name)
    assert pid is not None
    arena.disks.slow_down(name, pid, writes_per_second=SLOW_WRITES_PER_SECOND)
    role = "leader" if name == leader else "follower"
    yield f"{name} ({role}): {SLOW_WRITES_PER_SECOND} writes/s"
    arena.disks.speed_up(name)


@asynccontextmanager
async def clocks(arena: Arena, chance: Random) -> AsyncIterator[str]:
    """Every node lives at another time (of day: what a node measures with goes on)."""
    for name in arena.nodes.members:
        offset = chance.choice(CLOCK_OFFSETS_SECONDS)
        arena.nodes.nodes[name].clock_offset_seconds = offset
        await arena.nodes.restart(name)
    offsets = {name: arena.nodes.nodes[name].clock_offset_seconds for name in arena.nodes.members}
    yield ", ".join(f"{name} {offset:+} s" for name, offset in offsets.items())
    for name in arena.nodes.members:
        arena.nodes.nodes[name].clock_offset_seconds = 0
        await arena.nodes.restart(name)


def find_fake_time() -> Path | None:
    """The library that makes a process believe in another time of day."""
    found = sorted(Path("/usr/lib").glob(f"*/faketime/{FAKE_TIME}"))
    return found[0] if found else None


# Members.


@asynccontextmanager
async def replace_member(arena: Arena, chance: Random) -> AsyncIterator[str]:
    """A node is lost with its disk: a new one is added in its place, and it is removed.

    Never the first one, so that clients always know a member from the beginning.
    """
    nodes = arena.nodes
    lost = chance.choice([name for name in nodes.members if name != nodes.first_members[0]])
    new = next(name for name in nodes.places if nodes.nodes[name].process is None)
    nodes.kill(lost)
    nodes.members.remove(lost)  # it must not come back: it has forgotten its votes
    nodes.disks.wipe(lost)
    yield f"{lost} by {new}"
    async with ClusterAdmin([nodes.places[name].listen for name in nodes.members]) as admin:
        await admin.add_member(nodes.places[new].address, name=new)
        nodes.nodes[new].joins = True
        nodes.start(new)
        nodes.members.append(new)

        async def is_voter() -> bool:
            view = await nodes.status(await nodes.leader())
            return view is not None and any(
                member.name == new and member.kind == cluster_pb2.Member.VOTER
                for member in view.members
            )

        await until(f"{new} becomes a voter", is_voter)
        await admin.remove_member(lost)


def _lacks_spare_node(arena: Arena) -> str:
    spare = any(node.process is None for node in arena.nodes.nodes.values())
    return "" if spare else "every spare node was used"


FAULTS: Final = {
    "kill-leader": Fault(kill_leader, (0.5, 5)),
    "kill-follower": Fault(kill_follower, (0.5, 5)),
    "kill-all": Fault(kill_all, (0.1, 2)),
    "pause-leader": Fault(pause_leader, (0.5, 6)),
    "pause-majority": Fault(pause_majority, (0.5, 4)),
    "restart": Fault(rolling_restart, (0, 0.5)),
    "isolate-leader": Fault(isolate_leader, (1, 7)),
    "partition": Fault(partition, (1, 7)),
    "bridge": Fault(bridge, (1, 7)),
    "one-way": Fault(one_way, (1, 7)),
    "loss": Fault(loss, (3, 7)),
    "delay": Fault(delay, (3, 7), lambda arena: arena.network.lacks_delay),
    "full-disk": Fault(full_disk, (2, 5), lambda arena: arena.disks.lacks_full),
    "slow-disk": Fault(slow_disk, (2, 6), lambda arena: arena.disks.lacks_slow),
    "clocks": Fault(
        clocks,
        (1, 4),
        lambda arena: "" if arena.nodes.fake_time_library else f"there is no {FAKE_TIME}",
    ),
    "replace": Fault(replace_member, (0.1, 2), _lacks_spare_node),
}
