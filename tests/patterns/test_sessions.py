"""Sessions on each kind of store: what they cost, when they end, and what the store never sees."""

import asyncio
import json
import logging
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kvorum import KV, InvalidArgument, InvalidToken, KvorumError, LimitExceeded
from kvorum.cli.local_cluster import LocalCluster
from kvorum.codecs import BYTES
from kvorum.patterns import sessions as module
from kvorum.patterns.sessions import (
    MAX_SESSION_BYTES,
    MAX_SESSION_PAGE,
    Session,
    SessionStore,
)
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.round_trips import RoundTrips

SECRET_DATA = "what-the-session-holds"


@pytest.fixture
def sessions(kv: KV) -> SessionStore:
    return SessionStore(kv, ttl=300, lifetime=timedelta(hours=1))


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refresh writes."""
    find = SessionStore._find

    def due(self: SessionStore, *given: Any) -> Any:
        found = find(self, *given)
        return found and found._replace(is_due=True)

    monkeypatch.setattr(SessionStore, "_find", due)


async def log_time(kv: KV) -> datetime:
    return (await kv.atomic().delete("nothing").commit()).at


async def until(kv: KV, moment: datetime) -> None:
    """Wait until log time has come to the moment."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await log_time(kv) < moment:  # noqa: ASYNC110 - the store is asked
            await asyncio.sleep(0.005)


async def keys_of(kv: KV) -> list[str]:
    return [entry.key async for entry in kv.scan(keys_only=True)]


async def ids_of(sessions: SessionStore, user: str) -> set[str]:
    page = await sessions.of_user(user)
    assert page.complete
    return {session.id for session in page}


# Log in, read, log out.


async def test_a_session_from_its_beginning_to_its_end(kv: KV, sessions: SessionStore) -> None:
    token, created = await sessions.create("alice", data={"theme": "dark"})
    assert created.user == "alice"
    assert created.data == {"theme": "dark"}
    assert created.expires_at - created.created_at == timedelta(seconds=300)
    assert await sessions.get(token) == created
    assert await sessions.destroy(token)
    assert await sessions.get(token) is None
    assert await sessions.refresh(token) is None
    assert await sessions.update(token, theme="light") is None
    assert await sessions.rotate(token) is None
    assert not await sessions.destroy(token)
    assert await keys_of(kv) == []


async def test_a_session_without_a_user_and_data(sessions: SessionStore) -> None:
    token, created = await sessions.create()
    assert (created.user, created.data) == (None, {})
    assert await sessions.get(token) == created


async def test_stores_of_two_names_do_not_meet(kv: KV, sessions: SessionStore) -> None:
    token, _ = await sessions.create("alice")
    other = SessionStore(kv, ttl=300, name="admin")
    assert await other.get(token) is None
    assert await other.destroy_all("alice") == 0
    assert await sessions.get(token) is not None


async def test_the_type_that_the_store_was_opened_with_does_not_matter(
    kv: KV, sessions: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "_codec", BYTES)
    token, _ = await sessions.create("alice", data={"a": 1})
    assert await sessions.update(token, b=2) is not None
    token = await sessions.rotate(token) or ""
    [session] = await sessions.of_user("alice")
    assert await sessions.get(token) == session
    assert session.data == {"a": 1, "b": 2}


async def test_round_trips(
    sessions: SessionStore, round_trips: RoundTrips, always_due: None
) -> None:
    async def cost(awaitable: Any) -> list[str | None]:
        round_trips.reset()
        await awaitable
        return list(round_trips.requests)

    assert await cost(sessions.create("alice")) == ["txn"]
    token, session = await sessions.create("alice")
    assert await cost(sessions.get(token)) == ["list"]
    assert await cost(sessions.refresh(token)) == ["list", "txn"]
    assert await cost(sessions.update(token, a=1)) == ["list", "txn"]
    assert await cost(sessions.of_user("alice")) == ["list", "txn"]
    assert await cost(sessions.of_user("bob")) == ["list"]
    assert await cost(sessions.rotate(token)) == ["list", "txn"]
    assert await cost(sessions.get(token)) == ["list"]
    assert await cost(sessions.destroy(token)) == ["txn"]
    assert await cost(sessions.destroy_one("alice", session.id)) == ["list", "txn"]
    assert await cost(sessions.destroy_all("alice")) == ["list", "txn"]


# When they end.


