"""A process that watches the store from the beginning to the end, and writes down what it is told.

    python -m tests.chaos.watcher TARGET NAME DIRECTORY

Writes DIRECTORY/NAME.<watch>.jsonl for each of WATCHED, a revision a line, and ends with status 0
when each watch has been told of END. What a watch raises ends it with a traceback.
"""

import asyncio
import sys
from pathlib import Path

import kvorum
from tests.chaos.watches import WATCHED, Told, to_line, write_down


async def run(target: str, name: str, directory: Path) -> None:
    async def watch(which: str, prefix: str) -> None:
        with (directory / f"{name}.{which}.jsonl").open("w", buffering=1) as file:

            def note(told: Told) -> None:
                file.write(to_line(told) + "\n")

            # A store, and so a connection, of its own: it is at one node, and others at others.
            async with kvorum.open(target) as kv:
                await write_down(kv, prefix, note)

    async with asyncio.TaskGroup() as tasks:
        for which, prefix in WATCHED.items():
            tasks.create_task(watch(which, prefix))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
