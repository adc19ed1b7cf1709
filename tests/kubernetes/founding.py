"""Stands in for `kvorum init`: python founding.py DIRECTORY HOST:PORT."""

import sys
from pathlib import Path

from kvorum_node.node import DEFAULT_GROUP
from kvorum_node.raft.configuration import Configuration
from kvorum_node.storage.data_directory import Storage
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore


def found(directory: Path, address: str) -> None:
    """Make a directory that holds the only member of a new cluster, all at once."""
    beside = directory.with_name(f"{directory.name}.new")
    storage = Storage.open(beside, None)
    batch = Batch()
    alone = Configuration.of({storage.identity.node_id: address})
    RaftLogStore(storage.log, DEFAULT_GROUP).bootstrap(batch, alone)
    storage.log.write(batch)
    storage.log.sync()
    storage.close()
    beside.rename(directory)


if __name__ == "__main__":
    found(Path(sys.argv[1]), sys.argv[2])
