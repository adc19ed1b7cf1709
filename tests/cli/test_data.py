"""`kvorum get | put | ...` on an embedded store: what is printed where, and the exit statuses."""

import json
import os
import pty
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import kvorum as library
from tests.support.command_line import Ran, kvorum


class Store:
    """An embedded store that commands talk to."""

    def __init__(self, path: Path) -> None:
        self.target = str(path)

    def __call__(self, *arguments: str, stdin: str = "") -> Ran:
        return kvorum(*arguments, stdin=stdin, env={"KVORUM_TARGET": self.target})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        (["hello"], b'"hello"'),
        (['{"a": [1, 2]}'], b'{"a":[1,2]}'),
        (["--", "-5"], b"-5"),
        (["null"], b"null"),
        (["NaN"], b'"NaN"'),
        (["--text", '{"a": 1}'], b'{"a": 1}'),
        (["--bytes", "raw"], b"raw"),
    ],
)
def test_a_value_is_json_unless_told_otherwise(
    store: Store, arguments: list[str], stored: bytes
) -> None:
    assert store("put", "k", *arguments).out == "revision 1\n"
    assert store("get", "k").out_bytes == stored


def test_a_value_is_read_from_stdin(store: Store) -> None:
    store("put", "k", "-", "--text", stdin="two\nlines\n")
    assert store("get", "k").out_bytes == b"two\nlines\n"


def test_text_and_bytes_exclude_each_other(store: Store) -> None:
    ran = store("put", "k", "v", "--text", "--bytes")
    assert ran.status == 2
    assert "--text or --bytes" in ran.err


def test_get_as_json_is_the_whole_entry(store: Store) -> None:
    store("put", "k", "1")
    store("put", "k", "2", "--ttl", "60")
    entry = json.loads(store("get", "k", "--json").out)
    updated, expires = (
        datetime.fromisoformat(entry.pop(f"{one}_at")) for one in ("updated", "expires")
    )
    assert expires - updated == timedelta(seconds=60)
    assert entry == {
        "key": "k",
        "value": 2,
        "revision": 2,
        "created_revision": 1,
        "version": 2,
    }


def test_get_as_json_has_what_most_entries_do_not_have(store: Store, tmp_path: Path) -> None:
    by_name = library.IndexEntry("name", "alice", unique=True)
    with library.open_sync(tmp_path / "store") as kv:
        kv.put("k", 1, metadata=b"\xff", index_entries=[by_name])
    entry = json.loads(store("get", "k", "--json").out)
    assert entry["expires_at"] is None
    assert entry["metadata_base64"] == "/w=="
    assert entry["index_entries"] == [{"index": "name", "value": "alice", "unique": True}]


def test_a_missing_key_is_said_on_stderr_and_by_the_exit_status(store: Store) -> None:
    for command in ("get", "delete"):
        ran = store(command, "nobody")
        assert (ran.status, ran.out) == (1, "")
        assert ran.err == "no key 'nobody'\n"


def test_delete_removes(store: Store) -> None:
    store("put", "k", "1")
    assert store("delete", "k").out == "deleted\n"
    assert store("get", "k").status == 1


def test_add_prints_the_sum(store: Store) -> None:
    assert store("add", "n").out == "1\n"
    assert store("add", "n", "41").out == "42\n"
    assert store("add", "n", "--", "-50").out == "-8\n"


def test_add_stops_at_its_bounds(store: Store) -> None:
    assert store("add", "n", "5", "--max", "9").out == "5\n"
    ran = store("add", "n", "5", "--max", "9")
    assert (ran.status, ran.out) == (1, "")
    assert "adding 5 to 5 would give 10, more than the max 9" in ran.err
    printed = store("add", "n", "5", "--max", "9", "--saturate", "--json").out
    assert json.loads(printed) == {"value": 9, "applied": 4}
    assert store("add", "n", "--min", "9", "--", "-1").status == 1


def test_a_put_may_have_a_condition(store: Store) -> None:
    assert json.loads(store("put", "k", "1", "--if-absent", "--json").out) == {"revision": 1}
    ran = store("put", "k", "2", "--if-absent")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "error: the check of 'k' did not hold: it exists; nothing was written\n"
    assert store("put", "k", "2", "--if-revision", "1").out == "revision 2\n"
    assert store("put", "k", "3", "--if-revision", "1").status == 1
    ran = store("put", "k", "3", "--if-revision", "2", "--if-absent")
    assert ran.status == 2
    assert store("get", "k").out_bytes == b"2"


def test_how_long_a_key_lives(store: Store) -> None:
    store("put", "k", "1", "--ttl", "3600")
    assert 0 < float(store("ttl", "k").out) <= 3600
    assert store("touch", "k", "7200").out == "touched\n"
    assert 3600 < json.loads(store("ttl", "k", "--json").out)["ttl"] <= 7200
    assert store("persist", "k").out == "persisted\n"
    assert store("ttl", "k").out == "never\n"
    assert json.loads(store("ttl", "k", "--json").out) == {"ttl": None}
    store("add", "n", "--ttl", "3600")
    assert 0 < float(store("ttl", "n").out) <= 3600
    for command in (["ttl", "nobody"], ["touch", "nobody", "5"], ["persist", "nobody"]):
        ran = store(*command)
        assert (ran.status, ran.out, ran.err) == (1, "", "no key 'nobody'\n")
    ran = store("touch", "k", "0")
    assert ran.status == 1
    assert ran.err.startswith("error: ttl is a number of seconds")


