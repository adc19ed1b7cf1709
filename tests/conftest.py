"""What holds for every test: an interrupt is an interrupt, and a port belongs to one worker.

A shell that runs the tests in the background lets them ignore SIGINT, and what
is ignored is inherited by every process that a test starts and interrupts.

`make test` has two workers. A port that one of them has chosen is not taken yet, and
that of a node that is down is not taken any more: the other one must not choose it, and
neither must a command that a test runs in a process of its own.
"""

import signal

import pytest

from kvorum.cli import processes
from tests.support import targets

local_cluster = targets.local_cluster  # here, so that there is one of it, and not one a folder

WORKERS_PORTS = range(10_000, processes.FREE_PORTS.start)
"""Divided among the workers. Commands that they run have those that users get."""

signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    worker: dict[str, object] | None = getattr(config, "workerinput", None)
    if worker is None:
        return  # there is but one
    number = int(str(worker["workerid"]).removeprefix("gw"))
    size = len(WORKERS_PORTS) // int(str(worker["workercount"]))
    share = WORKERS_PORTS[number * size : (number + 1) * size]
    pytest.MonkeyPatch().setattr(processes, "FREE_PORTS", share)
