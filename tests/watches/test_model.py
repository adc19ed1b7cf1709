"""Random transactions, and watchers of all kinds: whoever begins when, and reads how fast."""

import random
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import pytest

from kvorum import limits
from kvorum_node.machine import Machine
from kvorum_node.storage import layout
from kvorum_node.watches import WatchHub
from kvorumpb.v1.command_pb2 import (
    Command,
    KeyRange,
    Operation,
    Sweep,
)
from tests.support.commands import delete, put
from tests.support.watch_client import Client, shown
from tests.support.watched_machine import command, put_for, write

# Against a model.

Event = tuple[int, str, bytes, bytes | None, bytes | None]


def random_operations(source: random.Random) -> list[Operation]:
    keys = source.sample(MODEL_KEYS, source.randint(1, 4))
    made: list[Callable[[bytes], Operation]] = [
        lambda key: put(key, b"%d" % source.randrange(1000)),
        lambda key: put_for(key, b"%d" % source.randrange(1000), source.randint(1, 60)),
        delete,
    ]
    return [source.choice(made)(key) for key in keys]


MODEL_KEYS = [a + b for a in (b"a", b"b", b"b:", b"\xff") for b in (b"", b"0", b"1")]
SELECTIONS: list[dict[str, Any]] = [
    {},
    {"key": b"b"},
    {"prefix": b"b"},
    {"prefix": b"b:"},
    {"range": KeyRange(start=b"a0", end=b"b1")},
    {"range": KeyRange(start=b"b0")},
]


class Model:
    """What has happened, found out by looking at the records before and after each command."""

    def __init__(self, machine: Machine) -> None:
        self.events: list[Event] = []
        self._machine = machine
        self._records: dict[bytes, tuple[int, bytes, int]] = {}

    def look(self, before: int) -> None:
        """Compare what the machine holds with what it held at the revision before."""
        machine = self._machine
        revision = machine.revision
        if revision == before:
            return
        for key in sorted(MODEL_KEYS):
            data = machine._tables().data.get(key)
            record = machine.get(key)
            had = self._records.get(key)
            if had is not None and (record is None or record.revision != had[0]):
                expired = 0 < had[2] <= machine.log_time_ms
                if data is None or record is not None:
                    if expired:
                        self.events.append((revision, "EXPIRE", key, None, had[1]))
                    elif record is None:
                        self.events.append((revision, "DELETE", key, None, had[1]))
                    del self._records[key]
            if record is not None and record.revision == revision:
                previous = None if had is None or 0 < had[2] <= machine.log_time_ms else had[1]
                self.events.append((revision, "PUT", key, record.value, previous))
                self._records[key] = (revision, record.value, record.expire_time_ms)


def wanted(event: Event, fields: dict[str, Any]) -> bool:
    _, kind, key, _, _ = event
    if fields.get({"PUT": "no_puts", "DELETE": "no_deletes", "EXPIRE": "no_expiries"}[kind]):
        return False
    match fields:
        case {"key": bytes(wanted_key)}:
            return key == wanted_key
        case {"prefix": bytes(prefix)}:
            return key.startswith(prefix)
        case {"range": KeyRange(start=start, end=end)}:
            return start <= key and (not end or key < end)
    return True


@pytest.mark.parametrize("seed", range(12))
async def test_random_transactions_and_watchers_of_all_kinds(
    machine: Machine,
    hub: WatchHub,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever begins when, wants what and reads how fast: its events, all of them, in order."""
    source = random.Random(seed)
    monkeypatch.setattr(limits, "MAX_WATCH_PENDING_REVISIONS", source.choice((1, 2, 8, 128)))
    monkeypatch.setattr(limits, "MAX_WATCH_SCAN_EVENTS", source.choice((1, 3, 1000)))
    monkeypatch.setattr(limits, "MAX_WATCH_MESSAGE_BYTES", source.choice((20, 100, 100_000)))
    monkeypatch.setattr(limits, "MAX_WATCH_PART_BYTES", source.choice((1, 2, 100_000)))
    monkeypatch.setattr(layout, "MIN_APART_BYTES", source.choice((2, 3, 100_000)))
    hub._cache._max_bytes = source.choice((0, 2_000, 1 << 20))
    model, clock = Model(machine), 1
    clients: list[tuple[Client, dict[str, Any], int]] = []
    for _ in range(300):
        clock += source.choice((0, 1, 5))
        before = machine.revision
        if source.random() < 0.1:
            sweep = Command(sweep=Sweep(limit=source.randint(1, 5)))
            command(machine, sweep, log_time_ms=clock)
        else:
            write(machine, *random_operations(source), log_time_ms=clock)
        model.look(before)
        if source.random() < 0.08:
            fields = source.choice(SELECTIONS) | {"previous": True}
            flag = source.choice(("no_puts", "no_deletes", "no_expiries", "keys_only"))
            if flag != "keys_only":
                fields[flag] = True
            after = source.choice((machine.revision, source.randint(0, machine.revision)))
            client = Client(hub)
            await client.begin(after_revision=after, progress_interval_ms=100, **fields)
            clients.append((client, fields, after))
        for client, _, _ in clients:
            if source.random() < 0.1 and client.stream._ready:
                await client.read()
    for client, fields, after in clients:
        await client.read_all()
        told = [
            (one.revision, *change) for one in client.heard[1].revisions for change in shown(one)
        ]
        expected = [one for one in model.events if one[0] > after and wanted(one, fields)]
        # Within a revision, the model knows the order of what happened to each key alone.
        assert [one[0] for one in told] == sorted(one[0] for one in told)
        assert sorted(told, key=itemgetter(0, 2)) == expected, fields
    assert clients
