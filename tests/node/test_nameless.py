"""A node without a name: what it decides from what it sees, and when it is sure."""

import asyncio
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from kvorum.admin import Status, Survey
from kvorum.errors import (
    DataDirectoryMismatch,
    KvorumError,
    MembershipChangeRefused,
    NoNodeReachable,
    OutcomeUnknown,
)
from kvorum_node import nameless
from kvorum_node.config import NodeConfig
from kvorum_node.joining import CannotJoin, identify
from kvorum_node.nameless import Be, Decision, Join, Refuse, Replace, Wait, decide
from kvorum_node.raft.types import NodeId
from kvorum_node.storage.data_directory import Identity, Storage, is_open, stored_identity
from kvorumpb.v1 import cluster_pb2
from tests.support.eventually import eventually

Member = cluster_pb2.Member

HERE = "h4:7100"
GONE = NoNodeReachable("gone", nodes=["h"])
N1 = Member(name="n1", address="h1:7100", kind=Member.VOTER, match_index=9, active=True)
N2 = Member(name="n2", address="h2:7100", kind=Member.VOTER, match_index=9, active=True)


def here(**changes: Any) -> Member:
    """n4, a member at the address of the node that asks, which nobody hears."""
    settings: dict[str, Any] = {"name": "n4", "address": HERE, "kind": Member.VOTER}
    return Member(**settings | changes)


def says(
    *members: Member, name: str = "n1", cluster: str = "c", leads: bool = True, **changes: Any
) -> Status:
    role = cluster_pb2.LEADER if leads else cluster_pb2.FOLLOWER
    settings: dict[str, Any] = {"name": name, "cluster_id": cluster, "role": role, "term": 1}
    return Status(**settings | changes, members=[N1, N2, *members])


def seen(*said: Status | KvorumError) -> Survey:
    return Survey({f"h{number}:7100": one for number, one in enumerate(said, 1)})


FOUND = Identity("c", NodeId(4))
FOLLOWER = says(name="n2", leads=False)
FOREIGN = says(name="n1", cluster="other")

TABLE: dict[str, tuple[Identity | None, Survey, type[Decision], str]] = {
    # An empty directory alone never begins a cluster.
    "nobody is asked": (None, seen(), Wait, "no node answers there. To begin a new cluster"),
    "nobody answers": (None, seen(GONE, GONE), Wait, "no node answers there"),
    "nobody leads": (None, seen(FOLLOWER), Wait, "no node leads: h1:7100 is n2 of c"),
    "two clusters": (None, seen(says(), FOREIGN), Wait, "of different clusters: h1:7100 is n1 of"),
    "two clusters, one led": (None, seen(FOLLOWER, FOREIGN), Wait, "of different clusters"),
    # Nobody is here.
    "a cluster": (None, seen(says()), Join, ""),
    "a cluster, half of it": (None, seen(GONE, says()), Join, ""),
    "a change is under way": (None, seen(says(members_changing=True)), Wait, "another change"),
    # Somebody was here.
    "a voter was here": (None, seen(says(here())), Replace, "n4"),
    "a voter with a log": (None, seen(says(here(match_index=9))), Replace, "n4"),
    "a learner was here": (
        None,
        seen(says(here(kind=Member.LEARNER, match_index=9))),
        Replace,
        "n4",
    ),
    # It may have run: a new leader has heard of nothing yet.
    "a learner never seen": (
        None,
        seen(says(here(kind=Member.LEARNER, joining=True))),
        Replace,
        "n4",
    ),
    "it is going": (
        None,
        seen(says(here(kind=Member.OUTGOING), members_changing=True)),
        Wait,
        "another change",
    ),
    # Somebody is here.
    "it answers": (
        None,
        seen(says(here()), GONE, GONE, says(name="n4", leads=False)),
        Wait,
        "n4, which answers: another process",
    ),
    "it leads": (None, seen(says(here(), name="n4")), Wait, "n4, which answers"),
    "its leader hears it": (None, seen(says(here(active=True))), Wait, "n1 has heard lately"),
    "a stranger answers": (None, seen(says(here()), GONE, GONE, GONE), Replace, "n4"),
    # Whoever leads the later term is believed.
    "a deposed leader, too": (
        None,
        seen(says(here(), name="n2", term=0), says(here(active=True))),
        Wait,
        "n1 has heard lately",
    ),
    # The directory wins.
    "known, alone": (FOUND, seen(), Be, ""),
    "known, all are down": (FOUND, seen(GONE, GONE), Be, ""),
    "known, its cluster": (FOUND, seen(says(here())), Be, ""),
    "known, it was removed": (FOUND, seen(says()), Be, ""),
    "known, another is here": (FOUND, seen(says(here(name="n5"))), Be, ""),
    "known, beside both": (FOUND, seen(FOREIGN, FOLLOWER), Be, ""),
    "known, beside a lost one": (FOUND, seen(says(cluster="other", leads=False)), Be, ""),
    "of another cluster": (FOUND, seen(FOREIGN), Refuse, "n4 of cluster c, but the nodes at join"),
}


