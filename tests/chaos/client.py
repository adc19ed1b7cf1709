"""A client process: some tasks that call the cluster through the library, and note every call.

    python -m tests.chaos.client TARGET NAME DIRECTORY CALLS_PER_SECOND

Writes DIRECTORY/NAME.jsonl, and NAME.leases.jsonl with the calls to keys that expire, until
SIGTERM; the calls under way are finished then. The keys:

    r<epoch>:<i>   registers: put, get, delete, compare-and-set by revision
    p<epoch>:<i>   pairs: written and read together, in transactions
    n<epoch>:<i>   counters: each write is applied once, so that the sum is exact
    t<epoch>:<i>   leases: put with a time to live, touched, read while they live and afterwards
    ledger:...     one key per write, never touched again: what is acknowledged must be there

An epoch lasts EPOCH_SECONDS. New keys in each keep the histories of single keys short, and so
the checker quick. Every value is written once.
"""

import asyncio
import itertools
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import kvorum
from tests.chaos.leases import LEASES, LeaseCall, LeaseRecorder
from tests.chaos.leases import to_line as lease_to_line
from tests.chaos.watches import PAIRS
from tests.support.histories import Record, Recorder, to_line
from tests.support.linearizability_kvorum import Add, Check, Committed, Delete, Get, Put, Seen

TASKS: Final = 4
CALL_SECONDS: Final = 4.0
EPOCH_SECONDS: Final = 10.0
REGISTERS: Final = 3
COUNTERS: Final = 2
LEASES_PER_EPOCH: Final = 30
LEASE_SECONDS: Final = (1.0, 3.0, 8.0)
"""Times to live."""
LEDGER: Final = "ledger:"
LEDGER_PADDING: Final = "." * 1000
"""Makes the nodes' log grow by tens of KB per second: they cut it while followers are away."""


class Caller:
    """One task: one call at a time."""

    def __init__(
        self, recorder: Recorder, leases: LeaseRecorder, name: str, chance: random.Random
    ) -> None:
        self._recorder = recorder
        self._leases = leases
        self._chance = chance
        self._values: Iterator[str] = (f"{name}-{number}" for number in itertools.count(1))
        self._seen: dict[str, int] = {}
        """By register, the revision that was read last; 0 if the key was absent."""

    async def call(self) -> None:
        """Make one call, drawn by chance."""
        epoch = int(time.monotonic() / EPOCH_SECONDS)
        register = f"r{epoch}:{self._chance.randrange(REGISTERS)}"
        counter = f"n{epoch}:{self._chance.randrange(COUNTERS)}"
        first, second = f"{PAIRS}{epoch}:1", f"{PAIRS}{epoch}:2"
        recorder, value = self._recorder, next(self._values)
        draw = self._chance.random()
        if draw < 0.24:
            self._note(register, await recorder.get(register))
        elif draw < 0.37:
            await recorder.put(register, value)
        elif draw < 0.50:
            revision = self._seen.pop(register, 0)
            check = Check(register, revision=revision)
            await recorder.transact(Put(register, value), checks=[check])
        elif draw < 0.55:
            await recorder.transact(Delete(register))
        elif draw < 0.60:
            await recorder.transact(Put(first, value), Put(second, value))
        elif draw < 0.65:
            await recorder.transact(Get(first), Get(second))
        elif draw < 0.70:
            await recorder.transact(Add(counter, 1))
        elif draw < 0.75:
            await recorder.add(counter, 1)
        elif draw < 0.78:
            await recorder.get(counter)
        elif draw < 0.88:
            await recorder.put(f"{LEDGER}{value}", f"{value}{LEDGER_PADDING}")
        else:
            await self._call_lease(epoch, value)

    async def _call_lease(self, epoch: int, value: str) -> None:
        """Reads are of the last epoch, too: its keys are about to expire, and have expired."""
        leases, chance = self._leases, self._chance
        number = chance.randrange(LEASES_PER_EPOCH)
        seconds = chance.choice(LEASE_SECONDS)
        draw = chance.random()
        if draw < 0.30:
            await leases.put(f"{LEASES}{epoch}:{number}", value, seconds)
        elif draw < 0.45:
            await leases.touch(f"{LEASES}{epoch}:{number}", seconds)
        elif draw < 0.75:
            await leases.get(f"{LEASES}{epoch - chance.randrange(2)}:{number}")
        else:
            await leases.ttl(f"{LEASES}{epoch - chance.randrange(2)}:{number}")

    def _note(self, register: str, record: Record) -> None:
        match record.operation.response:
            case Committed(_, (Seen() as seen,)):
                self._seen[register] = seen.revision
            case Committed(_, (None,)):
                self._seen[register] = 0


async def run(target: str, name: str, directory: Path, calls_per_second: float) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)

    async def call_on_and_on(number: int, recorder: Recorder, leases: LeaseRecorder) -> None:
        chance = random.Random(f"{name}.{number}")
        caller = Caller(recorder, leases, f"{name}.{number}", chance)
        while not stopping.is_set():
            await caller.call()
            await asyncio.sleep(chance.expovariate(calls_per_second / TASKS))

    with (
        (directory / f"{name}.jsonl").open("w", buffering=1) as file,
        (directory / f"{name}.leases.jsonl").open("w", buffering=1) as lease_file,
    ):

        def note(record: Record) -> None:
            file.write(to_line(record) + "\n")

        def note_lease(call: LeaseCall) -> None:
            lease_file.write(lease_to_line(call) + "\n")

        async with (
            kvorum.open(target, timeout=CALL_SECONDS) as kv,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(1, TASKS + 1):
                client = f"{name}.{number}"
                recorder = Recorder(kv, client=client, note=note)
                leases = LeaseRecorder(kv, client=client, note=note_lease)
                tasks.create_task(call_on_and_on(number, recorder, leases))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])))
