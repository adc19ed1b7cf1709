"""What the objects have to keep beyond their schemas; and each rule is seen broken.

`MUTATIONS` takes something away, or alters it, as a slip of the hand would. Each has to be
found by the rule that it is listed with, and each rule has to find one.
"""

import copy
from typing import Any

import pytest

from tests.support import manifests
from tests.support.manifest_policies import POLICIES
from tests.support.manifests import OVERLAYS, Object, find

Path = tuple[str | int, ...]

POD: Path = ("spec", "template", "spec")
NODE: Path = (*POD, "containers", 0)
JOB: Path = ("spec", "jobTemplate", "spec", "template", "spec")
SET, CRON, NETWORK = "StatefulSet/kvorum", "CronJob/kvorum-backup", "NetworkPolicy/kvorum"
PEERS, CLIENTS = "Service/kvorum-peers", "Service/kvorum"
BUDGET, MONITOR = "PodDisruptionBudget/kvorum", "ServiceMonitor/kvorum"
CLAIM = "PersistentVolumeClaim/kvorum-backups"
GONE = object()

MUTATIONS: dict[str, list[tuple[str, Path, Any]]] = {
    "selectors_find_pods": [
        (CLIENTS, ("spec", "selector", "app.kubernetes.io/component"), "nodes"),
        (PEERS, ("spec", "selector", "app.kubernetes.io/component"), "backup"),
        (SET, ("spec", "template", "metadata", "labels", "app.kubernetes.io/name"), "kvorum2"),
        (BUDGET, ("spec", "selector", "matchLabels", "app.kubernetes.io/name"), "kvroum"),
        (
            SET,
            (
                *(*POD, "topologySpreadConstraints", 0, "labelSelector", "matchLabels"),
                "app.kubernetes.io/name",
            ),
            "other",
        ),
        (NETWORK, ("spec", "podSelector", "matchLabels", "app.kubernetes.io/component"), "n"),
        (MONITOR, ("spec", "selector", "matchLabels", "app.kubernetes.io/component"), "clients"),
    ],
    "ports_exist": [
        (CLIENTS, ("spec", "ports", 0, "targetPort"), "http"),
        (PEERS, ("spec", "ports", 1, "port"), 7102),
        (SET, (*NODE, "livenessProbe", "httpGet", "port"), "grpc"),
        (SET, (*NODE, "ports", 2, "containerPort"), 7181),
        (SET, (*NODE, "env", 3, "value"), "0.0.0.0:7000"),
        (SET, (*NODE, "args", 1), "--join=kvorum-peer.default.svc:7100"),
        (SET, (*NODE, "args", 1), "--join=kvorum.default.svc:7101"),
        (SET, (*NODE, "env", 2, "value"), "$(POD_NAME).kvorum-peers.$(POD_NAMESPACE).svc:7101"),
        (NETWORK, ("spec", "ingress", 1, "ports", 0, "port"), "peers"),
        (MONITOR, ("spec", "endpoints", 0, "port"), "metrics"),
    ],
    "probes_ask_what_they_are_for": [
        (SET, (*NODE, "livenessProbe", "httpGet", "path"), "/readyz"),
        (SET, (*NODE, "readinessProbe", "httpGet", "path"), "/livez"),
        (SET, (*NODE, "startupProbe", "failureThreshold"), 3),
        (SET, (*NODE, "livenessProbe", "failureThreshold"), 1),
        (MONITOR, ("spec", "endpoints", 0, "path"), "/"),
    ],
    "settings_are_taken": [
        (SET, (*NODE, "args", 1), "--joins=kvorum-peers:7100"),
        (SET, (*NODE, "env", 2, "name"), "KVORUM_ADVERTISED"),
        (SET, (*NODE, "env", 4, "value"), "peer"),
        (SET, (*NODE, "env", 4, "value"), "7100"),
        (SET, (*NODE, "args", 0), "node n1"),
        (SET, (*NODE, "env", 2, "value"), "kvorum-0.kvorum-peers.$(POD_NAMESPACE).svc:7100"),
        ("ConfigMap/kvorum-settings", ("data", "KVORUM_QUOTA"), "1"),
        ("ConfigMap/kvorum-settings", ("data", "KVORUM_LOG_FORMAT"), "xml"),
        (CRON, (*JOB, "containers", 0, "env", 0, "name"), "KVORUM_TARGETS"),
    ],
    "variables_are_defined_first": [
        (SET, (*NODE, "env", 0, "name"), "POD"),
        (SET, (*NODE, "args", 1), "--join=kvorum-peers.$(NAMESPACE).svc:7100"),
    ],
    "references_exist": [
        (SET, (*NODE, "envFrom", 0, "configMapRef", "name"), "kvorum-backup"),
        (SET, (*NODE, "volumeMounts", 0, "name"), "disk"),
        (SET, ("spec", "serviceName"), "kvorum"),
        (SET, (*POD, "serviceAccountName"), "kvorum"),
        (PEERS, ("spec", "publishNotReadyAddresses"), False),
        (PEERS, ("spec", "clusterIP"), GONE),
        (CRON, (*JOB, "volumes", 0, "persistentVolumeClaim", "claimName"), "backups"),
        (CRON, (*JOB, "volumes", 1, "configMap", "name"), "backup"),
        (CRON, (*JOB, "volumes", 1), {"name": "scripts", "secret": {"secretName": "s"}}),
        (
            CRON,
            (*JOB, "containers", 0, "env", 0),
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ),
    ],
    "volumes_are_mounted_where_needed": [
        (SET, (*NODE, "volumeMounts", 0, "mountPath"), "/data"),
        (SET, (*NODE, "env", 6, "value"), "/var/lib/kvorum"),
        (SET, ("spec", "persistentVolumeClaimRetentionPolicy", "whenScaled"), "Delete"),
        (SET, ("spec", "persistentVolumeClaimRetentionPolicy"), GONE),
    ],
    "there_is_room": [
        ("ConfigMap/kvorum-settings", ("data", "KVORUM_QUOTA_BYTES"), str(16 << 30)),
        (CLAIM, ("spec", "resources", "requests", "storage"), "20Gi"),
    ],
    "memory_is_guaranteed": [
        (SET, (*NODE, "resources", "requests", "memory"), "2Gi"),
        (SET, (*NODE, "resources", "limits", "memory"), "8Gi"),
        (SET, (*NODE, "env", 7), {"name": "KVORUM_MEMORY_BYTES", "value": str(512 << 20)}),
        (CRON, (*JOB, "containers", 0, "resources"), GONE),
    ],
    "a_budget_leaves_a_majority": [
        (BUDGET, ("spec", "maxUnavailable"), 2),
        (BUDGET, ("spec", "maxUnavailable"), "50%"),
        (BUDGET, ("spec", "maxUnavailable"), GONE),
        (BUDGET, ("kind",), "Budget"),
    ],
    "a_stop_fits_into_the_grace": [
        (SET, (*POD, "terminationGracePeriodSeconds"), 10),
        (SET, (*NODE, "lifecycle"), GONE),
        (SET, (*NODE, "lifecycle", "preStop", "sleep", "seconds"), 55),
    ],
    "pods_are_restricted": [
        *(
            (workload, (*pod, *path), value)
            for workload, pod in ((SET, POD), (CRON, JOB))
            for path, value in (
                (("securityContext", "runAsNonRoot"), GONE),
                (("securityContext", "runAsUser"), 0),
                (("securityContext", "fsGroup"), GONE),
                (("securityContext", "seccompProfile"), {"type": "Unconfined"}),
                (("hostNetwork",), True),
                (("automountServiceAccountToken",), GONE),
                (("volumes",), [{"name": "host", "hostPath": {"path": "/"}}]),
                (("containers", 0, "securityContext", "allowPrivilegeEscalation"), GONE),
                (("containers", 0, "securityContext", "readOnlyRootFilesystem"), False),
                (("containers", 0, "securityContext", "capabilities", "add"), ["SYS_ADMIN"]),
                (("containers", 0, "securityContext", "privileged"), True),
                (("containers", 0, "securityContext"), GONE),
            )
        ),
        (SET, (*NODE, "ports", 0, "hostPort"), 7100),
    ],
    "no_variables_come_from_services": [
        (SET, (*POD, "enableServiceLinks"), GONE),
        (CRON, (*JOB, "enableServiceLinks"), True),
    ],
    "there_is_one_image": [
        (SET, (*NODE, "image"), "kvorum:latest"),
        (SET, (*NODE, "image"), "kvorum"),
        (CRON, (*JOB, "containers", 0, "image"), "kvorum:0.0.9"),
    ],
    "nodes_start_together_and_are_updated_apart": [
        (SET, ("spec", "podManagementPolicy"), "OrderedReady"),
        (SET, ("spec", "updateStrategy", "type"), "OnDelete"),
        (SET, ("spec", "updateStrategy", "rollingUpdate"), {"maxUnavailable": 2}),
        (SET, ("spec", "minReadySeconds"), GONE),
    ],
    "nodes_are_spread": [
        (SET, (*POD, "topologySpreadConstraints"), GONE),
        (SET, (*POD, "topologySpreadConstraints", 0, "maxSkew"), 3),
        (SET, (*POD, "affinity"), GONE),
    ],
    "the_network_lets_in_who_has_to_come": [
        (NETWORK, ("spec", "ingress", 1, "from"), GONE),
        (NETWORK, ("spec", "ingress", 0, "from", 0), {"podSelector": {}}),
        (NETWORK, ("spec", "ingress", 0, "ports", 0, "port"), "peer"),
        (NETWORK, ("spec", "egress", 1, "ports", 0, "port"), 5353),
        (NETWORK, ("spec", "egress", 0, "ports", 1), {"port": "admin"}),
        (CRON, (*JOB[:-1], "metadata", "labels", "kvorum-client"), GONE),
    ],
    "backups_run_one_at_a_time": [
        (CRON, ("spec", "concurrencyPolicy"), "Allow"),
        (CRON, ("spec", "jobTemplate", "spec", "activeDeadlineSeconds"), GONE),
        (CRON, (*JOB, "restartPolicy"), "OnFailure"),
    ],
}


