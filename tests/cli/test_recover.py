"""`kvorum recover`: what it shows, what it asks, and when it does nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvorum_node import survivor
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import HardState, Index, NodeId
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
    assert shown["members"].strip() == "n1 (voter)"
    assert f"kvorum recover --data-dir {data_dir} --force-new-cluster" in ran.err
    assert examine(data_dir) == found


def test_what_it_advises_and_warns_of_depends_on_who_else_votes(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedded store, a voter that decides alone, and one of several."""
    embedded = examine(data_dir)
    addresses = {NodeId(node): f"h{node}:1" for node in (1, 2, 3)}
    several = Configuration.of(addresses)
    alone = replace(several, voters=several.voters - {2, 3}, learners=frozenset({NodeId(2)}))
    for configuration, advice, warning in (
        (embedded.configuration, "This is the store of a program", "Nothing is lost"),
        (alone, "n1 is the only voter", "no write\nis lost. n2 must never be started"),
        (several, "With a majority of the voters: start them", "had not reached n1, are lost"),
    ):
        found = replace(embedded, configuration=configuration)
        monkeypatch.setattr(survivor, "examine", lambda _, found=found: found)
        assert advice in kvorum("recover", "--data-dir", str(data_dir)).err
        force = ("--force-new-cluster", "--advertise", "h1:1")
        assert warning in kvorum("recover", "--data-dir", str(data_dir), *force, stdin="n\n").err


def test_what_is_applied_counts_as_committed(data_dir: Path) -> None:
    found = examine(data_dir)
    assert found.applied > 0
    assert replace(found, hard_state=HardState(commit=Index(0))).committed == found.applied
    later = Index(found.applied + 1)
    assert replace(found, hard_state=HardState(commit=later)).committed == later


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
        "commit_index": found.committed,
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
    assert "Nothing is lost. Programs then\nreach it as kvorum://127.0.0.1:1" in ran.err
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
        (
            ["--advertise", "0.0.0.0:1"],
            "error: --advertise: '0.0.0.0:1' is an address to listen on",
        ),
        (["--advertise", "nonsense"], "error: --advertise: 'nonsense' is no address"),
        (["--force-new-cluster"], "without an address: give it one with --advertise"),
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