@pytest.mark.parametrize("case", TABLE)
def test_what_it_sees_decides(case: str) -> None:
    found, survey, kind, text = TABLE[case]
    decision = decide(found, survey, HERE)
    assert type(decision) is kind
    match decision:
        case Be(identity):
            assert identity == found
        case Join():
            pass
        case Replace(member):
            assert member == text
        case Wait(why) | Refuse(why):
            assert text in why


def test_nothing_but_a_directory_and_a_leader_ends_the_wait() -> None:
    """Whatever else there is to see: over all that a survey of two can say."""
    outcomes: list[Status | KvorumError] = [
        GONE,
        FOLLOWER,
        says(name="n2", leads=False, cluster="other"),
        says(here(), leads=False),
    ]
    for one in outcomes:
        for other in outcomes:
            assert isinstance(decide(None, seen(one, other), HERE), Wait)


# The loop.


class FakeAdmin:
    """A cluster that says what it is told to, and notes what it is asked for."""

    script: list[Status | KvorumError | tuple[str, str]]
    """What comes next, an answer to a look or to a request."""
    asked: list[str]

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def survey(self, *, timeout: float) -> Survey:
        if not self.script:  # it has seen all that there is
            await asyncio.Event().wait()
        outcome = self.script.pop(0)
        assert not isinstance(outcome, tuple)
        return Survey({"h1:7100": outcome})

    async def join(self, address: str, *, timeout: float) -> tuple[str, str]:
        self.asked.append(f"join {address}")
        outcome = self.script.pop(0)
        if isinstance(outcome, KvorumError):
            raise outcome
        assert isinstance(outcome, tuple)
        return outcome

    async def remove_silent_member(self, name: str, address: str, *, timeout: float) -> None:
        self.asked.append(f"remove {name} at {address}")
        outcome = self.script.pop(0)
        if isinstance(outcome, KvorumError):
            raise outcome


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeAdmin]:
    monkeypatch.setattr(nameless, "ClusterAdmin", FakeAdmin)
    monkeypatch.setattr(nameless, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(nameless, "_LONGEST_PAUSE_SECONDS", 0.01)
    FakeAdmin.script, FakeAdmin.asked = [], []
    return FakeAdmin


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., NodeConfig]:
    settings = {"data_dir": tmp_path / "node", "listen": HERE, "join": ("localhost:7100",)}
    return lambda **changes: NodeConfig.model_validate(settings | changes)


DONE = ("done", "done")
REFUSED = MembershipChangeRefused("n2 cannot be reached now", endangers_quorum="true")
UNKNOWN = OutcomeUnknown("the leader is gone")
JOINED = Identity("c", NodeId(5))


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        ([says(), ("c", "n5")], ["join"]),
        ([GONE, FOLLOWER, says(), ("c", "n5")], ["join"]),
        # What is at the address is removed first; nothing is left when it has its name.
        ([says(here()), DONE, says(), ("c", "n5")], ["remove", "join"]),
        # Refused: asked again, until it is not.
        (
            [says(here()), REFUSED, says(here()), REFUSED, says(here()), DONE, says(), ("c", "n5")],
            ["remove", "remove", "remove", "join"],
        ),
        # The answer is lost: what was made of it is found by its address, and replaced.
        (
            [says(), UNKNOWN, says(here(kind=Member.LEARNER)), DONE, says(), ("c", "n5")],
            ["join", "remove", "join"],
        ),
        # Lost, and nothing was made of it.
        ([says(), UNKNOWN, says(), ("c", "n5")], ["join", "join"]),
        # Its own process, perhaps: it waits until that is silent.
        (
            [says(here(active=True)), says(here()), DONE, says(), ("c", "n5")],
            ["remove", "join"],
        ),
    ],
)
async def test_it_goes_on_until_it_has_a_name_of_its_own(
    fake: type[FakeAdmin],
    config: Callable[..., NodeConfig],
    script: list[Status | KvorumError | tuple[str, str]],
    asked: list[str],
) -> None:
    fake.script = list(script)
    assert await identify(config()) == JOINED
    assert [one.partition(" ")[0] for one in fake.asked] == asked
    assert fake.script == []


async def test_it_is_of_the_cluster_that_has_added_it(
    fake: type[FakeAdmin], config: Callable[..., NodeConfig]
) -> None:
    """And not of the one that it has looked at a moment before."""
    fake.script = [says(), ("another", "n9")]
    assert await identify(config()) == Identity("another", NodeId(9))


