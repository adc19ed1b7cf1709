"""`kvorum node`: flags, variables and file become one configuration, or one line per problem."""

import json
import socket
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from kvorum.cli import app
from kvorum.cli.settings import OTHER_VARIABLES
from kvorum_node import server
from kvorum_node.config import NodeConfig
from tests.support.command_line import Ran, kvorum

CLUSTER = "n1=127.0.0.1:7101,n2=127.0.0.1:7102"
REQUIRED = ["n1", "--data-dir", "d", "--listen", "127.0.0.1:7101", "--cluster", CLUSTER]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[NodeConfig]:
    """The configurations that nodes were started with, instead of starting them."""
    configurations: list[NodeConfig] = []

    def run(config: NodeConfig, warnings: Sequence[str]) -> int:
        assert not warnings
        configurations.append(config)
        return 3

    monkeypatch.setattr(server, "run", run)
    return configurations


def test_the_node_gets_what_was_given_and_its_status_is_the_exit_status(
    started: list[NodeConfig],
) -> None:
    ran = kvorum("node", *REQUIRED, "--fsync", "off", "--election-timeout-ms", "500")
    assert ran.status == 3
    [config] = started
    assert config == NodeConfig(
        name="n1",
        data_dir=Path("d"),
        listen="127.0.0.1:7101",
        cluster={"n1": "127.0.0.1:7101", "n2": "127.0.0.1:7102"},
        fsync=False,
        election_timeout_ms=500,
    )


def test_there_is_a_flag_for_every_setting(started: list[NodeConfig]) -> None:
    values = {
        "name": "n1",
        "data_dir": "d",
        "listen": "0.0.0.0:7101",
        "admin_listen": "127.0.0.1:7180",
        "peer_port": "7102",
        "advertise": "127.0.0.1:7101",
        "cluster": CLUSTER,
        "cluster_name": "test",
        "fsync": "off",
        "tick_ms": "20",
        "election_timeout_ms": "300",
        "log_max_bytes": "1000000",
        "log_max_entries": "50000",
        "verify_interval_seconds": "3600",
        "history_seconds": "60.5",
        "quota_bytes": "9000000",
        "min_free_bytes": "0",
        "memory_bytes": "1000000000",
        "log_level": "debug",
        "log_format": "json",
    }
    # Either of the two that exclude each other.
    assert {*values, "join"} == set(NodeConfig.model_fields)
    flags = [
        part
        for name, value in values.items()
        if name != "name"
        for part in (f"--{name.replace('_', '-')}", value)
    ]
    assert kvorum("node", "n1", *flags).err == ""
    assert all(name in started[0].model_fields_set for name in values)


def test_a_node_that_joins_is_told_some_members(started: list[NodeConfig]) -> None:
    own = ["n4", "--data-dir", "d", "--listen", "127.0.0.1:7104"]
    kvorum("node", *own, "--join", "127.0.0.1:7101, 127.0.0.1:7102")
    [config] = started
    assert config.join == ("127.0.0.1:7101", "127.0.0.1:7102")
    assert config.cluster == {}


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(
    started: list[NodeConfig], tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        """
        name = "n2"
        data_dir = "of the file"
        listen = "127.0.0.1:7101"
        tick_ms = 10
        election_timeout_ms = 400
        log_level = "debug"
        [cluster]
        n1 = "127.0.0.1:7101"
        n2 = "127.0.0.1:7102"
        """
    )
    variables = {
        "KVORUM_CONFIG": str(file),
        "KVORUM_TICK_MS": "20",
        "KVORUM_ELECTION_TIMEOUT_MS": "500",
        "KVORUM_NAME": "n1",
    }
    kvorum("node", "--election-timeout-ms", "600", env=variables)
    [config] = started
    assert config.name == "n1"
    assert config.data_dir == Path("of the file")
    assert (config.log_level, config.tick_ms, config.election_timeout_ms) == ("debug", 20, 600)


def refuse(*arguments: str) -> Ran:
    ran = kvorum("node", *arguments)
    assert ran.status == 2
    assert "Traceback" not in ran.err
    return ran


