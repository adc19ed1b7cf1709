"""`kvorum recover`: what it shows, what it asks, and when it does nothing."""

import json
from pathlib import Path

import pytest

from kvorum_node.survivor import examine
from tests.support.command_line import kvorum


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Of a store with one record."""
    path = tmp_path / "n1"
    assert kvorum("put", "k", "v", "--target", str(path)).status == 0
    return path


def test_it_shows_what_survivors_are_compared_by(data_dir: Path) -> None:
    ran = kvorum("recover", "--data-dir", str(data_dir))
    found = examine(data_dir)
    shown = dict(line.split(maxsplit=1) for line in ran.out.splitlines() if "last" not in line)
    assert f"last entry {found.last}" in ran.out
    assert shown["node"].strip() == "n1"
    assert shown["cluster"].strip() == found.identity.cluster_id
    assert shown["applied"].strip() == f"{found.applied} (revision 1)"
    assert shown["members"].strip() == "n1  (voter)"
    assert f"kvorum recover --data-dir {data_dir} --force-new-cluster" in ran.err
    assert examine(data_dir) == found


def test_it_shows_the_same_to_scripts(data_dir: Path) -> None:
    shown = json.loads(kvorum("recover", "--data-dir", str(data_dir), "--json").out)
    found = examine(data_dir)
    assert shown == {
        "name": "n1",
        "cluster_id": found.identity.cluster_id,
        "last": str(found.last),
        "last_index": found.last.index,
        "last_term": found.last.term,
        "term": found.hard_state.term,
        "commit_index": found.hard_state.commit,
        "applied_index": found.applied,
        "revision": 1,
        "members": [{"name": "n1", "address": "", "kind": "voter"}],
    }


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_done(data_dir: Path, answer: str) -> None:
    before = examine(data_dir)
    force = ("--force-new-cluster", "--advertise", "127.0.0.1:1")
    ran = kvorum("recover", "--data-dir", str(data_dir), *force, stdin=answer)
    assert ran.status == 1
    assert "Writes that were acknowledged by others, and had not reached n1, are lost" in ran.err
    assert examine(data_dir) == before


def test_after_a_yes_it_says_how_to_go_on(data_dir: Path) -> None:
    force = ("--force-new-cluster", "--advertise", "127.0.0.1:1")
    ran = kvorum("recover", "--data-dir", str(data_dir), *force, stdin="y\n")
    made = examine(data_dir)
    assert ran.status == 0
    assert f"n1 is the only member of the new cluster {made.identity.cluster_id}" in ran.out
    assert f"  kvorum node n1 --data-dir {data_dir} --listen 127.0.0.1:1\n" in ran.out
    assert "  kvorum member add HOST:PORT --target kvorum://127.0.0.1:1\n" in ran.out
    assert made.address == "127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--advertise", "nonsense"], "error: --advertise: 'nonsense' is no address"),
        (["--force-new-cluster", "--yes"], "without an address: give it one with --advertise"),
    ],
)
def test_what_is_wrong_is_one_line(data_dir: Path, arguments: list[str], message: str) -> None:
    ran = kvorum("recover", "--data-dir", str(data_dir), *arguments)
    assert (ran.status, ran.out) == (1, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_where_no_node_is_nothing_is_made(tmp_path: Path) -> None:
    ran = kvorum("recover", "--data-dir", str(tmp_path / "x"), "--force-new-cluster", "--yes")
    assert (ran.status, ran.err) == (1, f"error: {tmp_path / 'x'} holds no node\n")
    assert list(tmp_path.iterdir()) == []
