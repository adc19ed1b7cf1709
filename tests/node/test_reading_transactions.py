"""Transactions that only read: no entry in the log, one revision, and nothing that is old."""

from collections.abc import AsyncIterator

import pytest

from kvorum.errors import ResultTooLarge
from kvorum.status import from_status
from kvorum_node.services.dispatch import Dispatcher
from kvorumpb.v1.command_pb2 import (
    Check,
    GetOperation,
    ListOperation,
    Operation,
    Transaction,
    TransactionResult,
)
from kvorumpb.v1.kv_pb2 import Call, PutRequest, Reply, TxnRequest
from tests.support import commands
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually

A, B = Operation(get=GetOperation(key=b"a")), Operation(get=GetOperation(key=b"b"))


@pytest.fixture
async def node() -> AsyncIterator[DrivenNode]:
    async with DrivenNode(voters=1) as n1:
        await eventually(lambda: n1.leads)
        yield n1


async def ask(node: DrivenNode, call: Call) -> Reply:
    [reply] = await Dispatcher(node.group).execute([call])
    return reply


async def put(node: DrivenNode, key: bytes, value: bytes, ttl_ms: int = 0) -> None:
    reply = await ask(node, Call(put=PutRequest(key=key, value=value, ttl_ms=ttl_ms)))
    assert not reply.HasField("error")


async def read(node: DrivenNode, transaction: Transaction) -> TransactionResult:
    reply = await ask(node, Call(txn=TxnRequest(transaction=transaction)))
    assert not reply.HasField("error")
    return reply.txn.result


async def test_it_costs_no_entry(node: DrivenNode) -> None:
    await put(node, b"a", b"1")
    await put(node, b"b", b"2")
    before = node.group.log.last_index()
    result = await read(node, commands.transaction(A, B, Operation(list=ListOperation())))
    assert node.group.log.last_index() == before
    assert result.succeeded
    assert result.revision == 2
    first, second, listed = result.results
    assert (first.get.record.value, second.get.record.value) == (b"1", b"2")
    assert [record.key for record in listed.list.records] == [b"a", b"b"]


async def test_its_checks_choose_a_branch(node: DrivenNode) -> None:
    await put(node, b"b", b"2")
    absent = Check(key=b"a", exists=True)
    result = await read(node, commands.transaction(A, checks=[absent], otherwise=[B]))
    assert not result.succeeded
    assert result.failed_check == 0
    assert [one.get.record.value for one in result.results] == [b"2"]


async def test_checks_alone_are_a_read_too(node: DrivenNode) -> None:
    before = node.group.log.last_index()
    result = await read(node, commands.transaction(checks=[Check(key=b"a", exists=False)]))
    assert result.succeeded
    assert node.group.log.last_index() == before


async def test_a_write_in_a_branch_that_does_not_run_is_a_write(node: DrivenNode) -> None:
    before = node.group.log.last_index()
    await read(node, commands.transaction(A, otherwise=[commands.put(b"c")]))
    assert node.group.log.last_index() == before + 1


async def test_what_it_returns_is_bounded(
    node: DrivenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(node, b"a", b"v" * 1_000)
    monkeypatch.setattr("kvorum.limits.MAX_RESULT_BYTES", 1_500)
    twice = TxnRequest(transaction=commands.transaction(A, A))
    reply = await ask(node, Call(txn=twice))
    assert isinstance(from_status(reply.error, write=False), ResultTooLarge)


async def test_who_does_not_lead_refuses_it() -> None:
    async with DrivenNode(voters=3) as n1:  # the other two are not there
        reply = await ask(n1, Call(txn=TxnRequest(transaction=commands.transaction(A))))
        assert from_status(reply.error, write=False).retryable
