"""Processes: known by pid and time of creation, never by the pid alone."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kvorum.cli import processes
from kvorum.cli.cluster_file import ProcessIdentity
from kvorum.cli.processes import ProcessState
from tests.support.eventually import eventually

Start = Callable[[str], ProcessIdentity]

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def start(log: Path) -> Iterator[Start]:
    started: list[ProcessIdentity] = []

    def run(code: str) -> ProcessIdentity:
        started.append(processes.start([sys.executable, "-c", code], log))
        return started[-1]

    yield run
    for identity in started:
        processes.send(identity, signal.SIGKILL)
        assert processes.wait_for_state(identity, ProcessState.DEAD, 5)


def test_a_process_is_running_until_it_is_paused_and_dead_once_killed(start: Start) -> None:
    identity = start(SLEEP)
    assert processes.state(identity) is ProcessState.RUNNING
    processes.send(identity, signal.SIGSTOP)
    assert processes.wait_for_state(identity, ProcessState.PAUSED, 5)
    processes.send(identity, signal.SIGCONT)
    assert processes.wait_for_state(identity, ProcessState.RUNNING, 5)
    processes.send(identity, signal.SIGKILL)
    assert processes.wait_for_state(identity, ProcessState.DEAD, 5)
    assert processes.state(identity) is ProcessState.DEAD
    assert not psutil.pid_exists(identity.pid)  # reaped, too


def test_a_dead_process_has_left_its_ports(start: Start, log: Path) -> None:
    [port] = processes.free_ports(1)
    code = f"""
import socket, threading, time
listener = socket.create_server(("127.0.0.1", {port}))
memory = bytearray(200_000_000)  # takes a while to be given back
for _ in range(50):
    threading.Thread(target=time.sleep, args=[600]).start()
print("ready", flush=True)
"""
    for round_number in range(1, 6):
        identity = start(code)
        while log.read_text().count("ready") < round_number:
            assert processes.state(identity) is ProcessState.RUNNING
        processes.send(identity, signal.SIGKILL)
        assert processes.wait_for_state(identity, ProcessState.DEAD, 5)
        assert processes.is_port_free("127.0.0.1", port)


def test_another_process_with_the_same_pid_is_not_touched(start: Start) -> None:
    identity = start(SLEEP)
    earlier = replace(identity, created=identity.created - 60)
    assert processes.state(earlier) is ProcessState.DEAD
    assert not processes.send(earlier, signal.SIGKILL)
    assert processes.state(identity) is ProcessState.RUNNING


def test_a_process_that_never_was_is_dead() -> None:
    assert processes.state(None) is ProcessState.DEAD
    assert not processes.send(None, signal.SIGKILL)


def test_a_process_of_another_user_is_named_with_who_may_stop_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that root has started, of a cluster that is cut in two."""
    identity = start(SLEEP)

    def refuse(process: psutil.Process, number: int) -> None:
        raise psutil.AccessDenied(process.pid)

    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "send_signal", refuse)
        owner = psutil.Process(identity.pid).username()
        with pytest.raises(PermissionError, match=f"{identity.pid} is of {owner}, who alone may"):
            processes.send(identity, signal.SIGTERM)


def test_a_process_has_a_session_of_its_own(start: Start) -> None:
    assert os.getsid(start(SLEEP).pid) != os.getsid(0)


async def test_output_is_appended_to_the_log(start: Start, log: Path) -> None:
    start("print('before')")
    await eventually(lambda: log.read_text() == "before\n")
    start("import sys; print('out', flush=True); print('err', file=sys.stderr)")
    await eventually(lambda: log.read_text() == "before\nout\nerr\n")


async def test_waiting_ends_without_the_condition() -> None:
    assert not await processes.wait_until(lambda: False, 0.01)


def test_a_port_is_taken_while_someone_listens() -> None:
    [port] = processes.free_ports(1)
    assert processes.is_port_free("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        assert not processes.is_port_free("127.0.0.1", port)
        holder = processes.port_holder(port)
        assert holder is not None
        assert f"(pid {psutil.Process().pid})" in holder
    assert processes.is_port_free("127.0.0.1", port)
    assert processes.port_holder(port) is None


def test_free_ports_are_different() -> None:
    assert len(set(processes.free_ports(20))) == 20
