"""`kvorum member ...`: what is asked of the leader, and what a person or a script is told."""

import json
from collections.abc import Callable
from typing import Any, Self

import pytest

from kvorum import (
    DeadlineExceeded,
    KvorumError,
    MembershipChangeRefused,
    NoNodeReachable,
    OutcomeUnknown,
)
from kvorum import admin as admin_module
from kvorum.admin import Survey
from kvorumpb.v1 import cluster_pb2
from tests.support.command_line import Ran, kvorum

Member = cluster_pb2.Member
MEMBERS = [
    Member(name="n1", address="h1:1", kind=Member.VOTER, match_index=20, active=True),
    Member(name="n2", address="h2:1", kind=Member.OUTGOING, match_index=19, active=True),
    Member(name="n3", address="h3:1", kind=Member.LEARNER, joining=True, match_index=5),
]


class FakeAdmin:
    """Knows the members, notes what is asked, and answers or raises."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Any] = {
            "h1:1": status("n1", cluster_pb2.LEADER),
            "h2:1": status("n2", cluster_pb2.FOLLOWER),
            "h3:1": NoNodeReachable("h3:1 does not answer", nodes=["h3:1"]),
        }
        self.asked: list[tuple[Any, ...]] = []
        self.refusal: KvorumError | None = None
        self.addresses: tuple[str, ...] = ()
        self.interrupted_early = False

    def __call__(self, addresses: tuple[str, ...]) -> "FakeAdmin":
        self.addresses = addresses
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def survey(self) -> Survey:
        return Survey.of(self.outcomes.items())

    async def add_member(self, address: str, **options: Any) -> str:
        self._ask("add", address, options)
        return "n4"

    async def promote_member(self, name: str, **options: Any) -> None:
        self._ask("promote", name, options)

    async def remove_member(self, name: str, **options: Any) -> None:
        self._ask("remove", name, options)

    async def wait_until_voter(self, name: str, report: Callable[[Member, int], None]) -> None:
        self._ask("wait", name, {})
        report(Member(name=name, address="h4:1"), 7)
        if self.interrupted_early:
            raise KeyboardInterrupt
        report(Member(name=name, address="h4:1", active=True), 3)

    def _ask(self, what: str, whom: str, options: dict[str, Any]) -> None:
        self.asked.append((what, whom, {k: v for k, v in options.items() if v and k != "timeout"}))
        if self.refusal is not None:
            raise self.refusal


def status(name: str, role: cluster_pb2.Role.ValueType) -> cluster_pb2.GetStatusResponse:
    return cluster_pb2.GetStatusResponse(
        name=name,
        cluster_id="c",
        role=role,
        term=3,
        leader="n1",
        last_index=20,
        commit_index=19,
        members=MEMBERS,
    )


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> FakeAdmin:
    fake = FakeAdmin()
    monkeypatch.setattr(admin_module, "ClusterAdmin", fake)
    return fake


def member(*arguments: str) -> Ran:
    return kvorum("member", *arguments, "--target", "kvorum://h1:1,h9")


def test_the_list_shows_the_members_as_the_leader_sees_them(admin: FakeAdmin) -> None:
    ran = member("list")
    assert [line.split() for line in ran.out.splitlines()] == [
        ["name", "address", "kind", "role", "match", "lag", "active"],
        ["n1", "h1:1", "voter", "leader", "20", "0", "yes"],
        ["n2", "h2:1", "leaving", "follower", "19", "1", "yes"],
        ["n3", "h3:1", "learner,", "joining", "unreachable", "5", "15", "no"],
    ]
    assert (ran.status, ran.err) == (0, "")
    assert admin.addresses == ("h1:1", "h9:7100")


def test_the_list_is_there_for_scripts(admin: FakeAdmin) -> None:
    listed = json.loads(member("list", "--json").out)
    assert (listed["cluster_id"], listed["leader"], listed["term"]) == ("c", "n1", 3)
    assert listed["members"][2] == {
        "name": "n3",
        "address": "h3:1",
        "kind": "learner",
        "joining": True,
        "role": None,
        "match_index": 5,
        "lag": 15,
        "active": False,
    }


def test_without_a_leader_the_list_says_whose_view_it_is(admin: FakeAdmin) -> None:
    admin.outcomes["h1:1"] = NoNodeReachable("h1:1 does not answer", nodes=["h1:1"])
    ran = member("list")
    assert ran.err == "no node leads: these are the members that n2 knows of\n"
    assert ran.out.splitlines()[2].split() == ["n2", "h2:1", "leaving", "follower"]
    assert json.loads(member("list", "--json").out)["members"][1]["lag"] is None


def test_where_nobody_answers_the_list_fails(admin: FakeAdmin) -> None:
    admin.outcomes = {"h1:1": NoNodeReachable("h1:1 does not answer", nodes=["h1:1"])}
    ran = member("list")
    assert (ran.status, ran.out, ran.err) == (1, "", "error: h1:1 does not answer\n")


def test_add_prints_how_to_start_the_node(admin: FakeAdmin) -> None:
    ran = member("add", "h4:1")
    assert admin.asked == [("add", "h4:1", {})]
    assert ran.out.splitlines() == [
        "n4 is a member; it becomes a voter by itself once it has caught up. Start it with",
        "",
        "  kvorum node n4 --data-dir ./n4 --listen h4:1 --join h1:1,h2:1,h3:1",
        "",
    ]


def test_add_does_what_it_is_told(admin: FakeAdmin) -> None:
    ran = member("add", "h4:1", "--learner", "--force", "--name", "n4", "--json")
    assert admin.asked == [("add", "h4:1", {"learner": True, "force": True, "name": "n4"})]
    added = json.loads(ran.out)
    assert (added["name"], added["joining"]) == ("n4", False)
    assert added["start_command"][:3] == ["kvorum", "node", "n4"]


def test_add_can_wait(admin: FakeAdmin) -> None:
    ran = member("add", "h4:1", "--wait")
    assert admin.asked == [("add", "h4:1", {}), ("wait", "n4", {})]
    assert ran.out.splitlines()[-1] == "n4 is a voter"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("promote", "n3 is a voter\n"),
        ("remove", "n3 is no member any more; its data directory can be deleted\n"),
    ],
)
def test_promote_and_remove(admin: FakeAdmin, command: str, said: str) -> None:
    assert member(command, "n3").out == said
    assert member(command, "n3", "--force").out == said
    assert admin.asked == [(command, "n3", {}), (command, "n3", {"force": True})]


@pytest.mark.parametrize("endangers", ["true", "false"])
@pytest.mark.parametrize("command", [("add", "h4:1"), ("promote", "n3"), ("remove", "n3")])
def test_a_refusal_says_whether_force_would_do_it_and_what_it_risks(
    admin: FakeAdmin, command: tuple[str, ...], endangers: str
) -> None:
    admin.refusal = MembershipChangeRefused("n2 is silent", endangers_quorum=endangers)
    ran = member(*command)
    assert (ran.status, ran.out) == (1, "")
    first, *hint = ran.err.splitlines()
    assert first == "error: n2 is silent"
    assert [line.partition(".")[0] for line in hint] == (
        ["With --force it is begun all the same"] if endangers == "true" else []
    )


def test_an_interruption_says_that_the_change_goes_on(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    async def interrupt_later(name: str, report: Callable[[cluster_pb2.Member, int], None]) -> None:
        report(Member(name=name, match_index=1), 7)
        raise KeyboardInterrupt

    monkeypatch.setattr(admin, "wait_until_voter", interrupt_later)
    ran = member("add", "h4:1", "--wait")
    assert ran.status == 130
    assert "n4 goes on, and becomes a voter once it has caught up" in ran.err
    monkeypatch.setattr(admin, "remove_member", interrupt)
    ran = member("remove", "n3")
    assert (ran.status, ran.out) == (130, "")
    assert "a change that has begun goes on" in ran.err


def test_an_interrupted_wait_for_a_node_that_was_never_started_says_so(admin: FakeAdmin) -> None:
    admin.interrupted_early = True
    ran = member("add", "h4:1", "--wait")
    assert ran.status == 130
    assert ran.err == (
        "n4 is a member, waiting to be started: `kvorum member list` shows what it does,"
        " `kvorum member remove n4` gives it up\n"
    )


def test_a_member_that_was_never_started_is_not_called_unreachable(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Member(name="n4", address="h4:1", kind=Member.LEARNER, joining=True)
    monkeypatch.setattr("tests.cli.test_member.MEMBERS", [*MEMBERS, new])
    admin.outcomes["h1:1"] = status("n1", cluster_pb2.LEADER)
    admin.outcomes["h4:1"] = NoNodeReachable("h4:1 does not answer", nodes=["h4:1"])
    lines = member("list").out.splitlines()
    assert "waiting to be started" in lines[4]
    assert "unreachable" in lines[3]
    # Who does not lead has heard of nobody.
    admin.outcomes["h1:1"] = status("n1", cluster_pb2.FOLLOWER)
    assert "unreachable" in member("list").out.splitlines()[4]


def test_a_role_is_that_of_the_member_and_not_of_whoever_runs_at_its_address(
    admin: FakeAdmin,
) -> None:
    """The nodes are asked at other addresses than the members have."""
    admin.outcomes = {
        "localhost:1": status("n1", cluster_pb2.LEADER),
        "h2:1": status("n9", cluster_pb2.CANDIDATE),
        "h3:1": status("n3", cluster_pb2.PRE_CANDIDATE),
    }
    roles = {
        row["name"]: row["role"] for row in json.loads(member("list", "--json").out)["members"]
    }
    assert roles == {"n1": "leader", "n2": None, "n3": "pre-candidate"}


def test_a_target_of_several_clusters_is_refused(admin: FakeAdmin) -> None:
    stranger = status("n1", cluster_pb2.LEADER)
    stranger.cluster_id = "d"
    admin.outcomes["h9:7100"] = stranger
    ran = member("list")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "error: the addresses are of different clusters: h1:1 is n1 of c, h2:1 is n2 of c,"
        " h9:7100 is n1 of d\n"
    )


@pytest.mark.parametrize("command", [("add", "h4:1"), ("promote", "n3"), ("remove", "n3")])
@pytest.mark.parametrize(
    "doubt",
    [OutcomeUnknown("outcome unknown: lost"), DeadlineExceeded("lost", maybe_applied=True)],
)
def test_a_doubt_is_called_one(
    admin: FakeAdmin, command: tuple[str, ...], doubt: KvorumError
) -> None:
    admin.refusal = doubt
    ran = member(*command)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "error: outcome unknown: lost: see `kvorum member list`\n"


def test_only_a_cluster_has_members() -> None:
    ran = kvorum("member", "list", "--target", "memory:")
    assert (ran.status, ran.err) == (
        1,
        "error: memory: is no cluster: only kvorum:// targets have nodes\n",
    )
