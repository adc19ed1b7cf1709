"""The store for threads."""

import asyncio
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

import kvorum
from kvorum import (
    KV,
    Atomic,
    Attempts,
    Closed,
    IndexEntry,
    RateLimit,
    SyncAtomic,
    SyncAttempts,
    SyncKV,
    SyncTransaction,
    SyncWatch,
    Transaction,
    Watch,
)
from kvorum.backends import session
from kvorum.cli.local_cluster import LocalCluster
from kvorum.loop_thread import LoopThread
from tests.client.conftest import Nodes, backend_of, target_of
from tests.client.test_cluster import silent
from tests.support.eventually import eventually
from tests.support.fake_server import succeed

TWINS = [
    (KV, SyncKV),
    (Atomic, SyncAtomic),
    (Transaction, SyncTransaction),
    (Attempts, SyncAttempts),
    (Watch, SyncWatch),
]


def public(cls: type) -> dict[str, Any]:
    """By name, its methods, and what gives its properties."""
    return {
        name: value.fget if isinstance(value, property) else value
        for base in cls.__mro__
        for name, value in vars(base).items()
        if not name.startswith("_")
    }


def shape(function: Any) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


@pytest.mark.parametrize(("waits", "blocks"), TWINS)
def test_both_have_the_same_methods_with_the_same_parameters(waits: type, blocks: type) -> None:
    # `open` is how a SyncKV is made, and its `run` is the way from one to the other.
    own = {"open", "run", "submit"} if blocks is SyncKV else set()
    names = public(blocks).keys() - own
    assert public(waits).keys() == names
    for name in names:
        assert shape(public(waits)[name]) == shape(public(blocks)[name]), name


@pytest.mark.parametrize(("waits", "blocks"), TWINS)
def test_both_return_the_same(waits: type, blocks: type) -> None:
    for name, function in public(waits).items():
        expected = inspect.signature(function).return_annotation
        actual = inspect.signature(public(blocks)[name]).return_annotation
        twins: dict[Any, Any] = {**dict(TWINS), Watch[Any]: SyncWatch[Any]}
        if getattr(expected, "__origin__", None) is AsyncIterator:
            assert actual.__origin__ is Iterator
            assert actual.__args__ == expected.__args__
        else:
            assert actual == twins.get(expected, expected), name


def test_every_method(target: str) -> None:
    with kvorum.open_sync(target, timeout=30) as kv:
        while kv.delete_range(start=""):
            pass
        revision = kv.put("a", {"x": 1})
        entry = kv.get("a")
        assert entry is not None
        assert (entry.value, entry.revision) == ({"x": 1}, revision)
        assert kv.add("n", 5) == 5
        assert kv.add("n", 5, max=7, saturate=True, ttl=9).applied == 2
        assert kv.add("n", -2, min=0) == 5
        assert [entry.key for entry in kv.list().entries] == ["a", "n"]
        assert [entry.key for entry in kv.scan(page_size=1)] == ["a", "n"]
        result = kv.atomic().check("a", revision=revision).put("b", 1).add("n").get("b").commit()
        assert result.results[:2] == (result.revision, 6)
        built = kv.atomic().check_range("z", exists=True).put("z", 1, ttl=60)
        built.otherwise().touch("a", 60).persist("n").list("a", limit=1, reverse=True)
        built.get_and_delete("b").delete_range("y").rate_limit(RateLimit("r", 1, 1))
        other = built.commit()
        assert (other.succeeded, other.results[:2]) == (False, (True, True))
        assert len(other.results[2]) == 1
        assert kv.transaction(attempts=1).run(lambda txn: txn.get("a")) == kv.get("a")
        assert kv.touch("a", 60) is True
        assert 0 < (kv.ttl("a") or 0) <= 60
        assert kv.persist("a") is True
        assert kv.rate_limit(RateLimit("r", 5, 1, cost=0)).allowed
        index_entries = [IndexEntry("i", "v", unique=True)]
        revision = kv.put("a", 1, revision=revision, metadata=b"m", index_entries=index_entries)
        assert kv.delete("a", revision=revision) is True
        assert kv.delete("a") is False
        assert kv.get_and_delete("a") is None
        assert kv.delete_range(start="") == 1
        assert repr(kv) == f"<SyncKV {target} open>"
    assert repr(kv) == f"<SyncKV {target} closed>"


def test_threads_share_the_store(blocking: SyncKV) -> None:
    with ThreadPoolExecutor(16) as pool:
        sums = list(pool.map(lambda _: blocking.add("n"), range(200)))
        assert sorted(sums) == list(range(1, 201))


