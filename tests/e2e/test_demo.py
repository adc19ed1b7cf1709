"""The demo: it tells its story to the end, finds what is wrong, and leaves nothing running."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

import kvorum
from deploy.local import demo
from tests.support.eventually import eventually
from tests.support.node_processes import nodes_of

SCRIPT = Path(demo.__file__)
OUT = Console(quiet=True)


def start(directory: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": "", "TMPDIR": str(directory)},
    )


def assert_nothing_is_left(directory: Path) -> None:
    assert nodes_of(directory) == []
    assert list(directory.iterdir()) == []


@pytest.mark.cluster
def test_a_short_demo_holds(tmp_path: Path) -> None:
    running = start(tmp_path, "--records", "8000")
    told, _ = running.communicate()
    assert running.returncode == 0, told
    assert "acknowledged writes lost" in told
    assert "Everything held" in told
    assert_nothing_is_left(tmp_path)


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    running = start(tmp_path)
    await eventually(lambda: len(nodes_of(tmp_path)) == 3)
    running.send_signal(number)
    told, _ = running.communicate()
    assert running.returncode == demo.INTERRUPTED, told
    assert_nothing_is_left(tmp_path)


CHARACTERS = [ord("A"), ord("B"), ord("√"), 0x1F400, 0x1F401]


@pytest.fixture
async def kv() -> AsyncIterator[kvorum.KV]:
    async with kvorum.open("memory:") as store:
        for point in CHARACTERS:
            await store.put(demo.key_of(point), demo.describe(point))
        yield store


async def test_what_is_right_passes(kv: kvorum.KV) -> None:
    await demo.look_up(kv, OUT)
    await demo.page_through(kv, CHARACTERS, OUT)
    await demo.count_categories(kv, CHARACTERS, OUT)
    await demo.verify_acknowledged(kv, await everything(kv), len(CHARACTERS))


async def everything(kv: kvorum.KV) -> dict[str, bytes]:
    return {entry.key: entry.value async for entry in kv.scan(type="bytes")}


async def test_a_lost_write_is_found(kv: kvorum.KV) -> None:
    acknowledged = await everything(kv)
    await kv.delete(demo.key_of(ord("B")))
    with pytest.raises(demo.DemoFailed, match="1 acknowledged writes are lost"):
        await demo.verify_acknowledged(kv, acknowledged, len(CHARACTERS))
    with pytest.raises(demo.DemoFailed, match="categories"):
        await demo.count_categories(kv, CHARACTERS, OUT)


async def test_a_changed_value_is_found(kv: kvorum.KV) -> None:
    acknowledged = await everything(kv)
    await kv.put(demo.key_of(ord("A")), demo.describe(ord("B")))
    with pytest.raises(demo.DemoFailed, match="1 acknowledged writes are lost or changed"):
        await demo.verify_acknowledged(kv, acknowledged, len(CHARACTERS))
    with pytest.raises(demo.DemoFailed, match="0041 holds"):
        await demo.look_up(kv, OUT)


async def test_a_record_that_nobody_wrote_is_found(kv: kvorum.KV) -> None:
    acknowledged = await everything(kv)
    await kv.put(demo.key_of(0x1F402), demo.describe(0x1F402))
    with pytest.raises(demo.DemoFailed, match="holds 6 records, not 5"):
        await demo.verify_acknowledged(kv, acknowledged, len(CHARACTERS))
    with pytest.raises(demo.DemoFailed, match="lists 3 keys, not 2"):
        await demo.page_through(kv, CHARACTERS, OUT)
