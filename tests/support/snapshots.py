"""Taking a snapshot of one machine and giving it to another, in a single call."""

from kvorum import limits
from kvorum_node.machine import ContentHash, Machine, Staging
from kvorum_node.raft.types import Index


def snapshot_of(machine: Machine, chunk_bytes: int = limits.MAX_SNAPSHOT_CHUNK_BYTES) -> bytes:
    """The whole stream."""
    reader = machine.read_snapshot()
    chunks = []
    while chunk := reader.chunk(chunk_bytes):
        assert len(chunk) <= chunk_bytes
        chunks.append(chunk)
    reader.close()
    return b"".join(chunks)


def write_all(staging: Staging, stream: bytes, chunk_bytes: int) -> None:
    for start in range(0, len(stream), chunk_bytes):
        staging.write(stream[start : start + chunk_bytes])


def stage(
    machine: Machine,
    stream: bytes,
    applied: Index,
    chunk_bytes: int = limits.MAX_SNAPSHOT_CHUNK_BYTES,
) -> None:
    """Receive the whole stream into the space beside the state."""
    staging = machine.stage_snapshot()
    write_all(staging, stream, chunk_bytes)
    staging.finish(applied)


def hash_of(machine: Machine) -> ContentHash:
    hasher = machine.content_hash()
    while (content := hasher.step()) is None:
        pass
    return content
