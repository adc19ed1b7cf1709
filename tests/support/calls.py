"""Short words for calls, and for asking a dispatcher."""

from kvorum.errors import KvorumError
from kvorum.status import from_status
from kvorum_node.services.dispatch import Dispatcher
from kvorumpb.v1.kv_pb2 import Call, DeleteRequest, GetRequest, PutRequest, Reply, TxnRequest
from tests.support import commands


def put(call: int, key: bytes, value: bytes = b"v") -> Call:
    return Call(id=call, put=PutRequest(key=key, value=value))


def get(call: int, key: bytes) -> Call:
    return Call(id=call, get=GetRequest(key=key))


def delete(call: int, key: bytes) -> Call:
    return Call(id=call, delete=DeleteRequest(key=key))


def add(call: int, key: bytes, amount: int = 1) -> Call:
    transaction = commands.transaction(commands.add(key, amount))
    return Call(id=call, txn=TxnRequest(transaction=transaction))


def error_of(reply: Reply) -> KvorumError:
    assert reply.WhichOneof("outcome") == "error"
    return from_status(reply.error)


async def ask(dispatcher: Dispatcher, *calls: Call) -> dict[int, Reply]:
    replies = await dispatcher.execute(calls)
    assert sorted(reply.id for reply in replies) == sorted(call.id for call in calls)
    return {reply.id: reply for reply in replies}


async def ask_one(dispatcher: Dispatcher, call: Call) -> Reply:
    return (await ask(dispatcher, call))[call.id]
