"""Disks that can be full or slow, one for each node.

    full    a file system in a file of IMAGE_BYTES (ext4, on a loop device), filled up
    slow    a limit on the writes per second of one process to its disk (control groups)

Where that is not possible, a node has a directory like any other, and `lacks` says why. File
systems are only made inside a mount namespace (see namespaces.py), which takes them along when
it goes; a control group carries the pid of its owner in its name.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from kvorum.limits import KIB, MIB

IMAGE_BYTES: Final = 256 * MIB
CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Controller:
    """Where this machine limits writes to a disk, in the words of its version."""

    groups: Path
    limit_file: str
    limit: str
    no_limit: str

    @classmethod
    def find(cls, root: Path = CONTROL_GROUPS) -> "Controller | None":
        """Version 1 or 2 of control groups, whichever has the disks; None if none does."""
        if (root / "blkio/blkio.throttle.write_iops_device").exists():
            return cls(root / "blkio", "blkio.throttle.write_iops_device", "{} {}", "{} 0")
        controllers = root / "cgroup.controllers"
        if controllers.exists() and "io" in controllers.read_text().split():
            return cls(root, "io.max", "{} wiops={}", "{} wiops=max")
        return None

    def limit_writes(self, group: str, pid: int, device: str, writes_per_second: int) -> None:
        """Move the process into a group of its own, which may write so often. OSError if not."""
        subtree = self.groups / "cgroup.subtree_control"
        if subtree.exists() and "io" not in subtree.read_text().split():
            subtree.write_text("+io")
        path = self.groups / group
        path.mkdir(exist_ok=True)
        (path / self.limit_file).write_text(self.limit.format(device, writes_per_second))
        (path / "cgroup.procs").write_text(str(pid))

    def release(self, group: str, device: str) -> None:
        """Let everything in the group write again, and remove it."""
        path = self.groups / group
        if not path.is_dir():
            return
        with contextlib.suppress(OSError):  # a device that is gone has no limit either
            (path / self.limit_file).write_text(self.no_limit.format(device))
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (self.groups / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):  # a process on its way out; the next run removes it
            path.rmdir()

    def remove_leftovers(self) -> None:
        """Remove the groups of owners that are no more."""
        for path in self.groups.glob("kvorum-chaos-*"):
            owner = re.match(r"kvorum-chaos-(\d+)-", path.name)
            if owner is not None and not psutil.pid_exists(int(owner[1])):
                self.release(path.name, "0:0")


class Disks:
    """The data directories of the nodes: DIR/<node>/data."""

    def __init__(self, directory: Path, names: Iterable[str], *, may_mount: bool) -> None:
        self._directory = directory
        self._controller = Controller.find()
        self._mounted: list[Path] = []
        self.lacks_full = self._probe_mount(may_mount=may_mount)
        if not self.lacks_full:
            for name in names:
                self._mount(name)
        self.lacks_slow = self.lacks_full
        if not self.lacks_slow and self._controller is None:
            self.lacks_slow = "no control group limits disks here"
        if self._controller is not None:
            self._controller.remove_leftovers()

    def data_dir(self, name: str) -> Path:
        return self._directory / name / "data"

    def fill(self, name: str) -> None:
        """Leave nothing of the file system to the node."""
        with self._filler(name).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(64 * KIB)):
                pass

    def free(self, name: str) -> None:
        self._filler(name).unlink(missing_ok=True)

    def slow_down(self, name: str, pid: int, *, writes_per_second: int) -> None:
        assert self._controller is not None
        self._controller.limit_writes(self._group(name), pid, self._device(name), writes_per_second)

    def speed_up(self, name: str) -> None:
        if self._controller is not None and not self.lacks_slow:
            self._controller.release(self._group(name), self._device(name))

    def wipe(self, name: str) -> None:
        shutil.rmtree(self.data_dir(name), ignore_errors=True)

    def remove(self) -> None:
        """Unmount what was mounted. The nodes must have ended."""
        for path in self._mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=False)
            path.with_suffix(".ext4").unlink()
        self._mounted.clear()

    def _filler(self, name: str) -> Path:
        return self._directory / name / "filler"

    def _group(self, name: str) -> str:
        return f"kvorum-chaos-{os.getpid()}-{name}"

    def _device(self, name: str) -> str:
        device = (self._directory / name).stat().st_dev
        return f"{os.major(device)}:{os.minor(device)}"

    def _probe_mount(self, *, may_mount: bool) -> str:
        if not may_mount:
            return "small file systems need the namespaces"
        if shutil.which("mkfs.ext4") is None:
            return "there is no mkfs.ext4"
        try:
            self._mount("probe")
        except subprocess.CalledProcessError as error:
            return f"cannot mount a small file system: {error.stderr.strip()}"
        self.remove()
        return ""

    def _mount(self, name: str) -> None:
        path = self._directory / name
        path.mkdir(parents=True, exist_ok=True)
        image = path.with_suffix(".ext4")
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        for command in (
            ["mkfs.ext4", "-q", "-F", str(image)],
            ["mount", "-o", "loop", str(image), str(path)],
        ):
            subprocess.run(command, capture_output=True, text=True, check=True)
        self._mounted.append(path)
