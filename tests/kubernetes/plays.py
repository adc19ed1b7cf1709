"""What happens to a StatefulSet in its life, while clients go on writing and reading.

In each play the clients know the Service `kvorum` alone. Whatever happens, they see no failure
that the client does not hide by trying again, and in the end everything that was acknowledged
is there, once, on every member.
"""

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import kvorum
from kvorum import KV
from kvorum.admin import ClusterAdmin, Status
from kvorum.errors import KvorumError
from kvorum_node import founding
from kvorum_node.raft.types import NodeId
from kvorum_node.server import NOT_TO_BE_RESTARTED
from kvorumpb.v1 import cluster_pb2
from tests.kubernetes import volume_shell
from tests.kubernetes.controller import StatefulSet
from tests.kubernetes.kubelet import Pod
from tests.support.manifests import Object, find, render
from tests.support.workload import Workload, assert_kept

TARGET: Final = "kvorum://kvorum.default.svc:7100"
CALL_SECONDS: Final = 60.0
"""How long a client tries: a whole cluster may start meanwhile, beside much else."""

SETTINGS: Final = {
    "KVORUM_TICK_MS": "50",
    "KVORUM_ELECTION_TIMEOUT_MS": "600",
    "KVORUM_LOG_FORMAT": "text",
}
COUNTERS: Final = 4


class Clients:
    """Writers of keys that are never used twice, counters, and a reader that looks at both."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self.work = Workload(kv, writers=8)
        self.added: dict[str, int] = {}
        self._reads = 0
        self._failures: list[KvorumError] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> None:
        await self.work.__aenter__()
        self._tasks = [asyncio.create_task(self._count(f"count:{n}")) for n in range(COUNTERS)]
        self._tasks.append(asyncio.create_task(self._read()))

    async def progress(self) -> None:
        """Until all of them have come on."""
        reads, added = self._reads, sum(self.added.values())
        await self.work.progress()
        async with asyncio.timeout(CALL_SECONDS):
            while self._reads == reads or sum(self.added.values()) == added:  # noqa: ASYNC110 - of many
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stop all, and let what is under way be answered."""
        self.work.stop()
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self.work.__aexit__(None, None, None)

    async def judge(self, addresses: list[str]) -> None:
        """Fail if a client saw a failure, or if anything is not as it was told."""
        await self.stop()
        assert self._failures == []
        assert self.work.kinds_of_failure == {}
        await assert_kept(addresses, self.work)
        for key, added in self.added.items():
            entry = await self._kv.get(key)
            assert entry is not None
            assert entry.value == added, f"{key} is {entry.value}, not {added}"

    async def _count(self, key: str) -> None:
        """Add one, again and again: each of them counts once, so the sums rise by one."""
        self.added[key] = 0
        while not self._stopping:
            try:
                value = await self._kv.add(key)
            except KvorumError as error:
                self._failures.append(error)
                return
            assert value == self.added[key] + 1, f"{key} is {value} after {self.added[key]}"
            self.added[key] = value

    async def _read(self) -> None:
        """What was acknowledged before a read is seen by it."""
        while not self._stopping:
            for key in tuple(self.added):
                before = self.added[key]
                try:
                    entry = await self._kv.get(key)
                except KvorumError as error:
                    self._failures.append(error)
                    return
                assert (entry.value if entry else 0) >= before
            self._reads += 1


class Play:
    """The set, and its clients once there are any."""

    def __init__(self, directory: Path) -> None:
        self.objects = render("prod")
        for name, value in SETTINGS.items():
            self.objects = with_setting(self.objects, name, value)
        self.set = StatefulSet(self.objects, directory)

    async def begin(self, replicas: int = 3) -> None:
        """The first start, as the documentation has it."""
        await self.set.until(lambda: len(self.set.pods) == replicas)
        await self.until_waiting()
        await initialize(self.set)
        await self.set.until_ready(range(replicas))

    async def until_ended(self, pod: Pod, times: int) -> None:
        """Until its container has ended so often."""
        await self.set.until(lambda: len(pod.exits) >= times)

    async def until_waiting(self) -> None:
        await self.set.until(
            lambda: all("waits to take part" in pod.log for pod in self.set.pods.values())
        )

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[Clients]:
        """They go on until the end, and are judged there."""
        async with kvorum.open(TARGET, timeout=CALL_SECONDS) as kv:
            clients = Clients(kv)
            await clients.start()
            try:
                yield clients
            except BaseException:
                await clients.stop()
                raise
            await self.set.until_updated()
            await clients.judge([address_of(ordinal) for ordinal in self.set.ready()])

    async def view(self) -> Status:
        """What the leader says."""
        addresses = [address_of(ordinal) for ordinal in self.set.ready()]
        async with ClusterAdmin(addresses) as admin:
            await admin.find_leader(timeout=CALL_SECONDS)
            view = (await admin.survey()).led_view
        return view if view is not None else await self.view()

    async def voters(self) -> dict[str, str]:
        """Names by the address; nobody is a member who is no voter, and no change is under way."""
        while True:
            view = await self.view()
            kinds = {one.kind for one in view.members}
            if kinds == {cluster_pb2.Member.VOTER} and not view.members_changing:
                return {one.address: one.name for one in view.members}
            await asyncio.sleep(0.05)


