"""The settings of a node: where each one comes from, what is wrong with it, and all of them.

    file       --config FILE, or KVORUM_CONFIG     tick_ms = 50
    variable   over the file                       KVORUM_TICK_MS=50
    flag       over both                           --tick-ms 50

Rules of this file: what is wrong is said with the key, the value, the reason, and where the
value was given. A name that no setting has is refused in a file, and so is a variable that
looks like one; other variables that begin with KVORUM_ are warned of, because a typo in a
manifest must not go unnoticed. What the settings are is known to `kvorum_node.config` alone.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from pydantic import ValidationError

PREFIX: Final = "KVORUM_"
OTHER_VARIABLES: Final = frozenset(
    {"KVORUM_CONFIG", "KVORUM_TARGET", "KVORUM_CLUSTER_DIR", "KVORUM_CLUSTER_BASE_PORT"}
)
"""Of other commands, or of how settings are found."""

_SERVICE_LINK: Final = re.compile(
    r"KVORUM_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""Kubernetes tells every container of the Services of its namespace in such variables."""

_SIMILAR: Final = 0.75
_WORDS: Final = {"missing": "is required", "extra_forbidden": "is no setting of a node"}
"""For what pydantic says in its own terms."""


class WrongSetting(ValueError):
    """A setting that is not even of the form of one; the message says where."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a setting was given, and how."""

    where: str
    """The variable, the flag or the file."""

    said: str
    """The same with the setting and its value, as it stands there."""


@dataclass(frozen=True, slots=True)
class Given:
    """All that was given, with the value that counts for each setting."""

    values: Mapping[str, Any]
    origins: Mapping[str, Origin]


def collect(ctx: typer.Context, file: Path | None, not_settings: Collection[str]) -> Given:
    """What the file, the variables and the flags say.

    Raises:
        WrongSetting: the file is none, or `cluster` is not of its form.
    """
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    if file is not None:
        for setting, value in read_file(file).items():
            values[setting] = value
            origins[setting] = Origin(str(file), f"{file}: {setting} = {_as_toml(value)}")
    for setting, text in ctx.params.items():
        if text is None or setting in not_settings:
            continue
        origins[setting] = origin = _origin(ctx, setting, text)
        values[setting] = _parse(setting, text, origin)
    return Given(values, origins)


def _origin(ctx: typer.Context, setting: str, text: str) -> Origin:
    source = ctx.get_parameter_source(setting)
    if source is not None and source.name == "ENVIRONMENT":
        variable = f"{PREFIX}{setting.upper()}"
        return Origin(variable, f"{variable}={text}")
    flag = "NAME" if setting == "name" else f"--{setting.replace('_', '-')}"
    return Origin(flag, f"{flag} {text}")


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a TOML file; `cluster` is a table of names to addresses there."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise WrongSetting(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise WrongSetting(f"{path} is not TOML: {error}") from None


def _parse(setting: str, text: str, origin: Origin) -> Any:
    """What has a structure in a file, and is one text elsewhere."""
    match setting:
        case "cluster":
            return _parse_cluster(text, origin)
        case "join":
            return [address.strip() for address in text.split(",")]
        case _:
            return text


def _parse_cluster(text: str, origin: Origin) -> dict[str, str]:
    """`n1=host:port,n2=host:port` as a mapping of names to addresses."""
    members: dict[str, str] = {}
    for item in text.split(","):
        name, separator, address = (part.strip() for part in item.partition("="))
        if not (name and separator and address):
            raise WrongSetting(f"{origin.said}: {item!r} is not of the form name=host:port")
        if name in members:
            raise WrongSetting(f"{origin.said}: {name} is given twice")
        members[name] = address
    return members


def check_variables(
    environment: Collection[str], settings: Collection[str]
) -> tuple[list[str], list[str]]:
    """Problems with variables that look like settings, and warnings about others."""
    known = {f"{PREFIX}{setting.upper()}" for setting in settings}
    problems, warnings = [], []
    for variable in sorted(environment):
        if (
            not variable.startswith(PREFIX)
            or variable in known | OTHER_VARIABLES
            or _SERVICE_LINK.fullmatch(variable)
        ):
            continue
        similar = difflib.get_close_matches(variable, known, n=1, cutoff=_SIMILAR)
        if similar:
            problems.append(f"{variable}: is no setting of a node; did you mean {similar[0]}?")
        else:
            warnings.append(f"{variable} is no setting of a node, and is ignored")
    return problems, warnings


def describe_problems(
    error: "ValidationError", given: Given, settings: Collection[str]
) -> list[str]:
    """One line per problem."""
    return [_describe(problem, given, settings) for problem in error.errors()]


def _describe(problem: Any, given: Given, settings: Collection[str]) -> str:
    setting = str(problem["loc"][0]) if problem["loc"] else ""
    message = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    origin = given.origins.get(setting)
    match problem["type"]:
        case "missing":
            flag = setting.replace("_", "-")
            return f"{setting}: {message}: --{flag}, {PREFIX}{setting.upper()}, or in a file"
        case "extra_forbidden":
            where = f"{origin.where}: " if origin is not None else ""
            similar = difflib.get_close_matches(setting, settings, n=1, cutoff=0.5)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            return f"{where}{setting}: {message}{hint}"
    if origin is not None:
        return f"{origin.said}: {message}"
    return f"{setting}: {message}" if setting else message + _origins_of(message, given)


def _origins_of(message: str, given: Given) -> str:
    """Where the settings come from that a relation is about."""
    named = [
        f"{setting} is from {origin.where}"
        for setting, origin in given.origins.items()
        if re.search(rf"\b{setting}\b", message)
    ]
    return f" ({', '.join(named)})" if named else ""


def render(settings: Mapping[str, Any], given: Given) -> str:
    """All settings as TOML that `--config` reads back, each with where it comes from."""
    import tomlkit  # noqa: PLC0415 - of the extra `node`

    document = tomlkit.document()
    document.add(tomlkit.comment("All settings of a node, and where each one comes from."))
    # A table goes on to the next one, so it has to be the last.
    for setting in sorted(settings, key=lambda one: isinstance(settings[one], dict)):
        origin = given.origins.get(setting)
        where = "default" if origin is None else origin.where
        if isinstance(settings[setting], dict):
            table = tomlkit.table()
            table.comment(where)
            for name, address in settings[setting].items():
                table.add(name, address)
            document.add(setting, table)
        else:
            item = tomlkit.item(settings[setting])
            document.add(setting, item.comment(where))
    return tomlkit.dumps(document)


def _as_toml(value: Any) -> str:
    """Near enough, for a message: strings, numbers and lists of them are in JSON what they are
    in TOML."""
    return json.dumps(value, ensure_ascii=False, default=str)
