"""File systems that a test can fill."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvorum.limits import MIB

FILE_SYSTEM_BYTES = 64 * MIB


@contextmanager
def small_file_system(path: Path, size_bytes: int = FILE_SYSTEM_BYTES) -> Iterator[None]:
    """One of memory, mounted at the path; skips the test where that is not allowed."""
    path.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
