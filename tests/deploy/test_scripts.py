"""The scripts of deploy/kubernetes, run against real nodes by way of a stand-in for kubectl."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import kvorum
from tests.support import alerts, local_pods, manifests, plain_http
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.local_pods import LocalPods
from tests.support.manifests import KUBERNETES
from tests.support.metrics import exposed_names
from tests.support.node_processes import nodes_of
from tests.support.pods import started

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@dataclass
class Place:
    """Pods, and a kubectl that reaches them."""

    pods: LocalPods
    path: Path

    def run(
        self, script: str, *arguments: str, within_seconds: int = local_pods.PATIENCE_SECONDS
    ) -> tuple[int, str]:
        """Run a script that waits for so long; returns its status, and what it said."""
        ran = local_pods.run_script(
            script, *arguments, path=self.path, within_seconds=within_seconds
        )
        return ran.returncode, ran.stdout + ran.stderr

    def must(self, script: str, *arguments: str) -> str:
        status, said = self.run(script, *arguments)
        assert status == 0, said
        return said

    def scaled(self) -> list[list[str]]:
        """How the StatefulSet was scaled."""
        return [call[3:] for call in self.pods.calls if call[0] == "scale"]

    def remove(self, ordinal: int) -> None:
        """Remove the member of a pod, and leave the pod."""
        [name] = [
            one["name"] for one in self._members() if one["address"] == self.pods.name(ordinal)
        ]
        self._exec("kvorum", "member", "remove", name)

    def members(self) -> list[str]:
        """The addresses of the voters."""
        return sorted(one["address"] for one in self._members() if one["kind"] == "voter")

    def _members(self) -> list[dict[str, str]]:
        members: list[dict[str, str]] = json.loads(
            self._exec("kvorum", "member", "list", "--json")
        )["members"]
        return members

    def _exec(self, *command: str) -> str:
        status, out, err = self.pods.kubectl(
            ["exec", "statefulset/kvorum", "--container", "kvorum", "--", *command], b""
        )
        assert status == 0, err
        return out


@contextmanager
def place_in(directory: Path) -> Iterator[Place]:
    pods = LocalPods(directory)
    try:
        with local_pods.kubectl_for(pods, directory) as path:
            yield Place(pods, path)
    finally:
        pods.end()
        assert nodes_of(directory) == []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A StatefulSet without pods."""
    with place_in(tmp_path) as place:
        yield place


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Three nodes that are a cluster; a test leaves as many."""
    with place_in(tmp_path_factory.mktemp("cluster")) as place:
        place.pods.scale(3)
        said = place.must("init.sh")
        assert [said.count(f"kvorum-{ordinal} is n") for ordinal in range(3)] == [1, 1, 1]
        yield place


@pytest.fixture
def cluster(begun: Place) -> Place:
    begun.pods.calls.clear()
    return begun


def names(place: Place, count: int) -> list[str]:
    return [place.pods.name(ordinal) for ordinal in range(count)]


def scripts() -> list[Path]:
    """All of them, those for one machine too."""
    return sorted((KUBERNETES.parent).rglob("*.sh"))


def test_the_scripts_are_sound() -> None:
    linter = str(Path(sys.executable).parent / "shellcheck")
    ran = subprocess.run(
        [linter, "--severity=style", "--external-sources", "--source-path=SCRIPTDIR", *scripts()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == ""
    assert ran.returncode == 0


def test_no_script_forces_anything() -> None:
    """What the leader refuses is for a person to decide, who has read why."""
    forced = [path.name for path in scripts() if re.search(r"--force\b", path.read_text())]
    assert forced == []


def test_nodes_answer_where_the_manifests_look(cluster: Place) -> None:
    """Every port of a Service is open, and every probe is answered, by the real server."""
    pods = cluster.pods
    [container] = manifests.find(pods.objects, "StatefulSet", "kvorum")["spec"]["template"]["spec"][
        "containers"
    ]
    monitored = manifests.render("prod-monitored")
    [endpoint] = manifests.find(monitored, "ServiceMonitor", "kvorum")["spec"]["endpoints"]
    paths = {
        *(probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")),
        endpoint["path"],
    }
    assert paths == {"/livez", "/readyz", "/metrics"}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for ordinal in range(3):
        for path in paths:
            answer = plain_http.ask_now(f"{pods.host(ordinal)}:{ports['admin']}", path)
            assert answer.status == 200, answer
        for port in ports.values():
            socket.create_connection((pods.host(ordinal), port), timeout=30).close()
    assert plain_http.ask_now(f"{pods.host(0)}:{ports['admin']}", "/ready").status == 404


def test_every_alert_asks_for_what_the_nodes_tell(cluster: Place) -> None:
    told = plain_http.ask_now(f"{cluster.pods.host(0)}:7180", "/metrics").body
    assert alerts.metrics() - exposed_names(told) == set()


def test_a_cluster_grows_and_shrinks(cluster: Place) -> None:
    pods = cluster.pods
    with kvorum.open_sync(pods.target, timeout=60) as kv:
        kv.put("before", 1)

    said = cluster.must("scale-up.sh", "5")
    assert cluster.members() == names(cluster, 5)
    assert cluster.scaled() == [
        ["--current-replicas=3", "--replicas=4"],
        ["--current-replicas=4", "--replicas=5"],
    ]
    # One after the other: the fifth is asked for when the fourth is a voter.
    fourth = re.search(r"kvorum-3 is n\d+, a voter", said)
    assert fourth is not None
    assert fourth.start() < said.index("kvorum-4")

    with kvorum.open_sync(pods.target, timeout=60) as kv:
        kv.put("between", 2)
    said = cluster.must("scale-down.sh", "3")
    assert cluster.members() == names(cluster, 3)
    assert pods.volume(4).exists()
    assert "kubectl delete persistentvolumeclaim data-kvorum-4" in said
    assert "4 nodes" not in said  # a step on the way
    with kvorum.open_sync(pods.target, timeout=60) as kv:
        assert [entry.value for entry in kv.list("be").entries] == [1, 2]

    # What was removed does not come back under its name, and nobody waits for it.
    status, said = cluster.run("scale-up.sh", "4")
    assert status == 1
    assert "kubectl delete persistentvolumeclaim data-kvorum-3" in said
    assert pods.replicas == 3
    for ordinal in (3, 4):
        shutil.rmtree(pods.volume(ordinal))


def test_what_was_interrupted_goes_on(cluster: Place) -> None:
    pods = cluster.pods
    pods.scale(4)  # and nobody waited for it
    said = cluster.must("scale-up.sh", "4")
    assert "4 nodes survive the loss of 1, as 3 do: odd numbers are better" in said
    assert cluster.members() == names(cluster, 4)
    assert cluster.scaled() == []

    cluster.remove(3)  # and its pod is still there
    cluster.must("scale-down.sh", "3")
    assert cluster.members() == names(cluster, 3)
    assert pods.replicas == 3
    shutil.rmtree(pods.volume(3))


def test_what_would_endanger_the_quorum_is_refused_and_changes_nothing(cluster: Place) -> None:
    """With one of three down, the other two are a majority; of two, one is none."""
    pods = cluster.pods
    pods.stop(1, signal.SIGKILL)
    status, said = cluster.run("scale-down.sh", "2")
    assert status == 1
    assert "kvorum-2, is still a member, and its pod stays: without it no majority would" in said
    assert cluster.members() == names(cluster, 3)

    pods.stop(0, signal.SIGKILL)
    status, said = cluster.run("scale-down.sh", "2")
    assert status == 1
    # The one that is left may have led, and takes a moment to notice.
    assert "no leader answers" in said or "no majority would answer" in said

    assert cluster.scaled() == []
    assert pods.replicas == 3
    pods.scale(3)
    cluster.must("scale-up.sh", "3")


def test_an_update_is_begun_only_where_it_leaves_a_majority(cluster: Place) -> None:
    pods, overlay = cluster.pods, str(KUBERNETES / "overlays/prod")

    def applied() -> int:
        return pods.calls.count(["apply", "--kustomize", overlay])

    status, said = cluster.run("update.sh", str(KUBERNETES / "overlays/dev"))
    assert status == 1
    assert "there are 3 nodes, and" in said
    cluster.must("update.sh", overlay)
    assert applied() == 1
    assert ["rollout", "status"] in [call[:2] for call in pods.calls]

    pods.stop(0)
    status, said = cluster.run("update.sh", overlay)
    assert status == 1
    # A leader may have to be found first.
    assert "kvorum-0.kvorum-peers" in said or "no leader answers" in said
    assert applied() == 1
    pods.start(0)

    # The last one goes first: an update that has broken it can be taken back.
    pods.stop(2)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while cluster.run("update.sh", overlay)[0] != 0:
        assert time.monotonic() < deadline
    assert applied() == 2
    pods.start(2)


def test_nothing_begins_beside_a_cluster(cluster: Place) -> None:
    """Not even where the first volume is lost: the others know better."""
    pods = cluster.pods
    for call in (("init.sh",), ("restore.sh", __file__)):
        status, said = cluster.run(*call)
        assert status == 1
        assert "kvorum-0 is a node of a cluster already: nothing is begun beside it" in said

    pods.stop(0)
    lost = pods.volume(0).rename(pods.directory / "lost")
    pods.start(0, "--join=127.0.0.1:9")
    status, said = cluster.run("init.sh")
    assert status == 1
    assert "kvorum-1 is a node of a cluster already: nothing is begun beside it" in said
    pods.stop(0)
    shutil.rmtree(pods.volume(0))
    lost.rename(pods.volume(0))
    pods.scale(3)
    assert not any({"init", "restore"} & {*call} for call in pods.calls)


def test_a_backup_is_restored_to_a_new_cluster(cluster: Place, place: Place) -> None:
    """By the script of the CronJob, as its container starts it."""
    with kvorum.open_sync(cluster.pods.target, timeout=60) as kv:
        kv.put("saved", "yes")
    backups = cluster.pods.directory / "backups"
    backups.mkdir()
    # Of earlier nights, one of them unfinished; and of somebody else.
    for name in (
        *(f"kvorum-202501{day:02}T021700Z.snapshot" for day in range(1, 10)),
        *(f"kvorum-20250110T021700Z.snapshot.{end}" for end in ("unverified", "unverified.part")),
        "notes",
    ):
        (backups / name).touch()

    status, said = backup(cluster, backups)
    assert status == 0, said
    found = sorted(path.name for path in backups.iterdir())
    newest = found[-2]
    assert re.fullmatch(r"kvorum-20\d{6}T\d{6}Z\.snapshot", newest)
    assert f"saved {newest}" in said
    kept = [f"kvorum-202501{day:02}T021700Z.snapshot" for day in range(4, 10)]
    assert found == [*kept, newest, "notes"]

    place.pods.scale(3)
    cut = place.pods.directory / "cut.snapshot"
    cut.write_bytes((backups / newest).read_bytes()[:-1])
    status, said = place.run("restore.sh", str(cut))
    assert status != 0
    assert not (place.pods.volume(0) / "node/kvorum.json").exists()

    place.must("restore.sh", str(backups / newest))
    assert place.members() == names(place, 3)
    with kvorum.open_sync(place.pods.target, timeout=60) as kv:
        entry = kv.get("saved")
    assert entry is not None
    assert entry.value == "yes"


def test_a_backup_that_fails_deletes_nothing(cluster: Place) -> None:
    folder = cluster.pods.directory / "old-backups"
    folder.mkdir()
    for day in range(1, 20):
        (folder / f"kvorum-202501{day:02}T021700Z.snapshot").touch()
    status, said = backup(cluster, folder, target="kvorum://127.0.0.1:9")
    assert status != 0
    assert len([*folder.iterdir()]) == 19, said


def test_a_backup_that_is_not_whole_is_not_kept_as_one(cluster: Place) -> None:
    """Its last byte is lost between the program and the disk."""
    folder, programs = (cluster.pods.directory / name for name in ("bad-backups", "programs"))
    folder.mkdir()
    (folder / "kvorum-20250101T021700Z.snapshot").touch()
    programs.mkdir()
    real = shutil.which("kvorum", path=cluster.pods.started(0).environment["PATH"])
    program = programs / "kvorum"
    program.write_text(
        f"""#!/bin/sh
        {real} "$@" || exit
        [ "$2" != save ] || truncate --size=-1 "$3"
        """
    )
    program.chmod(0o755)

    status, said = backup(cluster, folder, programs=programs)

    assert status != 0
    assert "breaks off" in said
    kept, unfinished = sorted(path.name for path in folder.iterdir())
    assert kept == "kvorum-20250101T021700Z.snapshot"
    assert unfinished.endswith(".unverified")


def backup(
    place: Place, folder: Path, target: str = "", programs: Path | None = None
) -> tuple[int, str]:
    """Run the job's container, with the folder for its volume.

    Args:
        programs: where programs are looked for first.
    """
    pods = place.pods
    path = pods.started(0).environment["PATH"]
    workloads = {workload: spec for workload, _, spec in manifests.pod_specs(pods.objects)}
    spec = workloads["CronJob/kvorum-backup"]
    [container] = spec["containers"]
    start = started(pods.objects, spec, container, pod="kvorum-backup-1")
    [script] = [
        one["data"]["backup.sh"]
        for one in pods.objects
        if one["metadata"]["name"] == spec["volumes"][1]["configMap"]["name"]
    ]
    assert start.command == ["/bin/sh", "/scripts/backup.sh"]
    (pods.directory / "backup.sh").write_text(script)
    ran = subprocess.run(
        ["/bin/sh", pods.directory / "backup.sh"],
        env=start.environment
        | {"DIRECTORY": str(folder), "KVORUM_TARGET": target or pods.target}
        | {"PATH": f"{programs}:{path}" if programs else path}
        | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=local_pods.SCRIPT_SECONDS,
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("update.sh",), "no such overlay"),
        (("update.sh", "nothing"), "no such overlay: nothing"),
        (("scale-up.sh",), "how many nodes?"),
        (("scale-up.sh", "many"), "how many nodes?"),
        (("scale-up.sh", "2"), "there are 3 nodes: scale-down.sh makes it 2"),
        (("scale-down.sh", "4"), "there are 3 nodes: scale-up.sh makes it 4"),
        (("scale-down.sh", "0"), "the last node is the cluster"),
        (("scale-down.sh", "-1"), "how many nodes?"),
        (("scale-down.sh",), "how many nodes?"),
        (("restore.sh",), "no such file"),
        (("restore.sh", "nothing.snapshot"), "no such file: nothing.snapshot"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], told: str, place: Place
) -> None:
    place.pods.replicas = 3
    status, said = place.run(*arguments)
    assert status == 1
    assert told in said
    assert [call for call in place.pods.calls if call[0] != "get"] == []


def test_other_arguments_are_for_kubectl(place: Place) -> None:
    status, _ = place.run("scale-up.sh", "3", "-n", "elsewhere", "--context", "prod")
    assert status == 1
    assert [call[:4] for call in place.pods.calls] == [["-n", "elsewhere", "--context", "prod"]]


def test_nothing_begins_while_a_pod_is_down(place: Place) -> None:
    place.pods.scale(3)
    place.pods.stop(1)
    status, said = place.run("init.sh", within_seconds=2)
    assert status == 1
    assert "kvorum-1 does not run: all pods have to" in said
    assert not (place.pods.volume(0) / "node/kvorum.json").exists()


def test_it_waits_for_pods_whose_images_are_still_fetched(place: Place) -> None:
    place.pods.scale(1)
    place.pods.stop(0)
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(place.must, "init.sh")
        tried = ("exec", "kvorum-0")
        deadline = time.monotonic() + DEADLINE_SECONDS
        while [(call[0], call[1]) for call in place.pods.calls].count(tried) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        place.pods.start(0)
        assert "kvorum-0 does not run yet" in running.result()
    assert place.members() == names(place, 1)


def test_nothing_begins_beside_a_volume_of_an_earlier_cluster(place: Place) -> None:
    place.pods.scale(1)
    place.pods.volume(4).mkdir()
    status, said = place.run("init.sh")
    assert status == 1
    assert "persistentvolumeclaim/data-kvorum-4 is of an earlier cluster" in said
