"""Readers beside writers while a leader is killed: the old or the new, whole, and never a mix."""

import asyncio

import pytest

import kvorum
from kvorum import KV
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import chunked

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

CHUNK_BYTES = 64 * 1024
CHUNKS = 5
WRITERS = 2
READERS = 4
READS = 20
"""Before the kill, after it, and after the restart, of all readers together."""


def version(number: int) -> bytes:
    """Data that is of one write alone, in every byte."""
    return bytes([number % 256]) * (CHUNK_BYTES * CHUNKS)


async def test_no_reader_sees_a_mix_while_a_leader_is_killed(mortal_cluster: LocalCluster) -> None:
    stopping, reads, writes = False, 0, 0

    async def write(kv: KV, number: int) -> None:
        nonlocal writes
        while not stopping:
            await chunked.put(kv, "doc", version(number), chunk_bytes=CHUNK_BYTES)
            number, writes = number + WRITERS, writes + 1

    async def read(kv: KV) -> None:
        nonlocal reads
        while not stopping:
            data = await chunked.get(kv, "doc")
            assert data is not None
            assert len(data) == CHUNK_BYTES * CHUNKS
            assert len(set(data)) == 1, "a mix of two writes"
            reads += 1

    async def progress() -> None:
        wanted, begun = reads + READS, writes
        async with asyncio.timeout(60):
            while reads < wanted or writes < begun + WRITERS:  # noqa: ASYNC110 - of many tasks
                await asyncio.sleep(0.01)

    async with (
        kvorum.open(mortal_cluster.target, timeout=60) as writer,
        kvorum.open(mortal_cluster.target, timeout=60) as reader,
    ):
        await chunked.put(writer, "doc", version(0), chunk_bytes=CHUNK_BYTES)
        async with asyncio.TaskGroup() as tasks:  # a call that fails, fails the test
            for number in range(WRITERS):
                tasks.create_task(write(writer, number))
            for _ in range(READERS):
                tasks.create_task(read(reader))
            await progress()
            leader = await mortal_cluster.leader()
            mortal_cluster.kill(leader)
            await progress()
            await mortal_cluster.restart(leader)
            await progress()
            stopping = True
        head = await chunked.head(reader, "doc")
        assert head is not None
        expected = set(chunked._chunks("doc", head))
        async with asyncio.timeout(60):
            while {entry.key async for entry in reader.scan("chunk:", keys_only=True)} != expected:  # noqa: ASYNC110 - log time has to pass
                await asyncio.sleep(0.05)


async def test_the_usual_form_mixes_two_writes(mortal_cluster: LocalCluster) -> None:
    """One key for each chunk: a reader who is in the middle has some of both."""

    async def write(kv: KV, data: bytes) -> None:
        for number in range(CHUNKS):
            part = data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            await kv.put(f"doc:{number}", part, type="bytes")

    async with kvorum.open(mortal_cluster.target) as kv:
        await write(kv, version(1))
        parts = []
        for number in range(CHUNKS):
            entry = await kv.get(f"doc:{number}", type="bytes")
            assert entry is not None
            parts.append(entry.value)
            if number == 1:  # made certain: this is where the other one comes between
                await write(kv, version(2))
        assert set(b"".join(parts)) == {1, 2}
