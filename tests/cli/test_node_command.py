"""`kvorum node`: flags, variables and file become one configuration, or one line per problem."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvorum_node import server
from kvorum_node.config import NodeConfig
from tests.support.command_line import Ran, kvorum

CLUSTER = "n1=127.0.0.1:7101,n2=127.0.0.1:7102"
REQUIRED = ["n1", "--data-dir", "d", "--listen", "127.0.0.1:7101", "--cluster", CLUSTER]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[NodeConfig]:
    """The configurations that nodes were started with, instead of starting them."""
    configurations: list[NodeConfig] = []

    def run(config: NodeConfig) -> int:
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
        "error: data_dir: is required",
        "error: listen: is required",
    ]
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tick-ms", "0"], "error: tick_ms: "),
        (["--listen", "nonsense"], "error: listen: 'nonsense' is no address"),
        (["--log-level", "loud"], "error: log_level: "),
        (["--fsync", "perhaps"], "error: fsync: "),
        (["--election-timeout-ms", "60"], "error: election_timeout_ms (60) must be"),
        (["--tick-ms", "soon"], "error: tick_ms: Input should be a valid integer"),
        (["--no-such-flag"], "No such option: --no-such-flag"),
        (["--cluster", "n1"], "error: cluster: 'n1' is not of the form name=host:port"),
        (["--cluster", "n1=a:1,n1=b:1"], "error: cluster: n1 is given twice"),
        (["--cluster", "n2=127.0.0.1:7102"], "error: n1 is not among the members: n2"),
        (["--join", "127.0.0.1:7102"], "error: cluster and join exclude each other"),
        (["--join", "nonsense"], "error: join: 'nonsense' is no address"),
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
        ("no_such_setting = 1", "error: no_such_setting: is no setting of a node"),
        ("tick_ms = ", "node.toml is not TOML: "),
        ("\ufeff= 1", "node.toml is not TOML: "),
        ("tick_ms = [1]", "error: tick_ms: "),
    ],
)
def test_what_is_wrong_in_the_file_is_said(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(content)
    assert message in refuse(*REQUIRED, "--config", str(file)).err


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert "nothing: No such file" in refuse(*REQUIRED, "--config", str(tmp_path / "nothing")).err


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
