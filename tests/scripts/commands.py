"""The commands of golden scripts.

    group 3 window=2 ...            members n1, n2, n3, all voters; settings as in `_group`
    log n1 1@1 2@1 term=1 ...       what a member starts with (vote, commit, applied, start)
    start n4                        a new process that has not heard of any group

Who waits longest is a matter of chance: in scripts each member waits a tick longer than
the one before, as far as the range goes. So n1 is the first to stand, after 11 ticks.

    campaign n1                     tick n1 11 | tick all        pass 20: tick all, then run
    elect n1                        campaign and run, of which only the success is told
    propose n1 x y                  transfer n1 n2
    read n1 7 8                     read n1 lease 7: as the lease allows
    lose n1 5                       its process stands still for 5 ticks, and its clock does not
    change n1 voter:n4 remove:n2    with `force` last            unreachable n1 n2
    snapshot n1 n4                  send n1's state to n4        report n1 n4 5 | failed

    run                             deliver until nobody says anything more
    deliver | drop | hold | copy    with from=n1 to=n2 kind=Heartbeat first=1: some of what is on
                                    its way; `copy` delivers it and leaves it on its way
    release                         what was held is on its way again, behind the rest
    block n1 n2 | isolate n1 n2     one direction | cut these off from the others
    heal                            all links work again

    slow n1                         its fsyncs take until `sync n1`, or one of them `sync n1 once`
    crash n1 surviving=1            the last fsync survives, and so many writes after it
    restart n1 applied=1            with a state machine that has the entries so far
    cut n1 3                        drop the log through 3
    status [n1] | logs | queue      who is what | what everybody stores | what is on its way

`quietly` before a command leaves roles and results, and neither messages nor writes.
An arrow with a cross (✗) marks a message that is lost.
"""

from collections.abc import Callable
from functools import partial

from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.messages import InstallSnapshot
from kvorum_node.raft.types import (
    ChangeRefused,
    Index,
    NodeId,
    Position,
    ProposalRefused,
    Settings,
    node_name,
)
from tests.scripts import wording
from tests.scripts.arguments import Arguments
from tests.scripts.golden import ScriptError
from tests.scripts.story import Story
from tests.support.raft_group import Host


def new_script() -> Callable[[str], list[str]]:
    """What carries out the commands of one script, and returns what came of each."""
    return partial(execute, Story())


def execute(story: Story, line: str) -> list[str]:
    arguments = Arguments(line)
    lines = story.listen(quietly=arguments.flag("quietly"))
    command = COMMANDS.get(arguments.word())
    if command is None:
        raise ScriptError("unknown command")
    command(story, arguments)
    arguments.end()
    story.settle()
    return lines


# The members.


def _patience(node: int) -> Callable[[int, int], int]:
    """A `randint` without chance."""
    return lambda low, high: min(low + node - 1, high)


def _group(story: Story, arguments: Arguments) -> None:
    voters = arguments.number()
    story.settings = Settings(
        election_ticks=10,
        heartbeat_ticks=2,
        max_append_bytes=arguments.option("append_bytes", 1 << 20),
        max_inflight_messages=arguments.option("window", 64),
        max_inflight_bytes=arguments.option("window_bytes", 64 << 20),
        max_uncommitted_bytes=arguments.option("uncommitted_bytes", 128 << 20),
        max_apply_bytes=arguments.option("apply_bytes", 4 << 20),
    )
    for node in range(1, voters + 1):
        story.join(Host(node, voters, settings=story.settings, randint=_patience(node)))


def _log(story: Story, arguments: Arguments) -> None:
    node = arguments.node()
    start = arguments.text_option("start") or "0@0"
    term, vote = arguments.option("term", 0), arguments.node_option("vote")
    commit, applied = arguments.option("commit", 0), arguments.option("applied", 0)
    log = " ".join(arguments.rest())
    story.join(
        Host(
            node,
            story.host(node).raft.configuration.voters,
            log=log,
            start=start,
            term=max(term, *(int(word.partition("@")[2]) for word in log.split())),
            vote=vote,
            commit=commit,
            applied=applied,
            settings=story.settings,
            randint=_patience(node),
        )
    )


