"""The history of a run in the words of the linearizability checker of tests/support.

The oracle (oracle.py) judges every answer as it comes, and trusts revisions. This checker
trusts nothing but what clients saw and when; it takes longer, so it judges some runs only.
What it cannot express is left out: lists, and what an alternative branch returned.
"""

import math
from collections.abc import Iterable

from kvorumpb.v1.command_pb2 import Check, Operation, OperationResult, Record, TransactionResult
from kvorumpb.v1.kv_pb2 import Reply
from tests.sim.clients import Operated
from tests.support import linearizability_kvorum as model
from tests.support.linearizability import UNKNOWN, Outcome, Unknown, Verdict, check
from tests.support.linearizability import Operation as Seen

MAX_STEPS = 200_000


def judge(history: Iterable[Operated]) -> Verdict:
    """Whether all that clients saw can have happened one after the other, in real time."""
    operations = list(translated(history))
    if wrong := model.revisions_out_of_order(operations):
        return Verdict(Outcome.VIOLATION, len(operations), 1, 0, wrong)
    return check(operations, model.Kvorum(), max_steps=MAX_STEPS)


def translated(history: Iterable[Operated]) -> Iterable[model.KvorumOperation]:
    for operated in history:
        request = _request(operated)
        if request is None or operated.refused:
            continue
        response: model.Response | Unknown = UNKNOWN
        if operated.reply is not None:
            response = _response(operated.reply)
        yield Seen(
            f"c{operated.client}",
            request,
            response,
            operated.called_us,
            math.inf if operated.returned_us is None else operated.returned_us,
        )


def _request(operated: Operated) -> model.Transaction | None:
    if operated.transaction is not None:
        return model.Transaction(
            tuple(_step(one) for one in operated.transaction.operations),
            tuple(_check(one) for one in operated.transaction.checks),
        )
    if operated.request.WhichOneof("request") == "get":
        return model.Transaction((model.Get(_text(operated.request.get.key)),))
    return None


def _step(operation: Operation) -> model.Step:
    match operation.WhichOneof("operation"):
        case "put":
            return model.Put(_text(operation.put.key), _value(operation.put.value))
        case "get":
            return model.Get(_text(operation.get.key))
        case "delete":
            return model.Delete(_text(operation.delete.key))
        case _:
            return model.Add(_text(operation.add.key), operation.add.amount)


def _check(check: Check) -> model.Check:
    if check.WhichOneof("condition") == "exists":
        return model.Check(_text(check.key), exists=check.exists)
    return model.Check(_text(check.key), revision=check.revision)


def _response(reply: Reply) -> model.Response:
    match reply.WhichOneof("outcome"):
        case "get":
            found = _seen(reply.get.record) if reply.get.HasField("record") else None
            return model.Committed(reply.get.revision, (found,))
        case "put":
            return model.Committed(reply.put.revision)
        case "delete":
            return model.Committed(reply.delete.revision, (reply.delete.deleted,))
        case _:
            return _of_transaction(reply.txn.result)


def _of_transaction(result: TransactionResult) -> model.Response:
    if result.HasField("failed_check"):
        return model.Refused(result.failed_check)
    return model.Committed(result.revision, tuple(_result(one) for one in result.results))


def _result(result: OperationResult) -> model.Result:
    match result.WhichOneof("result"):
        case "get":
            return _seen(result.get.record) if result.get.HasField("record") else None
        case "delete":
            return result.delete.deleted
        case "add":
            return result.add.value
        case _:
            return None


def _seen(record: Record) -> model.Seen:
    return model.Seen(
        _value(record.value), record.revision, record.created_revision, record.version
    )


def _value(data: bytes) -> model.Value:
    text = _text(data)
    return int(text) if text.lstrip("-").isdigit() else text


def _text(data: bytes) -> str:
    return data.decode("ascii")
