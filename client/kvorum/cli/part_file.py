"""A file that is there whole, or not at all.

What is written goes to NAME.part beside it, which becomes NAME when it is on the disk. If
the writing ends early, for whatever reason that a program lives to see, NAME.part is removed; one
that is left by a program that was killed is written over by the next.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from kvorum.errors import InvalidArgument

MODE: Final = 0o600
"""It holds everything: for its owner alone."""


@contextmanager
def created(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file to write, which is on the disk as `path` once the block has ended well.

    Args:
        force: replace a file that is there.

    Raises:
        InvalidArgument: there is one, or something that is no file; or another process is
            writing it. Nothing was touched.
        OSError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    _refuse_existing(path, force=force)
    part = path.with_name(f"{path.name}.part")
    with _locked(part) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _refuse_existing(path, force=force)  # it was not there when this began
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    _sync_directory(path.parent)


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The file, empty, which no other process writes meanwhile."""
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    with os.fdopen(descriptor, "wb") as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidArgument(f"{part} is being written by another process") from None
        if not _is_same_file(descriptor, part):  # the other process has just finished it
            raise InvalidArgument(f"{part} was being written by another process")
        os.fchmod(descriptor, MODE)
        file.truncate()
        yield file


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _refuse_existing(path: Path, *, force: bool) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise InvalidArgument(f"{path} is no file that could be replaced")
    if not force:
        raise InvalidArgument(f"{path} exists: choose another name, or replace it with --force")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
