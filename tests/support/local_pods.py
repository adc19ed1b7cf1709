"""The pods of the StatefulSet as processes on this machine, and a `kubectl` that reaches them.

Each pod has an address of its own in 127.0.0.0/8, so the ports are those of the manifests, and
names are replaced by addresses where they are used, and addresses by names where they are
printed. A volume is a directory. There is no kubelet: what ends stays down.

The scripts of deploy/kubernetes run `kubectl`; what stands in for it passes its arguments on to
the test's own process, over a socket. It knows what the scripts use, and refuses anything else.
"""

import json
import os
import random
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kvorum.cli import processes
from tests.support import manifests
from tests.support.manifests import KUBERNETES, find, render_here
from tests.support.pods import Started, started

NAMESPACE: Final = "default"
MOUNT: Final = "/var/lib/kvorum"
END_SECONDS: Final = 30
SCRIPT_SECONDS: Final = 240
PATIENCE_SECONDS: Final = SCRIPT_SECONDS - 30

_CLIENT: Final = """
import json, socket, sys
standing_in = socket.socket(socket.AF_UNIX)
standing_in.connect({path!r})
stdin = "" if sys.stdin.isatty() or "--stdin" not in sys.argv else sys.stdin.buffer.read().hex()
stream = standing_in.makefile("rw")
stream.write(json.dumps([sys.argv[1:], stdin]) + "\\n")
stream.flush()
status, out, err = json.loads(stream.readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


class LocalPods:
    """Pods of the overlay prod, by ordinal; none is started yet."""

    def __init__(self, directory: Path, overlay: str = "prod") -> None:
        self.directory = directory
        self.objects = manifests.render(overlay)
        self.replicas = 0
        self.calls: list[list[str]] = []
        """What `kubectl` was called with."""
        self._network = free_network()
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    # Pods.

    def scale(self, replicas: int) -> None:
        """Start or stop pods, the highest ordinals first, as the StatefulSet would."""
        self.replicas = replicas
        for ordinal in range(replicas):
            if ordinal not in self._running:
                self.start(ordinal)
        for ordinal in sorted(self._running, reverse=True):
            if ordinal >= replicas:
                self.stop(ordinal)

    def start(self, ordinal: int, *arguments: str) -> None:
        """Start a pod with its rendered command, or with other arguments of `kvorum node`."""
        start = self.started(ordinal)
        command = ["kvorum", "node", *arguments] if arguments else start.command
        self.volume(ordinal).mkdir(exist_ok=True, parents=True)
        with (self.directory / f"kvorum-{ordinal}.log").open("ab") as log:
            self._running[ordinal] = subprocess.Popen(
                [sys.executable, "-m", "kvorum.cli", *command[1:]],
                env=start.environment,
                stdout=log,
                stderr=log,
            )

    def stop(self, ordinal: int, number: signal.Signals = signal.SIGTERM) -> None:
        """End a pod; its volume stays."""
        process = self._running.pop(ordinal)
        process.send_signal(number)
        process.wait(END_SECONDS)

    def end(self) -> None:
        """Kill whatever runs."""
        for ordinal in list(self._running):
            self.stop(ordinal, signal.SIGKILL)

    def volume(self, ordinal: int) -> Path:
        """What the claim data-kvorum-0 stands for."""
        return self.directory / f"data-kvorum-{ordinal}"

    def host(self, ordinal: int) -> str:
        return f"{self._network}.{ordinal + 1}"

    def name(self, ordinal: int) -> str:
        """As members know it."""
        return f"kvorum-{ordinal}.kvorum-peers.{NAMESPACE}.svc:7100"

    @property
    def target(self) -> str:
        """What `kvorum.open` takes."""
        return f"kvorum://{self._all()}"

    def log(self, ordinal: int) -> str:
        return (self.directory / f"kvorum-{ordinal}.log").read_text()

    def started(self, ordinal: int) -> Started:
        """The pod's command and environment, for this machine."""
        spec = find(self.objects, "StatefulSet", "kvorum")["spec"]["template"]["spec"]
        [container] = spec["containers"]
        start = started(self.objects, spec, container, pod=f"kvorum-{ordinal}", namespace=NAMESPACE)
        binaries = str(Path(sys.executable).parent)
        inherited = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        return Started(
            [self._localised(one, ordinal) for one in start.command],
            {name: self._localised(value, ordinal) for name, value in start.environment.items()}
            | {"PATH": f"{binaries}:{os.environ['PATH']}", "COLUMNS": "120", **inherited},
        )

    def _all(self) -> str:
        return ",".join(f"{self.host(ordinal)}:7100" for ordinal in range(max(1, self.replicas)))

    def _localised(self, text: str, ordinal: int) -> str:
        suffix = rf"\.{NAMESPACE}\.svc"
        text = re.sub(
            rf"kvorum-(\d+)\.kvorum-peers{suffix}", lambda match: self.host(int(match[1])), text
        )
        text = re.sub(rf"kvorum(-peers)?{suffix}:7100", self._all(), text)
        return text.replace("0.0.0.0", self.host(ordinal)).replace(MOUNT, str(self.volume(ordinal)))

    def _named(self, text: str) -> str:
        """Printed addresses as the names that they stand for."""
        pattern = rf"{re.escape(self._network)}\.(\d+):7100"
        return re.sub(pattern, lambda match: self.name(int(match[1]) - 1), text)

    # kubectl.

    def kubectl(self, arguments: Sequence[str], stdin: bytes) -> tuple[int, str, str]:
        """Do what a script asks for; returns status, stdout and stderr."""
        self.calls.append([*arguments])
        match arguments:
            case ["get", "statefulset", "kvorum", "--output", what]:
                known = {".spec.replicas": str(self.replicas), ".metadata.namespace": NAMESPACE}
                return 0, known[what.removeprefix("jsonpath={").removesuffix("}")], ""
            case ["get", "persistentvolumeclaims", "--output", "name"]:
                claims = sorted(self.directory.glob("data-kvorum-*"))
                return 0, "".join(f"persistentvolumeclaim/{one.name}\n" for one in claims), ""
            case ["get", "persistentvolumeclaim", claim]:
                found = (self.directory / claim).exists()
                return (0, claim, "") if found else (1, "", f'"{claim}" not found\n')
            case ["scale", "statefulset", "kvorum", current, replicas]:
                if current != f"--current-replicas={self.replicas}":
                    return 1, "", f"error: expected replicas to be {self.replicas}\n"
                self.scale(int(replicas.removeprefix("--replicas=")))
                return 0, "statefulset.apps/kvorum scaled\n", ""
            case ["apply", "--kustomize", overlay, *how]:
                spec = find(render_here(Path(overlay)), "StatefulSet", "kvorum")["spec"]
                return 0, str(spec["replicas"]) if "--dry-run=server" in how else "", ""
            case ["rollout", "status", "statefulset", "kvorum", _]:
                return 0, "", ""
            case ["wait", "--for=delete", pod, _] if pod.startswith("pod/kvorum-"):
                gone = int(pod.rpartition("-")[2]) not in self._running
                return (0, "", "") if gone else (1, "", "timed out\n")
            case ["exec", "--stdin", pod, "--container", "kvorum", "--", *command]:
                return self._exec(pod, command, stdin)
            case ["exec", pod, "--container", "kvorum", "--", *command]:
                return self._exec(pod, command, b"")
            case _:
                return 1, "", f"kubectl {' '.join(arguments)}: not known here\n"

    def _exec(self, pod: str, command: Sequence[str], stdin: bytes) -> tuple[int, str, str]:
        running = sorted(
            ordinal for ordinal, process in self._running.items() if process.poll() is None
        )
        found = [
            ordinal for ordinal in running if pod in ("statefulset/kvorum", f"kvorum-{ordinal}")
        ]
        if not found:
            return 1, "", f"error: no pod {pod} runs\n"
        environment = self.started(found[0]).environment
        ran = subprocess.run(
            [shutil.which(command[0], path=environment["PATH"]) or command[0], *command[1:]],
            env=environment,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=SCRIPT_SECONDS,
        )
        return ran.returncode, self._named(ran.stdout.decode()), self._named(ran.stderr.decode())


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def kubectl_for(pods: LocalPods, directory: Path) -> Iterator[Path]:
    """A folder with a `kubectl` that reaches the pods, for a PATH."""
    path = str(directory / "kubectl.socket")

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            arguments, stdin = json.loads(self.rfile.readline())
            answer = pods.kubectl(arguments, bytes.fromhex(stdin))
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    folder = directory / "bin"
    folder.mkdir()
    (folder / "client.py").write_text(_CLIENT.format(path=path))
    (folder / "kubectl").write_text(
        f'#!/bin/sh\nexec {sys.executable} -IS {folder / "client.py"} "$@"\n'
    )
    (folder / "kubectl").chmod(0o755)
    with _Server(path, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="kubectl")
        thread.start()
        try:
            yield folder
        finally:
            server.shutdown()
            thread.join()


def run_script(
    name: str, *arguments: str, path: Path, within_seconds: int
) -> "subprocess.CompletedProcess[str]":
    """Run a script of deploy/kubernetes with that folder first on its PATH.

    Args:
        within_seconds: how long it waits for what has to happen.
    """
    return subprocess.run(
        ["/bin/sh", str(KUBERNETES / name), *arguments],
        env={
            "PATH": f"{path}:{os.environ['PATH']}",
            "TIMEOUT_SECONDS": str(within_seconds),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=SCRIPT_SECONDS,
    )


def free_network() -> str:
    """Three numbers of an address, 127.20.30, where nobody listens yet."""
    while True:
        network = f"127.{random.randint(2, 250)}.{random.randint(0, 250)}"
        ports = (7100, 7101, 7180)
        if all(processes.is_port_free(f"{network}.1", port) for port in ports):
            return network
