"""A log that the disk has damaged: repaired or refused with a reason, and never believed."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvorum import KV
from kvorum.cli.local_cluster import LocalCluster, NodeFailed
from tests.support.workload import Workload, agreed_content, assert_nothing_lost, followers

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

Damage = Callable[[Path], None]
"""What happens to the directory of a stopped node's log."""


def newest(log: Path, pattern: str) -> Path:
    return max(log.glob(pattern), key=lambda path: int(path.stem))


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def bit_flipped_at(fraction: float) -> Damage:
    """In the write-ahead log, so far into it."""

    def damage(log: Path) -> None:
        path = newest(log, "*.log")
        flip_a_bit(path, int((path.stat().st_size - 1) * fraction))

    return damage


def cut_off(count: int) -> Damage:
    """The last bytes of the write-ahead log are gone."""

    def damage(log: Path) -> None:
        path = newest(log, "*.log")
        with path.open("r+b") as file:
            file.truncate(max(0, path.stat().st_size - count))

    return damage


def rubbish_appended(log: Path) -> None:
    """As if the node had died in the middle of a write."""
    with newest(log, "*.log").open("ab") as file:
        file.write(random.Random(1).randbytes(1000))


def write_ahead_log_lost(log: Path) -> None:
    newest(log, "*.log").unlink()


def mark_lost(log: Path) -> None:
    (log / "SYNCED").unlink()


def everything_lost(log: Path) -> None:
    shutil.rmtree(log)


# What was synced is gone: believing the rest could undo a promise.
REFUSED = {
    "bit at the start": bit_flipped_at(0.0),
    "bit in the middle": bit_flipped_at(0.5),
    "bit at the end": bit_flipped_at(1.0),
    "one byte cut off": cut_off(1),
    "half a megabyte cut off": cut_off(500_000),
    "write-ahead log lost": write_ahead_log_lost,
    "mark lost": mark_lost,
    "everything lost": everything_lost,
}
# What had never been synced may go.
RECOVERED = {"rubbish appended": rubbish_appended}


async def refusal(cluster: LocalCluster, name: str) -> str:
    """The last line of the node when it does not start; empty if it does."""
    try:
        await cluster.restart(name)
    except NodeFailed as error:
        return str(error).splitlines()[-1]
    return ""


async def test_damage_to_what_was_synced_is_refused_and_the_rest_recovered(
    three_nodes: LocalCluster, kv: KV, tmp_path: Path
) -> None:
    victim = (await followers(three_nodes))[0]
    log, clean = victim.data_dir / "log", tmp_path / "clean"
    async with Workload(kv, padding_bytes=1000) as work:
        await work.progress(3000)
    await agreed_content(three_nodes)  # from here on all of its log is synced
    three_nodes.kill(victim.name)
    shutil.copytree(victim.data_dir, clean)
    for what, damage in (REFUSED | RECOVERED).items():
        shutil.rmtree(victim.data_dir)
        shutil.copytree(clean, victim.data_dir)
        damage(log)
        if what in REFUSED:
            said = await refusal(three_nodes, victim.name)
            assert f"{victim.name} stops: " in said, what
            assert "replace this node" in said.lower(), what
        else:
            await three_nodes.restart(victim.name)
        await assert_nothing_lost(three_nodes, work)
    # The last one was recovered: the node is back, and takes part.
    three_nodes.kill(await three_nodes.leader())
    async with Workload(kv, first=1_000_000) as more:
        pass
    work.merge(more)
    await assert_nothing_lost(three_nodes, work)