@pytest.mark.cluster
def test_several_stores_of_a_process_log_nothing(
    local_cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC lets the loops fail that it has woken in vain."""
    target = local_cluster.target
    with (
        kvorum.open_sync(target, timeout=30) as one,
        kvorum.open_sync(target, timeout=30) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        list(pool.map(lambda kv: [kv.get("k") for _ in range(200)], [one, two]))
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_what_fails_in_the_loop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail_later(_: KV) -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)

    with kvorum.open_sync("memory:") as kv:
        kv.run(fail_later)
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_threads_share_one_stream(nodes: Nodes) -> None:
    n1, _, _ = nodes

    def work() -> None:
        with kvorum.open_sync(target_of(*nodes)) as kv, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: kv.put(f"k{i}", i), range(50)))

    thread = threading.Thread(target=work)
    thread.start()
    # The fake nodes live in this loop: it must not be blocked by a join.
    await eventually(lambda: not thread.is_alive())
    assert len(n1.calls) == 50
    assert n1.sessions_opened == 1


def in_threads(work: Callable[[int], object], threads: int) -> threading.Thread:
    """Run it in so many threads at once, beside the loop of this test."""

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


async def test_calls_of_64_threads_share_messages(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a Flask or Django process: while one is under way, the others gather."""
    monkeypatch.setattr(session, "SEND_INTERVAL_SECONDS", 60.0)
    n1, _, _ = nodes
    kv = await asyncio.to_thread(kvorum.open_sync, target_of(*nodes))
    backend = backend_of(kv._kv)
    await asyncio.to_thread(kv.put, "warm", 1)
    n1.script = silent
    n1.messages.clear()
    first = in_threads(lambda _: kv.get("first"), 1)
    await eventually(lambda: n1.messages)
    others = in_threads(lambda i: kv.put(f"k{i}", i), 64)
    await eventually(lambda: len(backend._calls) == 65)
    n1.script = succeed
    n1.answer(n1.calls[-1])
    await eventually(lambda: not (first.is_alive() or others.is_alive()))
    assert [len(message.calls) for message in n1.messages] == [1, 64]
    assert n1.sessions_opened == 1
    await asyncio.to_thread(kv.close)


async def test_threads_that_call_all_the_time_share_messages(nodes: Nodes) -> None:
    """How many share one depends on the machine; without sharing there is a message for each."""
    n1, _, _ = nodes
    kv = await asyncio.to_thread(kvorum.open_sync, target_of(*nodes))

    def write(thread: int) -> None:
        for index in range(20):
            kv.put(f"{thread}:{index}", index)

    writing = in_threads(write, 64)
    await eventually(lambda: not writing.is_alive())
    assert len(n1.calls) == 64 * 20
    assert len(n1.messages) <= len(n1.calls) / 2
    await asyncio.to_thread(kv.close)


def test_close_ends_the_thread_and_may_be_repeated() -> None:
    kv = kvorum.open_sync("memory:")
    assert "kvorum" in {thread.name for thread in threading.enumerate()}
    kv.close()
    kv.close()
    assert "kvorum" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(Closed):
        kv.get("a")
    with pytest.raises(Closed):
        kv.atomic().put("a", 1).commit()


def test_a_store_that_cannot_be_opened_leaves_no_thread(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((kvorum.StorageError, OSError)):
        kvorum.open_sync(tmp_path / "file")
    assert "kvorum" not in {thread.name for thread in threading.enumerate()}


def write_for_ever(kv: SyncKV) -> NoReturn:
    while True:
        kv.put("a", 1)


def test_threads_that_race_with_close_end_all() -> None:
    """A call that is submitted while the loop stops is answered, if only with Closed."""
    for _ in range(20):
        kv = kvorum.open_sync("memory:")
        begun = threading.Barrier(5)

        def work(kv: SyncKV = kv, begun: threading.Barrier = begun) -> None:
            begun.wait()
            with pytest.raises(Closed):
                write_for_ever(kv)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        begun.wait()
        kv.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def test_what_was_submitted_before_the_stop_ends_by_itself() -> None:
    thread = LoopThread()
    begun = threading.Event()

    async def slow() -> str:
        begun.set()
        await asyncio.sleep(0.05)
        return "done"

    with ThreadPoolExecutor() as pool:
        result = pool.submit(lambda: thread.call(slow()))
        assert begun.wait(10)
        thread.stop()
        assert result.result(10) == "done"


def test_a_forked_child_gets_an_error_and_does_not_hang() -> None:
    kv = kvorum.open_sync("memory:")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # Nothing of pytest may run in the child, whatever happens.
        try:
            kv.get("a")
        except Closed as error:
            os.write(write, str(error).encode())
        finally:
            kv.close()
            os._exit(0)
    os.close(write)
    timer = threading.Timer(10, os.kill, (child, signal.SIGKILL))
    timer.start()
    with os.fdopen(read) as pipe:
        message = pipe.read()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    timer.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert "does not survive a fork" in message
    kv.close()


@pytest.mark.parametrize("target", ["memory:", "data", "kvorum://127.0.0.1:1"])
def test_a_program_that_forgets_to_close_ends_quietly(target: str, tmp_path: Path) -> None:
    code = f"import kvorum; kv = kvorum.open_sync({target!r})"
    if "//" not in target:
        code += "; kv.put('a', 1)"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_interrupted_call_is_cancelled() -> None:
    """Ctrl-C comes as an exception out of the wait; the call must not stay behind."""
    code = (
        "import kvorum, signal, threading, time, os\n"
        "kv = kvorum.open_sync('kvorum://127.0.0.1:1')\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try: kv.get('a', timeout=300)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        "while kv._kv._backend._calls: time.sleep(0.01)\n"
        "kv.close()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.stdout == "interrupted\n"


def test_an_async_function_runs_in_the_loop_of_the_store() -> None:
    async def work(kv: KV) -> int:
        await asyncio.gather(kv.put("a", 1), kv.put("b", 2))
        return await kv.put("c", 3)

    with kvorum.open_sync("memory:") as kv:
        assert kv.run(work) == 3
        assert kv.submit(work).result(timeout=30) == 6


def test_an_error_that_nobody_waits_for_any_more_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As asyncio would, for a task with an error that nobody has asked for."""
    begun = threading.Event()

    async def fail(_: KV) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    with kvorum.open_sync("memory:") as kv:
        future = kv.submit(fail)
        assert begun.wait(timeout=30)
        assert future.cancel()
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []
