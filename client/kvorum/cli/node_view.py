"""What a node says about itself, as the tables and `--json` show it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from rich.filesize import decimal
from rich.markup import escape

from kvorum.cli import console

if TYPE_CHECKING:
    from kvorumpb.v1 import cluster_pb2

COUNTERS: Final = ("term", "last_index", "commit_index", "applied_index", "revision")
"""Fields of GetStatusResponse."""

COUNTER_HEADINGS: Final = ("term", "last", "commit", "applied", "revision")

SPACE_HEADINGS: Final = ("name", "oldest revision", "store", "quota", "free on disk", "alarms")


def role(status: "cluster_pb2.GetStatusResponse | None") -> str | None:
    """`leader`, `follower`, `pre-candidate`, ...; None if the node did not say."""
    if status is None:
        return None
    from kvorumpb.v1 import cluster_pb2  # noqa: PLC0415 - loaded already if there is a status

    return cluster_pb2.Role.Name(status.role).lower().replace("_", "-")


def role_markup(name: str | None) -> str:
    """The role for a table: the leader is what a reader looks for first."""
    return "[bold green]leader[/]" if name == "leader" else escape(name or "")


def kind(member: "cluster_pb2.Member") -> str:
    """`voter`, `learner`, or `leaving` for one that votes until a change is complete."""
    from kvorumpb.v1 import cluster_pb2  # noqa: PLC0415 - loaded already if there is a member

    name = cluster_pb2.Member.Kind.Name(member.kind).lower()
    return "leaving" if name == "outgoing" else name


def lag(member: "cluster_pb2.Member", leader: "cluster_pb2.GetStatusResponse") -> int:
    """How many entries of the leader's log the member is not known to have."""
    return max(0, leader.last_index - member.match_index)


def counters(status: "cluster_pb2.GetStatusResponse | None") -> dict[str, int | None]:
    """Term, positions and revision by their names in the protocol."""
    return {name: None if status is None else getattr(status, name) for name in COUNTERS}


def alarms(statuses: "Iterable[cluster_pb2.GetStatusResponse | None]") -> list[str]:
    """What is wrong, each thing once: a leader also says it of the others."""
    found = {
        (alarm.node, alarm.kind): alarm.message
        for status in statuses
        if status is not None
        for alarm in status.alarms
    }
    return [found[key] for key in sorted(found)]


def print_alarms(statuses: "Iterable[cluster_pb2.GetStatusResponse | None]") -> None:
    """Below a table, for a reader."""
    for message in alarms(statuses):
        console.out().print(
            f"[bold red]writes are refused[/]: {escape(message)}. Deletes and `kvorum compact`"
            " make room, and it ends by itself once there is some",
            soft_wrap=True,
        )


def space(status: "cluster_pb2.GetStatusResponse | None") -> dict[str, Any]:
    """History, disk and alarms by their names in the protocol."""
    names = ("oldest_revision", "log_time_ms", "store_bytes", "quota_bytes", "min_free_bytes")
    facts = {name: None if status is None else getattr(status, name) for name in names}
    return {
        **facts,
        "free_bytes": None if status is None else _free_bytes(status),
        "alarms": None if status is None else alarms([status]),
    }


def space_row(status: "cluster_pb2.GetStatusResponse") -> list[str]:
    """The same for a table with SPACE_HEADINGS: sizes as a reader wants them."""
    from kvorumpb.v1 import cluster_pb2  # noqa: PLC0415 - loaded already if there is a status

    kinds = {alarm.kind for alarm in status.alarms if alarm.node == status.name}
    names = [cluster_pb2.Alarm.Kind.Name(kind).lower().replace("_", " ") for kind in sorted(kinds)]
    free = _free_bytes(status)
    return [
        escape(status.name),
        str(status.oldest_revision),
        decimal(status.store_bytes),
        decimal(status.quota_bytes) if status.quota_bytes else "none",
        "" if free is None else decimal(free),
        f"[bold red]{', '.join(names)}[/]" if names else "none",
    ]


def _free_bytes(status: "cluster_pb2.GetStatusResponse") -> int | None:
    return status.free_bytes if status.HasField("free_bytes") else None


def cell(value: object) -> str:
    """A value for a table; nothing for None."""
    return "" if value is None else escape(str(value))
