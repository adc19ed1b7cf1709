"""Disks that are full or slow, and clocks that are wrong: made for a process of our own."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.disks import Controller, Disks
from tests.chaos.faults import FAKE_TIME, find_fake_time
from tests.chaos.network import Place
from tests.chaos.nodes import Nodes

FSYNCS = 12
WRITES_PER_SECOND = 8
WRITE_AND_SYNC = f"""
import os, sys, time
sys.stdin.readline()
with open(sys.argv[1], "wb", buffering=0) as file:
    began = time.monotonic()
    for _ in range({FSYNCS}):
        file.write(bytes(4096))
        os.fsync(file.fileno())
    print(time.monotonic() - began)
"""


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    """One small file system, for n1."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    disks = Disks(tmp_path, ["n1"], may_mount=True)
    if disks.lacks_full:
        pytest.skip(disks.lacks_full)
    try:
        yield disks
    finally:
        disks.speed_up("n1")
        disks.remove()


def test_a_full_disk_takes_nothing_until_it_is_freed(disks: Disks) -> None:
    disks.data_dir("n1").mkdir()
    file = disks.data_dir("n1") / "file"
    disks.fill("n1")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.write_bytes(bytes(100_000))
    disks.free("n1")
    file.write_bytes(bytes(100_000))
    assert file.stat().st_size == 100_000
    disks.wipe("n1")
    assert not disks.data_dir("n1").exists()


def test_a_slow_disk_makes_fsync_wait(disks: Disks, tmp_path: Path) -> None:
    if disks.lacks_slow:
        pytest.skip(disks.lacks_slow)
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_SYNC, str(tmp_path / "n1/file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        disks.slow_down("n1", writer.pid, writes_per_second=WRITES_PER_SECOND)
        seconds = float(writer.communicate("\n")[0])
    # Each fsync is one write at least, and the first of them may be free.
    assert seconds > (FSYNCS - WRITES_PER_SECOND) / WRITES_PER_SECOND


def test_without_a_mount_namespace_nothing_is_mounted(tmp_path: Path) -> None:
    disks = Disks(tmp_path, ["n1"], may_mount=False)
    assert "need the namespaces" in disks.lacks_full
    assert "need the namespaces" in disks.lacks_slow
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_control_groups_get_what_they_understand(
    tmp_path: Path, version: int
) -> None:
    if version == 1:
        groups = tmp_path / "blkio"
        groups.mkdir()
        (groups / "blkio.throttle.write_iops_device").touch()
        expected = ("blkio.throttle.write_iops_device", "7:0 5", "7:0 0")
    else:
        groups = tmp_path
        (groups / "cgroup.controllers").write_text("cpu io memory\n")
        (groups / "cgroup.subtree_control").write_text("cpu\n")
        expected = ("io.max", "7:0 wiops=5", "7:0 wiops=max")
    controller = Controller.find(tmp_path)
    assert controller is not None
    controller.limit_writes("kvorum-chaos-1-n1", 123, "7:0", 5)
    group = groups / "kvorum-chaos-1-n1"
    file, limit, no_limit = expected
    assert (group / file).read_text() == limit
    assert (group / "cgroup.procs").read_text() == "123"
    if version == 2:
        assert (groups / "cgroup.subtree_control").read_text() == "+io"
    controller.release("kvorum-chaos-1-n1", "7:0")
    assert (group / file).read_text() == no_limit
    assert (groups / "cgroup.procs").read_text() == "123"


def test_without_a_controller_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    assert Controller.find(tmp_path) is None


@pytest.mark.skipif(find_fake_time() is None, reason=f"there is no {FAKE_TIME}")
def test_a_node_with_another_clock_keeps_the_time_it_measures_with(tmp_path: Path) -> None:
    nodes = Nodes(
        tmp_path,
        {"n1": Place("n1", "127.0.0.1:1", "127.0.0.1:1")},
        ["n1"],
        Disks(tmp_path, [], may_mount=False),
        fake_time_library=find_fake_time(),
    )
    node = nodes.nodes["n1"]
    assert nodes._clock(node) == ()
    node.clock_offset_seconds = -3600
    code = "import time; print(time.time(), time.monotonic())"
    clocks = [
        list(map(float, subprocess.check_output([*prefix, sys.executable, "-c", code]).split()))
        for prefix in ((), nodes._clock(node))
    ]
    (of_day, measured), (wrong_of_day, also_measured) = clocks
    assert -3700 < wrong_of_day - of_day < -3500
    assert 0 <= also_measured - measured < 100
