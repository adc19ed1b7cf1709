"""A node that is given the wrong directory says what is wrong with it, and ends."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvorum.cli.local_cluster import LocalCluster
from kvorum.cli.processes import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

END_SECONDS = 30


def start(name: str, data_dir: Path, cluster: str, *flags: str) -> tuple[int, str]:
    """Run a node that ends by itself; returns its status and what it printed."""
    members = dict(member.split("=") for member in cluster.split(","))
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "kvorum.cli", "node", name),
            *("--data-dir", str(data_dir)),
            *("--listen", members.get(name, "127.0.0.1:1")),
            *("--cluster", cluster),
            *flags,
        ],
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert "Traceback" not in ran.stderr
    return ran.returncode, ran.stdout + ran.stderr


def members_of(cluster: LocalCluster) -> str:
    return ",".join(f"{node.name}={node.address}" for node in cluster.nodes)


def free_members(count: int) -> str:
    return ",".join(
        f"n{number}=127.0.0.1:{port}" for number, port in enumerate(free_ports(count), 1)
    )


@pytest.fixture
def of_a_stopped_node(tmp_path: Path) -> tuple[Path, str]:
    """The data directory of n1, and the cluster that it belongs to: n1 alone."""
    return tmp_path / "n1", free_members(1)


@pytest.mark.usefixtures("three_nodes")
class TestARunningCluster:
    """What is refused beside three nodes that run, and does them no harm."""

    async def test_the_directory_is_open_already(self, three_nodes: LocalCluster) -> None:
        node = three_nodes.node("n2")
        assert node.process is not None
        status, said = start("n2", node.data_dir, members_of(three_nodes))
        assert status == 1
        assert f"is open in the process with pid {node.process.pid}" in said


async def test_the_directory_is_of_another_node(three_nodes: LocalCluster) -> None:
    members = members_of(three_nodes)
    await three_nodes.down()
    status, said = start("n1", three_nodes.node("n2").data_dir, members)
    assert status == 1
    assert "belongs to n2 of cluster" in said
    assert "not to n1 of cluster" in said


async def test_the_directory_is_of_another_cluster(three_nodes: LocalCluster) -> None:
    members = members_of(three_nodes)
    await three_nodes.down()
    data_dir = three_nodes.node("n1").data_dir
    for cluster, flags in (
        (members, ("--cluster-name", "other")),
        (free_members(3), ()),
    ):
        status, said = start("n1", data_dir, cluster, *flags)
        assert status == 1
        assert "belongs to n1 of cluster" in said
        assert "not to n1 of cluster" in said
    assert sorted(await three_nodes.up()) == ["n1", "n2", "n3"]  # nothing of it did any harm


async def test_the_directory_is_of_a_newer_version(three_nodes: LocalCluster) -> None:
    members = members_of(three_nodes)
    await three_nodes.down()
    data_dir = three_nodes.node("n1").data_dir
    identity = json.loads((data_dir / "kvorum.json").read_text())
    (data_dir / "kvorum.json").write_text(json.dumps(identity | {"format": 2}))
    status, said = start("n1", data_dir, members)
    assert status == 1
    assert "is of format 2, this version knows formats up to 1" in said


def _file(path: Path) -> None:
    path.write_text("precious")


def _foreign(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def _damaged_identity(path: Path) -> None:
    path.mkdir()
    (path / "kvorum.json").write_text("{")


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (_file, "is a file"),
        (_foreign, "is not empty: it contains thesis.tex"),
        (_damaged_identity, "kvorum.json is damaged"),
    ],
)
def test_it_is_no_data_directory_at_all(
    tmp_path: Path, prepare: Sequence[object], expected: str
) -> None:
    path = tmp_path / "data"
    prepare(path)  # type: ignore[operator]
    before = path.read_bytes() if path.is_file() else sorted(path.iterdir())
    status, said = start("n1", path, free_members(1))
    assert status == 1
    assert expected in said
    assert before == (path.read_bytes() if path.is_file() else sorted(path.iterdir()))
