"""A node that leads alone, and the dispatcher of its calls."""

from collections.abc import AsyncIterator

import pytest

from kvorum_node.services.dispatch import Dispatcher
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually


@pytest.fixture
async def n1() -> AsyncIterator[DrivenNode]:
    """The only voter, and so the leader."""
    async with DrivenNode(voters=1) as node:
        await eventually(lambda: node.group.machine.applied == 1)
        yield node


@pytest.fixture
def dispatcher(n1: DrivenNode) -> Dispatcher:
    return Dispatcher(n1.group)
