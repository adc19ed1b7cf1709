"""The Dockerfile and compose.yaml: linted, and carried out step by step, without an engine."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import kvorum
from kvorum_node.termination import DRAIN_SECONDS
from tests.support.image import Build, context_files
from tests.support.local_pods import free_network
from tests.support.manifest_policies import NODE_USER
from tests.support.pods import ENTRYPOINT, Started, node_settings, read_variables

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
COMPOSE = ROOT / "deploy/docker/compose.yaml"
BINARIES = Path(sys.executable).parent

LISTING = """
import importlib.metadata
for one in importlib.metadata.distributions():
    print(f"{one.name}=={one.version}")
"""

BUILD_SECONDS = 600
"""An installation takes as long as the network does."""


def services() -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return content


def run(*command: str | Path) -> tuple[int, str]:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def test_the_files_are_sound() -> None:
    assert run(BINARIES / "hadolint", DOCKERFILE) == (0, "")
    status, said = run(
        *(BINARIES / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
    )
    assert status == 0, said


def test_the_linters_see_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.read_text().replace("${PYTHON}", "python:latest"))
    status, said = run(BINARIES / "hadolint", bad)
    assert status != 0
    assert "latest" in said
    compose = tmp_path / "compose.yaml"
    compose.write_text(COMPOSE.read_text().replace("read_only:", "readonly:"))
    status, _ = run(
        *(BINARIES / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose)
    )
    assert status != 0


def test_the_context_is_what_the_image_is_built_of() -> None:
    """Neither what git keeps, nor tests, nor what tools leave, nor somebody's data."""
    files = context_files(ROOT)
    assert {path.parts[0] for path in files} == {
        *("client", "node", "proto"),
        *("LICENSE", "README.md", "constraints.txt", "pyproject.toml"),
    }
    assert [path for path in files if path.suffix == ".pyc"] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The image, as plain files."""
    return Build(DOCKERFILE, ROOT, tmp_path_factory.mktemp("image"))


@pytest.mark.timeout(BUILD_SECONDS)
def test_the_image_is_what_the_manifests_rely_on(built: Build) -> None:
    image = built.image
    assert image.entrypoint == [ENTRYPOINT]
    assert image.user == f"{NODE_USER}:{NODE_USER}"
    assert image.labels["org.opencontainers.image.version"] == kvorum.__version__
    assert image.ports == [7100, 7101, 7180]
    assert image.environment.keys() - read_variables() == {"PATH"}
    assert [Path(image.environment["KVORUM_DATA_DIR"]).parent] == [
        Path(one) for one in image.volumes
    ]
    assert {one["image"] for one in services().values()} == {f"kvorum:{kvorum.__version__}"}


@pytest.mark.timeout(BUILD_SECONDS)
def test_the_image_holds_what_the_constraints_say_and_no_installer(built: Build) -> None:
    python = built.root / "opt/kvorum/bin/python"
    status, said = run(python, "-I", "-c", LISTING)
    assert status == 0, said
    installed = {re.sub("[-_.]+", "-", line).lower() for line in said.split()}
    names = {line.partition("==")[0] for line in installed}
    assert "kvorum" in names
    assert "rocksdict" in names
    assert names.isdisjoint({"pip", "setuptools", "pytest", "mypy"})
    locked = {
        re.sub("[-_.]+", "-", line).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    ours = {line for line in installed if line.startswith("kvorum==")}
    assert installed - ours <= locked


class Nodes:
    """The services of compose.yaml as processes: a name is an address of 127.0.0.0/8."""

    def __init__(self, built: Build, directory: Path) -> None:
        self._built = built
        self._directory = directory
        self._network = free_network()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """As compose.yaml says: nothing but the volume is writable, and no right is held."""
        volume = self.volume(name)
        volume.mkdir(parents=True, exist_ok=True)
        definition = services()[name]
        assert definition["read_only"]
        assert definition["cap_drop"] == ["ALL"]
        assert definition["security_opt"] == ["no-new-privileges:true"]
        image = self._built.image
        with (self._directory / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                confined(self.command(name, [*image.entrypoint, *definition["command"]]), volume),
                env=self.environment(name),
                stdout=log,
                stderr=log,
            )

    def is_healthy(self, name: str) -> bool:
        command = self.command(name, self._built.image.healthcheck)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    async def become_healthy(self, *names: str) -> None:
        async with asyncio.timeout(60):
            for name in names:
                while not await asyncio.to_thread(self.is_healthy, name):  # noqa: ASYNC110 - it is asked
                    await asyncio.sleep(0.1)

    def stop(self, name: str) -> int:
        process = self._running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(DRAIN_SECONDS)

    def end(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def volume(self, name: str) -> Path:
        [volume] = services()[name]["volumes"]
        assert volume.partition(":")[2] == self._built.image.volumes[0]
        return self._directory / str(volume.partition(":")[0])

    def log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text()

    def environment(self, name: str) -> dict[str, str]:
        variables = self._built.image.environment | services()[name]["environment"]
        local = {one: self.localised(value, name) for one, value in variables.items()}
        return local | {"PATH": local["PATH"].replace("$PATH", os.environ["PATH"])}

    def command(self, name: str, command: list[str]) -> list[str]:
        """With the program of the image."""
        binary = self._built.root / "opt/kvorum/bin" / command[0]
        return [str(binary), *(self.localised(one, name) for one in command[1:])]

    def localised(self, text: str, name: str) -> str:
        volume = self._built.image.volumes[0]
        text = self._built.localised(text.replace(volume, str(self.volume(name))))
        for number, one in enumerate(services(), 1):
            text = re.sub(rf"\b{one}(?=:\d)", f"{self._network}.{number}", text)
        own = f"{self._network}.{[*services()].index(name) + 1}"
        return text.replace("0.0.0.0", own).replace("127.0.0.1", own)


def confined(command: list[str], writable: Path) -> list[str]:
    """Without a right, and with no file system to write to but one folder; if root may."""
    if not CAN_CONFINE:
        return command
    script = (
        'mount --bind "$0" "$0" && mount --options remount,bind,ro / &&'
        " exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs"
        ' "$@"'
    )
    return [*UNSHARE, "sh", "-c", script, str(writable), *command]


UNSHARE = ["unshare", "--mount", "--propagation", "private"]


def _can_confine() -> bool:
    try:
        probe = subprocess.run(
            [*UNSHARE, "setpriv", "--no-new-privs", "mount", "--bind", "/tmp", "/tmp"],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return False
    return probe.returncode == 0


CAN_CONFINE = _can_confine()


@pytest.fixture
def nodes(built: Build, tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(built, tmp_path)
    try:
        yield nodes
    finally:
        nodes.end()


@pytest.mark.skipif(not CAN_CONFINE, reason="needs to be root, with util-linux")
def test_what_is_confined_cannot_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    probe = f"touch {tmp_path}/own/a && ! touch {tmp_path}/b && ! mount --bind /tmp /tmp"
    status, said = run(*confined(["sh", "-c", probe], tmp_path / "own"))
    assert status == 0, said
    assert "Read-only file system" in said


@pytest.mark.cluster
@pytest.mark.timeout(BUILD_SECONDS)
async def test_the_services_become_a_cluster(nodes: Nodes) -> None:
    for name in services():
        nodes.start(name)
    await nodes.become_healthy(*services())
    target = nodes.environment("n1")["KVORUM_TARGET"]
    async with kvorum.open(target, timeout=60) as kv:
        await kv.put("key", "value")
        # What is written to is the volume, and the data is in the directory below it.
        assert [path.name for path in nodes.volume("n2").iterdir()] == ["node"]
        for name in services():
            status = await asyncio.to_thread(
                subprocess.run,
                nodes.command(name, ["kvorum", "status", "--json"]),
                env=nodes.environment(name),
                capture_output=True,
                check=True,
            )
            assert len(json.loads(status.stdout)["nodes"]) == 3

        assert await asyncio.to_thread(nodes.stop, "n1") == 0, nodes.log("n1")
        assert not nodes.is_healthy("n1")
        await kv.put("key", "more")
        nodes.start("n1")
        await nodes.become_healthy("n1")
        entry = await kv.get("key")
        assert entry is not None
        assert entry.value == "more"


@pytest.mark.timeout(BUILD_SECONDS)
def test_the_settings_are_taken(built: Build) -> None:
    """By the real parser; and what is published is where each node listens and is looked for."""
    for name, definition in services().items():
        environment = built.image.environment | definition["environment"]
        settings = node_settings(Started([ENTRYPOINT, *definition["command"]], environment))
        assert definition["environment"].keys() <= read_variables()
        port = settings.listen.rpartition(":")[2]
        assert settings.name == name
        assert settings.address == f"{name}:{port}"
        assert definition["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert f"127.0.0.1:{settings.admin_listen.rpartition(':')[2]}/livez" in " ".join(
            built.image.healthcheck
        )
        assert definition["mem_limit"] == "1g"
        assert settings.memory_bytes == 1 << 30
        assert definition["stop_grace_period"] == "60s"
        assert DRAIN_SECONDS < 60
