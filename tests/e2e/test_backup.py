"""A cluster is saved while it is written to, lost, and begun again from the file elsewhere."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import kvorum
from kvorum import KV, IndexEntry, RateLimit
from kvorum.admin import ClusterAdmin
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster
from kvorum.errors import Compacted, Conflict, OutOfBounds, UniqueViolation
from kvorum.limits import MIB
from kvorum_node.founding import SKIPPED_REVISIONS
from kvorum_node.survivor import examine
from tests.support import shell
from tests.support.eventually import eventually
from tests.support.file_systems import small_file_system
from tests.support.peak import Peak
from tests.support.workload import (
    Workload,
    agreed_content,
    assert_nothing_lost,
    followers,
)

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

LARGE_RECORDS = 512
LARGE_BYTES = 256 * 1024
"""Together 128 MiB: it takes a while, and would be seen in memory."""


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def size_of(file: Path) -> int:
    return file.stat().st_size


async def save(cluster: LocalCluster, file: Path, *options: str) -> dict[str, Any]:
    """What the command says of the snapshot."""
    saved: dict[str, Any] = json.loads(
        await shell.output(
            "snapshot", "save", str(file), "--json", "--target", cluster.target, *options
        )
    )
    verified = json.loads(await shell.output("snapshot", "verify", str(file), "--json"))
    assert verified == saved
    assert size_of(file) == saved["file_bytes"]
    return saved


async def restore_into(cluster: LocalCluster, file: Path) -> None:
    """Let the only node of a local cluster begin anew with the file, at its address."""
    [node] = cluster.nodes
    cluster.kill_all()
    shutil.rmtree(node.data_dir)
    restored = await shell.output(
        *("snapshot", "restore", str(file), "--data-dir", str(node.data_dir)),
        *("--advertise", node.address),
    )
    assert f"kvorum node n1 --data-dir {node.data_dir} --listen {node.address}" in restored
    await cluster.restart(node.name)


@pytest.fixture
def second_cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """Not started; whatever a test starts of it is ended."""
    cluster = LocalCluster(tmp_path / "second")
    yield cluster
    with suppress(NoClusterHere):
        cluster.kill_all()


async def test_a_snapshot_of_any_node_under_load_becomes_a_cluster_with_all_there_was(
    three_nodes: LocalCluster, kv: KV, second_cluster: LocalCluster, tmp_path: Path
) -> None:
    limit = RateLimit("limited", limit=2, window=3600)
    await kv.put("user:1", {"name": "a"}, index_entries=[IndexEntry("mail", "a@x", unique=True)])
    await kv.put("user:2", {"name": "b"}, index_entries=[IndexEntry("city", "Rome")])
    await kv.put("lives", 1, ttl=3600)
    await kv.put("dies", 1, ttl=0.01)
    await kv.put("large", "x" * 3_000_000)
    await kv.add("counter", 41, max=42)
    assert (await kv.rate_limit(limit)).allowed
    taken: dict[str, tuple[Path, dict[str, Any], dict[str, Any]]] = {}
    async with Workload(kv, writers=8) as work:
        for name in ("n1", "n2", "n3", ""):
            before = dict(work.acknowledged)
            file = tmp_path / f"{name}.snap"
            saved = await save(three_nodes, file, *(("--node", name) if name else ()))
            assert name in ("", saved["node"])
            assert saved["record_count"] >= len(before)
            taken[name] = (file, saved, before)
            await work.progress(50)
    assert work.kinds_of_failure == {}

    await second_cluster.up(nodes=1, base_port=0)
    file, saved, before = taken["n2"]
    await restore_into(second_cluster, file)
    for _ in range(2):
        await second_cluster.add(lambda member, lag: None)
    await agreed_content(second_cluster)
    assert [node.name for node in second_cluster.nodes] == ["n1", "n2", "n3"]
    async with kvorum.open(second_cluster.target, timeout=15) as restored:
        found = {entry.key: entry.value async for entry in restored.scan("work:")}
        assert {key: found.get(key) for key in before} == before
        assert found.keys() <= work.acknowledged.keys()
        [rome] = await restored.list(index="city", value="Rome")
        assert rome.key == "user:2"
        with pytest.raises(UniqueViolation, match="user:1"):
            await restored.put("user:3", 1, index_entries=[IndexEntry("mail", "a@x", unique=True)])
        left = await restored.ttl("lives")
        assert left is not None
        assert 0 < left < 3600
        assert await restored.get("dies") is None
        large = await restored.get("large")
        assert large is not None
        assert len(large.value) == 3_000_000
        assert await restored.add("counter", 1, max=42) == 42
        with pytest.raises(OutOfBounds):
            await restored.add("counter", 1, max=42)
        assert [(await restored.rate_limit(limit)).allowed for _ in range(2)] == [True, False]
        async with restored.watch("after:") as watch:
            revision = await restored.put("after:1", 1)
            assert (await anext(aiter(watch))).revision == revision
        assert revision > saved["revision"] + SKIPPED_REVISIONS
        await restored.put("after:1", 2)
        past = await restored.get("after:1", revision=revision)
        assert past is not None
        assert past.value == 1
        second_cluster.kill(await second_cluster.leader())
        await restored.put("after:2", 1)
    await assert_nothing_lost(three_nodes, work)  # and the cluster that was saved goes on


async def test_it_has_the_hash_that_the_node_gives_at_that_index(
    three_nodes: LocalCluster, kv: KV, tmp_path: Path
) -> None:
    async with Workload(kv, writers=4):
        pass
    content, saved = await agreed_content(three_nodes), await save(three_nodes, tmp_path / "a")
    while saved["index"] != content.applied_index:  # something was swept or compacted meanwhile
        content = await agreed_content(three_nodes)
        saved = await save(three_nodes, tmp_path / "a", "--force")
    assert saved["hash"] == content.hash.hex()
    assert saved["record_count"] == content.record_count
    assert saved["revision"] == content.revision


async def test_all_that_was_acknowledged_before_is_in_it_wherever_it_is_from(
    three_nodes: LocalCluster, kv: KV, tmp_path: Path
) -> None:
    """Also from a node that was suspended, and does not know that it is behind."""
    lagging, _ = await followers(three_nodes)
    three_nodes.pause(lagging.name)
    revisions = [await kv.put("k", number) for number in range(100)]
    command = ("snapshot", "save", str(tmp_path / "a"), "--json", "--target", three_nodes.target)
    three_nodes.resume(lagging.name)
    saved = json.loads(await shell.output(*command, "--node", lagging.name))
    assert saved["node"] == lagging.name
    assert saved["revision"] >= revisions[-1]


async def test_clients_of_the_lost_cluster_go_on_and_are_told_what_is_gone(
    second_cluster: LocalCluster, tmp_path: Path
) -> None:
    """At the same address, with the same open store."""
    await second_cluster.up(nodes=1, base_port=0)
    async with kvorum.open(second_cluster.target, timeout=30) as kv:
        for number in range(10):
            await kv.put(f"k{number}", "kept")
        watch = await kv.watch("").__aenter__()
        changes = aiter(watch)
        old = await kv.put("k0", "kept")
        assert (await anext(changes)).revision == old
        await save(second_cluster, tmp_path / "a.snap")
        lost = [await kv.put(f"k{number}", "lost") for number in range(5)]
        for revision in lost:
            assert (await anext(changes)).revision == revision
        plain = await kv.list("k", limit=3)
        pinned = await kv.list("k", limit=3, snapshot=True)
        await restore_into(second_cluster, tmp_path / "a.snap")

        assert await kv.add("written", 1) == 1  # its client is known, or is made known again
        found = [await kv.get(f"k{number}") for number in range(5)]
        assert [entry and entry.value for entry in found] == ["kept"] * 5
        with pytest.raises(Compacted):
            await anext(changes)
        await watch.close()
        with pytest.raises(Conflict):
            await kv.put("k1", 1, revision=lost[1])
        with pytest.raises(Compacted):
            await kv.get("k1", revision=lost[1])
        with pytest.raises(Compacted):
            async with kv.watch("", since=lost[-1]) as again:
                await anext(aiter(again))
        assert [entry.key for entry in await kv.list("k", limit=3, cursor=plain.cursor)] == [
            f"k{number}" for number in (3, 4, 5)
        ]
        with pytest.raises(Compacted):
            await kv.list("k", limit=3, snapshot=True, cursor=pinned.cursor)


async def test_without_a_majority_it_is_taken_as_it_is_if_that_is_wanted(
    three_nodes: LocalCluster, kv: KV, tmp_path: Path
) -> None:
    async with Workload(kv, writers=4) as work:
        pass
    survivor, lost = await followers(three_nodes)
    three_nodes.kill(lost.name)
    three_nodes.kill(await three_nodes.leader())
    command = ("snapshot", "save", str(tmp_path / "a"), "--target", three_nodes.target)
    refused = await shell.run(*command, "--timeout", "3")
    assert refused.returncode == 1
    assert "no node leads" in refused.stderr
    gone = await shell.run(*command, "--stale", "--node", lost.name, "--timeout", "1")
    assert gone.returncode == 1
    assert f"error: {lost.name} does not answer: asked " in gone.stderr
    assert "a" not in names(tmp_path)
    assert "a.part" not in names(tmp_path)
    saved = await save(three_nodes, tmp_path / "a", "--stale")
    assert saved["node"] == survivor.name
    assert saved["record_count"] > len(work.acknowledged) // 2


async def test_no_node_answers(three_nodes: LocalCluster, tmp_path: Path) -> None:
    three_nodes.kill_all()
    for options in ((), ("--stale",)):
        command = ("snapshot", "save", str(tmp_path / "a"), "--timeout", "0.5", *options)
        ran = await shell.run(*command, "--target", three_nodes.target)
        assert ran.returncode == 1
        assert "error: no node answers: asked 127.0.0.1:" in ran.stderr
        assert "Traceback" not in ran.stderr
    assert "a" not in names(tmp_path)
    assert "a.part" not in names(tmp_path)


async def fill(kv: KV) -> None:
    data = os.urandom(LARGE_BYTES)
    for start in range(0, LARGE_RECORDS, 8):
        await asyncio.gather(
            *(
                kv.put(f"{number}", data + b"%d" % number, type="bytes", timeout=60)
                for number in range(start, start + 8)
            )
        )


async def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, said = await asyncio.to_thread(process.communicate, timeout=shell.END_SECONDS)
    assert "Traceback" not in said
    return process.returncode, said


async def test_a_large_state_takes_little_memory_and_what_breaks_off_leaves_no_file(
    second_cluster: LocalCluster, tmp_path: Path
) -> None:
    await second_cluster.up(nodes=1, base_port=0)
    [node] = second_cluster.nodes
    assert node.process is not None
    folder, file = tmp_path / "files", tmp_path / "files" / "a.snap"
    folder.mkdir()
    command = ["snapshot", "save", str(file), "--target", second_cluster.target]

    def begun() -> bool:
        part = folder / "a.snap.part"
        return part.exists() and part.stat().st_size > 0

    async with kvorum.open(second_cluster.target, timeout=15) as kv:
        await fill(kv)
    idle = psutil.Process(node.process.pid).memory_info().rss
    async with Peak(psutil.Process(node.process.pid)) as peak:
        process = shell.start(command)
        async with Peak(psutil.Process(process.pid)) as other:
            assert (await ended(process))[0] == 0
    print(f"\nnode {idle >> 20} to {peak.rss_bytes >> 20} MiB, command {other.rss_bytes >> 20} MiB")
    content_bytes = LARGE_RECORDS * LARGE_BYTES
    assert content_bytes < file.stat().st_size < 1.1 * content_bytes
    assert peak.rss_bytes - idle < content_bytes // 2
    assert other.rss_bytes < content_bytes
    restored = shell.start(
        ["snapshot", "restore", str(file), "--data-dir", str(tmp_path / "r"), "--advertise", "h:1"]
    )
    assert (await ended(restored))[0] == 0
    file.unlink()

    # Two at once to one file, and Ctrl-C, while the node holds the first one up.
    process = shell.start(command)
    await eventually(begun)
    second_cluster.pause(node.name)
    second = await shell.run(*command)
    assert second.returncode == 1
    assert "is being written by another process" in second.stderr
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert (await ended(process))[0] == 130
    assert names(folder) == []
    second_cluster.resume(node.name)

    # The command is killed: what it leaves is none, and does not stand in the way.
    process = shell.start(command)
    await eventually(begun)
    process.kill()
    process.communicate()
    assert names(folder) == ["a.snap.part"]
    assert (await ended(shell.start(command)))[0] == 0
    assert names(folder) == ["a.snap"]
    file.unlink()

    # The node is killed.
    process = shell.start(command)
    await eventually(begun)
    second_cluster.kill(node.name)
    status, said = await ended(process)
    assert status == 1
    assert said.startswith(f"error: {node.address} does not answer: ")
    assert names(folder) == []


async def test_a_disk_that_is_too_small_is_said_and_left_empty(
    three_nodes: LocalCluster, kv: KV, tmp_path: Path
) -> None:
    for number in range(24):
        await kv.put(f"{number}", os.urandom(MIB), type="bytes")
    file = tmp_path / "a.snap"
    await save(three_nodes, file)
    small = tmp_path / "small"
    with small_file_system(small, 8 * MIB):
        ran = await shell.run("snapshot", "save", str(small / "a"), "--target", three_nodes.target)
        assert ran.returncode == 1
        assert "No space left on device" in ran.stderr
        assert names(small) == []
        directory = ("--data-dir", str(small / "n1"), "--advertise", "127.0.0.1:1")
        ran = await shell.run("snapshot", "restore", str(file), *directory)
        assert ran.returncode == 1
        assert "No space left on device" in ran.stderr
        assert "Traceback" not in ran.stderr
        assert set(names(small / "n1")) <= {"LOCK"}
        assert json.loads(await shell.output("init", *directory, "--json"))["name"] == "n1"


async def test_nothing_is_restored_over_a_node_that_runs(
    three_nodes: LocalCluster, kv: KV, tmp_path: Path
) -> None:
    await kv.put("k", 1)
    await save(three_nodes, tmp_path / "a.snap")
    node = three_nodes.nodes[0]
    for command in (("snapshot", "restore", str(tmp_path / "a.snap")), ("init",)):
        ran = await shell.run(*command, "--data-dir", str(node.data_dir), "--advertise", "h:1")
        assert ran.returncode == 1
        assert f"error: {node.data_dir} holds n1 of cluster" in ran.stderr
    three_nodes.kill(node.name)
    ran = await shell.run(
        *("snapshot", "restore", str(tmp_path / "a.snap")),
        *("--data-dir", str(node.data_dir), "--advertise", "h:1"),
    )
    assert ran.returncode == 1
    await three_nodes.restart(node.name)
    await agreed_content(three_nodes)


async def test_a_cluster_begins_with_init_and_grows(
    second_cluster: LocalCluster, tmp_path: Path
) -> None:
    await second_cluster.up(nodes=1, base_port=0)
    [node] = second_cluster.nodes
    second_cluster.kill_all()
    shutil.rmtree(node.data_dir)
    directory = ("--data-dir", str(node.data_dir), "--advertise", node.address)
    said = await shell.output("init", *directory)
    assert f"kvorum node n1 --data-dir {node.data_dir} --listen {node.address}" in said
    made = examine(node.data_dir)
    await second_cluster.restart(node.name)
    await second_cluster.add(lambda member, lag: None)
    await agreed_content(second_cluster)
    async with ClusterAdmin() as admin:
        for one in second_cluster.nodes:
            assert (await admin.status(one.address)).cluster_id == made.identity.cluster_id


async def test_a_directory_that_is_not_complete_is_refused_by_a_node(tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    (tmp_path / "n1" / "kvorum.json.unfinished").write_text("{}")
    ran = await shell.run(
        *("node", "n1", "--data-dir", str(tmp_path / "n1"), "--listen", "127.0.0.1:1"),
        *("--cluster", "n1=127.0.0.1:1"),
    )
    assert ran.returncode == 1
    assert "is not complete: a `kvorum init` or a `kvorum snapshot restore`" in ran.stderr
