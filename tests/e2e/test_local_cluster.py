"""The local cluster with real processes: started, disturbed, repaired, stopped, and all gone."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvorum
from kvorum.admin import ClusterAdmin
from kvorum.cli import processes
from kvorum.cli.cluster_file import (
    FILE_NAME,
    ClusterFile,
    LocalClusterError,
    NoClusterHere,
    ProcessIdentity,
)
from kvorum.cli.local_cluster import (
    DataLost,
    LocalCluster,
    NodeFailed,
    NodeRemoved,
    PortTaken,
    UnknownNode,
)
from kvorum.cli.processes import ProcessState
from tests.support.command_line import kvorum as command
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.node_processes import nodes_of

pytestmark = pytest.mark.cluster

FAST = ("--fsync", "off", "--tick-ms", "20", "--election-timeout-ms", "300")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster that is not started; whatever a test starts is ended."""
    cluster = LocalCluster(tmp_path / "cluster")
    yield cluster
    with contextlib.suppress(NoClusterHere):
        cluster.kill_all()
    assert nodes_of(tmp_path) == []


@pytest.fixture
async def running(cluster: LocalCluster) -> LocalCluster:
    await cluster.up(base_port=0, flags=FAST)
    return cluster


async def test_up_returns_a_cluster_that_takes_writes(running: LocalCluster) -> None:
    leader = next(report.status for report in await running.status() if report.leads)
    assert leader is not None
    assert leader.commit_index >= 2  # beyond the entry by which a leader begins: a write
    async with kvorum.open(running.target, timeout=1) as kv:
        assert await kv.put("k", "v") == 1  # and what up wrote has left no trace
    reports = await running.status()
    assert [report.node.name for report in reports] == ["n1", "n2", "n3"]
    assert [report.state for report in reports] == [ProcessState.RUNNING] * 3
    assert all(report.status is not None for report in reports)
    assert sum(report.leads for report in reports) == 1
    assert all(report.node.data_dir.is_dir() for report in reports)
    assert all("serves at" in "\n".join(running.log_tail(r.node.name)) for r in reports)


async def test_a_node_is_in_a_session_of_its_own(running: LocalCluster) -> None:
    """Closing the terminal, or Ctrl-C in it, must not end the cluster."""
    sessions = {os.getsid(pid) for report in await running.status() if (pid := report.pid)}
    assert len(sessions) == 3
    assert os.getsid(0) not in sessions


async def test_up_again_changes_nothing(running: LocalCluster) -> None:
    before = running.nodes
    assert await running.up() == []
    assert await running.up(nodes=3, base_port=before[0].port) == []
    assert running.nodes == before


async def test_up_starts_what_is_dead_and_leaves_the_rest(running: LocalCluster) -> None:
    before = {node.name: node.process for node in running.nodes}
    running.kill("n2")
    assert await running.up() == ["n2"]
    after = {node.name: node.process for node in running.nodes}
    assert after["n2"] != before["n2"]
    assert {**after, "n2": None} == {**before, "n2": None}


@pytest.mark.parametrize("asked", [{"nodes": 5}, {"base_port": 1024}])
async def test_up_refuses_to_be_another_cluster(
    running: LocalCluster, asked: dict[str, int]
) -> None:
    with pytest.raises(LocalClusterError, match="down --wipe"):
        await running.up(nodes=asked.get("nodes"), base_port=asked.get("base_port"))
    assert len(nodes_of(running.directory)) == 3


async def test_a_taken_port_is_named_with_its_holder_before_anything_is_started(
    cluster: LocalCluster,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken) as raised:
            await cluster.up(nodes=1, base_port=port)
    assert str(port) in str(raised.value)
    assert f"(pid {os.getpid()})" in str(raised.value)
    assert nodes_of(cluster.directory) == []
    assert not (cluster.directory / FILE_NAME).exists()
    assert not (cluster.directory / "n1.log").exists()


