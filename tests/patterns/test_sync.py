"""The patterns for threads: generated, and run in the loop of the store with what a user gives."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import kvorum
import kvorum.patterns
from kvorum import Conflict, InvalidArgument, OutOfBounds, SyncKV
from kvorum.patterns import Reindexed
from kvorum.patterns import sync as patterns
from kvorum.patterns.threads import Here

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    find_spec("ruff") is None, reason="the generator formats by ruff, of the extra dev"
)
def test_they_are_what_would_be_generated() -> None:
    command = [sys.executable, str(ROOT / "client/generate_sync.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_every_pattern_is_there() -> None:
    asynchronous = set(kvorum.patterns.__all__)
    assert set(patterns.__all__) == asynchronous
    assert patterns.chunked is not kvorum.patterns.chunked


def test_threads_count_together(sync_kv: SyncKV) -> None:
    counter = patterns.Counter(sync_kv, "views")
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: counter.add(), range(160)))
    assert counter.get() == 160
    with pytest.raises(OutOfBounds):
        counter.add(1, max=160)
    assert counter.key in repr(counter)


def test_a_transaction_takes_them_in(sync_kv: SyncKV) -> None:
    counter = patterns.Counter(sync_kv, "orders")
    atomic = sync_kv.atomic().put("order:1", "book")
    counter.add_to(atomic)
    atomic.commit()
    assert counter.get() == 1


def test_items_are_taken_in_the_thread_that_called(sync_kv: SyncKV) -> None:
    here, seen = threading.get_ident(), []

    def items() -> Iterator[tuple[str, int]]:
        for number in range(1_000):
            seen.append(threading.get_ident())
            yield f"k:{number}", number

    result = patterns.batch_put(sync_kv, items())
    assert result.done == 1_000
    assert set(seen) == {here}
    found = patterns.batch_get(sync_kv, ["k:1", "k:none"])
    assert found.missing == ("k:none",)
    assert patterns.batch_put(sync_kv, {"a": 1}, atomic=True).done == 1


def test_what_the_items_raise_is_raised(sync_kv: SyncKV) -> None:
    def items() -> Iterator[tuple[str, int]]:
        yield "k:1", 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        patterns.batch_put(sync_kv, items())


def test_a_value_is_computed_in_the_thread_that_called(sync_kv: SyncKV) -> None:
    computed: list[int] = []

    def compute() -> str:
        computed.append(threading.get_ident())
        return "value"

    with patterns.Cache(sync_kv, "pages", ttl=60) as cache:
        assert cache.get_or_compute("a", compute, tags=["t"]) == "value"
        assert cache.get_or_compute("a", compute, tags=["t"]) == "value"
        cache.invalidate("t")
        assert cache.get_or_compute("a", compute, tags=["t"]) == "value"
    assert computed == [threading.get_ident()] * 2


def test_a_computation_may_use_the_cache_itself(sync_kv: SyncKV) -> None:
    with patterns.Cache(sync_kv, "pages", ttl=60) as cache:

        @cache.cached(key=lambda depth: f"level:{depth}")
        def level(depth: int) -> int:
            return 0 if depth == 0 else level(depth - 1) + 1

        assert level(40) == 40
        assert cache.get("level:20") is not None


def test_many_threads_compute_once(sync_kv: SyncKV) -> None:
    computed: list[int] = []
    together = threading.Barrier(20)

    def compute() -> int:
        computed.append(1)
        return 7

    with patterns.Cache(sync_kv, "pages", ttl=60) as cache:

        def ask(_: int) -> int:
            together.wait(timeout=30)
            value: int = cache.get_or_compute("a", compute)
            return value

        with ThreadPoolExecutor(20) as threads:
            assert set(threads.map(ask, range(20))) == {7}
    assert len(computed) == 1


def test_limits_are_checked_together(sync_kv: SyncKV) -> None:
    users = patterns.RateLimiter(sync_kv, "user", limit=2, window=60)
    hosts = patterns.RateLimiter(sync_kv, "host", limit=1, window=60)
    assert patterns.RateLimiter.check_all([(users, "ann", 1), (hosts, "::1", 1)])
    refused = patterns.RateLimiter.check_all([(users, "ann", 1), (hosts, "::1", 1)])
    assert refused.refused_by == ("host",)
    assert users.check("ann")
    assert users.kv is sync_kv
    with pytest.raises(InvalidArgument):
        patterns.RateLimiter.check_all([])


def test_records_pages_and_sessions(sync_kv: SyncKV) -> None:
    users = patterns.Collection(sync_kv, "user", indexes={"email": patterns.Unique("email")})
    users.create("1", {"email": "a@b"})
    with pytest.raises(kvorum.UniqueViolation):
        users.create("2", {"email": "a@b"})
    with pytest.raises(Conflict):
        users.create("1", {"email": "c@d"})
    assert [entry.key for entry in users.scan()] == ["1"]
    assert len(patterns.Paginator(sync_kv, "user:").page().entries) == 1
    sessions = patterns.SessionStore(sync_kv, ttl=60)
    token, session = sessions.create("ann", data={"a": 1})
    found = sessions.get(token)
    assert found is not None
    assert found.id == session.id
    assert sessions.destroy(token)
    assert sessions.get(token) is None


def test_an_iterator_that_is_left_is_closed(sync_kv: SyncKV) -> None:
    for number in range(5):
        sync_kv.put(f"k:{number}", number)
    pages = patterns.Paginator(sync_kv, "k:", page_size=2).pages()
    assert len(next(pages).entries) == 2
    assert isinstance(pages, Generator)
    pages.close()


def test_what_is_asked_when_the_thread_has_gone_has_one_of_its_own() -> None:
    with kvorum.open_sync("memory:") as kv:
        here = Here(kv)
        function = here.function(threading.get_ident)
        assert here.run(lambda _: function()) == threading.get_ident()
        later = kv.submit(lambda _: function()).result(timeout=30)
        assert later != threading.get_ident()


def test_flags_are_answered_in_any_thread(sync_kv: SyncKV) -> None:
    with patterns.FeatureFlags(sync_kv) as flags:
        flags.wait_for(flags.set("search", percentage=100))
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda _: flags.is_enabled("search"), range(8))) == [True] * 8
        assert flags.staleness < 60
        with pytest.raises(kvorum.UnknownFlag):
            flags.is_enabled("other")


def test_progress_of_reindexing_is_told_in_the_thread_that_called(sync_kv: SyncKV) -> None:
    told: list[tuple[int, int]] = []

    def tell(progress: Reindexed) -> None:
        told.append((threading.get_ident(), progress.seen))

    patterns.Collection(sync_kv, "user").create("1", {"city": "Rome"})
    users = patterns.Collection(sync_kv, "user", indexes={"city": patterns.Index("city")})
    assert users.reindex(progress=tell).changed == 1
    assert told == [(threading.get_ident(), 1)]


def test_keys_to_get_may_come_from_the_store_itself(sync_kv: SyncKV) -> None:
    sync_kv.put("user:1", "Ann")
    sync_kv.put("profile:user:1", "tall")
    found = patterns.batch_get(sync_kv, (f"profile:{entry.key}" for entry in sync_kv.scan("user:")))
    assert found.entries["profile:user:1"] is not None


def test_what_runs_in_the_loop_cannot_wait_for_the_loop(sync_kv: SyncKV) -> None:
    """Or else it and every other thread would wait for ever."""
    users = patterns.Collection(sync_kv, "user")
    users.create("1", {"n": 1})
    waits: list[Callable[[Any], Any]] = [
        lambda _: sync_kv.get("other"),
        lambda _: list(sync_kv.scan("other")),
        lambda _: patterns.batch_put(sync_kv, iter([("other", 1)])),
    ]
    for wait in waits:
        with pytest.raises(InvalidArgument, match="event loop"):
            users.update("1", wait)
    assert users.get("1") is not None
    assert sync_kv.get("other") is None


def test_an_iterator_may_be_left_anywhere(sync_kv: SyncKV) -> None:
    """Garbage is collected in whatever thread comes along, that of the loop included."""
    for number in range(5):
        sync_kv.put(f"k:{number}", number)
    left = [patterns.Paginator(sync_kv, "k:", page_size=2).pages()]
    next(left[0])

    async def collect(_: kvorum.KV) -> None:
        left.clear()

    sync_kv.submit(collect).result(timeout=30)
    assert sync_kv.get("k:1") is not None


def test_an_iterator_may_be_left_after_the_store() -> None:
    kv = kvorum.open_sync("memory:")
    for number in range(5):
        kv.put(f"k:{number}", number)
    pages = patterns.Paginator(kv, "k:", page_size=2).pages()
    next(pages)
    kv.close()
    assert isinstance(pages, Generator)
    pages.close()


@pytest.mark.parametrize("raised", [StopIteration, SystemExit])
def test_whatever_a_function_raises_ends_the_call(
    sync_kv: SyncKV, raised: type[BaseException]
) -> None:
    def fail(_: object) -> None:
        raise raised

    ended = threading.Event()

    def put() -> None:
        try:
            patterns.batch_put(sync_kv, [("a", 1)], on_progress=fail)
        except BaseException:  # noqa: BLE001 - of whatever kind
            ended.set()

    threading.Thread(target=put, daemon=True).start()
    assert ended.wait(timeout=30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("raised", [StopIteration, SystemExit])
def test_whatever_a_function_raises_later_is_raised(raised: type[BaseException]) -> None:
    def fail() -> None:
        raise raised

    with kvorum.open_sync("memory:") as kv:
        here = Here(kv)
        here.run(lambda _: asyncio.sleep(0))
        function = here.function(fail)
        with pytest.raises(RuntimeError, match=raised.__name__):
            kv.submit(lambda _: function()).result(timeout=30)
        for thread in threading.enumerate():  # its end, too, is reported by this test, not the next
            if thread.name == "kvorum pattern":
                thread.join(30)


def test_what_is_no_iterable_is_refused(sync_kv: SyncKV) -> None:
    with pytest.raises(InvalidArgument, match="int"):
        patterns.chunked.put(sync_kv, "k", 5)  # type: ignore[arg-type]  # it is wrong
    assert sync_kv.list("").entries == ()
