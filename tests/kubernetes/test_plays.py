"""The rendered manifests of production, run as local processes, through what happens to pods.

Each play has a network of its own, with a network namespace for each pod: only root can make
those. plays.py says what happens, controller.py and kubelet.py are the parts of Kubernetes.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import namespaces
from tests.kubernetes.plays import PLAYS
from tests.support.node_processes import nodes_of

ROOT = Path(__file__).parents[2]
PLAY_SECONDS = 400

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(PLAY_SECONDS + 20)]


@pytest.fixture(scope="module")
def allowed() -> None:
    if lacking := namespaces.missing():
        pytest.skip(f"no network namespaces: {lacking}")


@pytest.fixture
def inside(allowed: None, tmp_path: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """What runs a command in a hub, and its environment; nothing of it is left at the end."""
    with namespaces.hub(0) as (prefix, command):
        yield list(command), {**os.environ, namespaces.INSIDE: prefix}
    assert list(namespaces.RUN.glob(f"{prefix}-*")) == []
    assert nodes_of(tmp_path) == []


@pytest.mark.parametrize("play", PLAYS)
def test_play(play: str, inside: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    command, environment = inside
    ran = subprocess.run(
        [*command, sys.executable, "-m", "tests.kubernetes", play, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PLAY_SECONDS,
    )
    print(ran.stdout)
    logs = "".join(
        f"\n--- {path.name}\n{path.read_text('utf-8', 'replace')[-6000:]}"
        for path in sorted(tmp_path.glob("*.log"))
    )
    assert ran.returncode == 0, f"{ran.stderr[-6000:]}{logs}"
