"""Feature flags on each kind of store: the copy follows, and answers without asking."""

import asyncio
import math
from typing import Any

import pytest

from kvorum import (
    KV,
    Closed,
    Compacted,
    Conflict,
    DeadlineExceeded,
    DecodeError,
    InvalidArgument,
    UnknownFlag,
    limits,
)
from kvorum.patterns import flags as module
from kvorum.patterns.flag_rules import Context, Reason
from kvorum.patterns.flags import FeatureFlags
from kvorum.transaction import Transaction
from kvorum.watching import Watch
from tests.support.eventually import eventually
from tests.support.round_trips import RoundTrips


async def test_a_flag_is_set_changed_and_deleted(kv: KV) -> None:
    async with FeatureFlags(kv) as flags:
        await flags.wait_for(await flags.set("checkout", users=["alice"]))
        assert flags.is_enabled("checkout", {"user_id": "alice"})
        assert not flags.is_enabled("checkout", {"user_id": "bob"})
        await flags.wait_for(await flags.update("checkout", percentage=100))
        assert flags.is_enabled("checkout", {"user_id": "bob"})
        assert flags.is_enabled("checkout")
        assert await flags.delete("checkout")
        await eventually(lambda: not flags.is_enabled("checkout", default=False))
        with pytest.raises(UnknownFlag) as raised:
            flags.is_enabled("checkout")
        assert raised.value.metadata == {"flag": "checkout"}
        assert not await flags.delete("checkout")


