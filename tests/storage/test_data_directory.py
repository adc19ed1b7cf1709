"""Whose directory it is, that one process has it, and that creation may be cut off anywhere."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from pathlib import Path

import pytest

from kvorum.errors import DataDirectoryInUse, DataDirectoryMismatch, StateCorrupt, StorageError
from kvorum_node.raft.types import NodeId
from kvorum_node.storage import data_directory
from kvorum_node.storage.data_directory import (
    DataDirectory,
    Identity,
    Storage,
    replace_identity,
    stored_identity,
)
from kvorum_node.storage.engine import Batch, Engine, Family

MINE = Identity("cluster-a", NodeId(1))


def put(engine: Engine, family: Family, value: bytes) -> None:
    batch = Batch()
    batch.put(family, b"key", value)
    engine.write(batch)
    engine.sync()


def create(path: Path, identity: Identity | None = MINE) -> None:
    storage = Storage.open(path, identity)
    put(storage.log, Family.LOG, b"log")
    put(storage.state, Family.DATA, b"state")
    storage.close()


def holds_what_was_stored(path: Path, identity: Identity | None = MINE) -> bool:
    storage = Storage.open(path, identity)
    try:
        return (
            storage.log.get(Family.LOG, b"key") == b"log"
            and storage.state.get(Family.DATA, b"key") == b"state"
        )
    finally:
        storage.close()


def snapshot(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def test_a_directory_is_created_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "data"
    create(path)
    assert sorted(entry.name for entry in path.iterdir()) == ["LOCK", "kvorum.json", "log", "state"]
    content = json.loads((path / "kvorum.json").read_bytes())
    assert str(uuid.UUID(directory_id := content.pop("directory_id"))) == directory_id
    assert content == {"format": 1, "cluster_id": "cluster-a", "node_id": 1, "peers": {}}
    assert holds_what_was_stored(path)


def test_each_directory_has_an_id_of_its_own_for_ever(tmp_path: Path) -> None:
    def directory_id(name: str) -> str:
        storage = Storage.open(tmp_path / name, Identity("cluster-a", NodeId(1)))
        storage.close()
        return storage.identity.directory_id

    first = directory_id("data")
    assert directory_id("data") == first
    assert directory_id("other") != first
    shutil.rmtree(tmp_path / "data")
    assert directory_id("data") != first
    first = directory_id("data")
    replace_identity(tmp_path / "data", Identity("cluster-a", NodeId(1), first).in_new_cluster())
    found = stored_identity(tmp_path / "data")
    assert found is not None
    assert (found.cluster_id != "cluster-a", found.directory_id) == (True, first)


def test_peers_are_remembered_by_their_directories(tmp_path: Path) -> None:
    for number in (2, 3, 20):
        storage = Storage.open(tmp_path, MINE)
        assert storage.acquaintances.directory_of(NodeId(number)) == ""
        storage.acquaintances.add(NodeId(number), f"d{number}")
        assert storage.acquaintances.directory_of(NodeId(number)) == f"d{number}"
        storage.close()
    storage = Storage.open(tmp_path, MINE)
    known = storage.acquaintances
    assert [known.directory_of(NodeId(n)) for n in (1, 2, 3, 20)] == ["", "d2", "d3", "d20"]
    replace_identity(tmp_path, storage.identity.in_new_cluster())
    storage.close()
    storage = Storage.open(tmp_path, None)
    assert storage.acquaintances.directory_of(NodeId(2)) == ""  # nobody it has to do with
    storage.close()


def test_a_peer_that_cannot_be_written_down_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.open(tmp_path, MINE)
    before = snapshot(tmp_path)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data_directory, "write_durably", full)
    with pytest.raises(StorageError, match=r"cannot write .*kvorum\.json: No space left"):
        storage.acquaintances.add(NodeId(2), "d2")
    assert storage.acquaintances.directory_of(NodeId(2)) == ""
    assert snapshot(tmp_path) == before
    storage.close()


def test_a_condemned_directory_is_not_opened_again(tmp_path: Path) -> None:
    create(tmp_path)
    storage = Storage.open(tmp_path, MINE)
    storage.condemn("its state is another one")
    storage.close()
    for identity in (MINE, None, MINE):
        with pytest.raises(StateCorrupt, match=r"^its state is another one$"):
            Storage.open(tmp_path, identity)
    assert stored_identity(tmp_path) == MINE
    (tmp_path / "CORRUPT").unlink()  # what an operator may do who has nothing else left
    assert holds_what_was_stored(tmp_path)


def test_a_directory_that_cannot_be_condemned_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    storage = Storage.open(tmp_path, MINE)
    monkeypatch.setattr(data_directory, "write_durably", full)
    with pytest.raises(StorageError, match=r"cannot write .*CORRUPT: No space left"):
        storage.condemn("its state is another one")
    storage.close()


def test_an_embedded_store_is_a_cluster_of_its_own(tmp_path: Path) -> None:
    first, second = Storage.open(tmp_path / "a", None), Storage.open(tmp_path / "b", None)
    assert first.identity.node_id == second.identity.node_id == 1
    assert first.identity.cluster_id != second.identity.cluster_id
    first.close()
    second.close()
    again = Storage.open(tmp_path / "a", None)
    assert again.identity == first.identity
    again.close()


def test_no_identity_takes_what_is_there(tmp_path: Path) -> None:
    other = Identity("cluster-b", NodeId(7))
    create(tmp_path / "data", other)
    storage = Storage.open(tmp_path / "data", None)
    assert storage.identity == other
    storage.close()


@pytest.mark.parametrize(
    "other", [Identity("cluster-a", NodeId(2)), Identity("cluster-b", NodeId(1))]
)
def test_a_directory_of_another_node_or_cluster_is_refused(tmp_path: Path, other: Identity) -> None:
    create(tmp_path / "data")
    before = snapshot(tmp_path / "data")
    with pytest.raises(DataDirectoryMismatch) as refused:
        Storage.open(tmp_path / "data", other)
    assert "belongs to n1 of cluster cluster-a" in refused.value.message
    assert f"not to n{other.node_id} of cluster {other.cluster_id}" in refused.value.message
    assert snapshot(tmp_path / "data") == before
    assert holds_what_was_stored(tmp_path / "data")


@pytest.mark.parametrize("version", [2, 99, "2"])
def test_a_newer_format_is_refused(tmp_path: Path, version: object) -> None:
    create(tmp_path / "data")
    identity = tmp_path / "data" / "kvorum.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {"format": version}))
    with pytest.raises(DataDirectoryMismatch, match=f"of format {version}.*formats up to 1"):
        Storage.open(tmp_path / "data", MINE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 1, "cluster_id": "", "node_id": 1}',
        b'{"format": 1, "cluster_id": "a", "node_id": 0}',
        b'{"format": 1, "cluster_id": "a", "node_id": "1"}',
        b'{"format": 1, "cluster_id": "a", "node_id": 1, "peers": {}}',
        b'{"format": 1, "cluster_id": "a", "node_id": 1, "directory_id": "", "peers": {}}',
        b'{"format": 1, "cluster_id": "a", "node_id": 1, "directory_id": "d"}',
        b'{"format": 1, "cluster_id": "a", "node_id": 1, "directory_id": "d", "peers": {"n": "d"}}',
        b'{"format": 1, "cluster_id": "a", "node_id": 1, "directory_id": "d", "peers": {"2": 7}}',
    ],
)
def test_a_damaged_identity_is_refused(tmp_path: Path, content: bytes) -> None:
    create(tmp_path / "data")
    (tmp_path / "data" / "kvorum.json").write_bytes(content)
    for identity in (MINE, None):
        with pytest.raises(StorageError, match=r"kvorum\.json is damaged.*replace this node"):
            Storage.open(tmp_path / "data", identity)


def test_an_open_directory_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "data", MINE)
    for identity in (MINE, None, Identity("cluster-b", NodeId(1))):
        with pytest.raises(DataDirectoryInUse, match=f"in the process with pid {os.getpid()}$"):
            Storage.open(tmp_path / "data", identity)
    storage.close()
    storage.close()
    Storage.open(tmp_path / "data", MINE).close()


HOLD = """
    import sys
    from pathlib import Path
    from kvorum_node.storage.data_directory import Storage

    storage = Storage.open(Path(sys.argv[1]), None)
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(DataDirectoryInUse, match=f"pid {holder.pid}$"):
            Storage.open(tmp_path / "data", None)
        holder.kill()
        holder.wait()
        Storage.open(tmp_path / "data", None).close()