async def test_a_refresh_writes_when_a_tenth_is_gone(kv: KV, round_trips: RoundTrips) -> None:
    sessions = SessionStore(kv, ttl=5)
    token, created = await sessions.create("alice")
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            read_before = await log_time(kv)
            round_trips.reset()
            session = await sessions.refresh(token)
            assert session is not None
            if round_trips.requests != ["list"]:
                break
            assert session == created
            assert read_before - created.created_at < timedelta(seconds=1)
            await asyncio.sleep(0.005)
    assert round_trips.requests == ["list", "txn"]
    assert timedelta(seconds=0.5) <= session.expires_at - created.expires_at
    assert session == await sessions.get(token)


async def test_idleness_ends_a_session_to_the_moment(kv: KV) -> None:
    sessions = SessionStore(kv, ttl=0.5)
    token, created = await sessions.create("alice")
    await ends_at(kv, sessions, token, created.expires_at)
    assert created.expires_at - created.created_at == timedelta(seconds=0.5)
    assert await sessions.refresh(token) is None
    assert await sessions.update(token, a=1) is None
    assert await sessions.rotate(token) is None
    assert await ids_of(sessions, "alice") == set()


async def test_age_ends_a_session_that_is_not_idle(kv: KV, always_due: None) -> None:
    sessions = SessionStore(kv, ttl=0.5, lifetime=1)
    token, created = await sessions.create("alice")
    session: Session | None = created
    while session is not None and session.expires_at < created.created_at + timedelta(seconds=1):
        session = await sessions.refresh(token)
    token = await sessions.rotate(token) or ""
    await ends_at(kv, sessions, token, created.created_at + timedelta(seconds=1))
    assert await sessions.refresh(token) is None
    assert await sessions.update(token, a=1) is None
    assert await sessions.rotate(token) is None
    assert await ids_of(sessions, "alice") == set()