async def first_start(play: Play) -> None:
    """Three empty volumes wait, for however long. `kvorum init` in one of them begins."""
    await play.set.until(lambda: len(play.set.pods) == 3)
    await play.until_waiting()
    assert play.set.ready() == []
    assert all(pod.exits == [] for pod in play.set.pods.values())
    await initialize(play.set)
    await play.set.until_ready(range(3))
    async with play.clients() as clients:
        await clients.progress()
        assert sorted(await play.voters()) == [address_of(ordinal) for ordinal in range(3)]
        assert (await play.voters())[address_of(0)] == "n1"


async def rolling_update(play: Play) -> None:
    """One pod at a time, from the last to the first, each with a new address."""
    await play.begin()
    async with play.clients() as clients:
        before, ips = await play.voters(), {pod.place.ip for pod in play.set.pods.values()}
        play.set.apply(with_setting(play.objects, "KVORUM_HISTORY_SECONDS", "7200"))
        await play.set.until_updated()
        await clients.progress()
        assert await play.voters() == before
        assert ips.isdisjoint(pod.place.ip for pod in play.set.pods.values())


async def scaling(play: Play) -> None:
    """To five, back to three, and to five again: removed before they are scaled away."""
    await play.begin()
    async with play.clients() as clients:
        play.set.scale(5)
        await play.set.until_ready(range(5))
        assert len(await play.voters()) == 5
        await clients.progress()
        for ordinal in (4, 3):
            name = (await play.voters())[address_of(ordinal)]
            async with ClusterAdmin([address_of(0)]) as admin:
                await admin.remove_member(name, timeout=CALL_SECONDS)
            # Meanwhile its container is started again, and must not come back by itself.
            pod = play.set.pods[ordinal]
            await play.until_ended(pod, 2)
            assert set(pod.exits) == {NOT_TO_BE_RESTARTED}
            assert f"{name} was removed from the cluster" in pod.log
            assert address_of(ordinal) not in await play.voters()
            play.set.scale(ordinal)
            await play.set.until_ready(range(ordinal))
        await clients.progress()
        # The claims stay. With the old ones they would not come back; so they are deleted.
        for ordinal in (3, 4):
            play.set.delete_claim(ordinal)
        play.set.scale(5)
        await play.set.until_ready(range(5))
        assert sorted((await play.voters()).values()) == ["n1", "n2", "n3", "n6", "n7"]


async def deleted_pod(play: Play) -> None:
    """With grace, and without: a machine that is gone. They come back under another address."""
    await play.begin()
    async with play.clients() as clients:
        before = await play.voters()
        for ordinal, grace in ((0, True), (1, False), (2, False)):
            await play.set.delete(ordinal, grace=grace)
            await play.set.until_ready(range(3))
            await clients.progress()
        assert await play.voters() == before


async def lost_machine(play: Play) -> None:
    """Nobody hears the end of a connection. The pod comes back elsewhere, under another address."""
    await play.begin()
    async with play.clients() as clients:
        before = await play.voters()
        for ordinal in range(3):
            await play.set.lose_machine(ordinal)
            await play.set.until_ready(range(3))
            await clients.progress()
        assert await play.voters() == before


async def killed_container(play: Play) -> None:
    """Under the same address, again and again."""
    await play.begin()
    async with play.clients() as clients:
        for ordinal in range(3):
            pod = play.set.pods[ordinal]
            pod.kill()
            await play.until_ended(pod, 1)
            await play.set.until_ready(range(3))
            await clients.progress()


async def lost_volume(play: Play) -> None:
    """It comes back under a name of its own, the old one is removed, and three vote again."""
    await play.begin()
    async with play.clients() as clients:
        before = await play.voters()
        for ordinal in (0, 2):
            await play.set.lose_volume(ordinal)
            await play.set.until_ready(range(3))
            await clients.progress()
        after = await play.voters()
        assert sorted(after) == sorted(before)
        for ordinal in (0, 2):
            assert after[address_of(ordinal)] not in before.values()
            assert f"{before[address_of(ordinal)]} was the member at" in play.set.pods[ordinal].log
        assert after[address_of(1)] == before[address_of(1)]


