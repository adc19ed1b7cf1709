"""The contract of storage/engine.py, held against every engine."""

import random
from collections.abc import Iterable, Iterator

import pytest

from kvorum.errors import StorageError
from kvorum_node.storage.engine import Batch, Engine, Family

DATA, META = Family.DATA, Family.META


def put(engine: Engine, family: Family, **values: bytes) -> None:
    batch = Batch()
    for key, value in values.items():
        batch.put(family, key.encode(), value)
    engine.write(batch)


def keys(pairs: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    return [key for key, _ in pairs]


def test_a_key_that_was_never_written_is_absent(engine: Engine) -> None:
    assert engine.get(DATA, b"a") is None
    assert list(engine.scan(DATA, b"", None)) == []


def test_what_is_written_is_read(engine: Engine) -> None:
    put(engine, DATA, a=b"1", b=b"")
    assert engine.get(DATA, b"a") == b"1"
    assert engine.get(DATA, b"b") == b""


@pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024, 3 * 1024 * 1024])
def test_a_large_value_survives_the_way_through_a_file(engine: Engine, size: int) -> None:
    value = random.Random(size).randbytes(size)
    put(engine, DATA, a=value)
    engine.sync()
    assert engine.get(DATA, b"a") == value
    assert list(engine.scan(DATA, b"", None)) == [(b"a", value)]


def test_families_do_not_see_one_another(engine: Engine) -> None:
    put(engine, DATA, a=b"data")
    put(engine, META, a=b"meta")
    batch = Batch()
    batch.delete_range(META, b"", b"\xff")
    engine.write(batch)
    assert engine.get(DATA, b"a") == b"data"
    assert engine.get(META, b"a") is None
    for family in Family:
        assert len(list(engine.scan(family, b"", None))) == (1 if family is DATA else 0)


def test_keys_are_ordered_by_their_bytes(engine: Engine) -> None:
    expected = sorted([b"", b"\x00", b"a", b"a\x00", b"ab", b"b", b"\xff", b"\xff\xff"])
    batch = Batch()
    for key in reversed(expected):
        batch.put(DATA, key, b"")
    engine.write(batch)
    assert keys(engine.scan(DATA, b"", None)) == expected
    assert keys(engine.scan(DATA, b"", None, reverse=True)) == expected[::-1]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (b"b", b"d", [b"b", b"c"]),
        (b"b", None, [b"b", b"c", b"d"]),
        (b"", b"b", [b"a"]),
        (b"bb", b"cc", [b"c"]),
        (b"b", b"b", []),
        (b"d", b"b", []),
        (b"", b"", []),
        (b"e", None, []),
    ],
)
def test_a_scan_includes_its_start_and_excludes_its_end(
    engine: Engine, start: bytes, end: bytes | None, found: list[bytes], reverse: bool
) -> None:
    put(engine, DATA, a=b"", b=b"", c=b"", d=b"")
    put(engine, META, c=b"")
    if reverse:
        found = found[::-1]
    assert keys(engine.scan(DATA, start, end, reverse=reverse)) == found


def test_a_batch_deletes_ranges_then_keys_then_puts(engine: Engine) -> None:
    put(engine, DATA, a=b"old", b=b"old", c=b"old", d=b"old")
    batch = Batch()
    batch.put(DATA, b"b", b"new")
    batch.put(DATA, b"d", b"first")
    batch.put(DATA, b"d", b"last")
    batch.delete(DATA, b"d")
    batch.delete(DATA, b"absent")
    batch.delete_range(DATA, b"a", b"c")
    engine.write(batch)
    assert list(engine.scan(DATA, b"", None)) == [(b"b", b"new"), (b"c", b"old"), (b"d", b"last")]


