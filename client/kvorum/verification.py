"""What a verification of a cluster has found: do its members hold the same?"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from kvorumpb.v1.cluster_pb2 import VerifyResponse


class Verdict(StrEnum):
    """What a verification has found out about a member."""

    SAME = "same"
    """It holds what the majority holds."""
    CORRUPT = "corrupt"
    """It holds something else, and stops: it has to be replaced."""
    UNKNOWN = "unknown"
    """It did not say, or nobody knows what is right."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What the members of a cluster held at one index of the log."""

    index: int
    revision: int
    hash: bytes
    """Of what the majority of the voters holds, 32 bytes; empty if no majority holds the same,
    or too few have said so: then revision and record_count are 0."""
    record_count: int
    members: Mapping[str, Verdict]
    """By name."""

    @classmethod
    def of(cls, response: VerifyResponse) -> Self:
        """As the leader has answered it."""
        return cls(
            index=response.index,
            revision=response.revision,
            hash=response.hash,
            record_count=response.record_count,
            members={one.name: _verdict(one) for one in response.members},
        )

    @property
    def is_sound(self) -> bool:
        """Whether a majority holds the same, and nobody is known to hold something else."""
        return bool(self.hash) and Verdict.CORRUPT not in self.members.values()


def _verdict(member: VerifyResponse.MemberHash) -> Verdict:
    match member.verdict:
        case VerifyResponse.MemberHash.SAME:
            return Verdict.SAME
        case VerifyResponse.MemberHash.CORRUPT:
            return Verdict.CORRUPT
        case _:
            return Verdict.UNKNOWN