def test_each_problem_is_one_line(started: list[NodeConfig]) -> None:
    assert refuse("n1").err.splitlines() == [
        "error: data_dir: is required: --data-dir, KVORUM_DATA_DIR, or in a file",
        "error: listen: is required: --listen, KVORUM_LISTEN, or in a file",
    ]
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tick-ms", "0"], "error: --tick-ms 0: Input should be greater than or equal to 1"),
        (["--listen", "nonsense"], "error: --listen nonsense: 'nonsense' is no address"),
        (["--log-level", "loud"], "error: --log-level loud: "),
        (["--fsync", "perhaps"], "error: --fsync perhaps: "),
        (["--election-timeout-ms", "60"], "error: election_timeout_ms (60) must be"),
        (["--tick-ms", "soon"], "error: --tick-ms soon: Input should be a valid integer"),
        (["--no-such-flag"], "No such option: --no-such-flag"),
        (["--cluster", "n1"], "error: --cluster n1: 'n1' is not of the form name=host:port"),
        (["--cluster", "n1=a:1,n1=b:1"], "error: --cluster n1=a:1,n1=b:1: n1 is given twice"),
        (
            ["--tick-ms", "200", "--election-timeout-ms", "900"],
            (
                "one may be lost (tick_ms is from --tick-ms, election_timeout_ms is from"
                " --election-timeout-ms)"
            ),
        ),
        (["--memory-bytes", "1000"], "memory_bytes (1000) must be at least 402653184, or 0"),
        (["--cluster", "n2=127.0.0.1:7102"], "error: n1 is not among the members: n2"),
        (["--join", "127.0.0.1:7102"], "error: cluster and join exclude each other"),
        (["--join", "nonsense"], "error: --join nonsense: 'nonsense' is no address"),
    ],
)
def test_what_is_wrong_is_said(
    started: list[NodeConfig], arguments: list[str], message: str
) -> None:
    assert message in refuse(*REQUIRED, *arguments).err
    assert started == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no_such_setting = 1", "node.toml: no_such_setting: is no setting of a node\n"),
        ("tick_mss = 1", "node.toml: tick_mss: is no setting of a node; did you mean tick_ms?"),
        ("[clusters]", "node.toml: clusters: is no setting of a node; did you mean cluster?"),
        ("tick_ms = ", "node.toml is not TOML: "),
        ("\ufeff= 1", "node.toml is not TOML: "),
        ("tick_ms = [1]", "node.toml: tick_ms = [1]: Input should be a valid integer"),
        ('listen = "x"', "node.toml: listen = \"x\": 'x' is no address"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(content)
    # What is in the file counts: no flag is over it.
    rest = REQUIRED[:3] + REQUIRED[5:] if content.startswith("listen") else REQUIRED
    assert message in refuse(*rest, "--config", str(file)).err


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert "nothing: No such file" in refuse(*REQUIRED, "--config", str(tmp_path / "nothing")).err


# Variables.


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("KVORUM_TICK_MS", "abc", "error: KVORUM_TICK_MS=abc: Input should be a valid integer"),
        ("KVORUM_JOIN", "h1", "error: KVORUM_JOIN=h1: 'h1' is no address"),
        ("KVORUM_TICKMS", "20", "KVORUM_TICKMS: is no setting of a node; did you mean KVORUM_TICK"),
        ("KVORUM_ELECTION_TIMEOUT", "1", "did you mean KVORUM_ELECTION_TIMEOUT_MS?"),
        ("KVORUM_DATADIR", "d", "did you mean KVORUM_DATA_DIR?"),
        ("KVORUM_PEER_PORT", "tcp://10.0.0.1:7101", "error: KVORUM_PEER_PORT=tcp://10.0.0.1:7101"),
    ],
)
def test_a_variable_that_is_wrong_does_not_go_unnoticed(
    started: list[NodeConfig], variable: str, value: str, message: str
) -> None:
    ran = kvorum("node", *REQUIRED, env={variable: value})
    assert ran.status == 2
    assert message in ran.err
    assert started == []


