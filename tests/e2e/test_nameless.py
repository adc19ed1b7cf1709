"""Nodes without a name beside a running cluster: who takes part, who waits, and who is refused."""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster
from kvorum.cli.processes import free_ports
from kvorum_node.server import NOT_TO_BE_RESTARTED
from kvorumpb.v1 import cluster_pb2
from tests.support import shell
from tests.support.workload import Workload, assert_nothing_lost, followers, until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]


@dataclass(eq=False)
class Nameless:
    """A node that is told where its cluster may be, and nothing of itself but its address."""

    directory: Path
    join: str
    address: str
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        assert self.process is None or self.process.returncode is not None
        command = shell.command(
            *("node", "--data-dir", str(self.directory), "--join", self.join),
            *("--listen", self.address),
        )
        self.directory.parent.mkdir(exist_ok=True, parents=True)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, shell.END_SECONDS)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def log_file(self) -> Path:
        return self.directory.with_suffix(".log")

    async def says(self, text: str) -> None:
        """Wait until its log has this."""

        async def is_said() -> bool:
            return text in self.log_file.read_text("utf-8")

        try:
            await until(is_said)
        except TimeoutError:
            raise AssertionError(self.log_file.read_text("utf-8")) from None


Make = Callable[..., Nameless]


@pytest_asyncio.fixture(loop_scope="session")
async def make(three_nodes: LocalCluster, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Nameless] = []

    def make(*, join: str = "", address: str = "") -> Nameless:
        node = Nameless(
            tmp_path / f"pods/{len(made)}",
            join or ",".join(node.address for node in three_nodes.nodes),
            address or f"127.0.0.1:{free_ports(1)[0]}",
        )
        made.append(node)
        return node

    yield make
    for node in made:
        node.kill()


async def view(cluster: LocalCluster) -> cluster_pb2.GetStatusResponse:
    async with ClusterAdmin(node.address for node in cluster.nodes) as admin:
        await admin.find_leader()
        seen = (await admin.survey()).led_view
    return seen if seen is not None else await view(cluster)


async def at(cluster: LocalCluster, address: str) -> list[str]:
    """The names of the members with the address."""
    return [one.name for one in (await view(cluster)).members if one.address == address]


async def until_voter(cluster: LocalCluster, address: str, *, after: str = "") -> str:
    """The name of the voter at the address, once there is one, and nothing else is changing.

    Args:
        after: who was there before.
    """
    names: list[str] = []

    async def is_voter() -> bool:
        seen = await view(cluster)
        kind = cluster_pb2.Member.VOTER
        names[:] = [one.name for one in seen.members if (one.address, one.kind) == (address, kind)]
        return bool(names) and names != [after] and not seen.members_changing

    await until(is_voter)
    return names[0]


async def test_it_becomes_a_voter_and_comes_back_as_the_same(
    three_nodes: LocalCluster, kv: KV, make: Make
) -> None:
    node = make()
    async with Workload(kv) as work:
        node.start()
        assert await until_voter(three_nodes, node.address) == "n4"
        assert await node.end() == 0
        node.start()
        await work.progress()
    await until_voter(three_nodes, node.address)
    assert "n4 joins the cluster" in node.log_file.read_text("utf-8")
    assert work.kinds_of_failure == {}
    await assert_nothing_lost(three_nodes, work)


async def test_several_join_at_once(three_nodes: LocalCluster, make: Make) -> None:
    nodes = [make() for _ in range(2)]
    for node in nodes:
        node.start()
    assert {await until_voter(three_nodes, node.address) for node in nodes} == {"n4", "n5"}


async def test_it_waits_where_nobody_is_and_ends_when_it_is_told_to(make: Make) -> None:
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    node = make(join=f"{nowhere},no-such-host.invalid:7100")
    for number in (signal.SIGTERM, signal.SIGINT):
        node.start()
        await node.says("no node answers there. To begin a new cluster, run `kvorum init`")
        assert await node.end(number) == 0
        node.log_file.unlink()
    assert not node.directory.exists()


async def test_its_own_address_does_not_make_it_find_itself(make: Make) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    node = make(join=address, address=address)
    node.start()
    await node.says("no node answers there")
    assert await node.end() == 0
    assert not node.directory.exists()


