"""`kvorum snapshot` and `kvorum init`: files, messages and statuses, without a cluster."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvorum.cli import part_file
from kvorum.errors import InvalidArgument
from kvorum_node.survivor import examine
from tests.support import shell
from tests.support.command_line import kvorum


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Of a program, with one record."""
    path = tmp_path / "store"
    assert kvorum("put", "k", "v", "--target", str(path)).status == 0
    return path


@pytest.fixture
def file(store: Path, tmp_path: Path) -> Path:
    path = tmp_path / "a.snap"
    ran = kvorum("snapshot", "save", str(path), "--target", str(store))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("saved revision 1 of n1 at ")
    assert ran.out.endswith(f" bytes to {path}\n")
    return path


def test_a_store_of_a_program_becomes_a_file_and_a_cluster(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "n1"
    ran = kvorum(
        "snapshot", "restore", str(file), "--data-dir", str(path), "--advertise", "127.0.0.1:1"
    )
    assert (ran.status, ran.err) == (0, "")
    found = examine(path)
    assert ran.out.startswith(f"restored revision 1 of n1 at {found.last}: 1 records, ")
    assert f"n1 is the only member of the new cluster {found.identity.cluster_id}" in ran.out
    assert f"  kvorum node n1 --data-dir {path} --listen 127.0.0.1:1\n" in ran.out
    assert "  kvorum member add HOST:PORT --target kvorum://127.0.0.1:1\n" in ran.out
    assert found.address == "127.0.0.1:1"


def test_it_says_the_same_to_scripts(store: Path, file: Path, tmp_path: Path) -> None:
    save = ("snapshot", "save", str(file), "--force", "--target", str(store), "--json")
    saved = json.loads(kvorum(*save).out)
    assert saved == json.loads(kvorum("snapshot", "verify", str(file), "--json").out)
    assert saved["file"] == str(file)
    assert (saved["node"], saved["revision"], saved["record_count"]) == ("n1", 1, 1)
    assert saved["file_bytes"] == file.stat().st_size > saved["content_bytes"]
    assert len(bytes.fromhex(saved["hash"])) == 32
    place = ("--data-dir", str(tmp_path / "n1"), "--advertise", "h1:7100", "--name", "n4")
    restored = json.loads(kvorum("snapshot", "restore", str(file), *place, "--json").out)
    assert restored == {
        "name": "n4",
        "address": "h1:7100",
        "cluster_id": examine(tmp_path / "n1").identity.cluster_id,
        "index": saved["index"],
        "term": saved["term"],
        "revision": 10**12 + 1,
    }


def test_what_a_crash_has_left_in_the_log_alone_is_saved(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, signal, kvorum
async def main():
    async with kvorum.open({str(tmp_path / "store")!r}) as kv:
        for number in range(200):
            await kv.put(str(number), number)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    save = ("snapshot", "save", str(tmp_path / "a"), "--target", str(tmp_path / "store"), "--json")
    assert json.loads(kvorum(*save).out)["record_count"] == 200


def test_verify_says_what_it_is_of(file: Path) -> None:
    ran = kvorum("snapshot", "verify", str(file))
    assert (ran.status, ran.err) == (0, "it is whole\n")
    shown = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert shown["node"].startswith("n1, kvorum ")
    assert shown["records"].strip() == "1"
    assert "@" in shown["position"]
    assert "(revision 1)" in shown["position"]


def test_a_file_is_for_its_owner_alone(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in file.parent.iterdir() if "part" in one.name] == []


async def test_it_goes_through_pipes(store: Path, tmp_path: Path) -> None:
    save = shell.command("snapshot", "save", "-", "--target", str(store))
    verify = shell.command("snapshot", "verify", "-")
    restore = shell.command(
        *("snapshot", "restore", "-", "--data-dir", str(tmp_path / "n1")),
        *("--advertise", "h1:7100"),
    )
    said = await shell.pipe(save, verify)
    assert "records  1" in said
    assert "the only member" in await shell.pipe(save, restore)
    assert examine(tmp_path / "n1").revision == 10**12 + 1


# What is wrong is one line.


def test_a_file_that_is_there_stays_as_it_is(store: Path, file: Path) -> None:
    before = file.read_bytes()
    save = ("snapshot", "save", str(file), "--target", str(store))
    ran = kvorum(*save)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (f"error: {file} exists: choose another name, or replace it with --force\n")
    assert file.read_bytes() == before
    assert kvorum(*save, "--force").status == 0
    assert file.read_bytes() != before  # the store was opened since: it is of another position


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["save", "{}/a", "--target", "{}/nothing"], "{}/nothing holds no store"),
        (["save", "{}/a", "--target", "memory:"], "memory: has no nodes"),
        (["save", "{}/a", "--target", "{}/store", "--stale"], "{}/store has no nodes"),
        (["save", "{}/a", "--target", "{}/store", "--node", "n1"], "{}/store has no nodes"),
        (["save", "{}/none/a", "--target", "{}/store"], "{}/none/a.part: No such file"),
        (["save", "{}", "--target", "{}/store"], "{} is no file that could be replaced"),
        (["save", "-", "--json", "--target", "{}/store"], "stdout gets the snapshot"),
        (["verify", "{}/none"], "{}/none: No such file or directory"),
        (["verify", "{}"], "{}: Is a directory"),
        (["verify", "{}/a.snap"], "{}/a.snap breaks off at byte 100"),
        (
            ["restore", "{}/a.snap", "--data-dir", "{}/n1", "--advertise", "h1:1"],
            "{}/a.snap breaks off at byte 100",
        ),
        (
            ["restore", "{}/none", "--data-dir", "{}/n1", "--advertise", "h1:1"],
            "{}/none: No such file or directory",
        ),
        (
            ["restore", "{}/a.snap", "--data-dir", "{}/n1", "--advertise", "0.0.0.0:1"],
            "--advertise: '0.0.0.0:1' is an address to listen on",
        ),
        (
            ["restore", "{}/a.snap", "--data-dir", "{}/n1", "--advertise", "h1:1", "--name", "x"],
            "--name: 'x' is no node name",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    os.truncate(file, 100)
    before = {one.name for one in tmp_path.iterdir()}
    ran = kvorum("snapshot", *(one.replace("{}", str(tmp_path)) for one in arguments))
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("error: " + message.replace("{}", str(tmp_path)))
    assert ran.err.count("\n") == 1
    assert {one.name for one in tmp_path.iterdir()} - before <= {"n1"}
    assert not (tmp_path / "n1" / "kvorum.json").exists()


def test_init_makes_a_cluster_of_one(tmp_path: Path) -> None:
    path = tmp_path / "n1"
    place = ("--data-dir", str(path), "--advertise", "h1:7100")
    ran = kvorum("init", *place)
    made = examine(path)
    assert (ran.status, ran.err) == (0, "")
    assert f"n1 is the only member of the new cluster {made.identity.cluster_id}" in ran.out
    assert made.is_sole_voter
    again = kvorum("init", *place)
    assert again.status == 1
    assert again.err.startswith(f"error: {path} holds n1 of cluster {made.identity.cluster_id}.")
    other = kvorum("init", *place[:1], str(tmp_path / "n2"), *place[2:], "--name", "n2", "--json")
    assert json.loads(other.out)["name"] == "n2"
    assert json.loads(other.out)["index"] == 0


def test_init_takes_its_place_from_the_environment(tmp_path: Path) -> None:
    """As in a pod, where the node has both from there."""
    env = {"KVORUM_DATA_DIR": str(tmp_path / "node"), "KVORUM_ADVERTISE": "kvorum-0.peers:7100"}
    assert kvorum("init", env=env).status == 0
    assert examine(tmp_path / "node").address == "kvorum-0.peers:7100"


# The file that is whole or not there (part_file.py).


def write_and(path: Path, error: BaseException, *, force: bool = False) -> None:
    """Fail in the middle."""
    with part_file.created(path, force=force) as file:
        file.write(b"x")
        raise error


def test_a_file_appears_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with part_file.created(path, force=False) as file:
        file.write(b"x")
        assert {one.name for one in tmp_path.iterdir()} == {"a.part"}
    assert path.read_bytes() == b"x"
    assert {one.name for one in tmp_path.iterdir()} == {"a"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    with pytest.raises(error):
        write_and(path, error())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_file_that_was_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="full"):
        write_and(path, OSError("full"), force=True)
    assert path.read_bytes() == b"before"


def test_what_is_left_of_a_killed_program_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"something longer")
    with part_file.created(tmp_path / "a", force=False) as file:
        file.write(b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_two_programs_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with part_file.created(path, force=False) as file:
        file.write(b"first")
        with pytest.raises(InvalidArgument, match="is being written by another process"):
            part_file.created(path, force=False).__enter__()
    assert path.read_bytes() == b"first"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writing = part_file.created(path, force=False)
    writing.__enter__().write(b"x")
    path.write_bytes(b"other")
    with pytest.raises(InvalidArgument, match="exists"):
        writing.__exit__(None, None, None)
    assert path.read_bytes() == b"other"
    assert {one.name for one in tmp_path.iterdir()} == {"a"}


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(InvalidArgument, match="is no file"):
            part_file.created(path, force=True).__enter__()


def test_the_file_behind_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"before")
    (tmp_path / "link").symlink_to("real")
    with part_file.created(tmp_path / "link", force=True) as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"