def mutate(objects: list[Object], which: str, path: Path, value: Any) -> None:
    """Put a value in a place, or take away what is there."""
    kind, _, name = which.partition("/")
    if kind == "ConfigMap":  # whose name ends in a hash
        [name] = [
            one["metadata"]["name"]
            for one in objects
            if one["kind"] == kind and one["metadata"]["name"].startswith(name)
        ]
    place: Any = find(objects, kind, name)
    for step in path[:-1]:
        place = place.setdefault(step, {}) if isinstance(place, dict) else place[step]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Object]]:
    return {overlay: manifests.render(overlay) for overlay in OVERLAYS}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_keeps_the_rule(
    overlay: str, policy: str, rendered: dict[str, list[Object]]
) -> None:
    assert POLICIES[policy](rendered[overlay]) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_the_pod_that_does_nothing_keeps_the_rules(
    policy: str, rendered: dict[str, list[Object]]
) -> None:
    """It is applied by hand, beside an overlay."""
    [shell] = manifests.read(manifests.KUBERNETES / "volume-shell.yaml")
    assert POLICIES[policy]([*rendered["prod"], shell]) == []


def test_each_rule_is_seen_broken() -> None:
    assert MUTATIONS.keys() == POLICIES.keys()


@pytest.mark.parametrize(
    ("policy", "which", "path", "value"),
    [
        pytest.param(policy, *mutation, id=f"{policy}-{number}")
        for policy, mutations in MUTATIONS.items()
        for number, mutation in enumerate(mutations)
    ],
)
def test_a_slip_is_found(
    policy: str, which: str, path: Path, value: Any, rendered: dict[str, list[Object]]
) -> None:
    objects = copy.deepcopy(rendered["prod-monitored"])
    mutate(objects, which, path, value)
    assert POLICIES[policy](objects) != []
