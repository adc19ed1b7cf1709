"""The corruption check: do all members hold the same?

    1  the leader puts a Verification into the log
    2  every member hashes its state as it is there, in the background
    3  the leader asks each of them for the hash, and compares
    4  if a minority holds something else, the leader puts a Verdict into the log
    5  whoever is named there, and has hashed something else, stops for good

Rules:
- What a majority of the voters holds is right. Where no majority holds the same, nobody
  knows what is right, and nobody stops.
- A node stops by what is in the log and by its own hash, and not by what another one
  says: so it makes no difference who led, or who answered in whose place.
- A node hashes one view at a time, in slices, and most of its time stays with everybody
  else. A newer verification takes the place of an older one. Who was restarted since, or
  has taken over another state, has no hash, and is looked at the next time.
- A state that cannot be read has the empty hash: no majority holds that.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from kvorum.admin import ClusterAdmin
from kvorum.errors import DeadlineExceeded, KvorumError, OutcomeUnknown, StateCorrupt, StorageError
from kvorum_node.group import Group
from kvorum_node.machine import HASH_FORMAT, ContentHash, ContentHasher
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.quorum import is_quorum
from kvorum_node.raft.types import Index, NodeId, Term, node_name
from kvorumpb.v1.cluster_pb2 import GetVerificationResponse, VerifyResponse
from kvorumpb.v1.command_pb2 import Command, CommandBatch, Verdict, Verification

MAX_VERIFY_SECONDS: Final = 600.0
"""How long a verification waits for members that lag, or have much to hash."""
ASK_SECONDS: Final = 2.0
"""How long a member may take to say whether it has the hash."""
FIRST_PAUSE_SECONDS: Final = 0.02
LAST_PAUSE_SECONDS: Final = 1.0
"""Between two rounds of questions: longer and longer."""
RETRY_SECONDS: Final = 30.0
"""When a leader that is due tries again, and others look whether they lead by now."""
KEPT_HASHES: Final = 8
"""The newest ones. A leader asks for the last one; a verdict is on the one before at most."""
REST_SHARE: Final = 3
"""So many times as long as it takes, a slice is followed by time for everybody else."""

Verdicts = VerifyResponse.MemberHash.Verdict

CondemnedBy = Callable[[StateCorrupt, frozenset[NodeId]], None]
"""Told that this node must stop, and with whom: none of those may lead."""


class Verifier:
    """Of one group on one node."""

    def __init__(self, group: Group, *, condemned: CondemnedBy) -> None:
        """Begin to follow the verifications in the group's log. `close` it."""
        self._group = group
        self._condemned = condemned
        self._hashes: dict[Index, ContentHash | None] = {}  # None: it could not be read
        self._newest = Index(0)
        self._hashing: asyncio.Task[None] | None = None
        self._last_seconds: float | None = None  # of the loop, when a verification was applied
        self._turn = asyncio.Lock()
        group.machine.on_verification = self._begin
        group.machine.on_verdict = self._judge

    async def close(self) -> None:
        """Stop hashing: the engine may be closed then."""
        self._group.machine.on_verification = None
        if self._hashing is not None:
            self._hashing.cancel()
            await asyncio.gather(self._hashing, return_exceptions=True)

    # Of every member.

    def answer(self, index: Index) -> GetVerificationResponse:
        """What this node has found at a verification."""
        if index in self._hashes:
            content = self._hashes[index]
            if content is None:
                return GetVerificationResponse(done=True)
            return GetVerificationResponse(
                done=True,
                revision=content.revision,
                hash=content.digest,
                record_count=content.record_count,
            )
        under_way = self._hashing is not None and index == self._newest
        return GetVerificationResponse(
            missed=index <= self._group.machine.applied and not under_way
        )

    def _begin(self, hasher: ContentHasher) -> None:
        if self._hashing is not None:
            self._hashing.cancel()
        self._newest = hasher.applied
        self._last_seconds = asyncio.get_running_loop().time()
        self._hashing = asyncio.create_task(self._hash(hasher), name="kvorum hashing")

    async def _hash(self, hasher: ContentHasher) -> None:
        loop = asyncio.get_running_loop()
        content: ContentHash | None = None
        with closing(hasher):
            try:
                while content is None:
                    started = loop.time()
                    content = hasher.step()
                    await asyncio.sleep(REST_SHARE * (loop.time() - started))
            except StorageError as error:
                self._group.logger.error("cannot hash its state at %d: %s", hasher.applied, error)
        self._hashes[hasher.applied] = content
        while len(self._hashes) > KEPT_HASHES:
            del self._hashes[min(self._hashes)]

    def _judge(self, verdict: Verdict) -> None:
        node, index = self._group.raft.node, Index(verdict.index)
        if node not in verdict.corrupt:
            return
        if index not in self._hashes:
            self._group.logger.error(
                "held something else than the majority at %d, and was restarted since or has taken"
                " over another state: `kvorum verify` says whether it still does",
                index,
            )
            return
        content = self._hashes[index]
        if content is None or content.digest != verdict.hash:
            self._condemned(state_corrupt(node, index), frozenset(map(NodeId, verdict.corrupt)))

    # Of the leader.

    async def verify(self, *, deadline: float) -> VerifyResponse:
        """Have all members hash their state at one index, compare, and stop who is corrupt.

        Returns when all that are alive have answered, or at the deadline. One verification
        is under way at a time; the next one waits for it.

        Args:
            deadline: on the event loop's clock.

        Raises:
            NotLeader, NoLeader, ShuttingDown: this node does not lead, or not any more.
            Overloaded: try again later.
            DeadlineExceeded: the log did not move in time.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError:
            raise DeadlineExceeded("another verification is under way") from None
        try:
            return await self._verify(deadline)
        finally:
            self._turn.release()

    async def verify_regularly(self, interval_seconds: float) -> None:
        """Verify whenever the last verification is so long ago, and this node leads. Never returns.

        All nodes count from the last one that they have applied, so a new leader goes on
        where the old one was. A member that is alone has nobody to compare with.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            last = started if self._last_seconds is None else self._last_seconds
            remaining = last + interval_seconds - loop.time()
            if remaining > 0:
                await asyncio.sleep(remaining)
                continue
            raft = self._group.raft
            if isinstance(raft.role, Leader) and len(raft.configuration.members) > 1:
                try:
                    await self.verify(deadline=loop.time() + MAX_VERIFY_SECONDS)
                except KvorumError as error:
                    self._group.logger.warning("could not verify the members: %s", error)
            await asyncio.sleep(min(interval_seconds, RETRY_SECONDS))

    async def _verify(self, deadline: float) -> VerifyResponse:
        group, term = self._group, self._group.raft.term
        await self._propose(Command(verification=Verification(format=HASH_FORMAT)), deadline)
        index = self._newest  # of this verification, or of one that has followed it
        answers = await self._collect(index, term, deadline)
        configuration = group.raft.configuration
        finding = compare(configuration, answers)
        self._log(index, finding, answers)
        if finding.corrupt:
            verdict = Verdict(index=index, hash=finding.hash, corrupt=sorted(finding.corrupt))
            await self._propose(Command(verdict=verdict), deadline)
        right = next((one for one in answers.values() if one.hash == finding.hash != b""), None)
        return VerifyResponse(
            index=index,
            revision=0 if right is None else right.revision,
            hash=finding.hash,
            record_count=0 if right is None else right.record_count,
            members=[
                VerifyResponse.MemberHash(name=node_name(node), verdict=finding.verdict(node))
                for node in sorted(configuration.members)
            ],
        )

    async def _propose(self, command: Command, deadline: float) -> None:
        """Return once the command is applied here."""
        commands = CommandBatch(commands=[command]).SerializeToString()
        try:
            await self._group.submit(commands, 1, deadline=deadline)
        except OutcomeUnknown:  # it does no harm if it comes to pass, and may be repeated
            raise self._group.not_leader() from None

    async def _collect(
        self, index: Index, term: Term, deadline: float
    ) -> Mapping[NodeId, GetVerificationResponse]:
        """What each member says at last; nothing of one that is dead, or too late."""
        group, loop = self._group, asyncio.get_running_loop()
        answers: dict[NodeId, GetVerificationResponse] = {}
        pause = FIRST_PAUSE_SECONDS
        async with ClusterAdmin() as admin:
            while True:
                members = group.raft.configuration.members
                asked = sorted(members - answers.keys())
                said = await asyncio.gather(*(self._ask(admin, node, index) for node in asked))
                role = group.raft.role
                if not isinstance(role, Leader) or group.raft.term != term:
                    raise group.not_leader()
                answers |= {
                    node: answer
                    for node, answer in zip(asked, said, strict=True)
                    if answer is not None and (answer.done or answer.missed)
                }
                alive = {node for node, one in role.progress.items() if one.recently_active}
                waiting = (alive | {group.raft.node}) & members - answers.keys()
                if not waiting or loop.time() >= deadline:
                    return answers
                await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
                pause = min(1.5 * pause, LAST_PAUSE_SECONDS)

    async def _ask(
        self, admin: ClusterAdmin, node: NodeId, index: Index
    ) -> GetVerificationResponse | None:
        """What the member says; None if nothing."""
        if node == self._group.raft.node:
            return self.answer(index)
        address = self._group.addresses.get(node)
        if not address:
            return None
        try:
            return await admin.verification(address, index, timeout=ASK_SECONDS)
        except KvorumError:
            return None

    def _log(
        self, index: Index, finding: "Finding", answers: Mapping[NodeId, GetVerificationResponse]
    ) -> None:
        logger = self._group.logger
        if finding.corrupt:
            logger.error(
                "%s held something else than the majority at %d, and must be replaced",
                _names(finding.corrupt),
                index,
            )
        elif finding.hash:
            logger.info("%s held the same at %d", _names(finding.same), index)
        elif len({one.hash for one in answers.values() if one.done}) > 1:
            logger.error(
                "the members differ at %d, and no majority holds the same: nobody can say who is"
                " right. %s",
                index,
                ", ".join(
                    f"{node_name(node)} has {one.hash.hex()[:16] or 'no hash'}"
                    for node, one in sorted(answers.items())
                ),
            )
        else:
            logger.warning("too few members have said what they held at %d", index)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a comparison has found out."""

    hash: bytes = b""
    """What a majority of the voters holds; empty if there is none."""
    same: frozenset[NodeId] = field(default_factory=frozenset[NodeId])
    corrupt: frozenset[NodeId] = field(default_factory=frozenset[NodeId])

    def verdict(self, node: NodeId) -> Verdicts.ValueType:
        if node in self.same:
            return VerifyResponse.MemberHash.SAME
        if node in self.corrupt:
            return VerifyResponse.MemberHash.CORRUPT
        return VerifyResponse.MemberHash.UNKNOWN


def compare(
    configuration: Configuration, answers: Mapping[NodeId, GetVerificationResponse]
) -> Finding:
    """Say who holds what the majority of the voters holds, and who does not."""
    holders: dict[bytes, set[NodeId]] = {}
    for node, answer in answers.items():
        if answer.done and node in configuration.members:
            holders.setdefault(answer.hash, set()).add(node)
    for digest, nodes in holders.items():
        if digest and is_quorum(configuration, nodes):
            others = set[NodeId]().union(*holders.values()) - nodes
            return Finding(digest, frozenset(nodes), frozenset(others))
    return Finding()


def state_corrupt(node: NodeId, index: Index) -> StateCorrupt:
    """The error that ends a node which holds something else than the majority, for good."""
    name = node_name(node)
    return StateCorrupt(
        f"the state of {name} differs from what the majority held at index {index}: its disk or its"
        f" memory has altered it. Replace {name}: add a new member with `kvorum member add"
        f" HOST:PORT`, and remove this one with `kvorum member remove {name}`."
        " docs/operations/replacing-a-node.md says how",
        node=name,
        index=index,
    )


def _names(nodes: Iterable[NodeId]) -> str:
    return ", ".join(map(node_name, sorted(nodes)))
