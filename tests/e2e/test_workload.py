"""The workload of deploy/local: it goes on over failures, finds what is wrong, and says so."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import kvorum
from deploy.local import workload
from deploy.local.workload import Workload
from kvorum.cli.local_cluster import LocalCluster
from kvorum.cli.rolling_restart import rolling_restart
from kvorum.errors import DeadlineExceeded, Unavailable
from tests.support.eventually import eventually

SCRIPT = Path(workload.__file__)


@pytest.fixture
async def kv() -> AsyncIterator[kvorum.KV]:
    async with kvorum.open("memory:") as store:
        yield store


async def worked(kv: kvorum.KV, *, writes: int = 300) -> Workload:
    """A workload that has ended after so many writes."""
    done = Workload(kv, "test", 2)

    async def stop() -> None:
        await eventually(lambda: done.lately.writes >= writes and done.lately.reads > 0)
        done.stop.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(done.run())
        tasks.create_task(stop())
    return done


async def test_what_is_right_passes_and_leaves_nothing(kv: kvorum.KV) -> None:
    await kv.put("mine", 1)
    done = await worked(kv)
    await done.look_for_everything()
    assert (done.broken.count, done.failed.count) == (0, 0)
    assert done.take_figures().writes >= 300
    assert done.total.writes >= 300
    await done.remove()
    assert [entry.key async for entry in kv.scan()] == ["mine"]


async def test_a_lost_and_an_old_value_are_found(kv: kvorum.KV) -> None:
    done = await worked(kv)
    await kv.delete("workload:test:0:07")
    await kv.put("workload:test:1:07", 7)
    await done.look_for_everything()
    lost, old = done.broken.shown
    assert lost.startswith("workload:test:0:07 holds None; ")
    assert old.startswith("workload:test:1:07 holds 7; ")


@pytest.mark.parametrize("change", [-1, 1])
async def test_a_write_that_is_missing_or_was_applied_twice_is_found(
    kv: kvorum.KV, change: int
) -> None:
    done = await worked(kv)
    await kv.add("workload:test:0:count", change)
    await done.look_for_everything()
    [broken] = done.broken.shown
    assert broken.startswith("workload:test:0:count counts ")
    assert broken.endswith("were acknowledged, 0 are in doubt")


async def test_a_stale_read_is_found(kv: kvorum.KV, monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(key: str) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(kv, "get", get)
    done = await worked(kv)
    assert "holds None" in done.broken.shown[0]


async def test_what_fails_is_told_and_what_is_in_doubt_may_be_there_or_not(kv: kvorum.KV) -> None:
    done = Workload(kv, "test", 1)
    [writer] = done._writers
    for error in (Unavailable("down"), DeadlineExceeded("late", maybe_applied=True)):

        class Failing:
            def atomic(self, error: Exception = error) -> None:
                raise error

        done._kv = Failing()  # type: ignore[assignment]  # all that a write uses
        assert not await done._time(writer.write(done._kv, 1), "a write")
    assert done.failed.shown == ["a write: down", "a write: late"]
    assert writer.in_doubt == 1
    done._kv = kv
    for applied, broken in ((0, 0), (1, 0), (2, 1)):
        await kv.put(writer.counter, applied)
        done.broken = workload.Complaints()
        await done.look_for_everything()
        assert done.broken.count == broken


def start(cluster: LocalCluster, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--target", cluster.target, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_goes_on_until_it_is_told_to_end(
    empty_cluster: LocalCluster, number: signal.Signals
) -> None:
    await empty_cluster.up(nodes=3, base_port=0)
    working = start(empty_cluster)
    async with kvorum.open(empty_cluster.target) as kv:

        async def is_working() -> bool:
            return bool((await kv.list("workload:", limit=1)).entries)

        while not await is_working():
            assert working.poll() is None
        await rolling_restart(empty_cluster, lambda name, is_ready: None)
        working.send_signal(number)
        told, _ = working.communicate(timeout=60)
        assert working.returncode == 0, told
        assert "Nothing that was acknowledged is lost" in told
        assert not await is_working()


def test_a_cluster_that_does_not_answer_is_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVORUM_CLUSTER_DIR", str(tmp_path))
    monkeypatch.delenv("KVORUM_TARGET", raising=False)
    ran = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: no store to talk to: ")
    assert ran.stderr.count("\n") == 1
