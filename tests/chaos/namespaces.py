"""A network of the kernel's own: each node in a network namespace, joined by a bridge.

    kvorum-chaos-<pid>-hub      the bridge, the clients, and the program that does all this
    kvorum-chaos-<pid>-n1, ...  a node, with one interface

Nothing of it is in the network of the machine. `hub` makes the namespaces and removes them;
it runs outside, and the program inside, with `INSIDE` set to the prefix. Packets are dropped
where they arrive (nftables), so that the sender cannot tell; they are delayed where they leave,
if the kernel can (netem). Needs root, and the commands in COMMANDS.

Rule of this file: everything carries the pid of its owner in its name. What an owner that is
no more has left behind is removed by the next one.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from tests.chaos.network import Place, Qualities, Quality

INSIDE: Final = "KVORUM_CHAOS_INSIDE"
COMMANDS: Final = ("ip", "nft", "nsenter", "unshare", "setpriv")
RUN: Final = Path("/run/netns")
PORT: Final = 7100
HUB_ADDRESS: Final = "10.213.0.254"
INTERFACE: Final = "eth0"


class CommandFailedError(Exception):
    """A command on the network did not succeed."""


def missing() -> str:
    """Why there can be no namespaces here; "" if there can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        return f"there is no {', '.join(absent)}"
    try:
        with hub(1) as (prefix, _):
            _nft(f"{prefix}-n1", _ruleset("n1", {("n2", "n1"): Quality(loss=0.5)}))
    except CommandFailedError as error:
        return str(error)
    return ""


def node_names(count: int) -> list[str]:
    return [f"n{number}" for number in range(1, count + 1)]


@contextlib.contextmanager
def hub(count: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Make a hub, and so many nodes; gives their prefix, and what runs a command inside.

    What still runs in them at the end is killed.
    """
    remove_leftovers()
    prefix = f"kvorum-chaos-{os.getpid()}"
    center = f"{prefix}-hub"
    try:
        _ip("netns", "add", center)
        _ip("-n", center, "link", "set", "lo", "up")
        _ip("-n", center, "link", "add", "bridge", "type", "bridge")
        _ip("-n", center, "address", "add", f"{HUB_ADDRESS}/24", "dev", "bridge")
        _ip("-n", center, "link", "set", "bridge", "up")
        for number, name in enumerate(node_names(count), 1):
            add_place(center, f"{prefix}-{name}", f"10.213.0.{number}", f"port{number}")
        # A mount namespace, too: what is mounted inside goes with the last process.
        inside = (
            *(*enter(center), "unshare", "--mount", "--propagation", "slave"),
            *("setpriv", "--pdeathsig", "KILL"),
        )
        yield prefix, inside
    finally:
        _remove(prefix)


def remove_leftovers() -> None:
    """Remove the namespaces of owners that are no more, and what still runs in them."""
    for path in RUN.glob("kvorum-chaos-*") if RUN.is_dir() else ():
        owner = re.match(r"kvorum-chaos-(\d+)-", path.name)
        if owner is not None and not psutil.pid_exists(int(owner[1])):
            _remove(owner[0].rstrip("-"))


def enter(namespace: str) -> tuple[str, ...]:
    return ("nsenter", f"--net={RUN / namespace}", "--")


class Namespaces:
    """The network, seen from inside the hub."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix = prefix
        self.kind = "namespaces"
        self.places: Mapping[str, Place] = {
            name: Place(
                name,
                f"10.213.0.{number}:{PORT}",
                f"10.213.0.{number}:{PORT}",
                enter(f"{prefix}-{name}"),
            )
            for number, name in enumerate(node_names(count), 1)
        }
        self.lacks_delay = self._probe_delay()
        self._delayed: set[str] = set()

    async def set(self, qualities: Qualities) -> None:
        for name in self.places:
            _nft(f"{self._prefix}-{name}", _ruleset(name, qualities))
            delay_ms = max(
                (quality.delay_ms for (sender, _), quality in qualities.items() if sender == name),
                default=0,
            )
            self._delay(name, delay_ms)

    def _delay(self, name: str, delay_ms: int) -> None:
        if delay_ms:
            verb = "change" if name in self._delayed else "add"
            delay = (f"{delay_ms}ms", f"{delay_ms // 4}ms")
            self._tc(name, verb, "netem", "delay", *delay)
            self._delayed.add(name)
        elif name in self._delayed:
            self._tc(name, "del")
            self._delayed.remove(name)

    def _tc(self, name: str, verb: str, *kind: str) -> None:
        run(("tc", "-n", f"{self._prefix}-{name}", "qdisc", verb, "dev", INTERFACE, "root", *kind))

    def _probe_delay(self) -> str:
        name = next(iter(self.places))
        try:
            self._tc(name, "add", "netem", "delay", "1ms")
            self._tc(name, "del")
        except (CommandFailedError, FileNotFoundError):
            return "the kernel has no netem"
        return ""


def add_place(center: str, namespace: str, address: str, port: str) -> None:
    """Make a namespace with one interface, that is joined to the bridge of the hub."""
    _ip("netns", "add", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    peer = ("type", "veth", "peer", "name", INTERFACE, "netns", namespace)
    _ip("-n", center, "link", "add", port, *peer)
    _ip("-n", center, "link", "set", port, "master", "bridge", "up")
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", INTERFACE)
    _ip("-n", namespace, "link", "set", INTERFACE, "up")


def _remove(prefix: str) -> None:
    for path in sorted(RUN.glob(f"{prefix}-*")):
        with contextlib.suppress(CommandFailedError):  # a file without its namespace is a remainder
            for pid in run(("ip", "netns", "pids", path.name)).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", path.name)
        path.unlink(missing_ok=True)


def _ruleset(recipient: str, qualities: Qualities) -> str:
    """What a node drops of what arrives, as a file for nft that replaces what was there."""
    rules = []
    for (sender, to), quality in sorted(qualities.items()):
        source = f"ip saddr 10.213.0.{sender.removeprefix('n')}"
        if to != recipient:
            continue
        if quality.blocked:
            rules.append(f"{source} drop")
        elif quality.loss:
            rules.append(f"{source} numgen random mod 1000 < {round(quality.loss * 1000)} drop")
    return "\n".join(
        [
            *("table inet chaos", "delete table inet chaos", "table inet chaos {"),
            *("chain arrivals {", "type filter hook input priority 0;", *rules, "}", "}", ""),
        ]
    )


def _nft(namespace: str, ruleset: str) -> None:
    run((*enter(namespace), "nft", "-f", "-"), given=ruleset)


def _ip(*arguments: str) -> None:
    run(("ip", *arguments))


def run(command: Sequence[str], *, given: str = "") -> str:
    """What the command prints; raises CommandFailedError."""
    ran = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise CommandFailedError(f"{' '.join(command)}: {ran.stderr.strip()}")
    return ran.stdout
