"""What RocksDB may take of the memory that a process has.

Two engines, and each has two things that grow: write buffers, MAX_WRITE_BUFFERS of them,
into which is written until they reach the disk, and a cache of blocks read from it.

    memory_bytes                    what the process may take, as the limit of its container
    - PROCESS_BYTES, half of that   what RocksDB may take: the rest is for the interpreter, for
                                    messages and values under way, and for the allocator

    an engine's write buffer        a twelfth of RocksDB's, at most USUAL_WRITE_BUFFER_BYTES:
                                    larger ones only make flushes longer
    the log's cache                 a sixth, at most USUAL_CACHE_BYTES: a log is read where it ends
    the state's cache               whatever is left

So 1 GiB gives what an engine has that was told nothing. Not counted: the cache of the
operating system, which takes what others leave, and values of many MiB, of which a node
lets in as many as limits.py says.
"""

from dataclasses import dataclass
from typing import Final, Self

from kvorum.limits import MIB

MAX_WRITE_BUFFERS: Final = 4
"""Memory an engine writes into before it waits for the disk: four buffers at most."""

USUAL_WRITE_BUFFER_BYTES: Final = 32 * MIB
USUAL_CACHE_BYTES: Final = 64 * MIB

PROCESS_BYTES: Final = 256 * MIB
MIN_MEMORY_BYTES: Final = 384 * MIB
"""Leaves RocksDB 64 MiB: with less, every second write would be a flush."""


@dataclass(frozen=True, slots=True)
class EngineBudget:
    """Of one engine."""

    write_buffer_bytes: int = USUAL_WRITE_BUFFER_BYTES
    cache_bytes: int = USUAL_CACHE_BYTES
    """Blocks of files, their indexes and filters, uncompressed."""

    @property
    def total_bytes(self) -> int:
        return MAX_WRITE_BUFFERS * self.write_buffer_bytes + self.cache_bytes


@dataclass(frozen=True, slots=True)
class Budget:
    """Of both."""

    log: EngineBudget = EngineBudget()
    state: EngineBudget = EngineBudget()

    @classmethod
    def of(cls, memory_bytes: int) -> Self:
        """Of a process that may take so much; 0 is the usual size.

        Raises:
            ValueError: it is less than MIN_MEMORY_BYTES.
        """
        if not memory_bytes:
            return cls()
        if memory_bytes < MIN_MEMORY_BYTES:
            raise ValueError(
                f"memory_bytes ({memory_bytes}) must be at least {MIN_MEMORY_BYTES}, or 0: of less,"
                " too little would be left for RocksDB"
            )
        total = (memory_bytes - PROCESS_BYTES) // 2
        write_buffer = min(total // 12, USUAL_WRITE_BUFFER_BYTES)
        log = EngineBudget(write_buffer, min(total // 6, USUAL_CACHE_BYTES))
        state_cache = total - log.total_bytes - MAX_WRITE_BUFFERS * write_buffer
        return cls(log, EngineBudget(write_buffer, state_cache))
