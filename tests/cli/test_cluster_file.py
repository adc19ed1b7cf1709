"""cluster.json: read back as written, replaced as a whole, refused if it is something else."""

import json
from pathlib import Path

import pytest

from kvorum.cli.cluster_file import (
    FILE_NAME,
    ClusterFile,
    LocalClusterError,
    NoClusterHere,
    NodeRecord,
    ProcessIdentity,
)

CLUSTER = ClusterFile(
    nodes=(
        NodeRecord("n1", "127.0.0.1:7101", "127.0.0.1:7181", ProcessIdentity(123, 1700000000.25)),
        NodeRecord(
            "n2", "127.0.0.1:7102", "127.0.0.1:7182", introduction=("--join", "127.0.0.1:7101")
        ),
    ),
    flags=("--fsync", "off"),
)


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    CLUSTER.write(tmp_path)
    assert ClusterFile.read(tmp_path) == CLUSTER
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_the_target_names_every_node() -> None:
    assert CLUSTER.target == "kvorum://127.0.0.1:7101,127.0.0.1:7102"


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CLUSTER.write(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        ClusterFile(nodes=()).write(tmp_path)
    assert ClusterFile.read(tmp_path) == CLUSTER


@pytest.mark.parametrize("place", ["", "nothing/here"])
def test_where_there_is_none_the_error_says_how_to_start_one(tmp_path: Path, place: str) -> None:
    with pytest.raises(NoClusterHere, match="kvorum cluster up"):
        ClusterFile.read(tmp_path / place)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1, "nodes": [], "flags": []}',
        '{"format": 4, "nodes": [], "flags": []}',
        '{"format": 3, "nodes": [{"name": "n1"}], "flags": []}',
        '{"format": 3, "nodes": [{"name": "n1", "address": "a", "process": 7}], "flags": []}',
        json.dumps(
            {
                "format": 3,
                "nodes": [
                    {"name": "n1", "address": "a", "admin": "b", "process": 7, "introduction": []}
                ],
                "flags": [],
            }
        ),
        "\udcff",
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(LocalClusterError, match="not a cluster file"):
        ClusterFile.read(tmp_path)
