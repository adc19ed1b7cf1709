"""What the recorder notes is what happened, and survives being written to a file."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import kvorum
from kvorum import KV
from kvorum.errors import DeadlineExceeded, KvorumError, NoLeader, OutcomeUnknown
from tests.support.histories import (
    CallOutcome,
    Record,
    Recorder,
    from_line,
    load,
    operations,
    save,
    to_line,
)
from tests.support.linearizability import UNKNOWN, Outcome, check
from tests.support.linearizability_kvorum import (
    Add,
    Check,
    Committed,
    Delete,
    Get,
    Kvorum,
    Put,
    Refused,
    Seen,
    revisions_out_of_order,
)


async def recorded_session() -> list[Record]:
    async with kvorum.open("memory:") as kv:
        recorder = Recorder(kv, client="c1")
        await recorder.put("k", "v1")
        await recorder.get("k")
        await recorder.get("absent")
        await recorder.add("n", 3)
        await recorder.transact(Put("k", "v2"), Add("n", -1), checks=[Check("k", revision=1)])
        await recorder.transact(Put("k", "v3"), checks=[Check("k", exists=False)])
        await recorder.transact(Get("k"), Delete("n"))
        await recorder.delete("k")
        return recorder.records


async def test_what_is_recorded_is_what_was_answered() -> None:
    records = await recorded_session()
    assert [record.operation.response for record in records] == [
        Committed(1, (None,)),
        Committed(None, (Seen("v1", 1, 1, 1),)),
        Committed(None, (None,)),
        Committed(None, (3,)),
        Committed(3, (None, 2)),
        Refused(0),
        Committed(4, (Seen("v2", 3, 1, 2), True)),
        Committed(None, (True,)),
    ]
    assert all(record.outcome is CallOutcome.RETURNED for record in records)
    assert check(operations(records), Kvorum()).outcome is Outcome.LINEARIZABLE
    assert revisions_out_of_order(operations(records)) == ""


async def test_clients_at_once_make_a_history_that_passes_and_can_be_kept(tmp_path: Path) -> None:
    records: list[Record] = []

    async def client(kv: KV, name: str) -> None:
        recorder = Recorder(kv, client=name, note=records.append)
        for number in range(50):
            await recorder.put("k", f"{name}-{number}")
            await recorder.get("k")
            await recorder.add("n", 1)

    async with kvorum.open("memory:") as kv:
        await asyncio.gather(*(client(kv, f"c{number}") for number in range(4)))
    path = tmp_path / "history.jsonl"
    save(records, path)
    assert load(path) == records
    verdict = check(operations(records), Kvorum())
    assert (verdict.outcome, verdict.operations) == (Outcome.LINEARIZABLE, 600)


async def test_every_kind_of_record_survives_its_line() -> None:
    records = await recorded_session()
    assert [from_line(to_line(record)) for record in records] == records


async def test_a_line_that_was_cut_off_is_no_record(tmp_path: Path) -> None:
    records = await recorded_session()
    path = tmp_path / "history.jsonl"
    save(records, path)
    path.write_text(path.read_text()[:-5])
    assert load(path) == records[:-1]


class Failing:
    """A store of which every call does what the test says."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    async def put(self, key: str, value: str) -> int:
        return await self.act()  # type: ignore[no-any-return]  # it never returns


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OutcomeUnknown("lost"), CallOutcome.UNKNOWN),
        (DeadlineExceeded("late", maybe_applied=True), CallOutcome.UNKNOWN),
        (DeadlineExceeded("late", maybe_applied=False), CallOutcome.FAILED),
        (NoLeader("nobody"), CallOutcome.FAILED),
    ],
)
async def test_an_error_says_whether_the_write_is_in_doubt(
    error: KvorumError, outcome: CallOutcome
) -> None:
    async def fail() -> None:
        raise error

    recorder = Recorder(cast("KV", Failing(fail)), client="c1")
    record = await recorder.put("k", "v")
    assert (record.outcome, record.operation.response) == (outcome, UNKNOWN)
    assert record.error.startswith(type(error).__name__)
    assert len(operations([record])) == (outcome is CallOutcome.UNKNOWN)
    assert from_line(to_line(record)) == record


async def test_a_call_that_is_cancelled_is_in_doubt() -> None:
    recorder = Recorder(cast("KV", Failing(asyncio.Event().wait)), client="c1")
    task = asyncio.create_task(recorder.put("k", "v"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [record] = recorder.records
    assert record.outcome is CallOutcome.UNKNOWN
