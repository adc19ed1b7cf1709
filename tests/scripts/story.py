"""Members of a group whose doings are told, line by line.

A command (commands.py) touches one member or the messages on their way; then every
member does what its core asks for, by the law of `Ready` (raft_group.py). Its messages
wait until they are delivered, in the order in which they were sent.

Whatever happens, two leaders of one term, or two entries applied at one index, are an error.
"""

from collections.abc import Callable, Sequence

from kvorum_node.raft.core import Ready
from kvorum_node.raft.messages import Message
from kvorum_node.raft.types import (
    Entry,
    HardState,
    Index,
    NodeId,
    Settings,
    Term,
    node_name,
)
from tests.scripts import wording
from tests.scripts.arguments import Arguments
from tests.scripts.golden import ScriptError
from tests.support.raft_group import Group, Host

MAX_ROUNDS = 200


class Story:
    def __init__(self) -> None:
        self.group = Group({})
        self.settings = Settings()
        self.held: list[Message] = []
        self.slow: set[NodeId] = set()
        """Whose fsyncs wait for `sync`."""
        self._lines: list[str] = []
        self._quiet = False
        self._told: dict[NodeId, tuple[str, Index]] = {}
        """Role and commit index of each member, as told last."""
        self._leaders: dict[Term, NodeId] = {}
        self._applied: dict[Index, Entry] = {}

    def listen(self, *, quietly: bool) -> list[str]:
        """The list that is written from now on."""
        self._quiet, self._lines = quietly, []
        return self._lines

    def silently(self, act: Callable[[], None]) -> None:
        """Act, and tell nothing of what comes of it."""
        kept, self._lines = self._lines, []
        act()
        self._lines = kept

    def tell(self, text: str, *, detail: bool = False) -> None:
        if not (detail and self._quiet):
            self._lines.append(text)

    def host(self, node: NodeId) -> Host:
        if node not in self.group.hosts:
            raise ScriptError(f"there is no {node_name(node)}")
        return self.group.hosts[node]

    def up(self, node: NodeId) -> Host:
        host = self.host(node)
        if not host.up:
            raise ScriptError(f"{node_name(node)} is down")
        return host

    def all_up(self) -> list[Host]:
        return [host for host in self.group.hosts.values() if host.up]

    def join(self, host: Host) -> None:
        """Let the member be part of the group, in the order of the ids."""
        self.group.hosts[host.node] = host
        self.group.hosts = dict(sorted(self.group.hosts.items()))
        self._told[host.node] = (wording.role(host.raft), host.raft.log.committed)

    # What members do.

    def settle(self) -> None:
        """Let everybody do what there is to do."""
        for host in self.all_up():
            self.look(host)
            while host.pending is None and host.raft.has_ready():
                self._take(host)

    def look(self, host: Host) -> None:
        """Tell what is new about a member."""
        role, committed = wording.role(host.raft), host.raft.log.committed
        told_role, told_committed = self._told[host.node]
        if role != told_role:
            self.tell(role)
        if committed != told_committed:
            self.tell(
                f"{node_name(host.node)} commits {committed}@{host.raft.log.term(committed)}",
                detail=True,
            )
        self._told[host.node] = (role, committed)
        if host.leads and self._leaders.setdefault(host.raft.term, host.node) != host.node:
            raise AssertionError(f"two leaders of term {host.raft.term}")

    def _take(self, host: Host) -> None:
        """Write and send; then sync, unless that takes long."""
        before, log = host.disk.hard_state, host.disk.log
        said = host.take()
        ready = host.pending
        assert ready is not None
        waits = ready.must_sync and host.node in self.slow
        if ready.must_sync:
            unsynced = ", not synced" if waits else ""
            self._tell_write(host.node, ready, before, log, unsynced)
        self.send(said)
        for node in ready.snapshots_to:
            self.tell(f"{node_name(host.node)}: {node_name(node)} needs a snapshot")
        if not waits:
            self.complete(host)

    def _tell_write(
        self, node: NodeId, ready: Ready, before: HardState, log: Sequence[Entry], unsynced: str
    ) -> None:
        words = []
        after = ready.hard_state
        if after is not None and (after.term, after.vote) != (before.term, before.vote):
            vote = "nobody" if after.vote is None else node_name(after.vote)
            words.append(f"term {after.term} vote {vote}")
        if ready.snapshot is not None:
            words.append(f"snapshot {ready.snapshot.last} {{{ready.snapshot.configuration}}}")
        if ready.entries:
            words.append(wording.entries(ready.entries))
            replaced = [one for one in log if one.index >= ready.entries[0].index]
            if replaced and ready.snapshot is None:
                words.append(f"in place of {wording.entries(replaced)}")
        self.tell(f"{node_name(node)} writes {' '.join(words)}{unsynced}", detail=True)

    def complete(self, host: Host) -> None:
        ready = host.pending
        assert ready is not None
        self.send(host.complete())
        if ready.committed:
            self.tell(f"{node_name(host.node)} applies {wording.entries(ready.committed)}")
        for entry in ready.committed:
            if self._applied.setdefault(entry.index, entry) != entry:
                raise AssertionError(f"{entry} applied where {self._applied[entry.index]} was")
        for read in ready.reads:
            numbers = ", ".join(map(str, read.requests))
            self.tell(f"{node_name(host.node)} answers read {numbers} at {read.index}")
        self.look(host)

    # What is on its way.

    def send(self, messages: Sequence[Message]) -> None:
        """Tell of messages, the same one to several members once, and queue them."""
        together: dict[tuple[NodeId, str, bool], list[str]] = {}
        for message in messages:
            lost = not self._connected(message)
            key = (message.sender, wording.message(message), lost)
            together.setdefault(key, []).append(node_name(message.recipient))
            if not lost:
                self.group.queue.append(message)
        for (sender, text, lost), to in together.items():
            arrow = "✗" if lost else "→"
            self.tell(f"{node_name(sender)} {arrow} {' '.join(to)} {text}", detail=True)

    def deliver(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if self._connected(message):
                host = self.group.hosts[message.recipient]
                host.raft.step(message)
                self.look(host)
            else:
                text = f"✗ {node_name(message.recipient)} {wording.message(message)}"
                self.tell(f"{node_name(message.sender)} {text}", detail=True)
        self.settle()

    def run(self) -> None:
        for _ in range(MAX_ROUNDS):
            self.settle()
            if not self.group.queue:
                return
            arriving, self.group.queue = self.group.queue, []
            self.deliver(arriving)
        raise AssertionError("the members never fall silent")

    def chosen(self, arguments: Arguments) -> list[Message]:
        """The messages on their way that the options name; without any, all of them."""
        sender, recipient = arguments.node_option("from"), arguments.node_option("to")
        kind, first = arguments.text_option("kind"), arguments.option("first", 1 << 30)
        arguments.end()
        found = [
            message
            for message in self.group.queue
            if sender in (None, message.sender)
            and recipient in (None, message.recipient)
            and kind in (None, type(message).__name__)
        ][:first]
        if not found:
            raise ScriptError("no such message is on its way")
        return found

    def take_out(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.group.queue.remove(message)

    def _connected(self, message: Message) -> bool:
        host = self.group.hosts.get(message.recipient)
        link = (message.sender, message.recipient)
        return host is not None and host.up and link not in self.group.blocked