async def test_what_was_there_is_loaded_over_several_pages(
    kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = FeatureFlags(kv)
    for number in range(7):
        await admin.set(f"f{number}", percentage=100 * (number % 2))
    monkeypatch.setattr(limits, "DEFAULT_PAGE_RECORDS", 3)
    async with FeatureFlags(kv) as flags:
        assert [flags.is_enabled(f"f{number}") for number in range(7)] == [False, True] * 3 + [
            False
        ]
        assert flags.revision >= 7
    assert [flag.name for flag in await admin.list()] == [f"f{number}" for number in range(7)]


async def test_a_change_between_loading_and_watching_is_not_lost(
    kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = FeatureFlags(kv)
    await admin.set("checkout")
    begin = FeatureFlags._begin

    async def late(self: FeatureFlags, since: int) -> Any:
        await admin.set("checkout", percentage=100)
        return await begin(self, since)

    monkeypatch.setattr(FeatureFlags, "_begin", late)
    async with FeatureFlags(kv) as flags:
        await eventually(lambda: flags.is_enabled("checkout"))


async def test_asking_costs_no_round_trip(kv: KV, round_trips: RoundTrips) -> None:
    async with FeatureFlags(kv) as flags:
        assert round_trips.requests == ["list"]
        round_trips.reset()
        revision = await flags.set("checkout", percentage=50, variants={"a": 1, "b": 2})
        assert round_trips.requests == ["put"]
        await flags.wait_for(revision)
        round_trips.reset()
        for number in range(100):
            flags.is_enabled("checkout", Context(f"user-{number}"))
            flags.value("checkout", {"user_id": f"user-{number}"}, 0)
            flags.explain("checkout", {"user_id": f"user-{number}"})
        assert (flags.revision, flags.is_stale) == (revision, False)
        assert round_trips.count == 0
        await flags.update("checkout", percentage=60)
        assert round_trips.requests == ["get", "txn"]
        round_trips.reset()
        await flags.get("checkout")
        await flags.list()
        await flags.set("checkout", revision=await flags.set("checkout"))
        await flags.delete("checkout")
        assert round_trips.requests == ["get", "list", "put", "txn", "delete"]


async def test_transactions_are_never_seen_in_part(kv: KV) -> None:
    admin = FeatureFlags(kv)
    await admin.set("one")
    [record] = await kv.list("flag:", type="bytes")
    on = record.value.replace(b'"percentage": 0', b'"percentage": 100')
    await kv.put("flag:other", record.value, type="bytes")
    async with FeatureFlags(kv) as flags:
        seen: set[tuple[bool, bool]] = set()
        for number in range(20):
            value = on if number % 2 else record.value
            both = kv.atomic().put("flag:one", value, type="bytes")
            result = await both.put("flag:other", value, type="bytes").commit()
            while flags.revision < result.revision:
                seen.add((flags.is_enabled("one"), flags.is_enabled("other")))
                await asyncio.sleep(0)
        assert seen <= {(True, True), (False, False)}


# Values and reasons.


async def test_values_are_of_the_type_that_is_wanted(kv: KV) -> None:
    async with FeatureFlags(kv) as flags:
        await flags.set("limit", percentage=100, variants={"many": 100})
        await flags.set("colour", percentage=100, variants={"red": "#f00"})
        await flags.set("plan", percentage=100, variants={"new": {"price": 5}})
        await flags.set("off", variants={"a": 1})
        await flags.wait_for(await flags.set("plain", percentage=100))
        assert flags.value("limit", None, 10) == 100
        assert flags.value("limit", None, 1.5) == 100
        assert flags.value("colour", None, "#000") == "#f00"
        assert flags.value("plan", None, {}) == {"price": 5}
        assert flags.value("plan", None, None) == {"price": 5}
        assert flags.value("plain", None, False) is True
        for name, default in (
            ("off", 7),
            ("limit", "x"),
            ("limit", True),
            ("plain", 1),
            ("none", 5),
        ):
            assert flags.value(name, None, default) == default
            assert type(flags.value(name, None, default)) is type(default)
        mismatch = flags.explain("limit", None, "x")
        assert isinstance(mismatch.error, DecodeError)
        assert (mismatch.reason, mismatch.variant) == (Reason.ERROR, None)
        assert flags.explain("off", None, 7).error is None


async def test_an_explanation_says_all(kv: KV) -> None:
    async with FeatureFlags(kv) as flags:
        revision = await flags.set("checkout", percentage=50, variants={"a": 1, "b": 2})
        await flags.wait_for(revision)
        explained = flags.explain("checkout", {"user_id": "alice"}, 0)
        assert (explained.flag, explained.enabled, explained.variant) == ("checkout", True, "a")
        assert (explained.value, explained.bucket) == (1, 20_410)
        assert explained.reason is explained.decided_by is Reason.SPLIT
        assert (explained.revision, explained.stale, explained.error) == (revision, False, None)
        assert 0 <= explained.staleness < 15
        unknown = flags.explain("nothing", None, "default")
        assert (unknown.value, unknown.reason) == ("default", Reason.ERROR)
        assert isinstance(unknown.error, UnknownFlag)


async def test_a_context_that_is_none(kv: KV) -> None:
    async with FeatureFlags(kv) as flags:
        await flags.wait_for(await flags.set("checkout", percentage=100))
        wrong: Any = {"user_id": 5}
        with pytest.raises(InvalidArgument):
            flags.is_enabled("checkout", wrong)
        assert flags.is_enabled("checkout", wrong, default=False) is False
        assert flags.explain("checkout", wrong).reason is Reason.ERROR


async def test_a_record_that_is_no_flag_is_told_and_harms_no_other(kv: KV) -> None:
    admin = FeatureFlags(kv)
    await admin.set("good", percentage=100)
    await kv.put("flag:bad", "nonsense")
    async with FeatureFlags(kv) as flags:
        await kv.put("flag:worse", {"percentage": 200})
        await flags.wait_for(await flags.set("better", percentage=100))
        assert flags.is_enabled("good")
        assert flags.is_enabled("better")
        for name in ("bad", "worse"):
            with pytest.raises(DecodeError) as raised:
                flags.is_enabled(name)
            assert raised.value.key == f"flag:{name}"
            assert flags.is_enabled(name, default=True)
        with pytest.raises(DecodeError):
            await flags.list()
        with pytest.raises(DecodeError):
            await flags.get("bad")
        await flags.wait_for(await flags.set("bad", percentage=100))
        assert flags.is_enabled("bad")


async def test_flags_of_two_names_do_not_meet(kv: KV) -> None:
    async with FeatureFlags(kv) as flags, FeatureFlags(kv, "kill") as others:
        await others.wait_for(await others.set("checkout", percentage=100))
        assert others.is_enabled("checkout")
        assert not flags.is_enabled("checkout", default=False)


# Two who write.


async def test_who_has_read_something_else_learns_of_it(kv: KV) -> None:
    flags = FeatureFlags(kv)
    await flags.set("checkout", percentage=10, revision=0)
    read = await flags.get("checkout")
    assert read is not None
    await flags.set("checkout", percentage=20, revision=read.revision)
    for stale in (0, read.revision):
        with pytest.raises(Conflict):
            await flags.set("checkout", percentage=30, revision=stale)
        if stale:
            with pytest.raises(Conflict):
                await flags.delete("checkout", revision=stale)
    now = await flags.get("checkout")
    assert now is not None
    assert now.percentage == 20
    assert await flags.delete("checkout", revision=now.revision)


async def test_an_update_leaves_the_rest(kv: KV) -> None:
    flags = FeatureFlags(kv)
    await flags.set("checkout", percentage=10, users=["alice"], salt="s", description="d")
    revision = await flags.update("checkout", percentage=20, enabled=False)
    read = await flags.get("checkout")
    assert read is not None
    assert read.users == {"alice"}
    assert (read.percentage, read.enabled) == (20, False)
    assert (read.salt, read.description) == ("s", "d")
    assert read.revision == revision
    with pytest.raises(UnknownFlag):
        await flags.update("nothing", percentage=20)
    with pytest.raises(InvalidArgument):
        await flags.update("checkout", percentage=101)
    assert await flags.get("checkout") == read


async def test_an_update_that_begins_anew_has_what_it_was_given(
    kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be gone through but once, too: somebody else has changed the flag meanwhile."""
    flags = FeatureFlags(kv)
    await flags.set("checkout", percentage=10)
    get = Transaction.get

    async def overtaken(self: Transaction, *given: Any, **options: Any) -> Any:
        entry = await get(self, *given, **options)
        monkeypatch.setattr(Transaction, "get", get)
        await flags.set("checkout", percentage=20)
        return entry

    monkeypatch.setattr(Transaction, "get", overtaken)
    await flags.update(
        "checkout", users=iter(["alice"]), where={"country": iter(["NL"])}, description="d"
    )
    read = await flags.get("checkout")
    assert read is not None
    assert (read.percentage, list(read.users)) == (20, ["alice"])
    assert (read.where, read.description) == ({"country": ("NL",)}, "d")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("", {}),
        ("a:b", {}),
        ("a\0b", {}),
        ("a", {"percentage": 100.5}),
        ("a", {"percentage": -1}),
        ("a", {"percentage": math.nan}),
        ("a", {"users": "alice"}),
        ("a", {"variants": {"x": math.nan}}),
        ("a", {"revision": -1}),
    ],
)
async def test_what_is_wrong_is_not_written(
    kv: KV, round_trips: RoundTrips, name: str, fields: dict[str, Any]
) -> None:
    round_trips.reset()
    with pytest.raises(InvalidArgument):
        await FeatureFlags(kv).set(name, **fields)
    assert round_trips.count == 0
    assert (await kv.list()).entries == ()


# Following.


async def test_flags_are_entered_before_they_are_asked(kv: KV) -> None:
    flags = FeatureFlags(kv)
    for ask in (lambda: flags.is_enabled("a", default=True), lambda: flags.explain("a")):
        with pytest.raises(InvalidArgument, match="enter"):
            ask()
    assert (flags.revision, flags.staleness, flags.is_stale) == (0, math.inf, True)
    async with flags:
        with pytest.raises(InvalidArgument, match="entered"):
            await flags.__aenter__()


@pytest.mark.parametrize("options", [{"name": ""}, {"name": "a:b"}, {"stale_after": 5}])
async def test_wrong_sets_of_flags(kv: KV, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        FeatureFlags(kv, **options)


async def test_waiting_for_what_does_not_come(kv: KV) -> None:
    async with FeatureFlags(kv) as flags:
        with pytest.raises(DeadlineExceeded):
            await flags.wait_for(10**9, timeout=0.05)
        waiting = asyncio.create_task(flags.wait_for(10**9, timeout=60))
        await asyncio.sleep(0)
    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed):
        await flags.wait_for(10**9)


async def test_flags_that_end_at_once_leave_nothing_behind(
    kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that follows has not begun when it is cancelled."""
    closed: list[Watch[Any]] = []
    close = Watch.close

    async def closing(self: Watch[Any]) -> None:
        closed.append(self)
        await close(self)

    monkeypatch.setattr(Watch, "close", closing)
    async with FeatureFlags(kv) as flags:
        pass
    assert closed
    with pytest.raises(Closed):
        await flags.wait_for(10**9)


async def test_after_its_end_the_copy_is_old_and_says_so(
    kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FeatureFlags(kv) as flags:
        await flags.wait_for(await flags.set("checkout", percentage=100))
        assert flags.explain("checkout").reason is Reason.STATIC
    later = flags._heard_at - 15.1
    monkeypatch.setattr(flags, "_heard_at", later)
    assert flags.is_enabled("checkout")
    explained = flags.explain("checkout")
    assert (explained.reason, explained.decided_by, explained.stale) == (
        Reason.STALE,
        Reason.STATIC,
        True,
    )
    assert explained.staleness > 15
    assert flags.explain("nothing").reason is Reason.ERROR


async def test_what_the_store_forgot_is_loaded_anew(
    kv: KV, round_trips: RoundTrips, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that ends with COMPACTED cannot say what was deleted since."""
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    changed = FeatureFlags._changed

    def compacted(self: FeatureFlags, changes: Any) -> Any:
        if self is not flags or changes.revision < revision:
            return changed(self, changes)
        monkeypatch.setattr(FeatureFlags, "_changed", changed)
        raise Compacted("too old")

    async with FeatureFlags(kv) as flags:
        await flags.set("gone", percentage=100)
        await flags.wait_for(await flags.set("checkout"))
        revision = flags.revision + 1
        monkeypatch.setattr(FeatureFlags, "_changed", compacted)
        both = kv.atomic().delete("flag:gone").put("other", 1)
        await both.commit()
        await flags.wait_for(await flags.set("checkout", percentage=100))
        assert flags.is_enabled("checkout")
        assert not flags.is_enabled("gone", default=False)
        assert round_trips.requests.count("list") == 2


async def test_progress_alone_brings_the_copy_on(kv: KV) -> None:
    async with FeatureFlags(kv) as flags:
        before = flags.revision
        await flags.wait_for(await kv.put("something else", 1), timeout=30)
        assert flags.revision > before
        assert flags.staleness < 15
