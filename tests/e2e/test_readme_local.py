"""The README's "Watch it work", as it stands there, in a shell and an empty directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.node_processes import nodes_of

ROOT = Path(__file__).parents[2]


def lines() -> str:
    [block] = re.findall(
        r"^### Watch it work\n.*?\n\n((?:    \S[^\n]*\n)+)",
        (ROOT / "README.md").read_text(),
        re.M | re.S,
    )
    return str(block)


@pytest.mark.cluster
def test_the_lines_do_what_they_say(tmp_path: Path) -> None:
    """On free ports, as 7101 and the next may be taken here; everything else as it stands."""
    assert lines().count("\n") == 8
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    program = Path(sys.executable).parent
    try:
        ran = subprocess.run(
            ["sh", "-eu", "-c", lines()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
            env={
                "PATH": f"{program}:{os.defpath}",
                "KVORUM_CLUSTER_BASE_PORT": "0",
                "LANG": "C.UTF-8",
            },
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        said = ran.stdout
        steps = [
            "started n1, n2, n3",
            "killed n",
            "was already running",
            "and it has caught up",
            "Nothing that was acknowledged is lost",
            "stopped, data removed",
        ]
        places = [said.find(step) for step in steps]
        assert -1 not in places, said
        assert places == sorted(places)
        assert said.count("and it has caught up") == 3
        assert nodes_of(tmp_path) == []
        assert [path.name for path in tmp_path.iterdir()] == ["deploy"]
    finally:
        subprocess.run(
            [program / "kvorum", "cluster", "down", "--wipe"],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
