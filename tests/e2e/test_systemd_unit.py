"""The unit of deploy/systemd: systemd accepts it, the node accepts what it runs, and it ends well.

There is no systemd here that would run it: its command is run by this test, in a place of its
own instead of /opt, /etc and /var.
"""

import asyncio
import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kvorum
from kvorum.cli import processes
from kvorum.cli.node import USAGE
from kvorum_node.config import NodeConfig
from kvorum_node.server import NOT_TO_BE_RESTARTED
from kvorum_node.termination import DRAIN_SECONDS

DIRECTORY = Path(__file__).parents[2] / "deploy/systemd"
UNIT = DIRECTORY / "kvorum.service"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # its documented use
    parser.read_string(UNIT.read_text())
    return parser


def test_systemd_accepts_it(tmp_path: Path) -> None:
    """With the program where it is here."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace("/opt/kvorum/bin", str(BIN)))
    ran = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / UNIT.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_it_has_what_a_node_needs(unit: configparser.ConfigParser) -> None:
    assert unit.sections() == ["Unit", "Service", "Install"]
    service = unit["Service"]
    expected = {
        "Type": "exec",
        "User": "kvorum",
        "StateDirectory": "kvorum",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "KillSignal": "SIGTERM",
        "Restart": "on-failure",
        "RestartPreventExitStatus": f"{USAGE} {NOT_TO_BE_RESTARTED}",
    }
    assert {name: service[name] for name in expected} == expected
    assert int(service["LimitNOFILE"]) >= 65_536
    stop_seconds = int(service["TimeoutStopSec"].removesuffix("s"))
    assert stop_seconds > DRAIN_SECONDS


def test_its_settings_are_some_of_a_node(unit: configparser.ConfigParser) -> None:
    text = (DIRECTORY / "kvorum.toml").read_text()
    config = NodeConfig.model_validate(tomllib.loads(text))
    assert config.data_dir.parent == Path("/var/lib") / unit["Service"]["StateDirectory"]
    assert config.advertise == config.cluster[config.name]
    joining = re.sub(r"\[cluster\](\n\w.*)+", "", text)
    [join] = re.findall(r"^#   (join = .*)$", text, re.M)
    assert NodeConfig.model_validate(tomllib.loads(f"{join}\n{joining}")).join != ()


def prepare(unit: configparser.ConfigParser, root: Path, settings: str) -> list[str]:
    """The unit's command, with the settings in the place of /etc."""
    (root / "etc").mkdir()
    (root / "etc/kvorum.toml").write_text(settings)
    command = unit["Service"]["ExecStart"]
    for prefix, here in (("/opt/kvorum/bin", BIN), ("/etc/kvorum", root / "etc")):
        assert prefix in command
        command = command.replace(prefix, str(here))
    return shlex.split(command)


@pytest.mark.cluster
async def test_what_it_runs_serves_and_ends_when_it_is_told_to(
    unit: configparser.ConfigParser, tmp_path: Path
) -> None:
    port, probes = processes.free_ports(2)
    settings = (DIRECTORY / "kvorum.toml").read_text()
    for given, here in (
        ("/var/lib/kvorum/node", str(tmp_path / "var/node")),
        ("0.0.0.0:7100", f"127.0.0.1:{port}"),
        ("h1:7100", f"127.0.0.1:{port}"),
        ("127.0.0.1:7180", f"127.0.0.1:{probes}"),
    ):
        assert given in settings
        settings = settings.replace(given, here)
    settings = "\n".join(line for line in settings.splitlines() if not re.match("n[23] = ", line))
    (tmp_path / "var").mkdir()
    process = await asyncio.create_subprocess_exec(
        *prepare(unit, tmp_path, settings),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
    )
    try:
        async with kvorum.open(f"kvorum://127.0.0.1:{port}", timeout=30) as kv:
            assert await kv.put("k", "v") == 1
        assert (tmp_path / "var/node/kvorum.json").exists()
        process.send_signal(getattr(signal, unit["Service"]["KillSignal"]))
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, said.decode()
        assert b"has stopped" in said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_wrong_settings_end_it_with_a_status_that_prevents_a_restart(
    unit: configparser.ConfigParser, tmp_path: Path
) -> None:
    for settings in ('colour = "blue"', "no toml"):
        shutil.rmtree(tmp_path / "etc", ignore_errors=True)
        command = prepare(unit, tmp_path, settings)
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert str(ran.returncode) in unit["Service"]["RestartPreventExitStatus"].split()
        assert ran.stderr.startswith("error: ")