def test_only_one_of_many_creators_wins(tmp_path: Path) -> None:
    outcomes: list[DataDirectory | StorageError] = []
    barrier = threading.Barrier(8)

    def compete(number: int) -> None:
        barrier.wait()
        try:
            outcomes.append(DataDirectory.open(tmp_path / "data", Identity("a", NodeId(number))))
        except StorageError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if isinstance(outcome, DataDirectory)]
    assert len(winners) == 1
    assert [type(one) for one in outcomes if one not in winners] == [DataDirectoryInUse] * 7
    winners[0].close()


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match=r"is not a kvorum data directory.*contains log"):
        Storage.open(tmp_path, MINE)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "thesis.txt"]


def test_a_fresh_volume_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    create(tmp_path)
    assert holds_what_was_stored(tmp_path)


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        Storage.open(tmp_path / "data", MINE)
    with pytest.raises(StorageError, match="cannot be used: Not a directory"):
        Storage.open(tmp_path / "data" / "below", MINE)


WITHOUT_RIGHTS = """
    import os, sys
    from pathlib import Path
    from kvorum.errors import StorageError
    from kvorum_node.storage.data_directory import Storage
    import kvorum_node.storage.rocks

    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        Storage.open(Path(sys.argv[1]), None)
    except StorageError as error:
        print(error)
"""


