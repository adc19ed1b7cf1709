"""Finding node processes, so that a test can tell that it has left none."""

from pathlib import Path

import psutil


def nodes_of(directory: Path) -> list[int]:
    """The pids of all processes that were started with a path below the directory."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(directory) in part for part in process.info["cmdline"] or ())
    ]
