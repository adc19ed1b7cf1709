"""`kvorum watch`: a line a change, at once, until it is interrupted."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import kvorum as library
from tests.support.command_line import kvorum


@contextmanager
def watching(target: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs; it is interrupted at the end, and must end at once."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvorum.cli", "watch", "--target", target, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "")
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def fill(target: str) -> None:
    with library.open_sync(target) as kv:
        kv.put("user:1", {"name": "alice"})
        kv.atomic().put("user:2", b"\xff\n", type="bytes").put("other", 1).commit()
        kv.delete("user:1")


def test_a_line_for_each_change(tmp_path: Path) -> None:
    target = str(tmp_path / "store")
    fill(target)
    with watching(target, "user:", "--since", "0", "--previous") as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline() == ("watching 'user:' after revision 0; Ctrl-C ends it\n")
        lines = [re.split(" {2,}", process.stdout.readline()) for _ in range(3)]
    assert [[line[0], *line[2:]] for line in lines] == [
        ["1", "put", "user:1", '{"name":"alice"}\n'],
        ["2", "put", "user:2", "\\xff\\n\n"],
        ["3", "delete", "user:1", '(was {"name":"alice"})\n'],
    ]


def test_as_json(tmp_path: Path) -> None:
    target = str(tmp_path / "store")
    fill(target)
    with watching(target, "--since", "1", "--json", "--previous") as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert "all keys" in process.stderr.readline()
        put, _, deleted = (json.loads(process.stdout.readline()) for _ in range(3))
    assert (put["revision"], put["kind"], put["key"]) == (2, "put", "user:2")
    assert put["entry"]["base64"] == "/wo="
    assert deleted["previous"]["value"] == {"name": "alice"}
    assert "entry" not in deleted
    assert datetime.fromisoformat(deleted["at"]) >= datetime.fromisoformat(put["at"])
    assert put["at"] == put["entry"]["updated_at"]


def test_it_ends_when_nobody_reads_any_more_without_a_further_change(tmp_path: Path) -> None:
    """As with `kvorum watch --since 0 | head -1`."""
    target = str(tmp_path / "store")
    fill(target)
    process = subprocess.Popen(
        [sys.executable, "-m", "kvorum.cli", "watch", "--target", target, "--since", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("3  ")
        process.stdout.close()
        assert process.wait(timeout=20) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "watching all keys after revision 2; Ctrl-C ends it\n"


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    ran = kvorum("watch", "--since", "5", env={"KVORUM_TARGET": str(tmp_path / "store")})
    assert ran.status == 1
    assert ran.err == "error: revision 5 is not there yet; the newest here is 0\n"
    assert ran.out == ""
