"""Where pods live: a network namespace each, and one hosts file that stands in for the DNS.

A pod gets a new address whenever it is made, as in a real cluster. All pods, and the program
that runs the play, see the same hosts file: its names are those of the Services.

Rule of this file: nothing of it is in the network or the files of the machine. What is made
here belongs to the hub (tests/chaos/namespaces.py) inside which the program runs.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos import namespaces

SETUP: Final = """
mount --bind "$1" /etc/hosts && mount --bind /dev/null /etc/resolv.conf || exit 125
mount -t tmpfs none /var/lib && mkdir "$3" && mount --bind "$2" "$3" || exit 125
shift 3
exec setpriv --pdeathsig KILL -- "$@"
"""
"""In a mount namespace of the pod's own: the names, no other DNS, and the volume in its place."""


@dataclass(frozen=True)
class Place:
    """One pod's share of the network."""

    namespace: str
    ip: str

    def command(self, hosts: Path, volume: Path, mount: str, command: list[str]) -> list[str]:
        """What runs the command there; it keeps the pid, and ends with its parent."""
        return [
            *namespaces.enter(self.namespace),
            *("unshare", "--mount", "--propagation", "slave", "sh", "-c", SETUP, "sh"),
            *(str(hosts), str(volume), mount),
            *command,
        ]


class PodNetwork:
    """Of the hub in which this program runs."""

    def __init__(self, directory: Path) -> None:
        self._prefix = os.environ[namespaces.INSIDE]
        self._made = 0
        self.hosts = directory / "hosts"
        self.hosts.write_text("")
        namespaces.run(("mount", "--bind", str(self.hosts), "/etc/hosts"))
        namespaces.run(("mount", "--bind", "/dev/null", "/etc/resolv.conf"))

    def add(self) -> Place:
        """A place with an address that nobody had before."""
        self._made += 1
        place = Place(f"{self._prefix}-pod{self._made}", f"10.213.0.{self._made}")
        center = f"{self._prefix}-hub"
        namespaces.add_place(center, place.namespace, place.ip, f"pod{self._made}")
        return place

    def cut(self, place: Place) -> None:
        """Nothing reaches it any more, and nothing that it has to say reaches anybody."""
        namespaces.run(("ip", "-n", place.namespace, "link", "set", namespaces.INTERFACE, "down"))

    def remove(self, place: Place) -> None:
        """Nobody answers there any more, not even with a refusal."""
        namespaces.run(("ip", "netns", "del", place.namespace))

    def name(self, names: Mapping[str, Iterable[str]]) -> None:
        """Have these names stand for these addresses, and no others."""
        lines = ["127.0.0.1 localhost"]
        lines += [f"{ip} {name}" for name, ips in names.items() for ip in ips]
        content = "".join(f"{line}\n" for line in lines).encode()
        # In place: every pod has bound this very file. Never empty, even for a moment.
        with self.hosts.open("r+b") as file:
            file.write(content)
            file.truncate()
