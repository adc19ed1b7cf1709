"""The scripts of deploy/: each is the command that it is named after, and all are sound shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "deploy/local"
SCRIPTS = sorted(LOCAL.glob("*.sh"))

COMMANDS = {
    *("up", "status", "kill", "partition", "heal", "add", "remove", "restart"),
    *("rolling-restart", "down"),
}


def test_there_is_one_for_each_step() -> None:
    assert {script.stem for script in SCRIPTS} == COMMANDS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_the_command_that_it_is_named_after(script: Path, tmp_path: Path) -> None:
    stub = tmp_path / "a kvorum"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    stub.chmod(0o755)
    ran = subprocess.run(
        [script, "n1", "two words"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KVORUM": str(stub)},
        cwd=tmp_path,
    )
    assert ran.stdout.splitlines() == ["cluster", script.stem, "n1", "two words"]
    assert (ran.returncode, ran.stderr) == (7, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_how_it_is_called(script: Path) -> None:
    assert f"`{script.name}" in script.read_text().splitlines()[1]
    helped = subprocess.run(
        [script, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KVORUM": str(Path(sys.executable).parent / "kvorum")},
    )
    assert f"Usage: kvorum cluster {script.stem} " in helped.stdout
