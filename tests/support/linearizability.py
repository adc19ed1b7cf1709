"""Is a history linearizable? A checker that reads what clients saw, and knows nothing else.

A history is linearizable (Herlihy and Wing 1990, "Linearizability: a correctness condition
for concurrent objects") if each operation can be given one instant between its invocation and
its return, such that all of them, one after the other, do what the sequential model says.

The search is that of Wing and Gong (1993, "Testing and verifying concurrent objects"): take an
operation that no other one must precede, apply it to the model, go on with the rest, and step
back where nothing fits. Lowe (2017, "Testing for linearizability") made it practical, and this
file follows him in

- checking each set of keys by itself that no operation connects: linearizability is local;
- remembering each (set of linearized operations, state) that was met, never to try it again.

Rules of this file:

- Known operations are numbered by their invocations. A set of linearized ones is the number of
  the first that is missing and a bit mask of what is linearized beyond it; this takes the place
  of Lowe's list of events, and stays as small as the history is concurrent.
- An operation whose response is UNKNOWN takes effect at any time after its invocation, or never:
  it is optional. So whoever has used fewer of them can do all that others in the same state can,
  and a place that was met with a subset of them makes this one pointless. Of several that
  ask for the same, the oldest goes first: it can stand wherever the others can.
- Nothing recurses, and the steps are counted: an answer is LINEARIZABLE, VIOLATION, or, when
  the steps run out, UNDECIDED. Whoever treats the last as the first has no test.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, NamedTuple, TypeVar

RequestT = TypeVar("RequestT", bound=Hashable)
ResponseT = TypeVar("ResponseT")
StateT = TypeVar("StateT", bound=Hashable)

MAX_STEPS: Final = 2_000_000
"""Steps of the model for one set of keys, unless the caller allows others: some seconds."""

SHOWN_BEFORE: Final = 6
"""How many operations an explanation shows before the point that cannot be passed."""


class Unknown(Enum):
    """The response of an operation that perhaps took effect, perhaps not yet, perhaps never."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN


@dataclass(frozen=True, slots=True)
class Operation(Generic[RequestT, ResponseT]):
    """What a client asked for, and what it was told. Times are of one clock, whatever its unit."""

    client: str
    request: RequestT
    response: ResponseT | Unknown
    invoked: float
    returned: float = math.inf
    """Of no meaning where the response is unknown."""

    def __str__(self) -> str:
        answer = "?" if self.response is UNKNOWN else self.response
        times = f"[{self.invoked:10.4f} .. {self.returned:10.4f}]"
        return f"{times} {self.client}: {self.request} -> {answer}"


class Model(ABC, Generic[RequestT, ResponseT, StateT]):
    """What the operations mean when they come one after the other. Pure; states are values."""

    @property
    @abstractmethod
    def initial(self) -> StateT: ...

    @abstractmethod
    def keys(self, request: RequestT) -> Iterable[Hashable]:
        """What the request touches: operations that share no key, even by way of others, are
        checked apart."""

    @abstractmethod
    def changes(self, request: RequestT) -> bool:
        """False if the request only reads: without a response it says nothing."""

    @abstractmethod
    def step(
        self, state: StateT, request: RequestT, response: ResponseT | Unknown
    ) -> Iterable[StateT]:
        """The states that the request may leave if this is its response; none if it cannot be.

        With UNKNOWN: those that it may leave when it takes effect.
        """

    def is_too_late(self, state: StateT, request: RequestT, response: ResponseT) -> bool:
        """Whether, whatever comes after this state, the request never has this response.

        Never wrong if it says so; the more often it does, the sooner a wrong branch is left.
        """
        return False

    def prepare(
        self, history: Sequence[Operation[RequestT, ResponseT]]
    ) -> tuple["Model[RequestT, ResponseT, StateT]", Sequence[Operation[RequestT, ResponseT]]]:
        """Say the same of the history in a way that is faster to check, with what was learned."""
        return self, history


