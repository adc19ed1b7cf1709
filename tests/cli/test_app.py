"""The command as a whole: help, version, usage, and how fast it answers."""

import subprocess
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import version
from io import StringIO

import pytest
from rich.console import Console

from kvorum.cli import app, console, data, main
from tests.support.command_line import kvorum

COMMANDS = (
    *("get", "put", "delete", "list", "add", "status", "import", "export"),
    *("node", "cluster", "member", "verify", "recover", "top"),
)


def test_help_names_every_command() -> None:
    ran = kvorum("--help")
    assert ran.status == 0
    assert all(command in ran.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    ran = kvorum(command, "--help")
    assert ran.status == 0
    assert "Usage: kvorum " in ran.out


def test_the_version_is_that_of_the_package() -> None:
    assert kvorum("--version").out == f"kvorum {version('kvorum')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["get"],
        ["get", "k", "--no-such-flag"],
        ["list", "--limit", "0"],
        ["add", "k", "many"],
        ["cluster", "up", "--nodes", "0"],
        ["cluster", "up", "--base-port", "70000"],
        ["member", "add"],
        ["member", "add", "h4:7100", "--learner", "--wait"],
        ["recover"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    ran = kvorum(*arguments)
    assert ran.status == 2
    assert "Traceback" not in ran.err


def test_an_interruption_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "with_store", interrupt)
    ran = kvorum("get", "k")
    assert (ran.status, ran.out, ran.err) == (130, "", "")


class Interrupted(MetaPathFinder):
    """Ctrl-C while the commands are loaded."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == app.__name__:
            raise KeyboardInterrupt


def test_an_interruption_before_the_commands_are_there_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, app.__name__)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_what_is_slow_to_import_waits_for_the_command_that_needs_it() -> None:
    code = (
        "import sys, kvorum.cli.app; "
        "slow = ('grpc', 'psutil', 'pydantic', 'kvorum_node', 'rocksdict'); "
        "print([name for name in slow if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_a_table_in_a_narrow_terminal_breaks_no_number_and_no_row() -> None:
    """What gives way is cut."""
    table = console.new_table("address", "state", "revision", numbers=["revision"], cut=["address"])
    table.add_row("kvorum-0.kvorum-peers.default.svc.cluster.local:7100", "running", "1234567890")
    out = StringIO()
    Console(file=out, width=26).print(table)
    heading, row = (line.split() for line in out.getvalue().splitlines())
    assert heading[1:] == ["state", "revision"]
    assert row == ["kvorum…", "running", "1234567890"]


def test_a_table_without_columns_that_give_way_goes_on_below() -> None:
    table = console.new_table("key", "value", "revision", numbers=["revision"])
    table.add_row("k", "a value of some length", "1234567890")
    out = StringIO()
    Console(file=out, width=24).print(table)
    assert "…" not in out.getvalue()
    assert "1234567890" in out.getvalue()
    assert len(out.getvalue().splitlines()) > 2
