"""Every alert rule is PromQL, and asks for what there is."""

import re
from pathlib import Path

import promql_parser
import pytest

from tests.support import manifests
from tests.support.alerts import rules, selectors
from tests.support.manifests import Object

PAGE = Path(__file__).parents[2] / "docs/operations/kubernetes.md"

KEPT = {"namespace", "pod", "job"}
"""Labels that the operator gives to whatever it scrapes from a node."""


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_can_be_evaluated(rule: Object) -> None:
    found = [*selectors(promql_parser.parse(rule["expr"]))]
    assert found
    assert {str(one.name) for one in found} <= {*re.findall(r"[a-z_]+", rule["expr"])}
    jobs = re.findall(r'\bjob="([^"]*)"', rule["expr"])
    assert {*jobs} <= {"kvorum-peers"}  # as the operator calls what it finds by that Service
    assert {"CronJob/" + one for one in re.findall(r'cronjob="([^"]*)"', rule["expr"])} <= {
        workload for workload, _, _ in manifests.pod_specs(manifests.render("prod-monitored"))
    }


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_speaks_of_labels_that_are_left(rule: Object) -> None:
    """An aggregation keeps the labels that it names, and no others."""
    text = " ".join(rule["annotations"].values())
    used = {*re.findall(r"\$labels\.(\w+)", text)}
    kept = {"namespace"} if rule["alert"] == "KvorumBackupMissing" else KEPT | {"peer"}
    outer = re.match(r"\s*(?:sum|max|min|count) by \(([^)]*)\) \(", rule["expr"])
    if outer is not None and "group_right" not in rule["expr"]:
        kept = {one.strip() for one in outer[1].split(",")}
    assert used <= kept
    assert used


def test_each_alert_is_explained() -> None:
    explained = re.findall(r"^\| `(Kvorum\w+)` \|", PAGE.read_text(), re.M)
    assert explained == [rule["alert"] for rule in rules()]


def test_what_is_no_query_is_refused() -> None:
    with pytest.raises(ValueError, match="parenthesis"):
        promql_parser.parse("sum by (namespace (up)")
