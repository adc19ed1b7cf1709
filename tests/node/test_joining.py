"""The first start of a node: what it asks, whom it believes, and when it does not begin."""

import asyncio
from pathlib import Path
from typing import Any, Self

import pytest

from kvorum.admin import Survey
from kvorum.errors import InvalidTarget, KvorumError, NoLeader, NoNodeReachable
from kvorum_node import joining
from kvorum_node.config import NodeConfig
from kvorum_node.joining import CannotJoin, first_identity
from kvorum_node.storage.data_directory import Identity
from kvorumpb.v1 import cluster_pb2

LEARNER, VOTER = cluster_pb2.Member.LEARNER, cluster_pb2.Member.VOTER
FIRST = cluster_pb2.Member(name="n1", address="h1:7100", kind=VOTER, match_index=9)
NEW = cluster_pb2.Member(name="n4", address="h4:7100", kind=LEARNER, joining=True)


class FakeAdmin:
    """Has asked the members already."""

    outcomes: dict[str, cluster_pb2.GetStatusResponse | KvorumError]
    leader: KvorumError | None

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self.addresses = addresses

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def find_leader(self, *, timeout: float) -> str:
        if self.leader is not None:
            raise self.leader
        return "h1:7100"

    async def survey(self) -> Survey:
        return Survey(self.outcomes)


def status(
    name: str = "n1", cluster_id: str = "c", *members: cluster_pb2.Member, leads: bool = True
) -> cluster_pb2.GetStatusResponse:
    role = cluster_pb2.LEADER if leads else cluster_pb2.FOLLOWER
    return cluster_pb2.GetStatusResponse(
        name=name, cluster_id=cluster_id, role=role, term=1, members=members
    )


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeAdmin]:
    monkeypatch.setattr(joining, "ClusterAdmin", FakeAdmin)
    FakeAdmin.leader = None
    FakeAdmin.outcomes = {"h1:7100": status("n1", "c", FIRST, NEW)}
    return FakeAdmin


def config(**changes: Any) -> NodeConfig:
    settings = {
        "name": "n4",
        "data_dir": Path("d"),
        "listen": "h4:7100",
        "join": ("h1:7100", "h2:7100"),
    }
    return NodeConfig.model_validate(settings | changes)


async def test_a_new_member_gets_the_id_of_the_cluster_that_it_joins() -> None:
    assert await first_identity(config()) == Identity("c", config().node_id)


async def test_it_may_listen_elsewhere_than_it_is_reached() -> None:
    told = config(listen="0.0.0.0:7100", advertise="h4:7100")
    assert (await first_identity(told)).cluster_id == "c"


async def test_a_founder_asks_nobody(fake: type[FakeAdmin]) -> None:
    fake.leader = NoLeader("nobody leads yet")
    told = config(join=(), cluster={"n4": "h4:7100", "n5": "h5:7100"})
    assert await first_identity(told) == Identity(told.cluster_id, told.node_id)


async def test_without_a_word_about_its_cluster_it_does_not_begin() -> None:
    with pytest.raises(CannotJoin, match=r"needs the setting cluster .* or join"):
        await first_identity(config(join=()))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [FIRST],
            "n4 is no member of the cluster c. Add it first, with `kvorum member add h4:7100",
        ),
        (
            [FIRST, cluster_pb2.Member(name="n5", address="h4:7100", kind=LEARNER)],
            "the member at h4:7100 is n5. Start it under that name",
        ),
        (
            [cluster_pb2.Member(name="n4", address="h9:7100", kind=LEARNER)],
            "made a member with the address h9:7100, and would run at h4:7100",
        ),
        ([cluster_pb2.Member(name="n4", address="h4:7100", kind=VOTER)], "n4 has run before"),
        (
            [cluster_pb2.Member(name="n4", address="h4:7100", kind=cluster_pb2.Member.OUTGOING)],
            "n4 has run before",
        ),
        (
            [cluster_pb2.Member(name="n4", address="h4:7100", kind=LEARNER, match_index=1)],
            "what the node had promised, and it must not come back",
        ),
    ],
)
async def test_whoever_is_no_new_member_is_told_what_to_do(
    fake: type[FakeAdmin], members: list[cluster_pb2.Member], message: str
) -> None:
    fake.outcomes = {"h1:7100": status("n1", "c", *members)}
    with pytest.raises(CannotJoin) as caught:
        await first_identity(config())
    assert message in str(caught.value)


async def test_addresses_of_different_clusters_are_named(fake: type[FakeAdmin]) -> None:
    fake.outcomes["h2:7100"] = status("n2", "other", leads=False)
    with pytest.raises(InvalidTarget, match=r"h1:7100 is n1 of c, h2:7100 is n2 of other"):
        await first_identity(config())


@pytest.mark.parametrize("error", [NoLeader("none"), NoNodeReachable("none", nodes=["h1:7100"])])
async def test_without_a_leader_nobody_is_believed(
    fake: type[FakeAdmin], error: KvorumError
) -> None:
    fake.leader = error
    with pytest.raises(type(error)):
        await first_identity(config())


@pytest.mark.parametrize(
    "outcome", [NoNodeReachable("gone", nodes=["h1:7100"]), status("n1", "c", NEW, leads=False)]
)
async def test_only_the_leader_is_believed(
    fake: type[FakeAdmin],
    outcome: cluster_pb2.GetStatusResponse | KvorumError,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has been found, and falls silent or leads no more. A follower may not know that this
    node, a voter by now, has run before."""
    monkeypatch.setattr(joining, "JOIN_SECONDS", 0.0)
    fake.outcomes = {"h1:7100": outcome}
    with pytest.raises(NoLeader, match="no leader goes on answering: asked h1:7100, h2:7100"):
        await first_identity(config())


async def test_the_next_leader_is_asked(
    fake: type[FakeAdmin], monkeypatch: pytest.MonkeyPatch
) -> None:
    voter = cluster_pb2.Member(name="n4", address="h4:7100", kind=VOTER)
    fake.outcomes = {"h2:7100": status("n2", "c", NEW, leads=False)}
    monkeypatch.setattr(joining, "PAUSE_SECONDS", 0.01)
    asked = asyncio.create_task(first_identity(config()))
    await asyncio.sleep(0)
    fake.outcomes = {"h2:7100": status("n2", "c", voter)}
    with pytest.raises(CannotJoin, match="n4 has run before"):
        await asked