async def test_it_says_what_it_waits_for_and_not_all_the_time(
    fake: type[FakeAdmin], config: Callable[..., NodeConfig], caplog: pytest.LogCaptureFixture
) -> None:
    fake.script = [GONE] * 5
    for _ in range(5):
        fake.script += [FOLLOWER, GONE]
    fake.script += [says(), ("c", "n5")]
    reported: list[str] = []
    caplog.set_level("INFO", "kvorum.node")
    await identify(config(), report=reported.append)
    assert len(reported) == 15
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert lines[0].startswith(
        "this node waits to take part in the cluster at localhost:7100: no node answers there."
    )
    assert "no node leads" in lines[1]
    assert lines[2] == "n5 joins the cluster c"


async def test_it_can_be_told_to_stop_while_it_waits(
    fake: type[FakeAdmin], config: Callable[..., NodeConfig]
) -> None:
    told = config()
    for script in ([GONE], [GONE] * 1000, []):
        fake.script = list(script)
        waiting = asyncio.create_task(identify(told))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting], timeout=5)
        assert waiting.cancelled()
    assert not told.data_dir.exists()


async def test_an_identity_that_appears_ends_the_wait_once_it_is_complete(
    fake: type[FakeAdmin], config: Callable[..., NodeConfig]
) -> None:
    """As of `kvorum init`, which holds the lock until it has finished."""
    told, reported = config(), list[str]()
    fake.script = [GONE] * 10_000
    waiting = asyncio.create_task(identify(told, report=reported.append))
    made = Identity("new", NodeId(1))
    await eventually(lambda: bool(reported))
    storage = Storage.open(told.data_dir, made)
    try:
        await eventually(lambda: "another process is at work" in reported[-1])
    finally:
        storage.close()
    assert await waiting == made


async def test_the_directory_wins_over_whatever_is_at_join(
    fake: type[FakeAdmin], config: Callable[..., NodeConfig]
) -> None:
    told, known = config(), Identity("c", NodeId(7))
    Storage.open(told.data_dir, known).close()
    for said in (GONE, FOLLOWER, says(), says(here())):
        fake.script = [said]
        assert await identify(told) == known
    assert fake.asked == []


async def test_a_directory_of_another_cluster_is_refused_and_stays_as_it_is(
    fake: type[FakeAdmin], config: Callable[..., NodeConfig]
) -> None:
    told, known = config(), Identity("own", NodeId(7))
    Storage.open(told.data_dir, known).close()
    fake.script = [says()]
    with pytest.raises(DataDirectoryMismatch, match=r"n7 of cluster own, but .* cluster, c, which"):
        await identify(told)
    assert stored_identity(told.data_dir) == known


async def test_a_directory_that_was_never_complete_is_a_new_one(
    fake: type[FakeAdmin], config: Callable[..., NodeConfig]
) -> None:
    """A crash between the answer and the directory: the name in it was never used."""
    told = config()
    told.data_dir.mkdir()
    (told.data_dir / "kvorum.json.new").write_text("{}")
    fake.script = [says(here(kind=Member.LEARNER)), DONE, says(), ("c", "n5")]
    assert await identify(told) == JOINED
    assert fake.asked == [f"remove n4 at {HERE}", f"join {HERE}"]


async def test_without_a_name_and_without_a_cluster_it_does_not_begin(
    config: Callable[..., NodeConfig],
) -> None:
    with pytest.raises(CannotJoin, match=r"needs the setting cluster .* or join"):
        await identify(config(join=()))


async def test_without_a_name_it_is_whoever_its_directory_says(
    config: Callable[..., NodeConfig],
) -> None:
    told, known = config(join=()), Identity("c", NodeId(7))
    Storage.open(told.data_dir, known).close()
    assert await identify(told) == known


async def test_all_nodes_behind_a_name_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def getaddrinfo(host: str, port: str, **_: object) -> list[Any]:
        if host == "unknown":
            raise socket.gaierror("not known yet")
        if host == "silent":
            await asyncio.sleep(100)
        places: dict[str, list[Any]] = {
            "v4": [("10.0.0.1", 1), ("10.0.0.2", 1)],
            "v6": [("fd00::1", 1, 0, 0)],
        }
        families = {"v4": socket.AF_INET, "v6": socket.AF_INET6}
        return [(families[host], 0, 0, "", place) for place in places[host]]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(nameless, "LOOK_SECONDS", 0.01)
    resolved = await nameless._resolve(["v4:7100", "unknown:7100", "silent:7100", "v6:7", "v4:7"])
    assert resolved == [
        *("10.0.0.1:7100", "10.0.0.2:7100", "[fd00::1]:7", "10.0.0.1:7", "10.0.0.2:7"),
    ]


def test_a_directory_is_open_as_long_as_somebody_holds_its_lock(tmp_path: Path) -> None:
    assert not is_open(tmp_path)
    lock = os.open(tmp_path / "LOCK", os.O_RDWR | os.O_CREAT)
    try:
        assert not is_open(tmp_path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_open(tmp_path)
    finally:
        os.close(lock)
    assert not is_open(tmp_path)
