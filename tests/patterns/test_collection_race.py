"""Sign-ups that race, and writers whose leaders are killed: the index is what the records say.

The usual form, three puts after a look, is here too: it lets two users have one e-mail address.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio

import kvorum
from kvorum import KV, Conflict, UniqueViolation
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import Collection, Index, Unique
from tests.support import targets
from tests.support.node_processes import nodes_of
from tests.support.workload import agreed_content, until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

SIGN_UPS = 100
MAIL = "alice@example.org"

SEED = 20261125
WRITERS = 8
KILLS = 2
PROGRESS = 100
IDS = [f"id:{number}" for number in range(12)]
MAILS = [f"mail{number}" for number in range(8)]
CITIES = ["Oslo", "Rome", None]


@pytest.fixture(scope="module")
def empty_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("collection-race")
    cluster = LocalCluster(directory / "cluster")
    yield cluster
    with suppress(NoClusterHere):
        cluster.kill_all()
    assert nodes_of(directory) == []


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def three_nodes(empty_cluster: LocalCluster) -> LocalCluster:
    """For all tests here; each leaves it running, and finds it empty."""
    await empty_cluster.up(nodes=3, base_port=0, flags=targets.FLAGS)
    return empty_cluster


@pytest_asyncio.fixture(loop_scope="session")
async def kv(three_nodes: LocalCluster) -> AsyncIterator[KV]:
    async with kvorum.open(three_nodes.target, timeout=60) as kv:
        await kv.delete_range(start="")
        yield kv


def collection(kv: KV) -> Collection[Any]:
    return Collection(kv, "user", indexes={"email": Unique("email"), "city": Index("city")})


async def test_of_a_hundred_sign_ups_with_one_address_one_wins(
    three_nodes: LocalCluster, kv: KV
) -> None:
    async with kvorum.open(three_nodes.target, timeout=60) as other:
        programs = [collection(kv), collection(other)]
        for users in programs:
            await users.count("email", MAIL)
        results: list[str | UniqueViolation] = []
        half = asyncio.Event()

        async def sign_up(number: int) -> None:
            users = programs[number % 2]
            if number >= SIGN_UPS // 2:
                await half.wait()
            try:
                await users.create(f"{number}", {"email": MAIL, "name": f"{number}"})
            except UniqueViolation as error:
                results.append(error)
            else:
                results.append(f"{number}")

        async with asyncio.TaskGroup() as tasks:
            for number in range(SIGN_UPS):
                tasks.create_task(sign_up(number))
            leader = await three_nodes.leader()
            three_nodes.kill(leader)  # the first half is on its way, or was answered
            half.set()
        await three_nodes.restart(leader)
        [winner] = [one for one in results if isinstance(one, str)]
        losers = [one for one in results if isinstance(one, UniqueViolation)]
        assert len(losers) == SIGN_UPS - 1
        assert {(one.index, one.value, one.owner) for one in losers} == {("email", MAIL, winner)}
        assert [entry.key async for entry in programs[0].scan()] == [winner]
        assert await programs[1].count("email", MAIL) == 1
    await agreed_content(three_nodes)


class Usual:
    """Users in the usual form: look whether the address is free, then put user and address."""

    def __init__(self, kv: KV, everyone_has_looked: asyncio.Barrier) -> None:
        self._kv = kv
        self._everyone_has_looked = everyone_has_looked

    async def create(self, name: str, user: dict[str, str]) -> bool:
        taken = await self._kv.get(f"email:{user['email']}")
        await self._everyone_has_looked.wait()
        if taken is not None:
            return False
        await self._kv.put(f"usual:{name}", user)
        await self._kv.put(f"email:{user['email']}", name)
        return True


async def test_the_usual_form_lets_them_all_win(kv: KV) -> None:
    users = Usual(kv, asyncio.Barrier(SIGN_UPS))
    results = await asyncio.gather(
        *(users.create(f"{number}", {"email": MAIL}) for number in range(SIGN_UPS))
    )
    assert sum(results) == SIGN_UPS  # one was to win
    assert len([entry async for entry in kv.scan("usual:")]) == SIGN_UPS
    assert await kv.get(f"email:{MAIL}") is not None  # and finds one of them


class Writers:
    """Carry out random operations for as long as they are entered; each notes what it has done."""

    def __init__(self, users: Collection[Any]) -> None:
        self._users = users
        self._stopping = False
        self.done = 0
        self.refused = 0

    async def run(self) -> None:
        await asyncio.gather(*(self._write(number) for number in range(WRITERS)))

    def stop(self) -> None:
        self._stopping = True

    async def progress(self) -> None:
        goal = self.done + PROGRESS

        async def is_reached() -> bool:
            return self.done >= goal

        await until(is_reached)

    async def _write(self, number: int) -> None:
        chance = random.Random(SEED + number)
        while not self._stopping:
            try:
                await self._operate(chance)
            except (UniqueViolation, Conflict):
                self.refused += 1
            self.done += 1

    async def _operate(self, chance: random.Random) -> None:
        one = chance.choice(IDS)
        fields = {"email": chance.choice(MAILS), "city": chance.choice(CITIES)}
        match chance.choice(("create", "create", "short", "put", "update", "update", "delete")):
            case "create":
                await self._users.create(one, fields)
            case "short":
                await self._users.create(one, fields, ttl=chance.choice((0.01, 0.2, 300)))
            case "put":
                await self._users.put(one, fields)
            case "update":
                name = chance.choice(("email", "city"))
                await self._users.update(one, {name: fields[name]})
            case _:
                await self._users.delete(one)


async def assert_the_indexes_are_what_the_records_say(kv: KV, users: Collection[Any]) -> None:
    """In both directions; read at rest, as an index has no past."""
    records = {entry.key: entry.value async for entry in users.scan()}
    for index in ("email", "city"):
        found = sorted([(entry.index_value, entry.key) async for entry in users.scan(index)])
        wanted = [(value[index], name) for name, value in records.items() if value[index]]
        assert found == sorted(wanted)
    assert len({value["email"] for value in records.values()}) == len(records)
    assert [found async for found in users.verify()] == []
    for name, value in records.items():
        owner = await users.get_by("email", value["email"])
        assert owner is not None
        assert owner.key == name


async def test_the_index_is_what_the_records_say_however_often_leaders_are_killed(
    three_nodes: LocalCluster, kv: KV
) -> None:
    users = collection(kv)
    writers = Writers(users)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(writers.run())
        await writers.progress()
        for _ in range(KILLS):
            leader = await three_nodes.leader()
            three_nodes.kill(leader)
            await writers.progress()
            await three_nodes.restart(leader)
            await writers.progress()
        writers.stop()

    async def nobody_expires() -> bool:
        """Those with a short time to live are gone: the rest stays for the comparison."""
        return not [
            entry.key
            async for entry in users.scan()
            if (await kv.ttl(users.key(entry.key)) or 9) < 2
        ]

    await until(nobody_expires)
    await assert_the_indexes_are_what_the_records_say(kv, users)
    assert writers.refused > 0
    assert await users.count() > 0
    await agreed_content(three_nodes)