async def test_a_port_that_was_taken_meanwhile_is_named_too(cluster: LocalCluster) -> None:
    await cluster.up(nodes=1, base_port=0, flags=FAST)
    cluster.kill("n1")
    with socket.create_server(("127.0.0.1", cluster.node("n1").port)):
        with pytest.raises(PortTaken):
            await cluster.up()
        with pytest.raises(PortTaken):
            await cluster.restart("n1")
    await cluster.restart("n1")


async def test_a_node_that_ends_at_its_start_is_reported_with_its_last_words(
    cluster: LocalCluster,
) -> None:
    with pytest.raises(NodeFailed, match="No such option: --no-such-flag"):
        await cluster.up(base_port=0, flags=["--no-such-flag"])
    assert nodes_of(cluster.directory) == []
    with pytest.raises(NoClusterHere):
        _ = cluster.nodes
    assert await cluster.up(nodes=1, base_port=0, flags=FAST) == ["n1"]


async def test_one_bad_node_ends_those_that_were_started_with_it_and_no_others(
    running: LocalCluster,
) -> None:
    for name in ("n2", "n3"):
        running.kill(name)
    (running.directory / "n3" / "kvorum.json").write_text("{}")
    with pytest.raises(NodeFailed, match="n3 ended while it was starting") as raised:
        await running.up()
    # Only the failed start is told, not what the node said before.
    assert "serves at" not in str(raised.value)
    assert running.state("n1") is ProcessState.RUNNING
    assert running.state("n2") is ProcessState.DEAD
    assert len(nodes_of(running.directory)) == 1


async def test_a_killed_leader_is_replaced_and_comes_back_as_a_follower(
    running: LocalCluster,
) -> None:
    async with kvorum.open(running.target) as kv:
        await kv.put("before", 1)
        dead = await running.leader()
        running.kill(dead)
        assert running.state(dead) is ProcessState.DEAD
        await kv.get("before")  # reads wait for the next leader; a write could be in doubt
        assert await running.leader() != dead
        await kv.put("after", 2)
        await running.restart(dead)
        assert running.state(dead) is ProcessState.RUNNING
        assert [entry.key async for entry in kv.scan()] == ["after", "before"]


async def test_a_paused_node_is_seen_as_such_and_goes_on(running: LocalCluster) -> None:
    follower = next(r.node.name for r in await running.status() if not r.leads)
    running.pause(follower)
    assert running.state(follower) is ProcessState.PAUSED
    report = next(r for r in await running.status() if r.node.name == follower)
    assert report.status is None
    assert await running.up() == []
    assert running.state(follower) is ProcessState.PAUSED
    running.resume(follower)
    assert running.state(follower) is ProcessState.RUNNING


async def test_restart_takes_a_live_node_too_and_keeps_its_data(cluster: LocalCluster) -> None:
    await cluster.up(nodes=1, base_port=0, flags=FAST)
    async with kvorum.open(cluster.target) as kv:
        await kv.put("k", "v")
        before = cluster.node("n1").process
        await cluster.restart("n1")
        assert cluster.node("n1").process != before
        assert [report.problem for report in await cluster.status()] == [""]
        entry = await kv.get("k")
        assert entry is not None
        assert entry.value == "v"
    assert "has stopped" in "\n".join(cluster.log_tail("n1"))


async def test_down_keeps_the_data_and_wipe_leaves_nothing(running: LocalCluster) -> None:
    async with kvorum.open(running.target) as kv:
        await kv.put("k", "v")
    running.pause("n3")  # a paused node is told to stop, too
    assert await running.down() == []
    assert nodes_of(running.directory) == []
    assert await running.up() == ["n1", "n2", "n3"]
    async with kvorum.open(running.target) as kv:
        assert await kv.get("k") is not None
    await running.down(wipe=True)
    assert nodes_of(running.directory) == []
    assert not running.directory.exists()


