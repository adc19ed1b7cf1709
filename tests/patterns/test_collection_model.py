"""Collections against a model, step by step, while their definition changes: never a wrong answer.

A step is an operation, a deployment with other indexes, or a `reindex`. After each step, every
index of the program either finds what the model says, or says that it is incomplete.
"""

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import kvorum
from kvorum import KV, Conflict, IndexIncomplete, UniqueViolation
from kvorum.patterns import Collection, Index, Unique
from kvorum.patterns.indexes import IndexValue

Value = dict[str, Any]
Place = tuple[str, IndexValue, bool]
"""An index, a value, and whether it is unique."""

DEFINITIONS: list[dict[str, Index]] = [
    {"mail": Unique("mail")},
    {"mail": Unique("mail"), "city": Index("city")},
    {"mail": Unique("mail"), "city": Unique("city"), "tags": Index("tags")},
    {"city": Index("city"), "both": Index(("city", "age")), "tags": Index("tags")},
]

names = st.sampled_from(["a", "b:", "c%"])
cities = st.sampled_from(["Oslo", "Rome", "", None])
values = st.fixed_dictionaries(
    {"mail": st.sampled_from(["x", "y", "z"])},
    optional={
        "city": cities,
        "age": st.sampled_from([-12, 7, 41]),
        "tags": st.lists(st.sampled_from("pq"), max_size=3),
    },
)


def places(definition: dict[str, Index], value: Value) -> set[Place]:
    """What the record is found under, written down once more and without the library's help."""
    found: set[Place] = set()
    for index, how in definition.items():
        match index:
            case "both":
                if value.get("city") is not None and value.get("age") is not None:
                    found.add((index, (value["city"], value["age"]), how.unique))
            case "tags":
                found |= {(index, tag, how.unique) for tag in value.get("tags", [])}
            case _ if value.get(index) is not None:
                found.add((index, value[index], how.unique))
    return found


class Deployments(RuleBasedStateMachine):
    """One program at a time, which is deployed with another definition now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.records: dict[str, Value] = {}
        self.stored: dict[str, set[Place]] = {}
        """What each record was last written with."""

    @initialize(number=st.integers(0, len(DEFINITIONS) - 1))
    def begin(self, number: int) -> None:
        async def open_store() -> KV:
            return await kvorum.open("memory:")

        self.kv = self.runner.run(open_store())
        self.deploy(number)

    def teardown(self) -> None:
        if hasattr(self, "kv"):
            self.runner.run(self.kv.close())
        self.runner.close()

    @rule(number=st.integers(0, len(DEFINITIONS) - 1))
    def deploy(self, number: int) -> None:
        self.definition = DEFINITIONS[number]
        self.things = Collection[Any](self.kv, "thing", indexes=self.definition)

    @rule(name=names, value=values)
    def create(self, name: str, value: Value) -> None:
        try:
            self.runner.run(self.things.create(name, value))
        except Conflict:
            assert name in self.records
        except UniqueViolation as error:
            self._check_violation(error, name, value)
        else:
            assert name not in self.records
            self._write(name, value)

    @rule(name=names, value=values)
    def put(self, name: str, value: Value) -> None:
        try:
            self.runner.run(self.things.put(name, value))
        except UniqueViolation as error:
            self._check_violation(error, name, value)
        else:
            self._write(name, value)

    @rule(name=names, change=values)
    def update(self, name: str, change: Value) -> None:
        value = {**self.records.get(name, {}), **change}
        try:
            revision = self.runner.run(self.things.update(name, change))
        except UniqueViolation as error:
            self._check_violation(error, name, value)
        else:
            assert (revision is not None) == (name in self.records)
            if revision is not None:
                self._write(name, value)

    @rule(name=names)
    def delete(self, name: str) -> None:
        assert self.runner.run(self.things.delete(name)) == (name in self.records)
        self.records.pop(name, None)
        self.stored.pop(name, None)

    @rule(restart=st.booleans())
    def reindex(self, restart: bool) -> None:
        done = self.runner.run(self.things.reindex(restart=restart))
        assert done.seen == done.total == len(self.records)
        lost = {(one.id, one.index, one.value) for one in done.conflicts}
        wanted = {
            name: {
                place for place in places(self.definition, value)
                if (name, place[0], str(place[1])) not in lost
            }
            for name, value in self.records.items()
        }  # fmt: skip
        assert done.changed == sum(self.stored[name] != wanted[name] for name in wanted)
        self.stored = wanted
        for one in done.conflicts:
            assert (one.index, one.value, True) in self.stored[one.owner]
            assert (one.index, one.value, True) in places(self.definition, self.records[one.id])
        for index in self.definition:
            assert self._is_complete(index) == (index not in {one.index for one in done.conflicts})

    @invariant()
    def every_answer_is_right_or_refused(self) -> None:
        if not hasattr(self, "things"):
            return
        self.runner.run(self._compare())

    async def _compare(self) -> None:
        things = self.things
        records = {entry.key: entry.value async for entry in things.scan()}
        assert records == self.records
        for index in self.definition:
            wanted = sorted(
                [name, place[1]]
                for name, value in self.records.items()
                for place in places(self.definition, value)
                if place[0] == index and not isinstance(place[1], tuple)
            )
            try:
                found = [[entry.key, entry.index_value] async for entry in things.scan(index)]
            except IndexIncomplete:
                continue
            if index != "both":
                assert sorted(found) == wanted
            for name, value in self.records.items():
                for place in places(self.definition, value):
                    if place[0] == index:
                        page = await things.find(index, place[1])
                        assert name in [entry.key for entry in page]
        different = {found.id async for found in things.verify()}
        assert different == {
            name
            for name, value in self.records.items()
            if self.stored[name] != places(self.definition, value)
        }

    def _write(self, name: str, value: Value) -> None:
        self.records[name] = value
        self.stored[name] = places(self.definition, value)

    def _check_violation(self, error: UniqueViolation, name: str, value: Value) -> None:
        assert error.owner != name
        assert (error.index, error.value, True) in self.stored[error.owner]
        assert (error.index, error.value, True) in places(self.definition, value)

    def _is_complete(self, index: str) -> bool:
        try:
            self.runner.run(self.things.count(index))
        except IndexIncomplete:
            return False
        return True


TestDeployments = Deployments.TestCase
TestDeployments.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
