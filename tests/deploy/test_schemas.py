"""Every object is one that the API server takes, by its own schemas, strictly.

Of the oldest version that is supported, as base/kustomization.yaml says, and of the newest
that kubernetes-validate knows. What the Prometheus operator reads has no schema there: the
few fields that we use are written out here, as its reference has them.
"""

import re
from typing import Annotated, Literal

import kubernetes_validate
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tests.support import manifests
from tests.support.manifests import KUBERNETES, OVERLAYS, Object

OF_THE_OPERATOR = "monitoring.coreos.com/v1"


def oldest_version() -> str:
    """As it is said in one place."""
    text = (KUBERNETES / "base/kustomization.yaml").read_text()
    [version] = re.findall(r"Kubernetes (1\.\d+) or newer", text)
    return str(version)


VERSIONS = (oldest_version(), str(kubernetes_validate.latest_version()))


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Duration = Annotated[str, Field(pattern=r"^[1-9][0-9]*(s|m|h|d)$")]
Labels = dict[str, str]


class Metadata(Part):
    name: str
    labels: Labels


class Selector(Part):
    matchLabels: Labels  # noqa: N815 - as the operator calls it


class Endpoint(Part):
    port: str
    path: str
    interval: Duration
    scrapeTimeout: Duration  # noqa: N815 - as the operator calls it


class MonitorSpec(Part):
    selector: Selector
    endpoints: list[Endpoint]


class Rule(Part):
    alert: Annotated[str, Field(pattern=r"^Kvorum[A-Za-z]+$")]
    expr: str
    for_: Annotated[Duration, Field(alias="for")]
    labels: dict[Literal["severity"], Literal["warning", "critical"]]
    annotations: dict[Literal["summary", "description"], str]


class Group(Part):
    name: str
    rules: Annotated[list[Rule], Field(min_length=1)]


class RuleSpec(Part):
    groups: Annotated[list[Group], Field(min_length=1)]


class ServiceMonitor(Part):
    apiVersion: Literal["monitoring.coreos.com/v1"]  # noqa: N815 - as Kubernetes calls it
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: MonitorSpec


class PrometheusRule(Part):
    apiVersion: Literal["monitoring.coreos.com/v1"]  # noqa: N815 - as Kubernetes calls it
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: RuleSpec


OPERATOR_OBJECT: TypeAdapter[ServiceMonitor | PrometheusRule] = TypeAdapter(
    Annotated[ServiceMonitor | PrometheusRule, Field(discriminator="kind")]
)


def check(one: Object, version: str) -> None:
    """Raise ValidationError, of either library, unless the API server would take it."""
    if one["apiVersion"] == OF_THE_OPERATOR:
        OPERATOR_OBJECT.validate_python(one)
    else:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid(overlay: str, version: str) -> None:
    for one in manifests.render(overlay):
        check(one, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pod_that_does_nothing_is_valid(version: str) -> None:
    for one in manifests.read(KUBERNETES / "volume-shell.yaml"):
        check(one, version)


def test_the_versions_are_two() -> None:
    """A schema that is not there is answered by that of an older version, without a word."""
    known = kubernetes_validate.utils.all_versions()
    assert {version.rpartition(".")[0] for version in known} >= {oldest_version()}
    assert VERSIONS[0] != VERSIONS[1]


def test_the_sleep_is_what_decides_the_oldest_version() -> None:
    """It came, as a beta that is on, with 1.30: before, the API server drops it."""
    sleeps = [
        container["lifecycle"]["preStop"].keys()
        for _, _, spec in manifests.pod_specs(manifests.render("prod"))
        for container in spec["containers"]
        if "lifecycle" in container
    ]
    assert sleeps == [{"sleep"}]
    assert oldest_version() == "1.30"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("StatefulSet", "kvorum", ("spec", "replica"), 3),
        ("StatefulSet", "kvorum", ("spec", "replicas"), "3"),
        ("Service", "kvorum", ("spec", "ports", 0, "targetport"), "grpc"),
        ("NetworkPolicy", "kvorum", ("spec", "ingress", 0, "port"), 7100),
        ("CronJob", "kvorum-backup", ("spec", "schedules"), "daily"),
        ("ServiceMonitor", "kvorum", ("spec", "endpoints", 0, "scheme_"), "http"),
        ("PrometheusRule", "kvorum", ("spec", "groups", 0, "rules", 0, "severity"), "warning"),
        ("PrometheusRule", "kvorum", ("spec", "groups", 0, "rules", 0, "for"), "soon"),
    ],
)
def test_what_is_wrong_is_found(
    kind: str, name: str, path: tuple[str | int, ...], value: object, version: str
) -> None:
    one = manifests.find(manifests.render("prod-monitored"), kind, name)
    place: Object = one
    for step in path[:-1]:
        place = place[step]  # type: ignore[index]  # a list has numbers for steps
    place[path[-1]] = value  # type: ignore[index]  # the same
    with pytest.raises((kubernetes_validate.ValidationError, ValueError)):
        check(one, version)
