"""A gRPC client made from the reflected descriptors alone works on every node."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvorum.cli.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

PROGRAM = Path(__file__).with_name("reflection_program.py")


def test_it_puts_gets_and_lists_wherever_it_asks(three_nodes: LocalCluster) -> None:
    last = 0
    for node in three_nodes.nodes:  # one leads, the others pass calls on to it
        ran = subprocess.run(
            [sys.executable, str(PROGRAM), node.address, f"by {node.name}", "value"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        answer = json.loads(ran.stdout)
        revision = answer["put"]
        assert answer["modules"] == []
        assert revision > last
        assert answer["got"] == ["value", revision]
        assert answer["listed"] == [[f"by {node.name}", "value"]]
        last = revision
