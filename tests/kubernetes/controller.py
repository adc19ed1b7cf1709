"""A StatefulSet and its Services, as the controllers of Kubernetes bring them about.

    podManagementPolicy: Parallel    what is missing is made, and what is too much deleted, at once
    RollingUpdate                    from the last pod to the first: one is replaced, and the next
                                     only once it is ready, as all behind it
    volumes                          stay when their pod goes, and come back with it
    Services                         `kvorum` names the pods that are ready, `kvorum-peers` all

A pod that is not of the newest template is replaced whether it is ready or not: so a change
that was taken back heals a pod that it has broken, with this policy.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.kubernetes import volume_shell
from tests.kubernetes.kubelet import HURRY, NAMESPACE, Pod
from tests.kubernetes.network import PodNetwork
from tests.support.manifests import Object, find

WAIT_SECONDS: Final = 90.0
"""For what is certain to happen, on a machine that has much else to do."""


class StatefulSet:
    """`kvorum` of the rendered objects."""

    def __init__(self, objects: list[Object], directory: Path) -> None:
        self.network = PodNetwork(directory)
        self.pods: dict[int, Pod] = {}
        self._directory = directory
        self._objects = objects
        self._replicas = self._spec["replicas"]
        self._ending: dict[int, asyncio.Task[None]] = {}
        self._held: set[int] = set()
        """Pods that are not to be made now: their volume is being taken away."""
        self._work = asyncio.Event()
        assert self._spec["podManagementPolicy"] == "Parallel"
        assert self._spec["updateStrategy"]["type"] == "RollingUpdate"

    async def __aenter__(self) -> Self:
        self._reconciling = asyncio.create_task(self._reconcile())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reconciling.cancel()
        await asyncio.gather(self._reconciling, return_exceptions=True)
        for ordinal in tuple(self.pods):
            self._delete(ordinal, grace=False)
        await asyncio.gather(*self._ending.values())

    # What people do.

    def apply(self, objects: list[Object]) -> None:
        """`kubectl apply`: from now on these are wanted."""
        self._objects = objects
        self._replicas = self._spec["replicas"]
        self._work.set()

    def scale(self, replicas: int) -> None:
        self._replicas = replicas
        self._work.set()

    async def delete(self, ordinal: int, *, grace: bool = True) -> None:
        """`kubectl delete pod`; returns once it is gone."""
        self._delete(ordinal, grace=grace)
        await self._ending[ordinal]

    async def lose_machine(self, ordinal: int) -> None:
        """The pod is gone without a word to anybody; its volume is not."""
        self.network.cut(self.pods[ordinal].place)
        await self.delete(ordinal, grace=False)

    async def lose_volume(
        self, ordinal: int, *, instead: Callable[[Path], object] = lambda volume: None
    ) -> None:
        """The volume is gone, and the pod with it. The next pod gets a new one.

        Args:
            instead: what is done with the new volume before that.
        """
        self._held.add(ordinal)
        self._delete(ordinal, grace=False)
        await self._ending[ordinal]
        self.delete_claim(ordinal)
        volume = self._volume(ordinal)
        volume.mkdir()
        await asyncio.to_thread(instead, volume)
        self._held.discard(ordinal)
        self._work.set()

    async def execute_beside(self, ordinal: int, command: list[str], answer: str = "") -> str:
        """Run a command in the pod that does nothing, with the volume of a pod that is not there.

        Returns:
            What it has printed.
        """
        assert ordinal not in self.pods
        return await volume_shell.execute(self.network, self._volume(ordinal), command, answer)

    def delete_claim(self, ordinal: int) -> None:
        """`kubectl delete pvc`, of a pod that is not there."""
        assert ordinal not in self.pods
        shutil.rmtree(self._volume(ordinal))

    # What can be seen.

    def ready(self) -> list[int]:
        return [ordinal for ordinal, pod in sorted(self.pods.items()) if pod.is_ready]

    async def until_ready(self, ordinals: range) -> None:
        """Until these are ready, and no others are there."""
        await self.until(lambda: self.ready() == list(ordinals) == sorted(self.pods))

    async def until(self, condition: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not condition():  # noqa: ASYNC110 - of many processes
                    await asyncio.sleep(0.02)
        except TimeoutError:
            states = {pod.name: (pod.is_ready, pod.exits) for pod in self.pods.values()}
            raise AssertionError(f"it does not come to that: {states}") from None

    async def until_updated(self) -> None:
        """Until every pod is of the newest template, and ready."""
        await self.until(
            lambda: (
                self.ready() == list(range(self._replicas)) == sorted(self.pods)
                and all(self._is_current(pod) for pod in self.pods.values())
            )
        )

    # The controllers.

    @property
    def _spec(self) -> Object:
        spec: Object = find(self._objects, "StatefulSet", "kvorum")["spec"]
        return spec

    async def _reconcile(self) -> None:
        while True:
            for ordinal in range(self._replicas):
                if ordinal not in self.pods and ordinal not in self._held:
                    self._make(ordinal)
            for ordinal in sorted(self.pods):
                if ordinal >= self._replicas:
                    self._delete(ordinal)
            self._update()
            self._work.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):  # that a pod is available comes with time
                    await self._work.wait()

    def _update(self) -> None:
        """Replace one pod, unless there is one to wait for."""
        for ordinal in reversed(range(self._replicas)):
            pod = self.pods.get(ordinal)
            if pod is None:
                return
            if not self._is_current(pod) and not pod.is_ending:
                self._delete(ordinal)
                return
            if not self._is_available(pod):
                return

    def _is_current(self, pod: Pod) -> bool:
        old = find(pod.objects, "StatefulSet", "kvorum")["spec"]["template"]
        return bool(old == self._spec["template"])

    def _is_available(self, pod: Pod) -> bool:
        since = asyncio.get_running_loop().time() - pod.ready_since
        return pod.is_ready and since >= self._spec.get("minReadySeconds", 0) / HURRY

    def _make(self, ordinal: int) -> None:
        volume = self._volume(ordinal)
        volume.mkdir(exist_ok=True)
        (volume / "lost+found").mkdir(exist_ok=True)
        self.pods[ordinal] = Pod(
            f"kvorum-{ordinal}",
            self._objects,
            self.network.add(),
            volume,
            self.network,
            changed=self._name_pods,
        )
        self._name_pods()

    def _delete(self, ordinal: int, *, grace: bool = True) -> None:
        if ordinal not in self._ending:
            ending = self._ending[ordinal] = asyncio.create_task(self._end(ordinal, grace))
            ending.add_done_callback(lambda _: self._ending.pop(ordinal))

    async def _end(self, ordinal: int, grace: bool) -> None:
        await self.pods[ordinal].end(grace=grace)
        del self.pods[ordinal]
        self._name_pods()

    def _volume(self, ordinal: int) -> Path:
        return self._directory / f"data-kvorum-{ordinal}"

    def _name_pods(self) -> None:
        domain = f"{NAMESPACE}.svc"
        peers = f"{self._spec['serviceName']}.{domain}"
        pods = list(self.pods.values())
        ready = [pod.place.ip for pod in pods if pod.is_ready]
        self.network.name(
            {
                **{f"{pod.name}.{peers}": [pod.place.ip] for pod in pods},
                peers: [pod.place.ip for pod in pods],
                f"kvorum.{domain}": ready,
                "kvorum": ready,
            }
        )
        self._work.set()
