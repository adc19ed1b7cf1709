"""Every line of a group opens with who speaks, in which role, and where its log ends:
`n1 leader 7@3`.
"""

import logging
from collections.abc import Callable, MutableMapping
from typing import Any

from kvorum_node.raft.core import Raft
from kvorum_node.raft.types import node_name
from kvorumpb.v1.cluster_pb2 import Role


class GroupLogger(logging.LoggerAdapter[logging.Logger]):
    """Says so beside the message; logs.py puts it in front."""

    def __init__(self, raft: Raft, role: Callable[[], Role.ValueType]) -> None:
        super().__init__(logging.getLogger("kvorum.node"))
        self._raft = raft
        self._role = role

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {
            "node": node_name(self._raft.node),
            "role": Role.Name(self._role()).lower().replace("_", "-"),
            "position": str(self._raft.log.last),
            "term": self._raft.term,
        }
        return msg, kwargs
