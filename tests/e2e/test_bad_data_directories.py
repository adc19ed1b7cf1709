"""A node that is given the wrong directory says what is wrong with it, and ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvorum.cli.processes import free_ports
from kvorum_node.config import NodeConfig
from kvorum_node.server import NOT_TO_BE_RESTARTED
from kvorum_node.storage.data_directory import Identity, Storage

pytestmark = pytest.mark.cluster

END_SECONDS = 30


@pytest.fixture
def members() -> dict[str, str]:
    return {f"n{number}": f"127.0.0.1:{port}" for number, port in enumerate(free_ports(3), 1)}


def open_storage(path: Path, name: str, members: dict[str, str]) -> Storage:
    """As the node of that name opens it."""
    config = NodeConfig(name=name, data_dir=path, listen=members[name], cluster=members)
    return Storage.open(path, Identity(config.cluster_id, config.node_id))


def command(
    path: Path, name: str, members: dict[str, str], *, introduced: bool = True
) -> list[str]:
    """How the node is started with the directory."""
    listing = ",".join(f"{name}={address}" for name, address in members.items())
    return [
        *(sys.executable, "-m", "kvorum.cli", "node", name),
        *("--data-dir", str(path)),
        *("--listen", members[name]),
        *(("--cluster", listing) if introduced else ()),
    ]


def refusal(
    path: Path,
    name: str,
    members: dict[str, str],
    *,
    introduced: bool = True,
    status: int = NOT_TO_BE_RESTARTED,
) -> str:
    """What a node process says that is started with the directory, and ends by itself."""
    ran = subprocess.run(
        command(path, name, members, introduced=introduced),
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert ran.returncode == status
    assert "Traceback" not in ran.stderr
    [line] = ran.stderr.splitlines()
    return line


def test_it_is_open_already(tmp_path: Path, members: dict[str, str]) -> None:
    storage = open_storage(tmp_path, "n2", members)
    try:
        said = refusal(tmp_path, "n2", members, status=1)
    finally:
        storage.close()
    assert f"is open in the process with pid {os.getpid()}" in said


def test_it_is_of_another_node(tmp_path: Path, members: dict[str, str]) -> None:
    open_storage(tmp_path, "n2", members).close()
    said = refusal(tmp_path, "n1", members)
    assert "belongs to n2 of cluster" in said
    assert "not to n1 of cluster" in said


def test_it_is_new_and_nobody_says_of_which_cluster(
    tmp_path: Path, members: dict[str, str]
) -> None:
    said = refusal(tmp_path / "new", "n1", members, introduced=False)
    assert "new holds no node yet: its first start needs the setting cluster" in said
    assert not (tmp_path / "new").exists()


def test_it_is_of_other_members_and_decides(tmp_path: Path, members: dict[str, str]) -> None:
    """Members change, and a command line is not always changed with them."""
    alone = {"n1": members["n1"]}
    said_first = run_until_it_leads(command(tmp_path, "n1", alone))
    assert "was told of the members" not in said_first
    said = run_until_it_leads(command(tmp_path, "n1", members))
    told = "n1 was told of the members n1={n1}, n2={n2}, n3={n3}".format_map(members)
    assert f"{told}, and goes by those that its log knows: n1={members['n1']}\n" in said


def run_until_it_leads(arguments: list[str]) -> str:
    """What the node has said until it led; then it is stopped."""
    node = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    said = ""
    try:
        assert node.stderr is not None
        for line in node.stderr:
            said += line
            if "n1 leader" in line:
                break
    finally:
        node.terminate()
        node.communicate(timeout=END_SECONDS)
    assert node.returncode == 0
    return said


def test_it_is_of_a_newer_version(tmp_path: Path, members: dict[str, str]) -> None:
    open_storage(tmp_path, "n1", members).close()
    identity = json.loads((tmp_path / "kvorum.json").read_text())
    (tmp_path / "kvorum.json").write_text(json.dumps(identity | {"format": 2}))
    assert "is of format 2, this version knows formats up to 1" in refusal(tmp_path, "n1", members)


def make_file(path: Path) -> None:
    path.write_text("precious")


def make_foreign_directory(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def make_damaged_directory(path: Path) -> None:
    path.mkdir()
    (path / "kvorum.json").write_text("{")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_file, "is a file"),
        (make_foreign_directory, "is not empty: it contains thesis.tex"),
        (make_damaged_directory, "kvorum.json is damaged"),
    ],
)
def test_it_is_no_data_directory_at_all(
    tmp_path: Path, members: dict[str, str], make: Callable[[Path], None], expected: str
) -> None:
    path = tmp_path / "data"
    make(path)
    before = contents(path)
    assert expected in refusal(path, "n1", members, status=1)
    assert contents(path).items() >= before.items()


def contents(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else path.iterdir()
    return {file.name: file.read_text() for file in files}
