"""`kvorum node`: flags, environment and file become one configuration.

A flag wins over its variable, a variable over the file, the file over the
default. Defaults and ranges are those of `kvorum_node.config.NodeConfig`; here
they are only collected, and what it refuses is said in the words of the flags.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kvorum.cli import console

if TYPE_CHECKING:
    from pydantic import ValidationError

_WORDS: Final = {"missing": "is required", "extra_forbidden": "is no setting of a node"}
"""For what pydantic says in its own terms."""

USAGE: Final = 2
"""The exit status for a command line, environment or file that is wrong."""


def _option(variable: str, text: str, metavar: str | None = None) -> Any:
    # That each has a variable is said once, in the command's help.
    envvar = f"KVORUM_{variable}"
    return typer.Option(envvar=envvar, show_envvar=False, help=text, metavar=metavar)


# What would make the list below too long to read.
AdminOption = Annotated[
    str | None,
    _option("ADMIN_LISTEN", "Plain HTTP: /livez, /readyz, /metrics.", "host:port"),
]
PeerPortOption = Annotated[
    str | None,
    _option("PEER_PORT", "Where every member listens for its peers alone.", "port"),
]
MemoryOption = Annotated[
    str | None,
    _option("MEMORY_BYTES", "What the process may take: sizes its caches.", "bytes"),
]
VerifyIntervalOption = Annotated[
    str | None,
    _option("VERIFY_INTERVAL_SECONDS", "How often members compare what they hold; 0 is never."),
]
HistoryOption = Annotated[
    str | None, _option("HISTORY_SECONDS", "How long old revisions can be read.", "seconds")
]
QuotaOption = Annotated[
    str | None, _option("QUOTA_BYTES", "Refuse writes beyond it; 0 is no limit.", "bytes")
]
MinFreeOption = Annotated[
    str | None,
    _option("MIN_FREE_BYTES", "Refuse writes when the disk has less left.", "bytes"),
]
LogFormatOption = Annotated[
    str | None, _option("LOG_FORMAT", "For people or for machines.", "text|json")
]
LogLevelOption = Annotated[
    str | None,
    _option("LOG_LEVEL", "What to log: debug, info, warning or error and up.", "level"),
]


def node(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(envvar="KVORUM_NAME", show_envvar=False, help="This node's name: n1."),
    ] = None,
    *,
    config: Annotated[
        Path | None, _option("CONFIG", "A TOML file of these settings, as in data_dir = ...")
    ] = None,
    data_dir: Annotated[str | None, _option("DATA_DIR", "Where the node keeps its data.")] = None,
    listen: Annotated[
        str | None, _option("LISTEN", "Where to serve clients and peers.", "host:port")
    ] = None,
    admin_listen: AdminOption = None,
    peer_port: PeerPortOption = None,
    advertise: Annotated[
        str | None,
        _option("ADVERTISE", "Where others reach it, if not there.", "host:port"),
    ] = None,
    cluster: Annotated[
        str | None,
        _option("CLUSTER", "Begin a cluster of these, the same on each.", "n1=host:port,n2=..."),
    ] = None,
    join: Annotated[
        str | None,
        _option("JOIN", "Join the cluster of these, after `member add`.", "host:port,..."),
    ] = None,
    cluster_name: Annotated[
        str | None, _option("CLUSTER_NAME", "Tells clusters apart that have the same members.")
    ] = None,
    fsync: Annotated[
        str | None,
        _option("FSYNC", "off loses acknowledged writes at a power failure: for tests.", "on|off"),
    ] = None,
    tick_ms: Annotated[str | None, _option("TICK_MS", "The unit of Raft's time.", "ms")] = None,
    election_timeout_ms: Annotated[
        str | None,
        _option("ELECTION_TIMEOUT_MS", "Without a leader for so long: elect another.", "ms"),
    ] = None,
    log_max_bytes: Annotated[
        str | None,
        _option("LOG_MAX_BYTES", "Beyond it the older half of the log is dropped.", "bytes"),
    ] = None,
    log_max_entries: Annotated[str | None, _option("LOG_MAX_ENTRIES", "Or beyond so many.")] = None,
    memory_bytes: MemoryOption = None,
    verify_interval_seconds: VerifyIntervalOption = None,
    history_seconds: HistoryOption = None,
    quota_bytes: QuotaOption = None,
    min_free_bytes: MinFreeOption = None,
    log_format: LogFormatOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Run a node until it is told to stop (SIGTERM).

    Each setting can also come from a variable (KVORUM_DATA_DIR for --data-dir)
    or from the file --config (data_dir): a flag wins over the variable, the
    variable over the file.

    The first start needs --cluster or --join. From then on the data directory
    knows the cluster.
    """
    given = {setting: value for setting, value in ctx.params.items() if value is not None}
    if cluster is not None:
        given["cluster"] = parse_cluster(cluster)
    if join is not None:
        given["join"] = [address.strip() for address in join.split(",")]
    file = given.pop("config", None)
    settings = given if file is None else read_config(file) | given
    raise typer.Exit(_run(settings))


def _run(settings: Mapping[str, Any]) -> int:
    try:
        from pydantic import ValidationError  # noqa: PLC0415 - of the extra `node`

        from kvorum_node.config import NodeConfig  # noqa: PLC0415 - only a node is configured so
    except ModuleNotFoundError as error:
        return _say_what_is_missing(error)
    try:
        config = NodeConfig.model_validate(settings)
    except ValidationError as error:
        for problem in describe_problems(error):
            console.print_error(problem)
        return USAGE
    # Lines of gRPC's own on stderr are none of the log, which may be JSON. What they say of a
    # port that is taken, the node says better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from kvorum_node import server  # noqa: PLC0415 - imports all of the node
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
            raise _refusal(f"cluster: {item!r} is not of the form name=host:port")
        if name in members:
            raise _refusal(f"cluster: {name} is given twice")
        members[name] = address
    return members


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML file; `cluster` is a table of names to addresses there."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise _refusal(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise _refusal(f"{path} is not TOML: {error}") from None


def _refusal(message: str) -> typer.Exit:
    console.print_error(message)
    return typer.Exit(USAGE)


def describe_problems(error: "ValidationError") -> list[str]:
    """One line per problem, with the setting named as it is in a file."""
    lines = []
    for problem in error.errors():
        setting = ".".join(map(str, problem["loc"]))
        message = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        lines.append(f"{setting}: {message}" if setting else message)
    return lines
