"""A program of a user, which pyright checks in its strict mode: nothing public is unknown.

Nothing here is called. `make check` runs it.
"""

from datetime import timedelta

import msgspec
from pydantic import BaseModel

import kvorum
from kvorum import (
    KV,
    Codec,
    Conflict,
    DecodeError,
    Entry,
    IndexEntry,
    RateLimit,
    SyncKV,
    Transaction,
    keys,
    limits,
)


class User(BaseModel):
    name: str
    logins: int = 0


class Point(msgspec.Struct):
    x: float
    y: float


HEX: Codec[int] = Codec("hex", lambda number: f"{number:x}".encode(), lambda data: int(data, 16))


async def main() -> None:
    async with kvorum.open("memory:", timeout=5, type="json") as kv:
        await values(kv)
        await lists(kv)
        await writes(kv)
        await together(kv)
        await watching(kv)
    other = await kvorum.open("./data", type=User)
    await other.close()


async def values(kv: KV) -> None:
    revision: int = await kv.put(keys.build("user", 1), User(name="alice"), ttl=timedelta(days=1))
    await kv.put("user:1", User(name="alicia"), revision=revision, metadata=b"m")
    user = await kv.get("user:1", type=User, consistency="lease")
    if user is not None:
        name: str = user.value.name
        print(name, user.revision, user.version, user.expires_at, user.metadata)
    try:
        point = await kv.get("point", type=Point)
    except DecodeError as error:
        print(error.key, error.retryable)
    else:
        print(0.0 if point is None else point.value.x)
    number: Entry[int] | None = await kv.get("number", type=HEX)
    text: Entry[str] | None = await kv.get_and_delete("text", type="text")
    print(number, text, await kv.get("anything"), await kv.get("packed", type="msgpack"))


async def lists(kv: KV) -> None:
    page = await kv.list("user:", limit=10, type=User, count=True)
    for entry in page:
        print(entry.key, entry.value.logins, entry.index_entries)
    print(page.cursor, page.complete, page.count)
    async for entry in kv.scan("user:", type=User):
        print(entry.value.name)
    async for key in kv.scan(start="a", end="b", keys_only=True, reverse=True):
        print(key.key)


async def writes(kv: KV) -> None:
    await kv.put("a", 1, exists=False, index_entries=[IndexEntry("kind", "one", unique=True)])
    total = await kv.add("n", 5, max=limits.MAX_INTEGER, saturate=True)
    print(total + 1, total.applied)
    await kv.touch("a", 60)
    await kv.persist("a")
    print(await kv.ttl("a"), await kv.delete("a"), await kv.delete_range("user:", limit=10))
    taken = await kv.rate_limit(RateLimit("login", 5, 60, "gcra", burst=2))
    print(bool(taken), taken.retry_after, [state.remaining for state in taken])


async def together(kv: KV) -> None:
    built = kv.atomic().check("a", exists=True).put("b", User(name="bob")).add("n").get("b")
    try:
        result = await built.commit()
    except Conflict as conflict:
        print(conflict.key, conflict.check)
    else:
        print(result.revision, result.succeeded, len(result.results))

    async def log_in(txn: Transaction) -> int:
        found = await txn.get("user:1", type=User)
        user = User(name="new") if found is None else found.value
        txn.put("user:1", user.model_copy(update={"logins": user.logins + 1}))
        return user.logins

    print(await kv.transaction().run(log_in))
    async for attempt in kv.transaction(attempts=3):
        async with attempt as txn:
            print([entry.value.name for entry in await txn.list("user:", type=User)])


async def watching(kv: KV) -> None:
    async with kv.watch("user:", type=User, previous=True) as watch:
        async for change in watch:
            if change.entry is not None:
                print(change.kind, change.entry.value.name, change.at, watch.revision)
        async for changes in watch.revisions():
            print(changes.revision, [change.key for change in changes])


def threads() -> None:
    with kvorum.open_sync("memory:") as kv:
        kv.put("user:1", User(name="alice"))
        user = kv.get("user:1", type=User)
        print(None if user is None else user.value.name)
        print([entry.value.x for entry in kv.scan("point:", type=Point)])
        print([entry.value.name for entry in kv.list("user:", type=User)])
        for attempt in kv.transaction():
            with attempt as txn:
                print(txn.get("user:1", type=User))
        with kv.watch("user:", type=User) as watch:
            for change in watch:
                print(change.key)
        print(kv.atomic().put("a", 1).commit().revision, kv.run(length))
    blocks(kv)


async def length(kv: KV) -> int:
    return len(await kv.list())


def blocks(kv: SyncKV) -> None:
    print(kv.run(lambda store: store.put("a", 1)))
