"""The command line, `kvorum`.

    app.py              the commands put together; errors and exit statuses
    node.py             `kvorum node`: flags, environment and file become one configuration
    cluster.py          `kvorum cluster ...`: what is printed about a local cluster
    member.py           `kvorum member list | add | promote | remove`
    founding.py         `kvorum init`: the first node of a cluster
    snapshot.py         `kvorum snapshot save | verify | restore`
    recover.py          `kvorum recover`: what is left of a cluster that lost its majority
    data.py             `kvorum get | put | delete | list | add | status`
    lifetime.py         `kvorum ttl | touch | persist`
    watch.py            `kvorum watch`
    verify.py           `kvorum verify`
    compact.py          `kvorum compact`
    transfer.py         `kvorum import | export`

    settings.py         where each setting of a node comes from, and what is wrong with it
    bulk.py             writing many records, over a failover too
    local_cluster.py    node processes on this machine, as a class without a terminal
    local_node.py       one of them: its things, its port, what it says
    cluster_file.py     what it remembers on disk
    processes.py        processes, told apart from others that got the same pid
    part_file.py        a file that is there whole, or not at all
    records.py          a key and its value as one line of JSON, exactly
    node_view.py        what a node says about itself, for tables and JSON
    console.py          the two streams, and tables that fit a terminal or a pipe

Exit statuses: 0 done, 1 failed (one line `error: ...` on stderr), 2 wrong usage,
130 interrupted.

Rule of this package: what is slow to import (grpc, the node, psutil) is imported
by the command that needs it, so that `kvorum --help` answers at once.
"""

import signal
import sys


def main() -> None:
    """The entry point of the `kvorum` command."""
    if sys.argv[1:2] == ["node"]:
        # The first process of a container is not ended by a signal that it does not handle. Until
        # the node does, while its modules are still loaded, this is what ends it.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        # Here, inside: Ctrl-C may come while the modules are still loaded.
        from kvorum.cli.app import app  # noqa: PLC0415 - importing the package stays free of typer

        app()
    except KeyboardInterrupt:
        sys.exit(130)