def test_what_kubernetes_says_of_its_services_is_no_setting(started: list[NodeConfig]) -> None:
    """Every container is told of the Services of its namespace, such as one named kvorum."""
    links = {
        "KVORUM_SERVICE_HOST": "10.0.0.1",
        "KVORUM_SERVICE_PORT": "7100",
        "KVORUM_SERVICE_PORT_GRPC": "7100",
        "KVORUM_PORT": "tcp://10.0.0.1:7100",
        "KVORUM_PORT_7100_TCP": "tcp://10.0.0.1:7100",
        "KVORUM_PORT_7100_TCP_PROTO": "tcp",
        "KVORUM_PORT_7100_TCP_PORT": "7100",
        "KVORUM_PORT_7100_TCP_ADDR": "10.0.0.1",
        "KVORUM_CLIENTS_SERVICE_HOST": "10.0.0.2",
        "KVORUM_TARGET": "kvorum://h1:7100",
        "KVORUM_CLUSTER_DIR": "d",
    }
    assert kvorum("node", *REQUIRED, env=links).err == ""
    assert len(started) == 1


def test_other_variables_that_begin_alike_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def run(_: NodeConfig, warnings: Sequence[str]) -> int:
        heard.extend(warnings)
        return 0

    monkeypatch.setattr(server, "run", run)
    assert kvorum("node", *REQUIRED, env={"KVORUM_SHOP_URL": "x"}).status == 0
    assert heard == ["KVORUM_SHOP_URL is no setting of a node, and is ignored"]


def test_the_variables_of_all_commands_are_known() -> None:
    def variables(command: Any) -> set[str]:
        found = {one.envvar for one in command.params if getattr(one, "envvar", None)}
        for sub in getattr(command, "commands", {}).values():
            found |= variables(sub)
        return found

    found = variables(typer.main.get_command(app.app))
    assert "KVORUM_TICK_MS" in found
    settings = {f"KVORUM_{setting.upper()}" for setting in NodeConfig.model_fields}
    assert found - settings <= OTHER_VARIABLES


# To look at, and to check.


def test_a_configuration_is_checked_and_nothing_started(started: list[NodeConfig]) -> None:
    ran = kvorum("node", *REQUIRED, "--check-config")
    assert (ran.status, ran.out, ran.err) == (0, "the configuration is sound\n", "")
    wrong = refuse(*REQUIRED, "--check-config", "--tick-ms", "0", "--log-level", "loud")
    assert len(wrong.err.splitlines()) == 2
    assert wrong.out == ""
    assert started == []


def test_what_is_printed_says_where_it_is_from_and_is_read_back(
    started: list[NodeConfig], tmp_path: Path
) -> None:
    file, printed = tmp_path / "node.toml", tmp_path / "printed.toml"
    file.write_text('history_seconds = 60\nadvertise = "127.0.0.1:7101"\n')
    settings = [*REQUIRED, "--config", str(file), "--fsync", "off"]
    variables = {"KVORUM_TICK_MS": "20"}
    ran = kvorum("node", *settings, "--print-config", env=variables)
    assert (ran.status, ran.err) == (0, "")
    assert started == []
    lines = ran.out.splitlines()
    for line in (
        'name = "n1" # NAME',
        "fsync = false # --fsync",
        "tick_ms = 20 # KVORUM_TICK_MS",
        f"history_seconds = 60.0 # {file}",
        "election_timeout_ms = 1000 # default",
        "[cluster] # --cluster",
        'n2 = "127.0.0.1:7102"',
    ):
        assert line in lines
    printed.write_text(ran.out)
    kvorum("node", *settings, env=variables)
    assert kvorum("node", "--config", str(printed)).err == ""
    assert started[0] == started[1]


def test_every_setting_is_printed() -> None:
    ran = kvorum("node", *REQUIRED, "--print-config")
    assert set(tomllib.loads(ran.out)) == set(NodeConfig.model_fields)


def test_a_taken_port_is_one_line_of_the_log(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "kvorum.cli", "node", "n1", "--data-dir", str(tmp_path)]
        ran = subprocess.run(
            [*command, "--listen", address, "--cluster", f"n1={address}", "--log-format", "json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert ran.returncode == 1
    [line] = ran.stderr.splitlines()  # and nothing of gRPC's own
    assert f"cannot listen on {address}" in json.dumps(json.loads(line))
