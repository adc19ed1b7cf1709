"""What a node may be told, and what it answers to nonsense."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kvorum_node.config import NodeConfig, check_address, parse_name
from kvorum_node.node import HEARTBEAT_TICKS, Timing
from kvorum_node.raft.types import Settings

CLUSTER = {"n1": "h1:7100", "n2": "h2:7100", "n3": "h3:7100"}
TOO_SHORT = (
    ": election_timeout_ms (299) must be at least 6 tick_ms (50): a heartbeat takes 2 ticks,"
    " and one may be lost"
)
EVERYWHERE = (
    "is an address to listen on, at which nobody else can reach the node: give the name or the"
    " address of its machine"
)
PORTS_OF_THEIR_OWN = " need ports of their own"
QUOTA_BELOW_THE_LOG = (
    ": quota_bytes (2097151) must be at least twice log_max_bytes (1048576), or 0: the log"
    " alone would reach it"
)
LISTENS_EVERYWHERE = (
    ": listen is 0.0.0.0:7100, which means every address of this machine: to join, the setting"
    " advertise has to say at which of them the others reach the node"
)
TOO_LITTLE_MEMORY = (
    ": memory_bytes (402653183) must be at least 402653184, or 0: of less, too little would be left"
    " for RocksDB"
)
BOTH_WAYS = (
    ": cluster and join exclude each other: cluster is for the nodes that a cluster begins with,"
    " join for one that was added to it"
)


def config(**changes: Any) -> NodeConfig:
    settings = {"name": "n1", "data_dir": "d", "listen": "0.0.0.0:7100", "cluster": CLUSTER}
    return NodeConfig.model_validate(settings | changes)


def problem(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        config(**changes)
    [error] = caught.value.errors()
    return f"{'.'.join(map(str, error['loc']))}: {error['msg'].removeprefix('Value error, ')}"


def test_a_configuration_says_who_the_node_is_and_where_the_others_are() -> None:
    told = config()
    assert told.node_id == 1
    assert told.addresses == {1: "h1:7100", 2: "h2:7100", 3: "h3:7100"}
    assert told.data_dir == Path("d")
    assert told.fsync


def test_it_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().fsync = False


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"name": "node1"},
            "name: 'node1' is no node name: it is an n and a number, such as n1",
        ),
        ({"name": "n4"}, ": n4 is not among the members: n1, n2, n3"),
        (
            {"advertise": "h9:7100"},
            ": advertise is h9:7100, but the cluster knows n1 as h1:7100",
        ),
        (
            {"cluster": CLUSTER | {"n2": "h1:7100"}},
            "cluster: two members have the same address",
        ),
        (
            {"cluster": CLUSTER | {"n0": "h0:7100"}},
            "cluster: 'n0' is no node name: it is an n and a number, such as n1",
        ),
        (
            {"cluster": CLUSTER | {"n4": "h4"}},
            "cluster: 'h4' is no address: it is host:port, such as 127.0.0.1:7101",
        ),
        (
            {"listen": ""},
            "listen: '' is no address: it is host:port, such as 127.0.0.1:7101",
        ),
        (
            {"join": ("h1:7100",)},
            BOTH_WAYS,
        ),
        (
            {"cluster": {}, "join": ("h1",)},
            "join: 'h1' is no address: it is host:port, such as 127.0.0.1:7101",
        ),
        (
            {"election_timeout_ms": 299, "tick_ms": 50},
            TOO_SHORT,
        ),
        ({"cluster": {"n1": "0.0.0.0:7100"}}, f"cluster: '0.0.0.0:7100' {EVERYWHERE}"),
        ({"cluster": CLUSTER | {"n2": "[::]:7100"}}, f"cluster: '[::]:7100' {EVERYWHERE}"),
        ({"advertise": "[0::0]:7100"}, f"advertise: '[0::0]:7100' {EVERYWHERE}"),
        (
            {"cluster": {}, "join": ("h2:7100",)},
            LISTENS_EVERYWHERE,
        ),
        ({"tick_ms": 0}, "tick_ms: Input should be greater than or equal to 1"),
        ({"log_max_bytes": 10}, "log_max_bytes: Input should be greater than or equal to 65536"),
        (
            {"verify_interval_seconds": -1},
            "verify_interval_seconds: Input should be greater than or equal to 0",
        ),
        ({"history_seconds": 0}, "history_seconds: Input should be greater than or equal to 1"),
        ({"quota_bytes": -1}, "quota_bytes: Input should be greater than or equal to 0"),
        ({"min_free_bytes": -1}, "min_free_bytes: Input should be greater than or equal to 0"),
        (
            {"memory_bytes": 402_653_183},
            TOO_LITTLE_MEMORY,
        ),
        (
            {"quota_bytes": 2 * (1 << 20) - 1, "log_max_bytes": 1 << 20},
            QUOTA_BELOW_THE_LOG,
        ),
        ({"cluster_name": ""}, "cluster_name: String should have at least 1 character"),
        ({"name": ""}, ": name is missing: cluster has to say which of its members this is"),
        (
            {"admin_listen": "0.0.0.0:7100"},
            ": listen (0.0.0.0:7100), admin_listen (0.0.0.0:7100) and peer_port (none)"
            + PORTS_OF_THEIR_OWN,
        ),
        (
            {"peer_port": 7100},
            ": listen (0.0.0.0:7100), admin_listen (none) and peer_port (7100)"
            + PORTS_OF_THEIR_OWN,
        ),
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
        ({"log_level": "loud"}, "log_level: Input should be 'debug', 'info', 'warning' or 'error'"),
        ({"log_format": "xml"}, "log_format: Input should be 'text' or 'json'"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], expected: str) -> None:
    assert problem(**changes) == expected


@pytest.mark.parametrize("missing", ["data_dir", "listen"])
def test_what_is_needed_must_be_said(missing: str) -> None:
    settings = {"name": "n1", "data_dir": "d", "listen": "h1:7100", "cluster": CLUSTER}
    del settings[missing]
    with pytest.raises(ValidationError, match=rf"{missing}\n  Field required"):
        NodeConfig.model_validate(settings)


def test_the_shortest_election_timeout_is_enough_for_the_core() -> None:
    shortest = config(tick_ms=50, election_timeout_ms=300)
    timing = Timing(shortest.tick_ms / 1000, shortest.election_timeout_ms / 1000)
    settings = Settings(election_ticks=timing.election_ticks, heartbeat_ticks=HEARTBEAT_TICKS)
    assert settings.election_ticks == 6


def test_advertise_may_be_empty_or_the_own_address() -> None:
    assert config(advertise="").advertise == ""
    assert config(advertise="h1:7100").advertise == "h1:7100"


def test_a_data_directory_may_know_the_cluster_already() -> None:
    """Whether it does is seen when the node starts."""
    told = config(cluster={})
    assert (told.addresses, told.join) == ({}, ())


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({}, "h1:7100"),
        ({"cluster": {}}, ""),
        ({"cluster": {}, "listen": "h1:7100"}, "h1:7100"),
        ({"cluster": {}, "join": ("h2:7100",), "advertise": "h1:7200"}, "h1:7200"),
    ],
)
def test_a_node_is_reached_where_the_others_were_told(
    changes: dict[str, Any], address: str
) -> None:
    assert config(**changes).address == address


# The cluster's id.


def test_all_nodes_of_a_cluster_have_the_same_cluster_id() -> None:
    shuffled = dict(reversed(CLUSTER.items()))
    ids = {
        config(name=name, cluster=members).cluster_id
        for name in CLUSTER
        for members in (CLUSTER, shuffled)
    }
    assert len(ids) == 1


def test_nothing_but_name_and_members_makes_a_cluster() -> None:
    other = config(data_dir="e", listen="1.1.1.1:9", fsync=False, tick_ms=10, log_level="debug")
    assert other.cluster_id == config().cluster_id


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster_name": "other"},
        {"cluster": CLUSTER | {"n4": "h4:7100"}},
        {"cluster": CLUSTER | {"n3": "h3:7101"}},
        {"cluster": {"n1": "h2:7100", "n2": "h1:7100", "n3": "h3:7100"}},
    ],
)
def test_another_name_or_other_members_are_another_cluster(changes: dict[str, Any]) -> None:
    assert config(**changes).cluster_id != config().cluster_id


# Names and addresses.


@pytest.mark.parametrize(("name", "node"), [("n1", 1), ("n10", 10), ("n999999999", 999999999)])
def test_names(name: str, node: int) -> None:
    assert parse_name(name) == node


@pytest.mark.parametrize(
    "name", ["", "n", "1", "n0", "n01", "N1", "n-1", "n1 ", "n1\n", "n1.0", "n²", "n1234567890"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no node name"):
        parse_name(name)


@pytest.mark.parametrize(
    "address", ["localhost:1", "127.0.0.1:65535", "[::1]:7100", "kvorum-0.kvorum.ns.svc:7100"]
)
def test_addresses(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "h",
        "h:",
        ":7100",
        "h:0",
        "h:65536",
        "h:-1",
        "h:x",
        "h:7100 ",
        " h:7100",
        "h:\N{SUPERSCRIPT TWO}",
        "::1:7100",
        "http://h:7100",
        "h/x:7100",
        "a@h:7100",
        "h:1:2",
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        check_address(address)
