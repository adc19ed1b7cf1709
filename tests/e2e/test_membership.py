"""Members come and go under load: nothing is lost, writes go on, who has gone stays away."""

import asyncio
import json
import shutil
import signal
from pathlib import Path

import pytest

import kvorum
from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import DataLost, LocalCluster
from kvorum.cli.processes import free_ports
from kvorum_node.server import NOT_TO_BE_RESTARTED
from kvorumpb.v1 import cluster_pb2
from tests.support import shell
from tests.support.node_processes import nodes_of
from tests.support.workload import Workload, agreed_content, assert_nothing_lost, followers, until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]


def ignore(member: cluster_pb2.Member, lag: int) -> None:
    """Nobody looks at how the new node catches up."""


def names(cluster: LocalCluster) -> list[str]:
    return [node.name for node in cluster.nodes]


async def leader_view(cluster: LocalCluster) -> cluster_pb2.GetStatusResponse:
    async with ClusterAdmin(node.address for node in cluster.nodes) as admin:
        return await admin.status(await admin.find_leader())


async def kinds(cluster: LocalCluster) -> dict[str, str]:
    """The members by name, as the leader sees them."""
    kind = cluster_pb2.Member.Kind
    return {member.name: kind.Name(member.kind) for member in (await leader_view(cluster)).members}


async def test_three_become_five_and_three_again_without_a_failed_write(
    three_nodes: LocalCluster, kv: KV
) -> None:
    async with Workload(kv) as work:
        for name in ("n4", "n5"):
            assert await three_nodes.add(ignore) == name
            await work.progress()
        assert list((await kinds(three_nodes)).values()) == ["VOTER"] * 5
        for node in (await followers(three_nodes))[:2]:
            assert await three_nodes.remove(node.name)
            await work.progress()
    assert work.kinds_of_failure == {}
    assert len(await kinds(three_nodes)) == 3
    await assert_nothing_lost(three_nodes, work)


async def test_every_member_is_replaced_and_the_client_finds_the_new_ones(
    three_nodes: LocalCluster, kv: KV
) -> None:
    """The client was told of n1, n2 and n3 alone, of which none is left."""
    async with Workload(kv) as work:
        for old in ("n1", "n2", "n3"):
            await three_nodes.add(ignore)
            assert await three_nodes.remove(old)
            await work.progress()
    assert work.kinds_of_failure == {}
    assert names(three_nodes) == ["n4", "n5", "n6"]
    await assert_nothing_lost(three_nodes, work)
    await three_nodes.down()
    assert await three_nodes.up() == ["n4", "n5", "n6"]
    assert await kinds(three_nodes) == dict.fromkeys(("n4", "n5", "n6"), "VOTER")
    await assert_nothing_lost(three_nodes, work)


async def test_a_new_member_gets_what_the_log_has_left_behind(
    empty_cluster: LocalCluster,
) -> None:
    """And a member that comes back after that, too."""
    await empty_cluster.up(nodes=3, base_port=0, flags=["--log-max-bytes", "65536"])
    async with kvorum.open(empty_cluster.target, timeout=15) as kv:
        away = (await followers(empty_cluster))[0].name
        empty_cluster.kill(away)
        async with Workload(kv, padding_bytes=2000) as work:
            await work.progress(500)
        assert work.kinds_of_failure == {}
        assert await empty_cluster.add(ignore) == "n4"
        await empty_cluster.restart(away)
        await assert_nothing_lost(empty_cluster, work)
    async with ClusterAdmin() as admin:
        for name in ("n4", away):
            status = await admin.status(empty_cluster.node(name).address)
            assert status.first_index > 1  # it never had the entries before
    log = empty_cluster.node("n4").log_file.read_text()
    assert "snapshot" in log


async def test_a_leader_that_is_removed_lets_another_one_lead(
    three_nodes: LocalCluster, kv: KV
) -> None:
    leader = await three_nodes.leader()
    log_file = three_nodes.node(leader).log_file
    async with Workload(kv) as work:
        assert await three_nodes.remove(leader, keep_data=True)
        await work.progress()
    assert work.kinds_of_failure == {}
    assert leader not in await kinds(three_nodes)
    assert f"{leader} stops: {leader} was removed from the cluster" in log_file.read_text()
    await assert_nothing_lost(three_nodes, work)


async def test_a_lost_disk_comes_back_under_a_new_name_only(
    three_nodes: LocalCluster, kv: KV
) -> None:
    victim = (await followers(three_nodes))[0]
    others = ",".join(node.address for node in three_nodes.nodes if node != victim)
    async with Workload(kv) as work:
        three_nodes.kill(victim.name)
        shutil.rmtree(victim.data_dir)
        with pytest.raises(DataLost, match=f"then `kvorum cluster remove {victim.name}`"):
            await three_nodes.restart(victim.name)
        ran = await shell.run(
            *("node", victim.name, "--data-dir", str(victim.data_dir)),
            *("--listen", victim.address, "--join", others),
        )
        assert ran.returncode == NOT_TO_BE_RESTARTED
        assert f"{victim.name} has run before, with another data directory" in ran.stderr
        assert not victim.data_dir.exists()

        assert await three_nodes.add(ignore) == "n4"
        assert await three_nodes.remove(victim.name)
        await work.progress()
    assert work.kinds_of_failure == {}
    assert sorted(await kinds(three_nodes)) == sorted(names(three_nodes))
    assert len(names(three_nodes)) == 3
    await assert_nothing_lost(three_nodes, work)


