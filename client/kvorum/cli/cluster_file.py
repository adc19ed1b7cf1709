"""What a local cluster remembers on disk: DIR/cluster.json.

Rules of this file: the file is replaced atomically, so a reader never sees half
of one; what is read is checked before it is believed. It needs nothing beyond
the standard library, so that a client command can find the cluster cheaply.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from kvorum.errors import KvorumError

DEFAULT_DIRECTORY: Final = Path(".kvorum")
DIRECTORY_VARIABLE: Final = "KVORUM_CLUSTER_DIR"

FILE_NAME: Final = "cluster.json"
FORMAT: Final = 3


def default_directory() -> Path:
    """Where the local cluster is looked for if nothing else is said."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY)


class LocalClusterError(KvorumError):
    """A command on the local cluster could not be carried out."""


class NoClusterHere(LocalClusterError):
    """The directory holds no local cluster."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, distinct from every other one that has or gets the same pid."""

    pid: int
    created: float
    """When it started, in seconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node, and the process it was last started as."""

    name: str
    address: str
    admin: str
    """host:port of its probes and metrics, over HTTP."""
    process: ProcessIdentity | None = None
    introduction: tuple[str, ...] = ()
    """Arguments of `kvorum node` that say which cluster is meant, until the node has answered
    once: from then on its data directory knows it."""


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """The contents of cluster.json."""

    nodes: tuple[NodeRecord, ...]
    flags: tuple[str, ...] = ()
    """Further arguments of `kvorum node`, the same for every node and every restart."""

    @property
    def target(self) -> str:
        """What `kvorum.open` takes to reach the cluster."""
        return "kvorum://" + ",".join(node.address for node in self.nodes)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read DIR/cluster.json.

        Raises:
            NoClusterHere: there is none.
            LocalClusterError: it is not one that this version wrote.
        """
        path = directory / FILE_NAME
        try:
            return cls._parse(json.loads(path.read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise NoClusterHere(
                f"there is no local cluster in {directory}; start one with `kvorum cluster up`"
            ) from None
        except ValueError as error:
            raise LocalClusterError(
                f"{path} is not a cluster file of this version ({error});"
                f" stop its nodes by hand and remove {directory}"
            ) from error

    @classmethod
    def _parse(cls, content: object) -> Self:
        match content:
            case {"format": int(found), "nodes": [*nodes], "flags": [*flags]} if found == FORMAT:
                return cls(
                    nodes=tuple(_parse_node(node) for node in nodes),
                    flags=tuple(str(flag) for flag in flags),
                )
            case _:
                raise ValueError(f"it has not the fields of format {FORMAT}")

    def write(self, directory: Path) -> None:
        """Replace DIR/cluster.json."""
        path = directory / FILE_NAME
        temporary = path.with_suffix(".tmp")
        content = {"format": FORMAT, **asdict(self)}
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @staticmethod
    def remove(directory: Path) -> None:
        """Remove DIR/cluster.json, if it is there."""
        (directory / FILE_NAME).unlink(missing_ok=True)


def _parse_node(node: object) -> NodeRecord:
    match node:
        case {
            "name": str(name),
            "address": str(address),
            "admin": str(admin),
            "process": process,
            "introduction": [*introduction],
        }:
            arguments = tuple(str(argument) for argument in introduction)
            return NodeRecord(name, address, admin, _parse_process(process), arguments)
        case _:
            raise ValueError(f"node {node!r}")


def _parse_process(process: object) -> ProcessIdentity | None:
    match process:
        case None:
            return None
        case {"pid": int(pid), "created": float(created)}:
            return ProcessIdentity(pid, created)
        case _:
            raise ValueError(f"process {process!r}")
