"""A store and a fork: an error or a fresh connection, in the child and in the parent, never a hang.

Each program runs in a process of its own, as gRPC's state cannot be had twice in one. It talks
to a node in this process, and whatever hangs is killed by an alarm, which its status shows.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import pytest

from tests.support.fake_watches import WatchingNode

BEGINNING = """
import multiprocessing, os, signal, sys, threading
import kvorum
from kvorum import Closed

target = sys.argv[1]
signal.alarm(60)

def forked(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a fork takes none along
        try:
            work()
            sys.stdout.flush()
        except BaseException as error:
            print("child failed:", repr(error), flush=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def attempt(call):
    try:
        print("child:", call())
    except Closed as error:
        print("child:", error)
"""
OPENED_BEFORE = "child: the store was opened in process PARENT and does not survive a fork"
CONNECTED_BEFORE = "child: the process that this one was forked from had a connection open"


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with WatchingNode("n1") as n1:
        n1.lead(term=1)
        yield n1.address


async def run(program: str, target: str, **environment: str) -> list[str]:
    """What it prints, with the number of its process as PARENT."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        BEGINNING + program,
        target,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, (process.returncode, out, errors)
    return out.decode().replace(str(process.pid), "PARENT").splitlines()


@pytest.mark.parametrize("handlers", ["0", "1"], ids=["", "with gRPC's fork handlers"])
async def test_a_store_that_is_open_stays_with_the_parent(address: str, handlers: str) -> None:
    """Threads call all the time; the child's calls and its own store are refused at once."""
    program = """
kv = kvorum.open_sync(target)
ended = threading.Event()

def write():
    while not ended.is_set():
        kv.put("a", 1)

threads = [threading.Thread(target=write) for _ in range(4)]
for thread in threads:
    thread.start()
kv.put("a", 1)

def child():
    attempt(lambda: kv.put("a", 1))
    attempt(lambda: next(kv.watch("a")))
    attempt(lambda: kvorum.open_sync(target))
    kv.close()

for _ in range(3):
    print("status", forked(child))
    print("parent", kv.put("a", 1) > 0)
ended.set()
for thread in threads:
    thread.join()
kv.close()
"""
    printed = await run(program, f"kvorum://{address}", GRPC_ENABLE_FORK_SUPPORT=handlers)
    expected = [OPENED_BEFORE, OPENED_BEFORE, CONNECTED_BEFORE, "status 0", "parent True"] * 3
    assert len(printed) == len(expected)
    assert [
        (line, start)
        for line, start in zip(printed, expected, strict=True)
        if not line.startswith(start)
    ] == []


async def test_a_child_opens_a_store_in_memory_or_in_a_directory(tmp_path: object) -> None:
    program = """
kv = kvorum.open_sync("memory:")
kv.put("a", 1)

def child():
    for where in ("memory:", target):
        with kvorum.open_sync(where) as own:
            attempt(lambda: own.get("a"))
            attempt(lambda: own.add("n"))

print("status", forked(child))
print("parent", kv.get("a").value)
kv.close()
"""
    printed = await run(program, f"{tmp_path}/store")
    assert printed == [*["child: None", "child: 1"] * 2, "status 0", "parent 1"]


@pytest.mark.parametrize("handlers", ["0", "1"], ids=["", "with gRPC's fork handlers"])
async def test_a_process_that_has_closed_its_store_forks_as_it_likes(
    address: str, handlers: str
) -> None:
    """As one that reads its settings before it forks workers. Then all open stores of their own."""
    program = """
for _ in range(5):
    with kvorum.open_sync(target) as kv, kv.watch("a"):
        kv.put("a", 1)

    def child():
        with kvorum.open_sync(target) as own:
            attempt(lambda: own.put("a", 1) > 0)

    print("status", forked(child))
with kvorum.open_sync(target) as kv:
    print("parent", kv.put("a", 1) > 0)
"""
    printed = await run(program, f"kvorum://{address}", GRPC_ENABLE_FORK_SUPPORT=handlers)
    assert printed == [*["child: True", "status 0"] * 5, "parent True"]


async def test_whoever_keeps_something_of_grpc_gets_an_error_in_the_child(address: str) -> None:
    """As another library may, of which this one knows nothing."""
    program = """
import asyncio, grpc.aio

async def use():
    channel = grpc.aio.insecure_channel(target.removeprefix("kvorum://"))
    await channel.channel_ready()
    return channel

kept = asyncio.run(use())
print("status", forked(lambda: attempt(lambda: kvorum.open_sync(target))))
"""
    child, status = await run("import kvorum.channels\n" + program, f"kvorum://{address}")
    assert child.startswith(CONNECTED_BEFORE)
    assert status == "status 0"


async def test_an_error_that_is_kept_does_not_keep_the_connection(address: str) -> None:
    program = """
kept = []
with kvorum.open_sync(target + ",127.0.0.1:1") as kv:
    kv.put("a", 1)
    try:
        with kvorum.open_sync("kvorum://127.0.0.1:1", timeout=0.3) as away:
            away.put("a", 1)
    except kvorum.NoNodeReachable as error:
        kept.append(error)

def child():
    with kvorum.open_sync(target) as own:
        attempt(lambda: own.put("a", 1) > 0)

print("status", forked(child), len(kept))
"""
    assert await run(program, f"kvorum://{address}") == ["child: True", "status 0 1"]


async def test_the_workers_of_a_server_that_forks_open_their_own(address: str) -> None:
    """As gunicorn does: the master opens nothing, its workers do when they have been forked."""
    program = """
workers = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        with kvorum.open_sync(target) as kv:
            print("worker", kv.put("a", number) > 0, flush=True)
        os._exit(0)
    workers.append(pid)
for pid in workers:
    print("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
    printed = await run(program, f"kvorum://{address}")
    assert sorted(printed) == ["status 0"] * 4 + ["worker True"] * 4


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
async def test_multiprocessing(address: str, method: str, tmp_path: object) -> None:
    """A child that was forked is refused, and ends as Python ends a process; others are fresh."""
    program = f"""
source = '''
import kvorum

kv = None

def work(target):
    try:
        if kv is not None:
            kv.get("a")
        with kvorum.open_sync(target) as own:
            return own.put("a", 1) > 0
    except kvorum.Closed as error:
        return str(error)
'''
sys.path.insert(0, {str(tmp_path)!r})
open({f"{tmp_path}/worker.py"!r}, "w").write(source)
import worker
worker.kv = kvorum.open_sync(target)
worker.kv.put("a", 1)
context = multiprocessing.get_context({method!r})
with context.Pool(2) as pool:
    for answer in pool.map(worker.work, [target] * 4):
        print("child:", answer)
    pool.close()
    pool.join()
print("parent", worker.kv.put("a", 1) > 0)
worker.kv.close()
"""
    *children, parent = await run(program, f"kvorum://{address}")
    start = OPENED_BEFORE if method == "fork" else "child: True"
    assert len(children) == 4
    assert [one for one in children if not one.startswith(start)] == []
    assert parent == "parent True"


async def test_an_asynchronous_store_does_not_hang_in_a_child(address: str) -> None:
    program = """
import asyncio

async def main():
    kv = await kvorum.open(target)
    await kv.put("a", 1)
    def child():
        attempt(lambda: asyncio.run(kv.put("a", 1)))
    print("status", forked(child))
    print("parent", await kv.put("a", 1) > 0)
    await kv.close()

asyncio.run(main())
"""
    child, status, parent = await run(program, f"kvorum://{address}")
    assert child.startswith("child failed:")
    assert (status, parent) == ("status 0", "parent True")