def _start(story: Story, arguments: Arguments) -> None:
    node = arguments.node()
    if node in story.group.hosts:
        raise ScriptError(f"there is {node_name(node)} already")
    story.join(Host(node, (), settings=story.settings, randint=_patience(node)))


def _crash(story: Story, arguments: Arguments) -> None:
    host = story.up(arguments.node())
    host.crash(surviving=arguments.option("surviving", 0))
    story.slow.discard(host.node)
    story.tell(f"{node_name(host.node)} is down, its disk has {_stored(host)}")


def _stored(host: Host) -> str:
    state = host.disk.hard_state
    vote = "nobody" if state.vote is None else node_name(state.vote)
    return f"{wording.entries(host.disk.log)}, term {state.term} vote {vote}"


def _restart(story: Story, arguments: Arguments) -> None:
    node = arguments.node()
    host = story.host(node)
    if host.up:
        raise ScriptError(f"{node_name(node)} is up")
    host.restart(applied=arguments.option("applied", host.disk.start.index))
    story.join(host)
    story.tell(wording.role(host.raft))


def _slow(story: Story, arguments: Arguments) -> None:
    story.slow.add(story.up(arguments.node()).node)


def _sync(story: Story, arguments: Arguments) -> None:
    """Let the fsync under way end; those after it are fast again, unless it is for `once`."""
    host = story.up(arguments.node())
    if host.pending is None:
        raise ScriptError(f"no fsync of {node_name(host.node)} is under way")
    if not arguments.flag("once"):
        story.slow.discard(host.node)
    story.tell(f"{node_name(host.node)} has synced", detail=True)
    story.complete(host)


def _cut(story: Story, arguments: Arguments) -> None:
    host, through = story.up(arguments.node()), arguments.number()
    if host.pending is not None:
        raise ScriptError("a write is under way")
    if not host.raft.log.first_index <= through <= host.raft.log.applied:
        raise ScriptError(f"{through} is not in the log, or not applied")
    host.disk.cut(through)


# Inputs.


def _tick(story: Story, arguments: Arguments) -> None:
    hosts = story.all_up() if arguments.flag("all") else [story.up(arguments.node())]
    for _ in range(arguments.number(default=1)):
        for host in hosts:
            host.raft.tick()
        story.settle()


def _pass(story: Story, arguments: Arguments) -> None:
    for _ in range(arguments.number()):
        for host in story.all_up():
            host.raft.tick()
        story.run()


def _campaign(story: Story, arguments: Arguments) -> None:
    story.up(arguments.node()).raft.campaign()


def _elect(story: Story, arguments: Arguments) -> None:
    host = story.up(arguments.node())
    host.raft.campaign()
    story.silently(story.run)
    if not host.leads:
        raise ScriptError(f"{node_name(host.node)} has not been elected")
    story.tell(wording.role(host.raft))


def _propose(story: Story, arguments: Arguments) -> None:
    host = story.up(arguments.node())
    for data in arguments.rest():
        _try(story, host.node, partial(host.raft.propose, data.encode()))


def _read(story: Story, arguments: Arguments) -> None:
    host = story.up(arguments.node())
    lease = arguments.flag("lease")
    for request in arguments.numbers():
        _try(story, host.node, partial(host.raft.read_index, request, lease=lease))


def _lose(story: Story, arguments: Arguments) -> None:
    raft = story.up(arguments.node()).raft
    raft.clock += arguments.number()


def _transfer(story: Story, arguments: Arguments) -> None:
    host = story.up(arguments.node())
    _try(story, host.node, partial(host.raft.transfer_leadership, arguments.node()))


def _change(story: Story, arguments: Arguments) -> None:
    host, changes = story.up(arguments.node()), arguments.changes()
    force = arguments.flag("force")
    _try(story, host.node, partial(host.raft.change_members, changes, force=force))


def _unreachable(story: Story, arguments: Arguments) -> None:
    story.up(arguments.node()).raft.report_unreachable(arguments.node())