def test_an_empty_range_deletes_nothing(engine: Engine) -> None:
    put(engine, DATA, a=b"", b=b"", c=b"")
    batch = Batch()
    batch.delete_range(DATA, b"b", b"b")
    batch.delete_range(DATA, b"c", b"a")
    engine.write(batch)
    assert keys(engine.scan(DATA, b"", None)) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_scan_sees_the_state_at_the_call(engine: Engine, steps: int, reverse: bool) -> None:
    put(engine, DATA, a=b"1", b=b"1", c=b"1", d=b"1")
    scan = engine.scan(DATA, b"", None, reverse=reverse)
    seen = [next(scan) for _ in range(steps)]
    batch = Batch()
    batch.delete_range(DATA, b"a", b"c")
    batch.put(DATA, b"c", b"2")
    batch.put(DATA, b"cc", b"2")
    engine.write(batch)
    seen += scan
    expected = [(b"a", b"1"), (b"b", b"1"), (b"c", b"1"), (b"d", b"1")]
    assert seen == (expected[::-1] if reverse else expected)
    assert keys(engine.scan(DATA, b"", None)) == [b"c", b"cc", b"d"]


def test_a_scan_that_has_ended_stays_so(engine: Engine) -> None:
    put(engine, DATA, a=b"")
    scan = engine.scan(DATA, b"", None)
    assert len(list(scan)) == 1
    put(engine, DATA, b=b"")
    assert list(scan) == []


def test_a_closed_engine_refuses_everything(engine: Engine) -> None:
    put(engine, DATA, a=b"", b=b"")
    running = engine.scan(DATA, b"", None)
    next(running)
    engine.close()
    engine.close()
    with pytest.raises(StorageError, match="closed"):
        next(running)
    with pytest.raises(StorageError, match="closed"):
        engine.get(DATA, b"a")
    with pytest.raises(StorageError, match="closed"):
        engine.scan(DATA, b"", None)
    with pytest.raises(StorageError, match="closed"):
        put(engine, DATA, a=b"")


def test_size_grows_with_what_is_stored(engine: Engine) -> None:
    before = engine.size_bytes()
    put(engine, DATA, a=random.Random(1).randbytes(1_000_000))
    engine.sync()
    assert engine.size_bytes() >= before + 1_000_000


def test_reclaiming_loses_nothing(engine: Engine) -> None:
    batch = Batch()
    for number in range(100):
        batch.put(Family.DATA, b"%02d" % number, b"value")
    engine.write(batch)
    batch = Batch()
    batch.delete_range(Family.DATA, b"10", b"90")
    engine.write(batch)
    engine.reclaim()
    assert sum(1 for _ in engine.scan(Family.DATA, b"", None)) == 20


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_a_dictionary(engine: Engine, seed: int) -> None:
    """Random batches, scans held open across them, and syncs in between."""
    rng = random.Random(seed)
    model: dict[tuple[Family, bytes], bytes] = {}
    running: list[tuple[list[tuple[bytes, bytes]], Iterator[tuple[bytes, bytes]]]] = []

    def some_key() -> bytes:
        return rng.randbytes(rng.randrange(3))[:2].translate(bytes(b % 5 for b in range(256)))

    def expected(family: Family, start: bytes, end: bytes | None) -> list[tuple[bytes, bytes]]:
        return sorted(
            (key, value)
            for (of, key), value in model.items()
            if of is family and start <= key and (end is None or key < end)
        )

    for step in range(400):
        batch = Batch()
        for _ in range(rng.randrange(4)):
            batch.put(rng.choice([DATA, META]), some_key(), b"%d" % step)
        for _ in range(rng.randrange(3)):
            batch.delete(rng.choice([DATA, META]), some_key())
        if rng.random() < 0.2:
            batch.delete_range(rng.choice([DATA, META]), *sorted([some_key(), some_key()]))
        engine.write(batch)
        for family, start, end in batch.range_deletes:
            for key, _ in expected(family, start, end):
                del model[family, key]
        for family, key in batch.deletes:
            model.pop((family, key), None)
        model |= {(family, key): value for family, key, value in batch.puts}

        family, start = rng.choice([DATA, META]), some_key()
        end_key, reverse = rng.choice([None, some_key()]), rng.random() < 0.5
        scan = engine.scan(family, start, end_key, reverse=reverse)
        wanted = expected(family, start, end_key)
        running.append((wanted[::-1] if reverse else wanted, scan))
        if rng.random() < 0.5:
            wanted, scan = running.pop(rng.randrange(len(running)))
            assert list(scan) == wanted
        key = some_key()
        assert engine.get(DATA, key) == model.get((DATA, key))
        if rng.random() < 0.02:
            engine.sync()
    for wanted, scan in running:
        assert list(scan) == wanted
