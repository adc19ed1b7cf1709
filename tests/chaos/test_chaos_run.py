"""A short run, as `make chaos` makes long ones: real processes, some faults, and the verdict."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS as ALL_FAULTS
from tests.support.node_processes import nodes_of

FAULTS = (
    *("kill-leader", "isolate-leader", "pause-leader", "one-way", "full-disk", "kill-all"),
    "replace",
)
RUN_SECONDS = 240


def chaos(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


@pytest.mark.cluster
@pytest.mark.timeout(RUN_SECONDS + 30)
def test_faults_leave_every_promise_standing(tmp_path: Path) -> None:
    """Each fault strikes once; where one cannot be on this machine, the report says why."""
    directory = tmp_path / "chaos"
    ran = chaos(
        *("--minutes", "0", "--seed", "11", "--faults", ",".join(FAULTS)),
        *("--directory", str(directory), "--calls-per-second", "150"),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((directory / "report.json").read_text())
    assert report["passed"]
    struck = {kind for event in report["events"] for kind in event["fault"].split("+")}
    assert struck == set(FAULTS) - set(report["left_out"])
    assert set(report["left_out"]) <= {"full-disk"}
    assert report["checker"]["outcome"] == "linearizable"
    assert report["calls"]["returned"] > 100
    assert len(report["contents"]) == 3
    assert report["acknowledged_ledger_writes"] > 10
    assert report["lost_ledger_writes"] == 0
    assert report["counters"]["acknowledged"] > 10
    assert report["leases"]["expired"] > 0
    assert report["watches"]["expiries"] > 0
    assert report["watches"]["revisions"]["all"] > report["watches"]["writes"] > 10
    assert "passed" in (directory / "report.txt").read_text()
    assert not (directory / "nodes").exists()
    assert nodes_of(directory) == []


@pytest.mark.cluster
@pytest.mark.timeout(RUN_SECONDS + 30)
def test_without_namespaces_nodes_are_joined_by_proxies(tmp_path: Path) -> None:
    directory = tmp_path / "chaos"
    ran = chaos(
        *("--minutes", "0", "--seed", "12", "--faults", "one-way,delay,slow-disk"),
        *("--directory", str(directory), "--calls-per-second", "150", "--network", "proxies"),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((directory / "report.json").read_text())
    struck = {kind for event in report["events"] for kind in event["fault"].split("+")}
    assert struck == {"one-way", "delay"}
    assert report["left_out"] == {"slow-disk": "small file systems need the namespaces"}
    assert nodes_of(directory) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--faults", "rain"], "there is no fault rain"),
        (["--nodes", "2"], "has at least 3 nodes"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], message: str) -> None:
    ran = chaos(*arguments)
    assert ran.returncode == 2
    assert message in ran.stderr


def test_the_guide_names_every_fault() -> None:
    guide = (Path(__file__).parents[2] / "docs/chaos.md").read_text()
    assert [name for name in ALL_FAULTS if f"`{name}`" not in guide] == []
