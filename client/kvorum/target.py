"""What `open` accepts, parsed.

    memory:                          Memory
    ./data, Path("/var/lib/app")     Directory
    kvorum://h1:7100,h2,[::1]:7100   Cluster; the port is 7100 if none is given

Everything else is `InvalidTarget`, and the message says what is wrong with it.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from kvorum.errors import InvalidTarget

DEFAULT_PORT = 7100


@dataclass(frozen=True, slots=True)
class Memory:
    def __str__(self) -> str:
        return "memory:"


@dataclass(frozen=True, slots=True)
class Directory:
    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Cluster:
    addresses: tuple[str, ...]
    """host:port, in the order given, without repetitions."""

    def __str__(self) -> str:
        return f"kvorum://{','.join(self.addresses)}"


Target = Memory | Directory | Cluster


def parse_target(target: str | os.PathLike[str]) -> Target:
    """Say which of the three kinds of store `target` names, or raise `InvalidTarget`."""
    if isinstance(target, os.PathLike):
        return Directory(Path(target))
    if not isinstance(target, str):
        raise InvalidTarget(
            f"a target is a str or a path, not {type(target).__name__}: "
            'give "memory:", a directory, or "kvorum://host:port,..."'
        )
    if not target:
        raise InvalidTarget(
            'the target is empty: give "memory:", a directory, or "kvorum://host:port,..."'
        )
    if target == "memory:":
        return Memory()
    if target.startswith("memory:"):
        raise InvalidTarget('nothing may follow "memory:": a memory store has no name')
    if target.startswith("kvorum://"):
        return _parse_cluster(target.removeprefix("kvorum://"))
    if target.startswith("kvorum:"):
        raise InvalidTarget(f'{target!r} lacks the "//" of "kvorum://host:port,..."')
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)", target):
        raise InvalidTarget(
            f'unknown scheme {scheme[0]!r}: give "memory:", a directory, or "kvorum://host:port,..."'
        )
    if "\0" in target:
        raise InvalidTarget("a directory name cannot contain a null character")
    return Directory(Path(target))


def _parse_cluster(rest: str) -> Cluster:
    # What stands before an "@" may be a password: no message repeats it.
    if "@" in rest:
        raise InvalidTarget("a kvorum:// target has no user or password: remove what ends in '@'")
    for mark, what in (("/", "path"), ("?", "query"), ("#", "fragment")):
        if mark in rest:
            raise InvalidTarget(
                f"a kvorum:// target has no {what}: remove {rest[rest.index(mark) :]!r}"
            )
    if not rest:
        raise InvalidTarget('"kvorum://" names no host: give "kvorum://host:port,..."')
    return Cluster(tuple(dict.fromkeys(_parse_address(part) for part in rest.split(","))))


def _parse_address(text: str) -> str:
    """`host`, `host:port`, `[v6]` or `[v6]:port`, as host:port."""
    if not text:
        raise InvalidTarget("the host list has an empty entry: look for a stray comma")
    if text.startswith("["):
        if "]" not in text:
            raise InvalidTarget(f"{text!r} has '[' without ']'")
        host, _, after = text.partition("]")
        host += "]"
        if after and not after.startswith(":"):
            raise InvalidTarget(f"{text!r} has {after!r} after ']' where only ':port' may stand")
        separator, port = after[:1], after[1:]
        valid = re.fullmatch(r"\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]", host)
    else:
        if text.count(":") > 1:
            raise InvalidTarget(f"{text!r} has several ':': write an IPv6 address as [address]")
        host, separator, port = text.partition(":")
        valid = re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", host)
    if not host:
        raise InvalidTarget(f"{text!r} has no host before its port")
    if not valid:
        raise InvalidTarget(f"{host!r} is not a host name or an address")
    return f"{host}:{_parse_port(port, text) if separator else DEFAULT_PORT}"


def _parse_port(port: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise InvalidTarget(f"{text!r} has the port {port!r}: a port is a number from 1 to 65535")
    return int(port)