async def lost_quorum(play: Play) -> None:
    """Two volumes of three are lost: what is left begins a new cluster, and the others join it."""
    await play.begin()
    addresses = [address_of(ordinal) for ordinal in range(3)]
    async with kvorum.open(TARGET, timeout=CALL_SECONDS) as kv:
        async with Workload(kv) as work:
            await work.progress()
        await assert_kept(addresses, work)
        survivor = (await play.voters())[address_of(1)]
        await asyncio.gather(*(play.set.lose_volume(ordinal) for ordinal in (0, 2)))
        # Without a majority nobody takes their places, and whoever asks in a pod is told so.
        await play.set.until(lambda: play.set.ready() == [] and sorted(play.set.pods) == [0, 1, 2])
        assert survivor in await play.set.pods[1].execute("kvorum", "status")
        await recover(play, survivor)
        after = await play.voters()
        assert sorted(after) == addresses
        assert after[address_of(1)] == survivor
        await assert_kept(addresses, work)
        async with Workload(kv, first=len(work.acknowledged) + 1) as more:
            await more.progress()
        more.merge(work)
        await assert_kept(addresses, more)


async def recover(play: Play, survivor: str) -> None:
    """As the documentation has it, with what is on the volume of kvorum-1."""
    play.set.scale(0)
    await play.set.until(lambda: not play.set.pods)
    look, force = volume_shell.documented("kvorum recover")
    assert survivor in await play.set.execute_beside(1, look)
    said = await play.set.execute_beside(1, force, answer="y\n")
    assert f"{survivor} is the only member of the new cluster" in said
    for ordinal in (0, 2):
        play.set.delete_claim(ordinal)
    play.set.apply(play.objects)
    await play.set.until_ready(range(3))


async def another_volume(play: Play) -> None:
    """Of another cluster: its pod says so, and the others go on without it."""
    await play.begin()
    async with play.clients() as clients:
        await play.set.lose_volume(
            2,
            instead=lambda volume: founding.begin(
                volume / "node", node=NodeId(1), address=address_of(2)
            ),
        )
        await play.set.until(lambda: 2 in play.set.pods and len(play.set.pods[2].exits) >= 2)
        assert set(play.set.pods[2].exits) == {NOT_TO_BE_RESTARTED}
        assert "but the nodes at join are of another cluster" in play.set.pods[2].log
        await clients.progress()
        await play.set.lose_volume(2)
        await play.set.until_ready(range(3))


async def bad_update(play: Play) -> None:
    """The first pod that gets it is not ready, so no other gets it; taken back, all is well."""
    await play.begin()
    async with play.clients() as clients:
        before = await play.voters()
        bad = with_setting(play.objects, "KVORUM_ELECTION_TIMEOUT_MS", "never")
        play.set.apply(bad)
        await play.set.until(lambda: 2 in play.set.pods and len(play.set.pods[2].exits) >= 3)
        assert set(play.set.pods[2].exits) == {2}
        assert "KVORUM_ELECTION_TIMEOUT_MS=never" in play.set.pods[2].log
        assert play.set.ready() == [0, 1]
        await clients.progress()
        play.set.apply(play.objects)
        await play.set.until_updated()
        assert await play.voters() == before
        await clients.progress()


async def all_at_once(play: Play) -> None:
    """Without power, and then deleted with their addresses: nobody is asked to begin anew."""
    await play.begin()
    async with play.clients() as clients:
        before = await play.voters()
        for pod in play.set.pods.values():
            pod.kill()
        await play.set.until(lambda: all(pod.exits for pod in play.set.pods.values()))
        await play.set.until_ready(range(3))
        await clients.progress()
        await asyncio.gather(*(play.set.delete(ordinal, grace=False) for ordinal in range(3)))
        await play.set.until_ready(range(3))
        await clients.progress()
        assert await play.voters() == before


PLAYS: Final[dict[str, Callable[[Play], Awaitable[None]]]] = {
    play.__name__: play
    for play in (
        *(first_start, rolling_update, scaling, deleted_pod, lost_machine, killed_container),
        *(lost_volume, lost_quorum, another_volume, bad_update, all_at_once),
    )
}


async def perform(name: str, directory: Path) -> None:
    play = Play(directory)
    async with play.set:
        await PLAYS[name](play)


async def initialize(stateful_set: StatefulSet) -> None:
    """`kubectl exec kvorum-0 -- kvorum init`."""
    await stateful_set.pods[0].execute("kvorum", "init")


def address_of(ordinal: int) -> str:
    return f"kvorum-{ordinal}.kvorum-peers.default.svc:7100"


def with_setting(objects: list[Object], name: str, value: str) -> list[Object]:
    """The same objects with a variable of the container set."""
    changed = copy.deepcopy(objects)
    [container] = find(changed, "StatefulSet", "kvorum")["spec"]["template"]["spec"]["containers"]
    others = [one for one in container["env"] if one["name"] != name]
    container["env"] = [*others, {"name": name, "value": value}]
    return changed