class Outcome(Enum):
    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and on how much it rests."""

    outcome: Outcome
    operations: int
    """How many operations constrained it: a verdict on none says nothing."""
    partitions: int
    steps: int
    explanation: str = ""
    """For people, unless the outcome is LINEARIZABLE."""


def check(
    history: Iterable[Operation[RequestT, ResponseT]],
    model: Model[RequestT, ResponseT, StateT],
    *,
    max_steps: int = MAX_STEPS,
) -> Verdict:
    """Judge a history. `max_steps` bounds the work for each set of keys.

    A violation wins over what could not be decided.
    """
    constraining = [
        operation
        for operation in history
        if operation.response is not UNKNOWN or model.changes(operation.request)
    ]
    model, prepared = model.prepare(constraining)
    partitions = _partition(prepared, model)
    steps = 0
    undecided = ""
    outcome = Outcome.LINEARIZABLE
    for operations in partitions:
        search = _Search(operations, model, max_steps)
        outcome = search.run()
        steps += search.steps
        if outcome is Outcome.VIOLATION:
            return Verdict(outcome, len(constraining), len(partitions), steps, search.explanation())
        if outcome is Outcome.UNDECIDED:
            undecided = f"undecided after {search.steps} steps; {search.explanation()}"
    outcome = Outcome.UNDECIDED if undecided else Outcome.LINEARIZABLE
    return Verdict(outcome, len(constraining), len(partitions), steps, undecided)


def _partition(
    operations: Iterable[Operation[RequestT, ResponseT]],
    model: Model[RequestT, ResponseT, StateT],
) -> list[list[Operation[RequestT, ResponseT]]]:
    """Group operations that share keys, directly or by way of others (union-find)."""
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first_keys = []
    for operation in operations:
        first, *others = model.keys(operation.request)
        for key in others:
            parent[root(key)] = root(first)
        first_keys.append((root(first), operation))
    groups: dict[Hashable, list[Operation[RequestT, ResponseT]]] = {}
    for key, operation in first_keys:
        groups.setdefault(root(key), []).append(operation)
    return list(groups.values())


class _Place(NamedTuple, Generic[StateT]):
    """How far a branch of the search has come."""

    first: int
    """The first known operation that is not linearized."""
    window: int
    """Bit k: known operation `first` + k is linearized. Bit 0 is never set."""
    used: int
    """Bit k: the unknown operation k was given an effect."""
    state: StateT

    @property
    def linearized(self) -> int:
        return self.first + self.window.bit_count()


class _StepsSpentError(Exception):
    """The search has taken as many steps as it was allowed."""


class _Search(Generic[RequestT, ResponseT, StateT]):
    """The search through one partition."""

    def __init__(
        self,
        operations: Iterable[Operation[RequestT, ResponseT]],
        model: Model[RequestT, ResponseT, StateT],
        max_steps: int,
    ) -> None:
        ordered = sorted(operations, key=lambda operation: operation.invoked)
        self.known = [op for op in ordered if op.response is not UNKNOWN]
        self.unknown = [op for op in ordered if op.response is UNKNOWN]
        self.steps = 0
        self._model = model
        self._max_steps = max_steps
        self._met: dict[tuple[int, int, StateT], list[int]] = {}
        self._path: list[_Place[StateT]] = []
        self._furthest: list[_Place[StateT]] = []

    def run(self) -> Outcome:
        start = _Place(0, 0, 0, self._model.initial)
        self._is_new(start)
        self._path = [start]
        self._furthest = [start]
        branches = [self._successors(start)]
        try:
            while branches and self._path[-1].first < len(self.known):
                place = next(branches[-1], None)
                if place is None:
                    branches.pop()
                    self._path.pop()
                elif self._is_new(place):
                    branches.append(self._successors(place))
                    self._path.append(place)
                    if place.linearized > self._furthest[-1].linearized:
                        self._furthest = self._path[-SHOWN_BEFORE - 1 :]
        except _StepsSpentError:
            return Outcome.UNDECIDED
        return Outcome.LINEARIZABLE if branches else Outcome.VIOLATION

    def _is_new(self, place: _Place[StateT]) -> bool:
        """Note the place; False if one was met that could do all that this one can."""
        met = self._met.setdefault((place.first, place.window, place.state), [])
        if any(used & ~place.used == 0 for used in met):
            return False
        met.append(place.used)
        return True

    def _successors(self, place: _Place[StateT]) -> Iterator[_Place[StateT]]:
        """Linearize one more known operation, after as few unknown ones as it takes."""
        candidates, horizon = self._candidates(place)
        for here in self._with_unknown(place, candidates, horizon):
            for number in candidates:
                for state in self._step(here.state, self.known[number]):
                    yield _linearize(here, number, state)

    def _candidates(self, place: _Place[StateT]) -> tuple[list[int], float]:
        """The operations that may be next, and the instant before which the next must be.

        They are those that were invoked before any that is not linearized had returned; the
        first to return is tried first.
        """
        found: list[int] = []
        horizon = math.inf
        missing = ~place.window
        while True:
            lowest = missing & -missing
            number = place.first + lowest.bit_length() - 1
            if number >= len(self.known) or self.known[number].invoked > horizon:
                break
            found.append(number)
            horizon = min(horizon, self.known[number].returned)
            missing ^= lowest
        found.sort(key=lambda number: self.known[number].returned)
        return found, horizon

    def _with_unknown(
        self, place: _Place[StateT], candidates: Collection[int], horizon: float
    ) -> Iterator[_Place[StateT]]:
        """The place itself, then with one unknown operation more, then with two, ..."""
        queue = deque([place])
        while queue:
            here = queue.popleft()
            if self._is_hopeless(here.state, candidates):
                continue
            yield here
            tried = set()
            for number, operation in enumerate(self.unknown):
                if operation.invoked > horizon:
                    break
                if here.used >> number & 1 or operation.request in tried:
                    continue
                tried.add(operation.request)
                for state in self._step(here.state, operation):
                    there = here._replace(used=here.used | 1 << number, state=state)
                    if self._is_new(there):
                        queue.append(there)

    def _is_hopeless(self, state: StateT, candidates: Collection[int]) -> bool:
        return any(
            self._model.is_too_late(state, operation.request, operation.response)
            for operation in map(self.known.__getitem__, candidates)
            if not isinstance(operation.response, Unknown)
        )

    def _step(self, state: StateT, operation: Operation[RequestT, ResponseT]) -> Iterable[StateT]:
        if self.steps == self._max_steps:
            raise _StepsSpentError
        self.steps += 1
        return self._model.step(state, operation.request, operation.response)

    def explanation(self) -> str:
        """The point that no branch has passed: what led there, and what cannot follow."""
        *_, last = self._furthest
        stuck, horizon = self._candidates(last)
        optional = [
            operation
            for number, operation in enumerate(self.unknown)
            if operation.invoked <= horizon and not last.used >> number & 1
        ]
        fit = f"{last.linearized} of {len(self.known)} operations on {self._name()}"
        lines = [f"{fit} fit one after the other; the last of them:"]
        for before, after in zip(self._furthest, self._furthest[1:], strict=False):
            lines += [f"    {operation}" for operation in self._between(before, after)]
            lines.append(f"      = {after.state}")
        if len(self._furthest) == 1:
            lines.append(f"      = {last.state}")
        lines.append("and none of these can be next:")
        lines += [f"    {self.known[number]}" for number in stuck]
        if optional:
            lines.append(f"nor after any of the {len(optional)} whose outcome is unknown:")
            lines += [f"    {operation}" for operation in optional[-SHOWN_BEFORE:]]
        return "\n".join(lines)

    def _name(self) -> str:
        keys = {key for op in self.known for key in self._model.keys(op.request)}
        return ", ".join(sorted(map(str, keys)))

    def _between(
        self, before: _Place[StateT], after: _Place[StateT]
    ) -> Iterator[Operation[RequestT, ResponseT]]:
        for number, operation in enumerate(self.unknown):
            if (before.used ^ after.used) >> number & 1:
                yield operation
        mask_before = (1 << before.first) - 1 | before.window << before.first
        mask_after = (1 << after.first) - 1 | after.window << after.first
        yield self.known[(mask_before ^ mask_after).bit_length() - 1]


def _linearize(place: _Place[StateT], number: int, state: StateT) -> _Place[StateT]:
    first, window = place.first, place.window | 1 << number - place.first
    if number == first:
        done = (~window & window + 1).bit_length() - 1  # the ones at the low end
        first, window = first + done, window >> done
    return _Place(first, window, place.used, state)