async def ends_at(kv: KV, sessions: SessionStore, token: str, end: datetime) -> None:
    """Read until it is gone: neither before the end, nor there afterwards, by log time."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            before = await log_time(kv)
            session = await sessions.get(token)
            if session is None:
                break
            assert session.expires_at == end
            assert before < end
    assert await log_time(kv) >= end


async def test_an_update_changes_nothing_about_the_end(kv: KV, sessions: SessionStore) -> None:
    token, created = await sessions.create("alice", data={"a": 1})
    await until(kv, created.created_at + timedelta(milliseconds=20))
    updated = await sessions.update(token, b=2)
    assert updated is not None
    assert updated.expires_at == created.expires_at
    assert await sessions.get(token) == updated


async def test_data_that_is_left_over_is_no_session_and_goes(kv: KV) -> None:
    sessions = SessionStore(kv, ttl=0.5)
    token, created = await sessions.create("alice")
    await until(kv, created.created_at + timedelta(seconds=0.25))
    assert await sessions.update(token, a=1) is not None
    data = await kv.get(f"session:{created.id}:data")
    assert data is not None
    assert data.expires_at is not None
    assert data.expires_at > created.expires_at
    await until(kv, created.expires_at)
    assert await sessions.get(token) is None
    assert await sessions.update(token, a=2) is None
    await until(kv, data.expires_at)
    assert await keys_of(kv) == []


# Changing them.


async def test_fields_are_merged(sessions: SessionStore) -> None:
    token, _ = await sessions.create("alice", data={"a": 1, "gone": 1})
    session = await sessions.update(token, {"timeout": 5, "two words": 2}, remove=["gone"], a=2)
    assert session is not None
    assert session.data == {"a": 2, "timeout": 5, "two words": 2}
    assert await sessions.get(token) == session


async def test_concurrent_updates_lose_no_field(sessions: SessionStore) -> None:
    token, _ = await sessions.create("alice")
    await asyncio.gather(*(sessions.update(token, {f"f{n}": n}) for n in range(10)))
    session = await sessions.get(token)
    assert session is not None
    assert session.data == {f"f{n}": n for n in range(10)}


async def test_an_update_that_began_before_the_end_does_not_revive(
    kv: KV, sessions: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, _ = await sessions.create("alice", data={"a": 1})
    encode = module._encode

    async def destroy() -> None:
        assert await sessions.destroy(token)

    destroying: list[asyncio.Task[None]] = []

    def late(data: dict[str, Any]) -> bytes:
        if not destroying:
            destroying.append(asyncio.create_task(destroy()))
        return encode(data)

    monkeypatch.setattr(module, "_encode", late)
    # The destroying is on its way before the commit: whichever is first, it is gone at the end.
    await sessions.update(token, a=2)
    await asyncio.gather(*destroying)
    assert await sessions.get(token) is None
    assert [key for key in await keys_of(kv) if ":life:" in key] == []


async def test_rotation_voids_the_old_token_at_once(sessions: SessionStore) -> None:
    old, created = await sessions.create("alice", data={"a": 1})
    new = await sessions.rotate(old)
    assert new is not None
    assert new != old
    session = await sessions.get(new)
    assert session is not None
    assert (session.id, session.user, session.data, session.created_at) == (
        created.id,
        "alice",
        {"a": 1},
        created.created_at,
    )
    for refused in (sessions.get, sessions.refresh, sessions.update, sessions.rotate):
        assert await refused(old) is None
    assert not await sessions.destroy(old)
    assert await sessions.get(new) == session
    assert await ids_of(sessions, "alice") == {session.id}


async def test_of_two_rotations_one_wins(sessions: SessionStore) -> None:
    old, _ = await sessions.create("alice")
    tokens = await asyncio.gather(*(sessions.rotate(old) for _ in range(10)))
    [won] = [token for token in tokens if token is not None]
    assert await sessions.get(won) is not None


# Sessions of a user.


async def test_sessions_of_a_user_in_pages(sessions: SessionStore) -> None:
    made = await asyncio.gather(*(sessions.create("a:b", data={"n": n}) for n in range(7)))
    await sessions.create("a")
    await sessions.create("a:b:c")
    found: list[Session] = []
    cursor = None
    for size in (3, 3, 1):
        page = await sessions.of_user("a:b", limit=3, cursor=cursor)
        assert len(page) == size
        found += page
        cursor = page.cursor
        assert page.complete is (size == 1)
    by_id = {session.id: session for session in found}
    assert by_id == {session.id: session for _, session in made}


async def test_a_page_has_room_for_the_largest(sessions: SessionStore) -> None:
    largest = {"x": "x" * (MAX_SESSION_BYTES - len('{"x":""}'))}
    for _ in range(3):
        await sessions.create("alice", data=largest)
    assert [session.data for session in await sessions.of_user("alice")] == [largest] * 3
    assert MAX_SESSION_PAGE * MAX_SESSION_BYTES < 32 * 2**20


async def test_a_user_ends_one_of_the_own_sessions(sessions: SessionStore) -> None:
    token, session = await sessions.create("alice")
    other, _ = await sessions.create("alice")
    assert not await sessions.destroy_one("bob", session.id)
    assert not await sessions.destroy_one("alice", "nonsense")
    assert await sessions.destroy_one("alice", session.id)
    assert not await sessions.destroy_one("alice", session.id)
    assert await sessions.get(token) is None
    assert await sessions.get(other) is not None


async def test_all_sessions_of_a_user_end(kv: KV, sessions: SessionStore) -> None:
    """More than one transaction may do."""
    count = 2 * MAX_SESSION_PAGE + 10
    await asyncio.gather(*(sessions.create("alice") for _ in range(count)))
    kept, _ = await sessions.create("bob")
    assert await sessions.destroy_all("alice") == count
    assert await sessions.destroy_all("alice") == 0
    assert await sessions.get(kept) is not None
    assert {key.split(":")[1] for key in await keys_of(kv)} == {kept[:16]}


async def test_who_rotates_meanwhile_does_not_escape(sessions: SessionStore) -> None:
    tokens = [(await sessions.create("alice"))[0] for _ in range(20)]

    async def rotating(token: str) -> str:
        while (new := await sessions.rotate(token)) is not None:
            token = new
        return token

    racing = [asyncio.create_task(rotating(token)) for token in tokens]
    await sessions.destroy_all("alice")
    assert await ids_of(sessions, "alice") == set()
    for last in await asyncio.gather(*racing):
        assert await sessions.get(last) is None


# Tokens.


def altered(token: str) -> Iterator[object]:
    yield from ("", token[:-1], token + "A", " " + token[1:], token.replace(token[20], "é"))
    yield from (None, 5, token.encode())
    yield ("B" if token[0] == "A" else "A") + token[1:]
    yield token[:-1] + ("B" if token[-1] == "A" else "A")
    body = bytearray(urlsafe_b64decode(token))
    body[30] ^= 1
    yield urlsafe_b64encode(body).decode()


async def test_what_is_no_token_is_told_without_asking_the_store(
    sessions: SessionStore, round_trips: RoundTrips
) -> None:
    token, _ = await sessions.create("alice")
    round_trips.reset()
    for wrong in altered(token):
        for method in (sessions.get, sessions.refresh, sessions.rotate, sessions.destroy):
            with pytest.raises(InvalidToken) as raised:
                await method(wrong)  # type: ignore[arg-type]  # some are no text
            assert not wrong or str(wrong) not in f"{raised.value} {raised.value.metadata}"
    assert round_trips.count == 0


async def test_a_token_is_long_and_made_by_chance(sessions: SessionStore) -> None:
    tokens = [(await sessions.create("alice"))[0] for _ in range(50)]
    assert len({token[16:] for token in tokens}) == 50
    assert {len(urlsafe_b64decode(token)) for token in tokens} == {12 + 32 + 4}


async def test_who_knows_an_id_knows_no_token(sessions: SessionStore) -> None:
    token, session = await sessions.create("alice")
    forged = module._Token.new(urlsafe_b64decode(session.id)).text
    assert forged[:16] == token[:16]
    for method in (sessions.get, sessions.refresh, sessions.update, sessions.rotate):
        assert await method(forged) is None
    assert not await sessions.destroy(forged)
    assert await sessions.get(token) == session


async def test_no_token_is_in_the_store_its_files_or_logs(
    request: pytest.FixtureRequest,
    kv: KV,
    target: str,
    always_due: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    sessions = SessionStore(kv, ttl=300)
    token, session = await sessions.create("alice", data={"secret": SECRET_DATA})
    await sessions.refresh(token)
    await sessions.update(token, more=1)
    rotated = await sessions.rotate(token)
    assert rotated is not None
    other, _ = await sessions.create("bob")
    await sessions.destroy(other)
    secrets = [part for one in (token, rotated, other) for part in (one, one[16:], one[16:59])]
    entries = [entry async for entry in kv.scan()]
    held = "".join(f"{json.dumps([entry.key, entry.value])} {entry}" for entry in entries).encode()
    assert session.id.encode() in held
    if target != "memory:":
        local: LocalCluster | None = None
        if target.startswith("kvorum://"):
            local = request.getfixturevalue("local_cluster")
        files = files_of(Path(target) if local is None else local.directory)
        assert session.id.encode() in files  # it would be seen
        held += files
    held += caplog.text.encode()
    assert [secret for secret in secrets if secret.encode() in held] == []
    shown = f"{session!r} {sessions!r} {module._Token(token)!r} {await sessions.of_user('alice')!r}"
    assert [part for part in (*secrets, SECRET_DATA) if part in caplog.text + shown] == []


def files_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


# What is refused.


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": 0},
        {"ttl": None},
        {"ttl": -1},
        {"ttl": float("nan")},
        {"ttl": 10, "lifetime": 5},
        {"ttl": 10, "lifetime": 0},
        {"ttl": 10, "name": ""},
        {"ttl": 10, "name": "a:b"},
    ],
)
async def test_wrong_stores(kv: KV, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        SessionStore(kv, **options)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([1], InvalidArgument),
        ({"a": object()}, InvalidArgument),
        ({"a": float("nan")}, InvalidArgument),
        ({"a": SECRET_DATA + "\udcff"}, InvalidArgument),
        ({1: SECRET_DATA}, InvalidArgument),
        ({"a": {1: SECRET_DATA}}, InvalidArgument),
        ({"a": [{"b": {None: SECRET_DATA}}]}, InvalidArgument),
        ({"a": SECRET_DATA * MAX_SESSION_BYTES}, LimitExceeded),
    ],
)
async def test_wrong_data_is_refused_and_not_shown(
    kv: KV, sessions: SessionStore, data: Any, error: type[KvorumError]
) -> None:
    token, session = await sessions.create("alice")
    for write in (lambda: sessions.create("bob", data=data), lambda: sessions.update(token, data)):
        with pytest.raises(error) as raised:
            await write()
        assert SECRET_DATA not in repr(raised.value)
        assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert await sessions.get(token) == session
    assert {key.split(":")[1] for key in await keys_of(kv)} == {session.id}


@pytest.mark.parametrize("user", ["", 5, "x" * 5000])
async def test_wrong_users(kv: KV, sessions: SessionStore, user: Any) -> None:
    with pytest.raises(InvalidArgument):
        await sessions.create(user)
    assert await keys_of(kv) == []


async def test_wrong_pages_and_fields(sessions: SessionStore) -> None:
    token, _ = await sessions.create("alice")
    with pytest.raises(LimitExceeded):
        await sessions.of_user("alice", limit=MAX_SESSION_PAGE + 1)
    with pytest.raises(InvalidArgument):
        await sessions.of_user("alice", limit=0)
    for remove in ("theme", 5, None, [5]):
        with pytest.raises(InvalidArgument):
            await sessions.update(token, remove=remove)  # type: ignore[arg-type]  # wrong