def _snapshot(story: Story, arguments: Arguments) -> None:
    """Send the state as far as it is applied; it arrives like a message, staged and durable."""
    raft, to = story.up(arguments.node()).raft, arguments.node()
    last = Position(raft.log.applied, raft.log.term(raft.log.applied))
    configuration: Configuration = raft.committed_configuration
    story.send(
        [
            InstallSnapshot(
                sender=raft.node,
                recipient=to,
                term=raft.term,
                last=last,
                configuration=configuration,
            )
        ]
    )


def _report(story: Story, arguments: Arguments) -> None:
    raft, to = story.up(arguments.node()).raft, arguments.node()
    raft.report_snapshot(to, None if arguments.flag("failed") else Index(arguments.number()))


def _try(story: Story, node: NodeId, call: Callable[[], object]) -> None:
    """An input that the core may refuse."""
    try:
        call()
    except ChangeRefused as error:
        danger = " (could be forced)" if error.endangers_quorum else ""
        story.tell(f"{node_name(node)} refuses: {error}{danger}")
    except ProposalRefused as error:
        story.tell(f"{node_name(node)} refuses: {type(error).__name__}")
    except ValueError as error:
        story.tell(f"{node_name(node)} refuses: {error}")


# What is on its way.


def _run(story: Story, arguments: Arguments) -> None:
    arguments.end()
    story.run()


def _deliver(story: Story, arguments: Arguments) -> None:
    chosen = story.chosen(arguments)
    story.take_out(chosen)
    story.deliver(chosen)


def _copy(story: Story, arguments: Arguments) -> None:
    story.deliver(story.chosen(arguments))


def _drop(story: Story, arguments: Arguments) -> None:
    story.take_out(story.chosen(arguments))


def _hold(story: Story, arguments: Arguments) -> None:
    chosen = story.chosen(arguments)
    story.take_out(chosen)
    story.held += chosen


def _release(story: Story, arguments: Arguments) -> None:
    arguments.end()
    if not story.held:
        raise ScriptError("nothing is held")
    story.group.queue += story.held
    story.held = []


def _block(story: Story, arguments: Arguments) -> None:
    story.group.block(story.host(arguments.node()).node, story.host(arguments.node()).node)


def _isolate(story: Story, arguments: Arguments) -> None:
    story.group.isolate(*(story.host(node).node for node in arguments.nodes()))


def _heal(story: Story, arguments: Arguments) -> None:
    arguments.end()
    story.group.heal()


# What there is to see.


def _status(story: Story, arguments: Arguments) -> None:
    only = [story.up(node) for node in arguments.nodes()] if arguments.has_more else story.all_up()
    for host in only:
        for line in wording.status(host.raft):
            story.tell(line)


def _logs(story: Story, arguments: Arguments) -> None:
    arguments.end()
    for host in story.all_up():
        story.tell(wording.log(host.raft))


def _queue(story: Story, arguments: Arguments) -> None:
    arguments.end()
    for message in story.group.queue:
        text = wording.message(message)
        story.tell(f"{node_name(message.sender)} → {node_name(message.recipient)} {text}")


COMMANDS: dict[str, Callable[[Story, Arguments], None]] = {
    "group": _group,
    "log": _log,
    "start": _start,
    "crash": _crash,
    "restart": _restart,
    "slow": _slow,
    "sync": _sync,
    "cut": _cut,
    "tick": _tick,
    "pass": _pass,
    "campaign": _campaign,
    "elect": _elect,
    "propose": _propose,
    "read": _read,
    "lose": _lose,
    "transfer": _transfer,
    "change": _change,
    "unreachable": _unreachable,
    "snapshot": _snapshot,
    "report": _report,
    "run": _run,
    "deliver": _deliver,
    "copy": _copy,
    "drop": _drop,
    "hold": _hold,
    "release": _release,
    "block": _block,
    "isolate": _isolate,
    "heal": _heal,
    "status": _status,
    "logs": _logs,
    "queue": _queue,
}