async def test_a_removed_node_that_did_not_hear_of_it_disturbs_nobody(
    three_nodes: LocalCluster, kv: KV
) -> None:
    victim = (await followers(three_nodes))[0]
    three_nodes.kill(victim.name)
    assert await three_nodes.remove(victim.name, keep_data=True)
    before = await leader_view(three_nodes)
    for _ in range(2):  # whoever starts it, and however often
        ran = await shell.run(
            *("node", victim.name, "--data-dir", str(victim.data_dir), "--listen", victim.address)
        )
        assert ran.returncode == NOT_TO_BE_RESTARTED
        assert "Its data directory can be deleted" in ran.stderr
    after = await leader_view(three_nodes)
    assert (after.name, after.term) == (before.name, before.term)
    assert await kv.add("k") == 1


async def test_a_change_that_would_leave_no_majority_needs_force(
    three_nodes: LocalCluster, kv: KV
) -> None:
    dead, alive = (node.name for node in await followers(three_nodes))
    three_nodes.kill(dead)

    async def is_noticed() -> bool:
        view = await leader_view(three_nodes)
        return not next(member.active for member in view.members if member.name == dead)

    await until(is_noticed)
    target = ("--target", three_nodes.target)
    ran = await shell.run("member", "remove", alive, *target)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"{dead} cannot be reached now" in ran.stderr
    assert "With --force it is begun all the same" in ran.stderr
    assert alive in await kinds(three_nodes)

    forced = asyncio.create_task(three_nodes.remove(alive, force=True))

    async def is_begun() -> bool:
        return (await kinds(three_nodes))[alive] == "OUTGOING"

    await until(is_begun)
    assert not forced.done()  # a majority of the new voters needs the dead one
    restarted = shell.start(start_again(three_nodes, dead))
    try:
        assert await forced
        assert alive not in await kinds(three_nodes)
        assert await kv.add("k") == 1
    finally:
        restarted.terminate()
        restarted.communicate(timeout=shell.END_SECONDS)


def start_again(cluster: LocalCluster, name: str) -> list[str]:
    """A node in its data directory, beside the commands that hold the cluster's lock."""
    node = cluster.node(name)
    return ["node", name, "--data-dir", str(node.data_dir), "--listen", node.address]


async def test_the_commands_as_a_person_gives_them(
    three_nodes: LocalCluster, tmp_path: Path
) -> None:
    """Add, start with the command that was printed, wait, list, remove; each tells the next."""
    target = ("--target", f"kvorum://{three_nodes.nodes[0].address}")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    adding = shell.start(["member", "add", address, "--learner", *target])
    out, _ = await asyncio.to_thread(adding.communicate, timeout=shell.END_SECONDS)
    assert "n4 is a member; it stays a learner until it is promoted" in out
    ran = await shell.run("member", "promote", "n4", *target)
    assert ran.returncode == 1
    assert "n4 has not taken anything of the log yet: start it first" in ran.stderr
    [line] = [line.strip() for line in out.splitlines() if "kvorum node" in line]
    arguments = line.replace("./n4", str(tmp_path / "n4")).split()[1:]

    process = shell.start(arguments)
    try:

        async def is_promoted() -> bool:
            return (await shell.run("member", "promote", "n4", *target)).returncode == 0

        await until(is_promoted)
        listed = json.loads(await shell.output("member", "list", "--json", *target))
        [row] = [row for row in listed["members"] if row["name"] == "n4"]
        assert (row["kind"], row["address"], row["active"]) == ("voter", address, True)
        assert listed["leader"] in names(three_nodes)
        removed = await shell.output("member", "remove", "n4", *target)
        assert removed == "n4 is no member any more; its data directory can be deleted\n"
        _, said = await asyncio.to_thread(process.communicate, timeout=shell.END_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == NOT_TO_BE_RESTARTED
    assert "n4 stops: n4 was removed from the cluster" in said.splitlines()[-1]
    again = await shell.run("member", "remove", "n4", *target)
    assert (again.returncode, again.stderr) == (1, "error: n4 is no member\n")
    assert nodes_of(tmp_path / "n4") == []
    await agreed_content(three_nodes)


async def test_an_interrupted_wait_leaves_the_change_as_it_is(three_nodes: LocalCluster) -> None:
    target = ("--target", three_nodes.target)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    waiting = shell.start(["member", "add", address, "--wait", *target])
    assert waiting.stdout is not None
    assert "n4 is a member" in await asyncio.to_thread(waiting.stdout.readline)
    listed = await shell.output("member", "list", *target)
    assert "learner, joining waiting to be started" in listed
    waiting.send_signal(signal.SIGINT)
    _, said = await asyncio.to_thread(waiting.communicate, timeout=shell.END_SECONDS)
    assert waiting.returncode == 130
    assert said.startswith("n4 is a member, waiting to be started: `kvorum member list`")
    assert (await kinds(three_nodes))["n4"] == "LEARNER"


async def test_a_node_joins_no_cluster_but_its_own(
    three_nodes: LocalCluster, tmp_path: Path
) -> None:
    other = LocalCluster(tmp_path / "other")
    try:
        await other.up(nodes=1, base_port=0)
        address = f"127.0.0.1:{free_ports(1)[0]}"
        own, foreign = three_nodes.nodes[0].address, other.nodes[0].address
        async with ClusterAdmin([own]) as admin:
            name = await admin.add_member(address)
        for join, status, message in (
            (foreign, NOT_TO_BE_RESTARTED, f"{name} is no member of the cluster"),
            (f"{own},{foreign}", 1, "the addresses are of different clusters"),
        ):
            ran = await shell.run(
                *("node", name, "--data-dir", str(tmp_path / name)),
                *("--listen", address, "--join", join),
            )
            assert ran.returncode == status
            assert message in ran.stderr
        assert not (tmp_path / name).exists()
    finally:
        other.kill_all()
