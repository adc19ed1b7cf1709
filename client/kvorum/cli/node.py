"""`kvorum node`: flags, environment and file become one configuration.

A flag wins over its variable, a variable over the file, the file over the
default (settings.py). Defaults, ranges and relations are those of
`kvorum_node.config.NodeConfig`.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from kvorum.cli import console, settings
from kvorum.cli.settings import Given, WrongSetting

USAGE: Final = 2
"""The exit status for a command line, environment or file that is wrong."""


def _option(variable: str, text: str, metavar: str | None = None) -> Any:
    # That each has a variable is said once, in the command's help.
    envvar = f"KVORUM_{variable}"
    return typer.Option(envvar=envvar, show_envvar=False, help=text, metavar=metavar)


_NOT_SETTINGS: Final = frozenset({"config", "check_config", "print_config"})

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
CheckOption = Annotated[
    bool,
    typer.Option("--check-config", help="Check the settings, start nothing: status 0 or 2."),
]
PrintOption = Annotated[
    bool,
    typer.Option("--print-config", help="Print the settings as a file that --config reads."),
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
    check_config: CheckOption = False,
    print_config: PrintOption = False,
) -> None:
    """Run a node until it is told to stop (SIGTERM).

    Each setting can also come from a variable (KVORUM_DATA_DIR for --data-dir)
    or from the file --config (data_dir): a flag wins over the variable, the
    variable over the file.

    The first start needs --cluster or --join. From then on the data directory
    knows the cluster.
    """
    try:
        given = settings.collect(ctx, config, _NOT_SETTINGS)
    except WrongSetting as problem:
        console.print_error(str(problem))
        raise typer.Exit(USAGE) from None
    raise typer.Exit(_run(given, check=check_config, show=print_config))


def _run(given: Given, *, check: bool, show: bool) -> int:
    try:
        from pydantic import ValidationError  # noqa: PLC0415 - of the extra `node`

        from kvorum_node.config import NodeConfig  # noqa: PLC0415 - only a node is configured so
    except ModuleNotFoundError as error:
        return _say_what_is_missing(error)
    known = NodeConfig.model_fields
    problems, warnings = settings.check_variables(os.environ, known)
    try:
        config = NodeConfig.model_validate(given.values)
    except ValidationError as error:
        problems += settings.describe_problems(error, given, known)
        config = None
    for problem in problems:
        console.print_error(problem)
    if problems or config is None:
        return USAGE
    if check or show:
        for warning in warnings:
            console.err().print(f"warning: {warning}", soft_wrap=True, markup=False)
        all_settings = config.model_dump(mode="json")
        sound = "the configuration is sound\n"
        sys.stdout.write(settings.render(all_settings, given) if show else sound)
        return 0
    # Lines of gRPC's own on stderr are none of the log, which may be JSON. What they say of a
    # port that is taken, the node says better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from kvorum_node import server  # noqa: PLC0415 - imports all of the node
    except ModuleNotFoundError as error:
        return _say_what_is_missing(error)
    return server.run(config, warnings)


def _say_what_is_missing(error: ModuleNotFoundError) -> int:
    if (error.name or "").startswith("kvorum"):
        raise error
    console.print_error(f"a node needs {error.name}: pip install 'kvorum[node]'")
    return USAGE
