"""Restores a snapshot file again and again, and is killed at each step of it, one after the other.

    python founding_program.py FILE DIRECTORY

into DIRECTORY/0, DIRECTORY/1, ... A step is anything that reaches the disk: a write or a sync of
an engine, a small file, a rename. Prints the last number, which is of a restore that had no
such step, and was not killed. Each runs in a process that was forked: to import all of the
node anew would take longer than all the rest.
"""

import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from kvorum.snapshot_file import SnapshotFile
from kvorum_node import founding
from kvorum_node.raft.types import NodeId
from kvorum_node.storage import data_directory, durable
from kvorum_node.storage.rocks import RocksEngine


def restore(file: Path, directory: Path) -> None:
    with file.open("rb") as source:
        founding.restore(
            directory,
            SnapshotFile(source, str(file)),
            node=NodeId(1),
            address="127.0.0.1:1",
            written=lambda _: None,
            checked=lambda _: None,
        )


def die_at(number: int) -> None:
    """Be killed when so many steps have been made."""
    left = number

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return step

    for owner, name in (
        (RocksEngine, "write"),
        (RocksEngine, "sync"),
        (RocksEngine, "close"),
        (data_directory, "write_durably"),
        (data_directory, "sync_directory"),
        (durable, "sync_directory"),
        (Path, "rename"),
        (Path, "replace"),
        (Path, "mkdir"),
    ):
        setattr(owner, name, counted(getattr(owner, name)))


def main(file: Path, directory: Path) -> None:
    for step in count():
        child = os.fork()
        if child == 0:
            die_at(step)
            restore(file, directory / f"{step}")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            print(step)
            sys.exit(status)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