@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_that_cannot_be_written(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "data"
    if exists:
        path.mkdir()
        path.chmod(0o555)
    tmp_path.chmod(0o555)
    for ancestor in (tmp_path.parent, tmp_path.parent.parent):
        ancestor.chmod(0o755)
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT_RIGHTS), str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tmp_path.chmod(0o755)
    assert f"the data directory {path} cannot be used: Permission denied" in output


@pytest.mark.parametrize("engine", ["log", "state"])
def test_a_directory_that_has_lost_an_engine_is_refused(tmp_path: Path, engine: str) -> None:
    """To begin with an empty log would forget a vote."""
    create(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / engine)
    with pytest.raises(StorageError):
        Storage.open(tmp_path / "data", MINE)
    with pytest.raises(StorageError):  # and the refusal did not create it
        Storage.open(tmp_path / "data", MINE)


def test_a_failed_open_releases_everything(tmp_path: Path) -> None:
    create(tmp_path / "data")
    shutil.move(tmp_path / "data" / "state", tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        Storage.open(tmp_path / "data", MINE)
    shutil.rmtree(tmp_path / "data" / "state", ignore_errors=True)
    shutil.move(tmp_path / "elsewhere", tmp_path / "data" / "state")
    assert holds_what_was_stored(tmp_path / "data")


# Creation.

CREATE_AND_DIE = """
    import os, sys
    from pathlib import Path
    from kvorum_node.raft.types import NodeId
    from kvorum_node.storage.data_directory import Identity, Storage

    # The file system calls of the creation are counted, and the process dies at one of them.
    remaining = int(sys.argv[2])

    def die_at(event, arguments):
        global remaining
        if event in ("open", "os.rename", "os.mkdir") and sys.argv[1] in str(arguments):
            remaining -= 1
            if remaining < 0:
                os.kill(os.getpid(), 9)

    sys.addaudithook(die_at)
    Storage.open(Path(sys.argv[1]), Identity("cluster-a", NodeId(1))).close()
"""


def create_and_die(path: Path, at_call: int) -> int:
    command = [sys.executable, "-c", textwrap.dedent(CREATE_AND_DIE), str(path), str(at_call)]
    return subprocess.run(command, timeout=60, check=False).returncode


def test_a_creation_that_dies_at_any_call_is_taken_up_again(tmp_path: Path) -> None:
    died = 0
    while create_and_die(tmp_path / str(died), died) == -signal.SIGKILL:
        path = tmp_path / str(died)
        create(path, MINE if died % 2 else None)
        assert holds_what_was_stored(path, None)
        died += 1
    assert died >= 8


def test_a_creation_that_dies_at_any_time_is_taken_up_again(tmp_path: Path) -> None:
    """The calls of RocksDB are not seen by the test above: here the clock decides."""
    rng = random.Random(1)
    for round_number in range(8):
        path = tmp_path / str(round_number)
        command = [sys.executable, "-c", textwrap.dedent(HOLD), str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as creator:
            while not path.exists():
                assert creator.poll() is None
            try:
                creator.wait(rng.uniform(0, 0.03))
            except subprocess.TimeoutExpired:
                creator.kill()
        create(path, None)
        assert holds_what_was_stored(path, None)


@pytest.mark.parametrize("unfinished", [b"", b'{"format": 1, "cluster_id": "another"'])
def test_an_unfinished_identity_gives_way(tmp_path: Path, unfinished: bytes) -> None:
    path = tmp_path / "data"
    path.mkdir()
    (path / "LOCK").write_text("1")
    (path / "kvorum.json.new").write_bytes(unfinished)
    (path / "kvorum.json.new.tmp").write_bytes(b"{")
    create(path)
    assert holds_what_was_stored(path)


# Without a disk.


def test_memory_needs_no_directory() -> None:
    storage = Storage.memory(MINE)
    assert storage.identity == MINE
    put(storage.log, Family.LOG, b"log")
    assert storage.state.get(Family.DATA, b"key") is None
    storage.close()
    with pytest.raises(StorageError, match="closed"):
        storage.log.get(Family.LOG, b"key")
    assert Storage.memory().identity.node_id == 1


WITHOUT_ROCKSDB = """
    import sys
    from pathlib import Path
    sys.modules["rocksdict"] = None
    from kvorum.errors import StorageError
    from kvorum_node.storage.data_directory import Storage

    Storage.memory().close()
    try:
        Storage.open(Path(sys.argv[1]), None)
    except StorageError as error:
        print(error)
"""


def test_without_rocksdb_memory_works_and_a_disk_says_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT_ROCKSDB), str(tmp_path / "data")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "pip install 'kvorum[node]'" in output
    assert not (tmp_path / "data").exists()