async def test_wipe_removes_only_what_is_its_own(cluster: LocalCluster) -> None:
    await cluster.up(nodes=1, base_port=0, flags=FAST)
    (cluster.directory / "notes").write_text("mine")
    await cluster.down(wipe=True)
    assert [path.name for path in cluster.directory.iterdir()] == ["notes"]


async def test_a_node_that_does_not_obey_is_killed(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.up(nodes=1, base_port=0, flags=FAST)
    monkeypatch.setattr("kvorum.cli.local_cluster.STOP_SECONDS", 0.05)
    send = processes.send

    def deaf(identity: ProcessIdentity | None, number: signal.Signals) -> bool:
        return True if number == signal.SIGTERM else send(identity, number)

    monkeypatch.setattr(processes, "send", deaf)
    assert await cluster.down() == ["n1"]
    assert nodes_of(cluster.directory) == []


async def test_a_pid_that_now_is_another_process_is_left_alone(cluster: LocalCluster) -> None:
    await cluster.up(nodes=1, base_port=0, flags=FAST)
    await cluster.down()
    path = cluster.directory / FILE_NAME
    content = json.loads(path.read_text())
    content["nodes"][0]["process"] = {"pid": os.getpid(), "created": 1.0}
    path.write_text(json.dumps(content))
    assert cluster.state("n1") is ProcessState.DEAD
    with pytest.raises(LocalClusterError, match="n1 is not running"):
        cluster.kill("n1")
    cluster.kill_all()  # does not end this test


async def test_unknown_nodes_and_missing_clusters_are_named(cluster: LocalCluster) -> None:
    for act in (cluster.kill, cluster.pause, cluster.resume, cluster.state, cluster.log_tail):
        with pytest.raises(NoClusterHere, match="kvorum cluster up"):
            act("n1")
    with pytest.raises(NoClusterHere):
        await cluster.down()
    with pytest.raises(NoClusterHere):
        await cluster.restart("n1")
    assert not cluster.directory.exists()
    await cluster.up(nodes=1, base_port=0, flags=FAST)
    with pytest.raises(UnknownNode, match="no node n9; the nodes are n1"):
        cluster.kill("n9")


async def test_two_commands_cannot_start_nodes_at_once(cluster: LocalCluster) -> None:
    await cluster.up(nodes=1, base_port=0, flags=FAST)
    with (
        LocalCluster(cluster.directory)._exclusively(),
        pytest.raises(LocalClusterError, match="another command"),
    ):
        await cluster.up()


def run(*arguments: str) -> str:
    """Run `kvorum` as a process of its own, which has ended when this returns."""
    line = [sys.executable, "-m", "kvorum.cli", *arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def test_the_commands_from_up_to_down(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command is another process: what one starts, the next finds."""
    directory = cluster.directory
    monkeypatch.setenv("KVORUM_CLUSTER_DIR", str(directory))
    up = json.loads(run("cluster", "up", "--nodes", "3", "--base-port", "0", "--json"))
    monkeypatch.delenv("KVORUM_TARGET", raising=False)
    assert up["started"] == ["n1", "n2", "n3"]
    assert up["target"] == ClusterFile.read(directory).target
    assert {node["state"] for node in up["nodes"]} == {"running"}
    assert len(nodes_of(directory)) == 3

    assert "n2 was already running" in run("cluster", "up")
    assert run("put", "greeting", "hello") == "revision 1\n"

    leader = next(node["name"] for node in up["nodes"] if node["role"] == "leader")
    assert run("cluster", "kill", "leader").startswith(f"killed {leader};")
    status = json.loads(run("cluster", "status", "--json"))
    states = {node["name"]: (node["state"], node["pid"] is None) for node in status["nodes"]}
    assert states[leader] == ("dead", True)
    assert list(states.values()).count(("running", False)) == 2

    assert run("cluster", "restart", leader) == f"restarted {leader}\n"
    run("cluster", "pause", "n1")
    assert " paused " in run("cluster", "status")
    run("cluster", "resume", "n1")
    assert run("get", "greeting") == '"hello"'
    assert run("status").count("127.0.0.1:") == 3

    assert "serves at" in run("cluster", "logs", "n2")
    assert run("cluster", "logs", "-n", "1").startswith("n1 ")
    assert "data removed" in run("cluster", "down", "--wipe")
    assert nodes_of(directory) == []
    assert not directory.exists()


def test_members_are_added_and_removed_from_the_command_line(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = cluster.directory
    monkeypatch.setenv("KVORUM_CLUSTER_DIR", str(directory))
    monkeypatch.delenv("KVORUM_TARGET", raising=False)
    first = json.loads(run("cluster", "up", "--nodes", "1", "--base-port", "0", "--json"))
    added = json.loads(run("cluster", "add", "--json"))
    assert (added["added"], [node["name"] for node in added["nodes"]]) == ("n2", ["n1", "n2"])
    assert added["target"].startswith(f"{first['target']},127.0.0.1:")
    assert run("cluster", "add").startswith("n3 runs at 127.0.0.1:")
    assert json.loads(run("member", "list", "--json"))["members"][2]["kind"] == "voter"

    assert run("cluster", "remove", "n1", "--keep-data") == "removed n1, data kept\n"
    assert run("cluster", "remove", "n2") == "removed n2, data deleted\n"
    assert [path.name for path in sorted(directory.glob("n*"))] == ["n1", "n1.log", "n3", "n3.log"]
    assert [node.name for node in cluster.nodes] == ["n3"]
    last = command("cluster", "remove", "n3")
    assert (last.status, last.err) == (1, "error: no voter would be left\n")
    assert run("cluster", "up") != ""
    assert run("put", "k", "v") == "revision 1\n"
    assert command("cluster", "remove", "n1").err == (
        "error: there is no node n1; the nodes are n3\n"
    )


async def test_a_new_node_that_cannot_start_can_be_repaired_or_given_up(
    running: LocalCluster,
) -> None:
    seen = []
    (running.directory / "n4").mkdir()
    (running.directory / "n4" / "thesis.tex").write_text("precious")
    with pytest.raises(NodeFailed) as raised:
        await running.add(lambda member, lag: seen.append(lag))
    assert "is not empty: it contains thesis.tex" in str(raised.value)
    assert "try again with `kvorum cluster restart n4`" in str(raised.value)
    assert seen == []
    (running.directory / "n4" / "thesis.tex").unlink()
    await running.restart("n4")
    assert running.state("n4") is ProcessState.RUNNING
    # A node that is removed before it has heard of anybody is not told, and would be stopped.
    address = running.node("n4").address
    async with asyncio.timeout(DEADLINE_SECONDS), ClusterAdmin([address]) as n4:
        while not (await n4.status(address)).leader:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.01)
    assert await running.remove("n4")
    assert [node.name for node in running.nodes] == ["n1", "n2", "n3"]
    assert not (running.directory / "n4").exists()


async def test_what_is_no_member_any_more_is_only_tidied_up(running: LocalCluster) -> None:
    """As after a removal that was interrupted."""
    address = running.node("n3").address
    async with ClusterAdmin([address]) as admin:
        await admin.remove_member("n3")
    assert await running.remove("n3")
    assert [node.name for node in running.nodes] == ["n1", "n2"]
    assert len(nodes_of(running.directory)) == 2


async def test_a_removed_node_that_is_frozen_is_stopped(
    running: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: it cannot hear of its removal, however long one waits."""
    monkeypatch.setattr("kvorum.cli.local_cluster.STOP_SECONDS", 600)
    victim = next(report.node.name for report in await running.status() if not report.leads)
    running.pause(victim)
    async with asyncio.timeout(60):
        assert not await running.remove(victim)
    assert len(nodes_of(running.directory)) == 2


async def test_a_node_that_was_removed_meanwhile_does_not_keep_the_others_down(
    running: LocalCluster,
) -> None:
    async with ClusterAdmin([running.node("n1").address]) as admin:
        await admin.remove_member("n3")
    await running.down()
    forget = (
        "n3 was removed from the cluster, and does not come back: forget it with `kvorum cluster"
    )
    for _ in range(2):
        with pytest.raises(NodeRemoved, match=forget):
            await running.up()
    with pytest.raises(NodeRemoved, match=forget):
        await running.restart("n3")
    assert await running.remove("n3")
    assert await running.up() == []


async def test_a_node_without_its_data_is_not_started_again(running: LocalCluster) -> None:
    await running.down()
    shutil.rmtree(running.node("n2").data_dir)
    forget = "n2 is lost, .* `kvorum cluster add`, then `kvorum cluster remove n2`"
    with pytest.raises(DataLost, match=forget):
        await running.up()
    with pytest.raises(DataLost, match=forget):
        await running.restart("n2")
    assert [running.state(name).value for name in ("n1", "n2", "n3")] == [
        *("running", "dead", "running")
    ]
    assert await running.add(lambda member, lag: None) == "n4"
    assert await running.remove("n2")
    assert [node.name for node in running.nodes] == ["n1", "n3", "n4"]


async def test_a_member_without_a_node_here_is_removed_too(running: LocalCluster) -> None:
    """As after an `add` that was interrupted before it had begun here."""
    async with ClusterAdmin([running.node("n1").address]) as admin:
        assert await admin.add_member("127.0.0.1:1") == "n4"
        assert await running.remove("n4")
        view = await admin.status(await admin.find_leader())
    assert [member.name for member in view.members] == ["n1", "n2", "n3"]
    with pytest.raises(UnknownNode, match="there is no node n4; the nodes are n1, n2, n3"):
        await running.remove("n4")


async def test_an_interrupted_add_says_what_is_left_and_how_to_go_on(
    running: LocalCluster,
) -> None:
    adding = start("cluster", "add", "--dir", str(running.directory))
    await eventually(lambda: len(running.nodes) == 4)
    adding.send_signal(signal.SIGINT)
    out, said = await asyncio.to_thread(adding.communicate)
    assert (adding.returncode, out) == (130, b"")
    if running.state("n4") is ProcessState.DEAD:
        assert b"n4 is a member, and does not run: go on with `kvorum cluster restart n4`" in said
        await running.restart("n4")
    else:
        assert b"n4 goes on, and becomes a voter once it has caught up" in said
    assert await running.remove("n4")


def test_errors_of_the_commands_are_one_line_and_status_1(tmp_path: Path) -> None:
    for arguments in (["status"], ["kill", "n1"], ["logs"], ["down"], ["restart", "leader"]):
        ran = command("cluster", *arguments, "--dir", str(tmp_path / "nothing"))
        assert ran.status == 1
        assert ran.err.startswith("error: there is no local cluster in ")
        assert ran.err.count("\n") == 1


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    line = [sys.executable, "-m", "kvorum.cli", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def test_an_interrupted_up_ends_what_it_has_started(cluster: LocalCluster) -> None:
    up = start("cluster", "up", "--base-port", "0", "--dir", str(cluster.directory))
    await eventually((cluster.directory / FILE_NAME).exists)
    up.send_signal(signal.SIGINT)
    assert up.communicate() == (b"", b"")
    assert up.returncode == 130
    assert nodes_of(cluster.directory) == []
    assert not (cluster.directory / FILE_NAME).exists()


def test_data_commands_find_the_cluster_of_the_current_directory(
    tmp_path: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVORUM_TARGET", raising=False)
    monkeypatch.chdir(tmp_path)
    cluster.directory = tmp_path / ".kvorum"
    run("cluster", "up", "--nodes", "1", "--base-port", "0")
    [node] = json.loads(run("status", "--json"))["nodes"]
    assert (node["name"], node["role"]) == ("n1", "leader")