def test_delete_takes_a_prefix(store: Store) -> None:
    for key in ("a:1", "a:2", "a:3", "b"):
        store("put", key, "1")
    assert store("delete", "--prefix", "a:", "--limit", "1").out == "deleted 1\n"
    assert json.loads(store("delete", "--prefix", "a:", "--json").out) == {"deleted": 2}
    ran = store("delete", "--prefix", "a:")
    assert (ran.status, ran.out, ran.err) == (1, "", "no key begins with 'a:'\n")
    assert json.loads(store("delete", "b", "--json").out) == {"deleted": 1}
    assert store("delete", "--prefix", "").status == 1
    for wrong in (["delete"], ["delete", "k", "--prefix", "a"], ["delete", "k", "--limit", "1"]):
        assert store(*wrong).status == 2


def test_an_error_of_the_store_is_one_line_and_status_1(store: Store) -> None:
    store("put", "k", "hello")
    ran = store("add", "k")
    assert ran.status == 1
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1


def test_list_prints_key_tab_value_into_a_pipe(store: Store) -> None:
    for key in ("a:1", "a:2", "b:1"):
        store("put", key, f"value of {key}")
    assert store("list", "a:").out == 'a:1\t"value of a:1"\na:2\t"value of a:2"\n'
    assert store("list", "--keys").out == "a:1\na:2\nb:1\n"


def test_a_list_goes_on_where_its_cursor_says(store: Store) -> None:
    for number in range(5):
        store("put", f"k{number}", "0")
    first = store("list", "--limit", "3", "--keys")
    assert first.out == "k0\nk1\nk2\n"
    hint, cursor = first.err.rsplit(maxsplit=1)
    assert hint == "more: --cursor"
    rest = store("list", "--limit", "3", "--keys", "--cursor", cursor)
    assert (rest.out, rest.err) == ("k3\nk4\n", "")


def test_list_as_json_has_entries_and_cursor(store: Store) -> None:
    store("put", "a", "1")
    store("put", "b", "2")
    page = json.loads(store("list", "--limit", "1", "--json").out)
    assert [entry["key"] for entry in page["entries"]] == ["a"]
    assert page["complete"] is False
    rest = json.loads(store("list", "--json", "--cursor", page["cursor"]).out)
    assert [entry["value"] for entry in rest["entries"]] == [2]
    assert rest["complete"] is True
    assert rest["cursor"] is None


def test_an_altered_cursor_is_refused(store: Store) -> None:
    ran = store("list", "--cursor", "nonsense")
    assert ran.status == 1
    assert "error: " in ran.err


def test_what_is_exported_is_imported_to_the_same_bytes(store: Store, tmp_path: Path) -> None:
    store("put", "json", '{"a": [1, null, "é"]}')
    store("put", "text", "--text", '{"a": 1}')
    store("put", "ключ", "1.5")
    (tmp_path / "raw").write_bytes(bytes(range(256)))
    python = [sys.executable, "-m", "kvorum.cli"]
    with (tmp_path / "raw").open("rb") as raw:
        put = [*python, "put", "raw", "-", "--bytes", "--target", store.target]
        subprocess.run(put, stdin=raw, check=True, capture_output=True)
    lines = tmp_path / "lines"
    ran = store("export", "--output", str(lines))
    assert (ran.out, ran.err) == ("", "exported 4 records\n")
    assert store("export").out_bytes == lines.read_bytes()

    copy = Store(tmp_path / "copy")
    assert copy("import", str(lines)).err == "imported 4 records\n"
    assert copy("get", "raw").out_bytes == bytes(range(256))
    assert copy("export").out_bytes == lines.read_bytes()


def test_an_export_has_what_is_beside_the_values(store: Store, tmp_path: Path) -> None:
    by_name = library.IndexEntry("name", "alice", unique=True)
    with library.open_sync(store.target) as kv:
        kv.put("a", 1, metadata=b"\xff", index_entries=[by_name], ttl=3600)
        before = kv.ttl("a")
    lines = tmp_path / "lines"
    store("export", "--output", str(lines))
    exported = json.loads(lines.read_bytes())
    assert before is not None
    assert 3000 < exported["ttl"] <= before

    # A ttl is what is left, and counts from the import on: no time passes in a file.
    copy = Store(tmp_path / "copy")
    lines.write_bytes(lines.read_bytes() + b'{"key": "old", "value": 1}\n')
    assert copy("import", str(lines)).err == "imported 2 records\n"
    with library.open_sync(copy.target) as kv:
        [entry] = kv.list(index="name", value="alice")
        assert (entry.key, entry.metadata, entry.index_entries) == ("a", b"\xff", (by_name,))
        assert entry.expires_at is not None
        assert entry.expires_at - entry.updated_at == timedelta(seconds=exported["ttl"])
        assert kv.ttl("old") is None


