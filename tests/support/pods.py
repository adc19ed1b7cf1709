"""A container as the kubelet starts it: its command and environment, with all references resolved.

Rules of the kubelet: `envFrom` comes before `env`; `$(NAME)` in a value stands for a variable
that is defined before it, in `args` for any; what is not defined stays as it is; `$$(` is an
escape. An image's ENTRYPOINT is replaced by `command`, its CMD by `args`.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Final
from unittest.mock import patch

import typer.main

from kvorum.cli.app import app
from kvorum_node import server
from kvorum_node.config import NodeConfig
from tests.support.command_line import kvorum
from tests.support.manifests import Object, find

ENTRYPOINT: Final = "kvorum"
"""Of the image: tests/deploy/test_container.py sees to it."""

UNITS: Final = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Started:
    """What a container is started with."""

    command: list[str]
    environment: dict[str, str]


def started(
    objects: list[Object], spec: Object, container: Object, *, pod: str, namespace: str = "default"
) -> Started:
    """The command and the environment of a container of a pod with that name."""
    environment = _environment(objects, spec, container, pod=pod, namespace=namespace)
    command = [expand(one, environment) for one in container.get("command", [ENTRYPOINT])]
    arguments = [expand(one, environment) for one in container.get("args", [])]
    return Started([*command, *arguments], environment)


def node_settings(start: Started) -> NodeConfig:
    """What `kvorum node` makes of its arguments and its environment, by the real parser.

    Raises:
        ValueError: it refuses them.
    """
    if start.command[:2] != [ENTRYPOINT, "node"]:
        raise ValueError(f"{start.command} starts no node")
    with patch.object(server, "run", return_value=0) as run:
        ran = kvorum(*start.command[1:], env=start.environment)
    if ran.status != 0:
        raise ValueError(ran.err.strip())
    config = run.call_args.args[0]
    assert isinstance(config, NodeConfig)
    return config


@cache
def read_variables() -> frozenset[str]:
    """The variables that something reads: a setting of a node, or the target of all commands."""
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    settings = {str(option.envvar) for option in root.commands["node"].params if option.envvar}
    return frozenset({*settings, "KVORUM_TARGET"})


def expand(text: str, variables: dict[str, str]) -> str:
    """Put the values of variables in the place of $(NAME)."""

    def value(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$\([A-Za-z0-9_.-]+\)|\$\(([A-Za-z0-9_.-]+)\)", value, text)


def quantity(text: str) -> int:
    """`4Gi` as a number of bytes."""
    match = re.fullmatch(r"([0-9]+)(Ki|Mi|Gi|Ti|)", text)
    assert match is not None, f"{text!r} is no whole number of bytes"
    return int(match[1]) * UNITS[match[2]]


def _environment(
    objects: list[Object], spec: Object, container: Object, *, pod: str, namespace: str
) -> dict[str, str]:
    fields = {"metadata.name": pod, "metadata.namespace": namespace}
    variables: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        variables |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", ()):
        match variable:
            case {"value": value}:
                variables[variable["name"]] = expand(value, variables)
            case {"valueFrom": {"fieldRef": {"fieldPath": path}}}:
                variables[variable["name"]] = fields[path]
            case {"valueFrom": {"resourceFieldRef": {"resource": resource, **more}}}:
                assert not more.keys() - {"containerName"}, f"a divisor is not known here: {more}"
                name = more.get("containerName", container["name"])
                [named] = [one for one in spec["containers"] if one["name"] == name]
                group, _, field = resource.partition(".")
                variables[variable["name"]] = str(quantity(named["resources"][group][field]))
            case _:
                raise AssertionError(f"{variable} is not known here")
    return variables
