"""Two small models for histories of other stores: a register, and strings that grow.

The checker is tested with them, against verdicts that were reached elsewhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from tests.support.linearizability import UNKNOWN, Model, Unknown


@dataclass(frozen=True, slots=True)
class Read:
    pass


@dataclass(frozen=True, slots=True)
class Write:
    value: int


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    expected: int
    value: int


RegisterRequest = Read | Write | CompareAndSet
RegisterResponse = int | bool | None
"""A read's value, whether a compare-and-set has set, None for a write."""


class Register(Model[RegisterRequest, RegisterResponse, int | None]):
    """One register that holds nothing at first."""

    @property
    def initial(self) -> int | None:
        return None

    def keys(self, request: RegisterRequest) -> Iterable[str]:
        return ("register",)

    def changes(self, request: RegisterRequest) -> bool:
        return not isinstance(request, Read)

    def step(
        self,
        state: int | None,
        request: RegisterRequest,
        response: RegisterResponse | Unknown,
    ) -> Iterable[int | None]:
        match request:
            case Read():
                return (state,) if response == state else ()
            case Write(value):
                return (value,)
            case CompareAndSet(expected, value):
                does_set = state == expected
                if response is not UNKNOWN and response != does_set:
                    return ()
                return (value if does_set else state,)
            case _:
                assert_never(request)


@dataclass(frozen=True, slots=True)
class Get:
    key: str


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Append:
    key: str
    value: str


StringRequest = Get | Put | Append


class Strings(Model[StringRequest, str, str]):
    """Keys that hold the empty string at first. Only a get has a response of interest."""

    @property
    def initial(self) -> str:
        return ""

    def keys(self, request: StringRequest) -> Iterable[str]:
        return (request.key,)

    def changes(self, request: StringRequest) -> bool:
        return not isinstance(request, Get)

    def step(self, state: str, request: StringRequest, response: str | Unknown) -> Iterable[str]:
        match request:
            case Get():
                return (state,) if response == state else ()
            case Put(value=value):
                return (value,)
            case Append(value=value):
                return (state + value,)
            case _:
                assert_never(request)
