"""The pod of deploy/kubernetes/volume-shell.yaml: it has the volume of a node that does not run.

What is carried out in it are the very lines of docs/operations/kubernetes.md, and they may take
no more memory than the pod has.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.kubernetes.kubelet import NAMESPACE
from tests.kubernetes.network import PodNetwork
from tests.support.manifests import KUBERNETES, read

PAGE: Final = KUBERNETES.parents[1] / "docs/operations/kubernetes.md"
MIB: Final = 1024**2


def documented(program: str) -> list[list[str]]:
    """The commands of the page that run the program in the pod, for the namespace of the plays."""
    lines = PAGE.read_text("utf-8").replace("\\\n", " ").replace(".kvorum.svc", f".{NAMESPACE}.svc")
    before = "kvorum-volume-shell -- "
    return [
        line.partition(before)[2].split()
        for line in lines.splitlines()
        if f"{before}{program} " in line
    ]


async def execute(network: PodNetwork, volume: Path, command: list[str], answer: str = "") -> str:
    """As `kubectl exec --stdin` does, with the answer typed.

    Returns:
        What the command has printed.
    """
    [pod] = read(KUBERNETES / "volume-shell.yaml")
    [container] = pod["spec"]["containers"]
    [mount] = container["volumeMounts"]
    place = network.add()
    inside = place.command(network.hosts, volume, mount["mountPath"], command)
    try:
        status, printed, peak_bytes = await asyncio.to_thread(_run, inside, answer)
    finally:
        network.remove(place)
    assert status == 0, f"{command}: {printed}"
    limit = container["resources"]["limits"]["memory"]
    assert peak_bytes < int(limit.removesuffix("Mi")) * MIB, f"{command} took {peak_bytes} bytes"
    return printed


def _run(command: list[str], answer: str) -> tuple[int, str, int]:
    """The status, what was printed, and the most memory that was taken, in bytes."""
    with subprocess.Popen(
        command,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(answer)
        process.stdin.close()
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, printed, usage.ru_maxrss * 1024
