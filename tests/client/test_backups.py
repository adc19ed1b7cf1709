"""From which node a snapshot is taken, and what is made of what it sends."""

import io
from collections.abc import AsyncGenerator, Mapping
from hashlib import blake2b

import pytest

from kvorum import backups
from kvorum.admin import ClusterAdmin, Status, Survey
from kvorum.errors import KvorumError, NoLeader, NoNodeReachable, Overloaded, TooStale
from kvorum.snapshot_file import SnapshotFile, SnapshotFileDamaged
from kvorumpb.v1.cluster_pb2 import (
    FOLLOWER,
    LEADER,
    BackupHeader,
    BackupTrailer,
    SaveSnapshotResponse,
)

CONTENT = b"content"
TRAILER = SaveSnapshotResponse(
    trailer=BackupTrailer(
        checksum=blake2b(CONTENT, digest_size=32).digest(), content_bytes=len(CONTENT)
    )
)
CHUNK = SaveSnapshotResponse(chunk=CONTENT)


def header(node: str, index: int) -> SaveSnapshotResponse:
    return SaveSnapshotResponse(header=BackupHeader(node=node, index=index, term=1))


class Cluster(ClusterAdmin):
    """Nodes that have applied so much, as they are surveyed one time after the other."""

    def __init__(self, *looks: Mapping[str, int], leader: str = "n1", needed: int = 10) -> None:
        super().__init__()
        self.looks = list(looks)
        self.leader = leader
        self.needed = needed
        self.taken: list[str] = []
        self.parts: list[SaveSnapshotResponse] | None = None
        self.error: KvorumError | None = None

    async def confirmed_index(self, *, timeout: float = 30.0) -> int:
        if not self.leader:
            raise NoLeader("no node leads")
        return self.needed

    async def survey(self, *, timeout: float = 2.0) -> Survey:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return Survey.of(
            (f"h-{name}:1", self._status(name, applied)) for name, applied in look.items()
        )

    def _status(self, name: str, applied: int) -> Status | KvorumError:
        if applied < 0:
            return NoNodeReachable(f"{name} is gone", nodes=[name])
        role = LEADER if name == self.leader else FOLLOWER
        return Status(name=name, applied_index=applied, role=role, cluster_id="c")

    async def snapshot(self, address: str) -> AsyncGenerator[SaveSnapshotResponse, None]:
        name = address[2:4]
        self.taken.append(name)
        if self.error is not None:
            raise self.error
        for part in self.parts or [header(name, self.needed), CHUNK, TRAILER]:
            yield part


async def save(
    cluster: Cluster, *, node: str = "", stale: bool = False, timeout: float = 0.5
) -> backups.Saved:
    sink = io.BytesIO()
    saved = await backups.save(
        cluster, sink, lambda *_: None, node=node, stale=stale, timeout=timeout
    )
    file = SnapshotFile(io.BytesIO(sink.getvalue()), "file")
    assert b"".join(file.chunks()) == CONTENT
    return saved


async def test_a_follower_that_has_everything_is_preferred() -> None:
    cluster = Cluster({"n1": 12, "n2": 9, "n3": 10})
    await save(cluster)
    assert cluster.taken == ["n3"]


async def test_one_that_is_a_little_behind_is_waited_for() -> None:
    cluster = Cluster({"n1": 12, "n2": 9}, {"n1": 13, "n2": 10})
    await save(cluster)
    assert cluster.taken == ["n2"]


async def test_the_leader_is_taken_if_no_other_comes_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backups, "SPARE_LEADER_SECONDS", 0.1)
    cluster = Cluster({"n1": 12, "n2": 9, "n3": -1})
    await save(cluster)
    assert cluster.taken == ["n1"]


async def test_a_leader_that_is_alone_is_not_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "SPARE_LEADER_SECONDS", 1000.0)
    cluster = Cluster({"n1": 12})
    await save(cluster)
    assert cluster.taken == ["n1"]


async def test_a_node_that_is_named_is_taken_and_waited_for() -> None:
    cluster = Cluster({"n1": 12, "n2": 9, "n3": 12}, {"n1": 12, "n2": 10, "n3": 12})
    await save(cluster, node="n2")
    await save(cluster, node="n1")
    assert cluster.taken == ["n2", "n1"]


async def test_a_node_that_stays_behind_is_said_to() -> None:
    cluster = Cluster({"n1": 12, "n2": 9})
    with pytest.raises(TooStale, match=r"n2 has applied 9, and .* goes through 10\. With --stale"):
        await save(cluster, node="n2", timeout=0.2)
    await save(cluster, node="n2", stale=True)
    assert cluster.taken == ["n2"]


async def test_stale_takes_what_has_come_furthest_and_asks_nobody() -> None:
    cluster = Cluster({"n1": 7, "n2": 9, "n3": 8}, leader="")
    with pytest.raises(NoLeader):
        await save(cluster)
    await save(cluster, stale=True)
    assert cluster.taken == ["n2"]


async def test_stale_prefers_a_follower_among_equals() -> None:
    cluster = Cluster({"n1": 9, "n2": 9})
    await save(cluster, stale=True)
    assert cluster.taken == ["n2"]


@pytest.mark.parametrize(("node", "who"), [("", "no node answers"), ("n2", "n2 does not answer")])
async def test_where_nobody_answers_it_is_said_who_was_asked(node: str, who: str) -> None:
    cluster = Cluster({"n2": -1, "n3": -1})
    with pytest.raises(NoNodeReachable, match=f"{who}: asked h-n2:1, h-n3:1"):
        await save(cluster, node=node, timeout=0.1)


async def test_a_node_that_was_started_anew_meanwhile_is_found_out() -> None:
    cluster = Cluster({"n1": 12, "n2": 12})
    cluster.parts = [header("n2", 9), CHUNK, TRAILER]
    with pytest.raises(TooStale, match="n2 has come to 9 alone, not to 10"):
        await save(cluster)


@pytest.mark.parametrize(
    "parts",
    [
        [header("n2", 10)],
        [header("n2", 10), CHUNK],
        [header("n2", 10), TRAILER],
        [header("n2", 10), CHUNK, CHUNK, TRAILER],
    ],
)
async def test_what_is_not_whole_is_an_error(parts: list[SaveSnapshotResponse]) -> None:
    cluster = Cluster({"n1": 12, "n2": 12})
    cluster.parts = parts
    with pytest.raises(SnapshotFileDamaged, match="try again"):
        await save(cluster)


async def test_an_error_of_the_node_is_handed_on() -> None:
    cluster = Cluster({"n1": 12})
    cluster.error = Overloaded("enough")
    with pytest.raises(Overloaded, match="enough"):
        await save(cluster)