async def test_a_lost_volume_gets_a_new_name_and_the_old_one_ends(
    three_nodes: LocalCluster, kv: KV, make: Make, tmp_path: Path
) -> None:
    node = make()
    async with Workload(kv) as work:
        node.start()
        assert await until_voter(three_nodes, node.address) == "n4"
        await node.end(signal.SIGKILL)
        lost = tmp_path / "pods/lost"
        node.directory.rename(lost)
        node.start()
        assert await until_voter(three_nodes, node.address, after="n4") == "n5"
        await work.progress()
    assert await at(three_nodes, node.address) == ["n5"]
    assert work.kinds_of_failure == {}
    await node.end()

    # The volume is found again. What it says it is was removed, and stays so.
    old = make(address=node.address)
    shutil.copytree(lost, old.directory)
    for _ in range(2):
        old.start()
        assert await old.ended() == NOT_TO_BE_RESTARTED
    assert "n4 was removed from the cluster" in old.log_file.read_text("utf-8")
    assert await at(three_nodes, node.address) == ["n5"]
    node.start()
    await until_voter(three_nodes, node.address)
    await assert_nothing_lost(three_nodes, work)


async def test_members_that_were_never_started_do_not_pile_up(
    three_nodes: LocalCluster, make: Make
) -> None:
    """As when an answer is lost, or the node dies before its directory is there, each time."""
    node = make()
    async with ClusterAdmin([three_nodes.nodes[0].address]) as admin:
        assert await admin.add_member(node.address) == "n4"
    # Its log cannot be made: it is added, and dies.
    (node.directory / "log").mkdir(parents=True)
    (node.directory / "log/CURRENT").write_text("nonsense")
    (node.directory / "kvorum.json.new").touch()
    for name in ("n5", "n6"):
        node.start()
        assert await node.ended() == 1
        assert await at(three_nodes, node.address) == [name]
    shutil.rmtree(node.directory)
    node.start()
    assert await until_voter(three_nodes, node.address) == "n7"
    assert len((await view(three_nodes)).members) == 4


async def test_a_disk_that_cannot_be_used_costs_no_name(
    three_nodes: LocalCluster, make: Make
) -> None:
    node = make()
    node.directory.parent.mkdir()
    node.directory.touch()
    node.start()
    await node.says(f"the data directory {node.directory} is a file")
    assert len((await view(three_nodes)).members) == 3
    node.directory.unlink()  # it notices
    assert await until_voter(three_nodes, node.address) == "n4"


async def test_two_processes_with_one_address_are_never_one_member(
    three_nodes: LocalCluster, make: Make
) -> None:
    first = make()
    first.start()
    assert await until_voter(three_nodes, first.address) == "n4"
    second = make(address=first.address)
    second.start()
    await second.says("is the address of n4, which answers")
    assert await at(three_nodes, first.address) == ["n4"]
    assert not second.directory.exists()
    await first.end(signal.SIGKILL)
    assert await until_voter(three_nodes, first.address, after="n4") == "n5"
    assert await at(three_nodes, first.address) == ["n5"]


async def test_without_a_majority_nobody_is_replaced(
    three_nodes: LocalCluster, kv: KV, make: Make
) -> None:
    """Of three voters one has lost its volume, and another one is down."""
    node = make()
    node.start()
    await until_voter(three_nodes, node.address)
    gone, away = await followers(three_nodes)
    await three_nodes.remove(gone.name)
    three_nodes.kill(away.name)
    await node.end(signal.SIGKILL)
    shutil.rmtree(node.directory)
    node.start()
    await node.says("no node leads")
    assert not node.directory.exists()
    await three_nodes.restart(away.name)
    assert await until_voter(three_nodes, node.address, after="n4") == "n5"
    assert len((await view(three_nodes)).members) == 3
    assert await kv.add("k") == 1


async def test_a_directory_of_another_cluster_is_refused(
    three_nodes: LocalCluster, make: Make, tmp_path: Path
) -> None:
    other = LocalCluster(tmp_path / "other")
    try:
        await other.up(nodes=1, base_port=0)
        node = make(join=other.nodes[0].address)
        node.start()
        await until_voter(other, node.address)
        assert await node.end() == 0
        before = await view(three_nodes)
        node.join = three_nodes.nodes[0].address
        node.start()
        assert await node.ended() == NOT_TO_BE_RESTARTED
        assert "but the nodes at join are of another cluster" in node.log_file.read_text("utf-8")
        assert (await view(three_nodes)).members == before.members

        both = make(join=f"{other.nodes[0].address},{three_nodes.nodes[0].address}")
        both.start()
        await both.says("the nodes there are of different clusters")
        assert not both.directory.exists()
        assert await both.end() == 0
    finally:
        other.kill_all()
