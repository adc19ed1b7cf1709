"""The figures of a node in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from kvorum_node.node import Node


def render(node: Node) -> bytes:
    """Must be called on the event loop."""
    registry = CollectorRegistry()
    Gauge("kvorum_applied_index", "Through which the log is applied.", registry=registry).set(
        node.group.machine.applied
    )
    return generate_latest(registry)
