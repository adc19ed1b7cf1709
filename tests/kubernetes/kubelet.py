"""One pod: its container as a process, its probes, its end. What the kubelet does.

The container is started again whenever it ends, after a pause that grows. Probes are made from
outside the pod, on the ports and paths of the manifest. Times in which nothing but waiting
happens are shortened by HURRY; how long a pod may take to be declared dead is not.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.kubernetes.network import Place, PodNetwork
from tests.support.manifests import Object, find
from tests.support.pods import started

HURRY: Final = 25.0
"""How much faster than in the manifests pods are looked at, and ready ones trusted."""

_FIRST_BACKOFF_SECONDS: Final = 0.2
_LONGEST_BACKOFF_SECONDS: Final = 2.0

NAMESPACE: Final = "default"


class Pod:
    """As the StatefulSet makes it; it has its address and its volume until it is deleted."""

    def __init__(
        self,
        name: str,
        objects: list[Object],
        place: Place,
        volume: Path,
        network: PodNetwork,
        *,
        changed: Callable[[], None],
    ) -> None:
        """Start it.

        Args:
            changed: is called when it becomes ready, or is no more.
        """
        template = find(objects, "StatefulSet", "kvorum")["spec"]["template"]
        self.name = name
        self.objects = objects
        self.place = place
        self.is_ready = False
        self.is_ending = False
        self.ready_since = 0.0
        self.exits: list[int] = []
        """The status of each container that has ended."""
        self._volume = volume
        self._network = network
        self._changed = changed
        self._spec: Object = template["spec"]
        [self._container] = self._spec["containers"]
        self._started = started(objects, self._spec, self._container, pod=name)
        self._process: asyncio.subprocess.Process | None = None
        self._output = (volume.parent / f"{name}.log").open("ab")
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._probe())]

    @property
    def log(self) -> str:
        """What all pods of that name have said."""
        return Path(self._output.name).read_text("utf-8")

    async def end(self, *, grace: bool = True) -> None:
        """Delete the pod: preStop, SIGTERM, and SIGKILL after the grace period."""
        self.is_ending = True
        self._set_ready(False)
        with contextlib.suppress(ProcessLookupError):
            if grace and self._process is not None:
                await asyncio.sleep(self._prestop_seconds() / HURRY)
                self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._spec["terminationGracePeriodSeconds"]):
                        await self._process.wait()
            self.kill()
        if self._process is not None:
            await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._network.remove(self.place)
        self._output.close()

    def kill(self) -> None:
        """Let the container die without a word. It is started again if the pod is there."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    async def execute(self, *command: str) -> str:
        """As `kubectl exec` does: in the namespaces and the environment of the container."""
        assert self._process is not None
        inside = ["nsenter", f"--target={self._process.pid}", "--net", "--mount", "--", *command]
        ran = await asyncio.to_thread(
            subprocess.run,
            inside,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ran.returncode == 0, f"{command}: {ran.stderr}"
        return ran.stdout

    async def _run(self) -> None:
        mount = self._container["volumeMounts"][0]["mountPath"]
        command = self.place.command(
            self._network.hosts, self._volume, mount, self._started.command
        )
        while not self.is_ending:
            self._process = await asyncio.create_subprocess_exec(
                *command, env=self._environment(), stdout=self._output, stderr=self._output
            )
            self.exits.append(await self._process.wait())
            self._set_ready(False)
            pause = _FIRST_BACKOFF_SECONDS * 2 ** min(len(self.exits), 10)
            await asyncio.sleep(min(pause, _LONGEST_BACKOFF_SECONDS))

    async def _probe(self) -> None:
        """Readiness, often; liveness beside it, which may take as long as the manifest says."""
        loop = asyncio.get_running_loop()
        readiness, liveness = self._container["readinessProbe"], self._container["livenessProbe"]
        failures, alive_at = 0, loop.time()
        patience = liveness["failureThreshold"] * liveness["periodSeconds"]
        while True:
            await asyncio.sleep(readiness["periodSeconds"] / HURRY)
            failures = 0 if await self._answers(readiness) else failures + 1
            if failures == 0 or failures >= readiness["failureThreshold"]:
                self._set_ready(failures == 0 and not self.is_ending)
            if await self._answers(liveness):
                alive_at = loop.time()
            elif loop.time() > alive_at + patience:
                self.kill()
                alive_at = loop.time()

    async def _answers(self, probe: dict[str, Any]) -> bool:
        get = probe["httpGet"]
        [port] = [
            one["containerPort"] for one in self._container["ports"] if one["name"] == get["port"]
        ]
        try:
            async with asyncio.timeout(probe["timeoutSeconds"]):
                reader, writer = await asyncio.open_connection(self.place.ip, port)
                with contextlib.closing(writer):
                    writer.write(f"GET {get['path']} HTTP/1.0\r\n\r\n".encode())
                    status = await reader.readline()
        except OSError:  # a time-out, too
            return False
        return 200 <= int(status.split()[1]) < 400 if status else False

    def _set_ready(self, is_ready: bool) -> None:
        if is_ready != self.is_ready:
            self.is_ready = is_ready
            self.ready_since = asyncio.get_running_loop().time()
            self._changed()

    def _prestop_seconds(self) -> float:
        match self._container.get("lifecycle", {}):
            case {"preStop": {"sleep": {"seconds": seconds}}}:
                return float(seconds)
            case nothing:
                assert not nothing, f"{nothing} is not known here"
                return 0.0

    def _environment(self) -> dict[str, str]:
        """Nothing of this program's own but where the programs are."""
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": programs, **self._started.environment}
