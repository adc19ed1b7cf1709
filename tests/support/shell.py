"""Running `kvorum` as a process of its own, beside an event loop that goes on."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence

END_SECONDS = 60


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kvorum.cli", *arguments]


async def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return await asyncio.to_thread(
        subprocess.run,
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )


async def output(*arguments: str) -> str:
    """What a command prints that must succeed."""
    ran = await run(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def start(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    """Start the command; the caller ends it."""
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


async def pipe(first: Sequence[str], second: Sequence[str]) -> str:
    """What the second command prints when it reads what the first one does; both must succeed."""

    def run_both() -> str:
        with subprocess.Popen(first, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as source:
            ran = subprocess.run(
                second,
                stdin=source.stdout,
                capture_output=True,
                text=True,
                timeout=END_SECONDS,
                check=False,
            )
            assert source.stderr is not None
            said = source.stderr.read().decode()
        assert source.returncode == 0, said
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return await asyncio.to_thread(run_both)
