"""Histories that others have recorded and judged, read from the data of the porcupine project.

    jepsen/etcd_NNN.log         one register of etcd (Jepsen), with jepsen_expected.tsv
    kv/<clients>-<verdict>.txt  keys with strings

Time is the number of the line: the order of the lines is all that was recorded.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.linearizability import UNKNOWN, Operation, Unknown
from tests.support.linearizability_models import (
    Append,
    CompareAndSet,
    Get,
    Put,
    Read,
    RegisterRequest,
    RegisterResponse,
    StringRequest,
    Write,
)

DATA = Path(__file__).parents[3] / "shared/data/linearizability"
"""Beside the project; not a part of it."""

RegisterHistory = list[Operation[RegisterRequest, RegisterResponse]]
StringHistory = list[Operation[StringRequest, str]]


def register_verdicts() -> dict[str, bool]:
    """By the name of the file: is it linearizable?"""
    lines = (DATA / "jepsen_expected.tsv").read_text().splitlines()
    return {name: verdict == "linearizable" for name, verdict in map(str.split, lines)}


def register_history(name: str) -> RegisterHistory:
    history: RegisterHistory = []
    open_calls: dict[str, tuple[RegisterRequest, int]] = {}
    for time, line in enumerate((DATA / "jepsen" / name).read_text().splitlines()):
        client, kind, function, value = line.partition(" - ")[2].split(maxsplit=3)
        if kind == ":invoke":
            open_calls[client] = (_register_request(function, value), time)
            continue
        request, invoked = open_calls.pop(client)
        response = _register_response(kind, function, value)
        history.append(Operation(client, request, response, invoked, time))
    for client, (request, invoked) in open_calls.items():
        history.append(Operation(client, request, UNKNOWN, invoked))
    return history


def _register_request(function: str, value: str) -> RegisterRequest:
    match function:
        case ":read":
            return Read()
        case ":write":
            return Write(int(value))
        case ":cas":
            expected, new = value.strip("[]").split()
            return CompareAndSet(int(expected), int(new))
        case _:
            raise ValueError(f"what is {function}?")


def _register_response(kind: str, function: str, value: str) -> RegisterResponse | Unknown:
    match kind, function:
        case (":info", _) | (":fail", ":read"):
            return UNKNOWN
        case (":ok" | ":fail", ":cas"):
            return kind == ":ok"
        case ":ok", ":write":
            return None
        case ":ok", ":read":
            return None if value == "nil" else int(value)
        case _:
            raise ValueError(f"what is {kind} {function}?")


def string_verdicts() -> dict[str, bool]:
    """By the name of the file: is it linearizable?"""
    return {path.name: path.stem.endswith("-ok") for path in sorted((DATA / "kv").glob("*.txt"))}


def string_history(name: str) -> StringHistory:
    history: StringHistory = []
    open_calls: dict[str, tuple[StringRequest, int]] = {}
    for time, (client, kind, function, key, value) in enumerate(_string_events(name)):
        if kind == "invoke":
            open_calls[client] = (_string_request(function, key, value), time)
        else:
            request, invoked = open_calls.pop(client)
            history.append(Operation(client, request, value, invoked, time))
    for client, (request, invoked) in open_calls.items():
        history.append(Operation(client, request, UNKNOWN, invoked))
    return history


def _string_events(name: str) -> Iterator[tuple[str, ...]]:
    form = re.compile(
        r'\{:process (\d+), :type :(invoke|ok), :f :(\w+), :key "(.*?)", :value (?:nil|"(.*)")\}'
    )
    for line in (DATA / "kv" / name).read_text().splitlines():
        match = form.fullmatch(line)
        assert match is not None, f"{name} has a line of another form: {line}"
        yield tuple(part or "" for part in match.groups())


def _string_request(function: str, key: str, value: str) -> StringRequest:
    match function:
        case "get":
            return Get(key)
        case "put":
            return Put(key, value)
        case "append":
            return Append(key, value)
        case _:
            raise ValueError(f"what is {function}?")
