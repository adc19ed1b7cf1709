"""The alert rules of deploy/kubernetes, and the metrics that they ask for."""

from collections.abc import Iterator
from functools import cache
from typing import Final

import promql_parser

from tests.support import manifests
from tests.support.manifests import Object

FOREIGN: Final = {
    "up": "Prometheus itself",
    "kube_cronjob_status_last_successful_time": "kube-state-metrics",
    "kube_cronjob_created": "kube-state-metrics",
}
"""What no node tells, and who does."""


@cache
def rules() -> list[Object]:
    [found] = [one for one in manifests.render("prod-monitored") if one["kind"] == "PrometheusRule"]
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def selectors(expression: promql_parser.Expr) -> Iterator[promql_parser.VectorSelector]:
    """All selectors in an expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
        return
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        inner = getattr(expression, name, None)
        if isinstance(inner, promql_parser.Expr):
            yield from selectors(inner)
    for inner in getattr(expression, "args", ()):
        yield from selectors(inner)


def metrics() -> set[str]:
    """The names that the rules ask for, of what a node tells."""
    asked = (promql_parser.parse(rule["expr"]) for rule in rules())
    return {str(one.name) for expression in asked for one in selectors(expression)} - {*FOREIGN}
