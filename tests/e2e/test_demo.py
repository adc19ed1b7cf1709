"""The demo: it tells its story to the end, finds what is wrong, and leaves nothing running."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
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
    assert re.search(r"put for 6 s before n\d died, and expired after \d+\.\d s", told)
    assert re.search(r"each told once +3,787\n", told)
    assert "Everything held" in told
    assert_nothing_is_left(tmp_path)


async def test_the_import_is_not_over_before_the_leader_is_dead() -> None:
    """However long it takes to find it, and to kill it."""
    killing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    letters = range(ord("A"), ord("K"))
    records = demo._records(letters, killing)
    early = [await anext(records) for _ in range(9)]
    last = asyncio.ensure_future(anext(records))
    await asyncio.sleep(0)
    assert not last.done()
    killing.set_result(None)
    assert [record.key for record in (*early, await last)] == [*map(demo.key_of, letters)]


def test_too_few_records_are_refused(tmp_path: Path) -> None:
    running = start(tmp_path, "--records", "4095")
    told, _ = running.communicate()
    assert running.returncode == 2
    assert "4095 are too few to lose a leader on the way: 4,096" in told


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


async def test_what_a_watch_has_told_is_compared_with_what_is_there() -> None:
    async with kvorum.open("memory:") as kv, demo.Witness(kv) as witness:
        for point in (0x1000, ord("A"), 0x1F400):
            await kv.put(demo.key_of(point), demo.describe(point))
        assert await demo.verify_told(kv, witness) == 2
        first, second = witness.told
    stored = {first.key: first.revision, second.key: second.revision}
    for told, complaint in (
        ([first], "has missed 1 changes"),
        ([first, first, second], "has told 1 changes twice"),
        ([second, first], "out of order"),
        ([first, replace(second, revision=9)], "has missed 1 changes"),
        ([first, second, replace(second, key="another")], "never happened"),
    ):
        with pytest.raises(demo.DemoFailed, match=complaint):
            demo.require_told_once(told, stored)


async def test_a_session_that_does_not_end_as_it_was_put_is_found() -> None:
    async with kvorum.open("memory:") as kv, demo.Witness(kv) as witness:
        session = await demo.begin_session(kv)
        await kv.touch(demo.SESSION, 0.2)
        told = await witness.hear_end()
    with pytest.raises(demo.DemoFailed, match="was changed"):
        demo.require_expired(told, session)
    put, end = told
    assert end.previous is not None
    assert end.previous.expires_at is not None
    as_it_ended = replace(session, expires_at=end.previous.expires_at)
    demo.require_expired(told, as_it_ended)
    early = replace(end, at=as_it_ended.expires_at - timedelta(milliseconds=1))
    for others, complaint in (
        ([put, early], "was to live until"),
        ([put], "has told"),
        ([put, end, end], "has told"),
        ([put, replace(end, kind="delete")], "has told"),
        ([replace(put, revision=9), end], "another revision"),
    ):
        with pytest.raises(demo.DemoFailed, match=complaint):
            demo.require_expired(others, as_it_ended)
