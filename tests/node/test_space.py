"""When a node is short of space: what it says, what is refused, who hears of it, how it ends."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest

from kvorum.errors import QuotaExceeded
from kvorum.limits import KIB, MIB
from kvorum.status import from_status
from kvorum_node.raft.types import NodeId
from kvorum_node.services.dispatch import Dispatcher
from kvorum_node.space import Bounds, Space, Watchman, quota_exceeded, takes_space
from kvorum_node.storage.data_directory import Identity, Storage
from kvorum_node.storage.engine import Batch, Family
from kvorumpb.v1.cluster_pb2 import Alarm
from kvorumpb.v1.command_pb2 import (
    Check,
    DeleteRangeOperation,
    KeyRange,
    ListOperation,
    Operation,
    RateLimitOperation,
    TouchOperation,
)
from kvorumpb.v1.kv_pb2 import (
    Call,
    DeleteRequest,
    GetRequest,
    ListRequest,
    PutRequest,
    RegisterClientRequest,
    TxnRequest,
)
from tests.support.commands import add, delete, get, put, transaction
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually
from tests.support.node_group import NodeGroup

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
shared_loop = pytest.mark.asyncio(loop_scope="session")

BOUNDS = Bounds(quota_bytes=1000, min_free_bytes=400)
FULL = Alarm(kind=Alarm.QUOTA, node="n2", message="n2 is full")


def kinds(alarms: Iterable[Alarm]) -> list[str]:
    return [Alarm.Kind.Name(alarm.kind) for alarm in alarms]


@pytest.mark.parametrize(
    ("store", "free", "expected"),
    [
        (0, 10_000, []),
        (999, 400, []),
        (1000, 400, ["QUOTA"]),
        (999, 399, ["LOW_SPACE"]),
        (2000, 0, ["QUOTA", "LOW_SPACE"]),
    ],
)
def test_an_alarm_begins_at_its_bound(store: int, free: int, expected: list[str]) -> None:
    alarms = BOUNDS.alarms("n1", Space(store, free))
    assert kinds(alarms) == expected
    assert {alarm.node for alarm in alarms} <= {"n1"}


@pytest.mark.parametrize(
    ("store", "free", "expected"),
    [
        (900, 10_000, ["QUOTA"]),
        (899, 10_000, []),
        (0, 499, ["LOW_SPACE"]),
        (0, 500, []),
    ],
)
def test_an_alarm_ends_some_way_below(store: int, free: int, expected: list[str]) -> None:
    both = BOUNDS.alarms("n1", Space(2000, 0))
    assert kinds(BOUNDS.alarms("n1", Space(store, free), both)) == expected


def test_without_bounds_there_are_no_alarms() -> None:
    assert Bounds().alarms("n1", Space(1 << 60, 0)) == []
    assert Bounds(min_free_bytes=1).alarms("n1", Space(0, None)) == [], "it is in memory"


def test_an_alarm_says_how_much_there_is() -> None:
    quota, low = BOUNDS.alarms("n1", Space(123_456, 321))
    assert quota.message == "the store of n1 takes 123,456 bytes, and its quota is 1,000"
    assert low.message == "the disk of n1 has 321 bytes left, and 400 are to be kept free"


TOUCH = Operation(touch=TouchOperation(key=b"k", ttl_ms=1))
LIST = Operation(list=ListOperation(range=KeyRange()))
DELETE_RANGE = Operation(delete_range=DeleteRangeOperation(range=KeyRange()))
CHECK = Check(key=b"k", exists=True)


@pytest.mark.parametrize(
    ("takes", "call"),
    [
        (True, Call(put=PutRequest(key=b"k"))),
        (True, Call(txn=TxnRequest(transaction=transaction(put(b"k"))))),
        (True, Call(txn=TxnRequest(transaction=transaction(delete(b"k"), otherwise=[put(b"k")])))),
        (True, Call(txn=TxnRequest(transaction=transaction(delete(b"k"), add(b"n"))))),
        (True, Call(txn=TxnRequest(transaction=transaction(TOUCH)))),
        (
            True,
            Call(
                txn=TxnRequest(transaction=transaction(Operation(rate_limit=RateLimitOperation())))
            ),
        ),
        (False, Call(delete=DeleteRequest(key=b"k"))),
        (
            False,
            Call(
                txn=TxnRequest(
                    transaction=transaction(
                        delete(b"k"), DELETE_RANGE, checks=[CHECK], otherwise=[get(b"k"), LIST]
                    )
                )
            ),
        ),
        (False, Call(get=GetRequest(key=b"k"))),
        (False, Call(list=ListRequest())),
        (False, Call(register_client=RegisterClientRequest(client_id=1))),
    ],
)
def test_what_takes_space(takes: bool, call: Call) -> None:
    assert takes_space(call) is takes


async def test_writes_are_refused_one_by_one_and_the_rest_goes_on() -> None:
    async with DrivenNode(voters=1) as n1:
        dispatcher = Dispatcher(n1.group)
        await n1.submit(put(b"old"))
        n1.group.shortage = lambda: quota_exceeded(FULL)
        replies = await dispatcher.execute(
            [
                Call(id=1, put=PutRequest(key=b"new")),
                Call(id=2, delete=DeleteRequest(key=b"old")),
                Call(id=3, get=GetRequest(key=b"old")),
            ]
        )
        outcomes = {reply.id: reply.WhichOneof("outcome") for reply in replies}
        assert outcomes == {1: "error", 2: "delete", 3: "get"}
        error = from_status(next(reply.error for reply in replies if reply.id == 1))
        assert isinstance(error, QuotaExceeded)
        assert error.metadata == {"node": "n2", "limit": "quota_bytes"}
        assert "n2 is full" in error.message
        n1.group.shortage = lambda: None
        [reply] = await dispatcher.execute([Call(id=4, put=PutRequest(key=b"new"))])
        assert reply.WhichOneof("outcome") == "put"


async def test_a_watchman_looks_reclaims_and_says_what_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvorum_node.space.RECLAIM_SECONDS", 0.0)
    storage = Storage.open(tmp_path / "n1", Identity("test", NodeId(1)), fsync=False)
    changes: list[list[str]] = []
    bounds = Bounds(quota_bytes=8 * MIB)
    watchman = Watchman(
        "n1", storage, bounds, changed=lambda: changes.append(kinds(watchman.alarms))
    )
    running = asyncio.create_task(watchman.run())
    try:
        await eventually(lambda: watchman.space.store_bytes > 0)
        assert watchman.space.free_bytes is not None
        random = Random(1)
        for size in (8 * KIB, MIB):  # in tables, and in files of their own
            batch = Batch()
            for number in range(8 * MIB // size):
                batch.put(Family.DATA, b"%d/%d" % (size, number), random.randbytes(size))
            storage.state.write(batch)
        storage.state.sync()
        await eventually(lambda: changes == [["QUOTA"]])
        batch = Batch()
        batch.delete_range(Family.DATA, b"", b"\xff")
        storage.state.write(batch)
        storage.state.sync()
        await eventually(lambda: changes == [["QUOTA"], []])
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        storage.close()
        watchman.close()


@shared_loop
async def test_the_leader_refuses_writes_while_a_member_that_it_hears_is_short_of_space() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        follower = next(one for one in group.members.values() if one is not leader)
        alarm = Alarm(kind=Alarm.LOW_SPACE, node=f"n{follower.id}", message="its disk is full")
        follower.node.watchman.alarms = [alarm]
        await eventually(lambda: leader.node.alarms == [alarm])
        refusal = leader.node.group.shortage()
        assert isinstance(refusal, QuotaExceeded)
        assert refusal.metadata["node"] == f"n{follower.id}"
        others = [one for one in group.members.values() if one not in (leader, follower)]
        assert all(one.node.alarms == [] for one in others), "they hear nobody but the leader"
        follower.node.watchman.alarms = []
        await eventually(lambda: leader.node.alarms == [])
        # One that says nothing any more holds up nobody.
        follower.node.watchman.alarms = [alarm]
        await eventually(lambda: leader.node.alarms == [alarm])
        await follower.stop()
        await eventually(lambda: leader.node.alarms == [])


@shared_loop
async def test_followers_carry_on_the_leaders_time_without_a_write() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        await leader.put(b"k")
        ahead = leader.node.group.now_ms() + 600_000
        leader.node.group.clock.observe(ahead)
        await eventually(
            lambda: all(one.node.group.now_ms() >= ahead for one in group.members.values())
        )
