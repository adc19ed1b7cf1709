"""`kvorum node`: flags, environment and file become one configuration.

A flag wins over its variable, a variable over the file, the file over the
default. Defaults and ranges are those of `kvorum_node.config.NodeConfig`; here
they are only collected, and what it refuses is said in the words of the flags.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kvorum.cli import console

if TYPE_CHECKING:
    from pydantic import ValidationError

USAGE: Final = 2
"""The exit status for a command line, environment or file that is wrong."""


def node(
    name: Annotated[
        str | None,
        typer.Argument(envvar="KVORUM_NAME", help="This node's name, one of --cluster: n1."),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(envvar="KVORUM_CONFIG", help="A TOML file with the same names (data_dir)."),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(envvar="KVORUM_DATA_DIR", help="Where the node keeps its data."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(envvar="KVORUM_LISTEN", help="host:port to serve clients and peers on."),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            envvar="KVORUM_ADVERTISE",
            help="host:port that others reach it at, if not its address in --cluster.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            envvar="KVORUM_CLUSTER",
            help="All members: n1=host:port,n2=host:port,... The same on every node.",
        ),
    ] = None,
    cluster_name: Annotated[
        str | None,
        typer.Option(
            envvar="KVORUM_CLUSTER_NAME",
            help="Nodes of different cluster names never talk to each other.",
        ),
    ] = None,
    fsync: Annotated[
        str | None,
        typer.Option(
            envvar="KVORUM_FSYNC",
            metavar="on|off",
            help="off loses acknowledged writes when the power fails: for tests only.",
        ),
    ] = None,
    tick_ms: Annotated[
        int | None,
        typer.Option(envvar="KVORUM_TICK_MS", help="Milliseconds between two ticks of Raft."),
    ] = None,
    election_timeout_ms: Annotated[
        int | None,
        typer.Option(
            envvar="KVORUM_ELECTION_TIMEOUT_MS",
            help="Milliseconds without a leader until a node stands for election.",
        ),
    ] = None,
    log_max_bytes: Annotated[
        int | None,
        typer.Option(
            envvar="KVORUM_LOG_MAX_BYTES", help="Bytes of Raft log until its older half is dropped."
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(envvar="KVORUM_LOG_FORMAT", metavar="text|json", help="Form of log lines."),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            envvar="KVORUM_LOG_LEVEL",
            metavar="debug|info|warning|error",
            help="The least important lines to log.",
        ),
    ] = None,
) -> None:
    """Run a node until it is told to stop (SIGTERM).

    A flag wins over its environment variable, the variable over --config.
    """
    given = {
        "name": name,
        "data_dir": data_dir,
        "listen": listen,
        "advertise": advertise,
        "cluster": None if cluster is None else parse_cluster(cluster),
        "cluster_name": cluster_name,
        "fsync": fsync,
        "tick_ms": tick_ms,
        "election_timeout_ms": election_timeout_ms,
        "log_max_bytes": log_max_bytes,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings = {
        **({} if config is None else read_config(config)),
        **{key: value for key, value in given.items() if value is not None},
    }
    raise typer.Exit(_run(settings))


def _run(settings: Mapping[str, Any]) -> int:
    # Only this command needs the node, and what it depends on.
    try:
        from kvorum_node.config import NodeConfig  # noqa: PLC0415
        from pydantic import ValidationError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        return _say_what_is_missing(error)
    try:
        config = NodeConfig.model_validate(settings)
    except ValidationError as error:
        for problem in describe_problems(error):
            console.print_error(problem)
        return USAGE
    try:
        from kvorum_node import server  # noqa: PLC0415
    except ModuleNotFoundError as error:
        return _say_what_is_missing(error)
    return server.run(config)


def _say_what_is_missing(error: ModuleNotFoundError) -> int:
    if (error.name or "").startswith("kvorum"):
        raise error
    console.print_error(f"a node needs {error.name}: pip install 'kvorum[node]'")
    return USAGE


def parse_cluster(text: str) -> dict[str, str]:
    """`n1=host:port,n2=host:port` as a mapping of names to addresses."""
    members: dict[str, str] = {}
    for item in text.split(","):
        name, separator, address = (part.strip() for part in item.partition("="))
        if not (name and separator and address):
            raise typer.BadParameter(
                f"{item!r} is not of the form name=host:port", param_hint="--cluster"
            )
        if name in members:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--cluster")
        members[name] = address
    return members


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML file; `cluster` is a table of names to addresses there."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise typer.BadParameter(f"{path}: {reason}", param_hint="--config") from None


def describe_problems(error: "ValidationError") -> list[str]:
    """One line per problem, with the setting named as it is in a file."""
    lines = []
    for problem in error.errors():
        setting = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{setting}: {message}" if setting else message)
    return lines