def test_export_takes_only_the_prefix(store: Store) -> None:
    store("put", "a:1", "1")
    store("put", "b:1", "2")
    assert store("export", "b:").out == '{"key": "b:1", "value": 2}\n'


def test_a_past_revision(store: Store) -> None:
    store("put", "k", "1")
    store("put", "k", "2")
    store("delete", "k")
    assert store("get", "k", "--revision", "1").out == "1"
    assert store("list", "--revision", "2").out == "k\t2\n"
    ran = store("get", "k", "--revision", "4")
    assert (ran.status, ran.err) == (
        1,
        "error: revision 4 is not there yet; the newest is 3\n",
    )
    assert store("get", "k", "--revision", "0").status == 2


def test_a_list_backwards_and_its_count(store: Store) -> None:
    for number in range(4):
        store("put", f"k{number}", str(number))
    ran = store("list", "--reverse", "--keys-only", "--count", "-n", "3", "k")
    assert ran.out == "k3\nk2\nk1\n"
    told, more = ran.err.splitlines()
    assert told == "count: 4"
    cursor = more.removeprefix("more: --cursor ")
    assert store("list", "--reverse", "k", "--cursor", cursor).out == "k0\t0\n"
    assert json.loads(store("list", "--json", "--count", "-n", "1").out)["count"] == 4
    assert "count" not in json.loads(store("list", "--json").out)


def test_a_list_by_index(store: Store) -> None:
    """Of an index that has no entries: what a shell says about the arguments."""
    store("put", "k", "1")
    ran = store("list", "--index", "user.email", "--value", "a@b", "--count")
    assert (ran.status, ran.out, ran.err) == (0, "", "count: 0\n")
    ran = store("list", "--value", "a@b")
    assert (ran.status, ran.err) == (1, "error: a value is one of an index: name the index\n")


def test_a_malformed_line_ends_an_import_with_its_number(store: Store, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text('{"key": "a", "value": 1}\n\n{"key": "b", "value": 2}\n')
    ran = store("import", str(lines))
    assert ran.status == 1
    assert ran.err.splitlines() == [
        "imported 1 record",
        "error: line 2: not JSON: Expecting value at column 1",
    ]
    assert store("list", "--keys").out == "a\n"


def test_a_file_that_is_not_there_is_one_line(store: Store, tmp_path: Path) -> None:
    ran = store("import", str(tmp_path / "nothing"))
    assert ran.status == 1
    assert ran.err == f"error: {tmp_path}/nothing: No such file or directory\n"


def test_without_a_target_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = kvorum("get", "k", env={"KVORUM_TARGET": None, "KVORUM_CLUSTER_DIR": None})
    assert ran.status == 1
    assert "--target" in ran.err
    assert "kvorum cluster up" in ran.err


def test_a_target_that_makes_no_sense_is_one_line() -> None:
    ran = kvorum("get", "k", "--target", "http://example.com")
    assert ran.status == 1
    assert ran.err.startswith("error: unknown scheme 'http'")
    assert ran.err.count("\n") == 1


def test_status_is_for_clusters(store: Store) -> None:
    ran = store("status")
    assert ran.status == 1
    assert "is no cluster" in ran.err


def test_status_says_which_nodes_do_not_answer() -> None:
    ran = kvorum("status", "--target", "kvorum://127.0.0.1:1", "--timeout", "1")
    assert ran.status == 1
    assert "unreachable" in ran.out
    assert "127.0.0.1:1 does not answer" in ran.err


def on_a_terminal(*arguments: str) -> str:
    """What a command prints to a terminal, with its escapes."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kvorum.cli", *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run(command, stdout=theirs, stdin=subprocess.DEVNULL, check=True, env=environment)
    os.close(theirs)
    with os.fdopen(ours, "rb") as terminal:
        return os.read(terminal.fileno(), 65536).decode()


def test_a_terminal_gets_indented_json(store: Store) -> None:
    store("put", "k", '{"a": 1}')
    printed = on_a_terminal("get", "k", "--target", store.target)
    assert len(printed.splitlines()) == 3
    assert "\x1b[" in printed


def test_a_value_cannot_steer_the_terminal(store: Store) -> None:
    store("put", "k", "--text", "\x1b[2Jgone\x9b")
    for command in (["get", "k"], ["list"]):
        printed = on_a_terminal(*command, "--target", store.target)
        assert "\\x1b[2Jgone\\x9b" in printed


def test_a_reader_that_leaves_early_is_no_error_to_talk_about(store: Store, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("".join(f'{{"key": "k{n}", "value": "{"x" * 90}"}}\n' for n in range(2000)))
    store("import", str(lines))
    command = [sys.executable, "-m", "kvorum.cli", "list", "-n", "2000", "-t", store.target]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    assert child.communicate()[1] == b""
    assert child.returncode == 1
