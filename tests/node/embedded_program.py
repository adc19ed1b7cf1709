"""A program with a store of its own, run and killed by test_embedded.py.

embedded_program.py write PATH FIRST    puts from FIRST on, eight at a time, until it is killed;
                                        prints each number once its put has returned
embedded_program.py hold PATH           opens the store, prints "open", waits for a line
embedded_program.py full PATH           lets no file grow beyond 1 MiB, writes until that fails,
                                        and prints what it gets from then on
"""

import asyncio
import resource
import sys

import kvorum
from kvorum.errors import KvorumError

WRITERS = 8


async def write(path: str, first: int) -> None:
    async with kvorum.open(path) as kv:

        async def one_of_many(start: int) -> None:
            for number in range(start, 10**9, WRITERS):
                await kv.put(f"{number:09}", {"number": number, "padding": "x" * 1000})
                print(number, flush=True)

        await asyncio.gather(*(one_of_many(first + offset) for offset in range(WRITERS)))


async def hold(path: str) -> None:
    async with kvorum.open(path):
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.readline)


async def full(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    kv = await kvorum.open(path, timeout=5)
    written = 0
    try:
        while True:
            await kv.put(f"{written:09}", "x" * 10_000)
            written += 1
    except KvorumError as error:
        print("written", written)
        print(type(error).__name__, error)
    for ask in (lambda: kv.put("later", 1), lambda: kv.get("later")):
        try:
            await ask()
        except KvorumError as error:
            print(type(error).__name__, error)
    await kv.close()
    print("closed", flush=True)


match sys.argv[1:]:
    case ["write", path, first]:
        asyncio.run(write(path, int(first)))
    case ["hold", path]:
        asyncio.run(hold(path))
    case ["full", path]:
        asyncio.run(full(path))
    case _:
        sys.exit(__doc__)
