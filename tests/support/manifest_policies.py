"""What the objects of an overlay have to keep, beyond what a schema sees: each rule is a function.

It takes all objects and returns what is wrong with them, a line each. `POLICIES` has them all;
tests/deploy/test_policies.py holds every overlay against them, and sees each of them fail.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import kvorum
from kvorum_node.termination import DRAIN_SECONDS
from tests.support.manifests import Object, find, pod_specs
from tests.support.pods import node_settings, quantity, read_variables, started

Policy = Callable[[list[Object]], list[str]]

NODE: Final = {"app.kubernetes.io/name": "kvorum", "app.kubernetes.io/component": "node"}
NODE_USER: Final = 7100
"""Whose the data is, as the image has it."""

CLIENT: Final = {"kvorum-client": "true"}
"""What a pod carries that may talk to the nodes: most of those are not ours."""

FOREIGN_NAMESPACE: Final = {"kubernetes.io/metadata.name": "monitoring"}


def selectors_find_pods(objects: list[Object]) -> list[str]:
    """Whatever selects pods selects some of ours, and the nodes alone where it is about them."""
    wrong = []
    for where, selector in _selectors(objects):
        if selector in (CLIENT, {}):
            continue
        selected = [
            workload for workload, metadata, _ in pod_specs(objects) if _matches(selector, metadata)
        ]
        if selected != ["StatefulSet/kvorum"]:
            wrong.append(f"{where} selects {selected or 'no pod'} by {selector}")
    for one in _of_kind(objects, "ServiceMonitor"):
        labels = one["spec"]["selector"]["matchLabels"]
        services = [
            service["metadata"]["name"]
            for service in _of_kind(objects, "Service")
            if _matches(labels, service["metadata"])
        ]
        if services != ["kvorum-peers"]:
            wrong.append(f"the ServiceMonitor selects {services}")
    return wrong


def ports_exist(objects: list[Object]) -> list[str]:
    """A port that is named somewhere is one of the container, and the node listens there."""
    container = _node(objects)
    declared = {port["name"]: port["containerPort"] for port in container["ports"]}
    settings = node_settings(started(objects, _node_spec(objects), container, pod="kvorum-0"))
    listens = {
        "grpc": int(settings.listen.rpartition(":")[2]),
        "peer": settings.peer_port,
        "admin": int(settings.admin_listen.rpartition(":")[2]),
    }
    wrong = [] if declared == listens else [f"it declares {declared}, and listens on {listens}"]
    if int(settings.address.rpartition(":")[2]) != listens["grpc"]:
        wrong.append(f"it is to be found at {settings.address}, where it does not listen")
    wrong += [
        f"{name} goes to the port {container[name]['httpGet']['port']}"
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
        if container[name]["httpGet"]["port"] != "admin"
    ]
    services = {}
    for one in _of_kind(objects, "Service"):
        ports = one["spec"]["ports"]
        services[one["metadata"]["name"]] = {port["name"]: port["port"] for port in ports}
        wrong += [
            f"the Service {one['metadata']['name']} has {port}"
            for port in ports
            if declared.get(port["targetPort"]) != port["port"]
        ]
    for one in _of_kind(objects, "ServiceMonitor"):
        wrong += [
            f"the ServiceMonitor looks at {endpoint}"
            for endpoint in one["spec"]["endpoints"]
            if endpoint["port"] != "admin" or "admin" not in services["kvorum-peers"]
        ]
    for one in _of_kind(objects, "NetworkPolicy"):
        wrong += [
            f"the NetworkPolicy knows the port {port['port']}"
            for rule in [*one["spec"]["ingress"], *one["spec"]["egress"]]
            for port in rule["ports"]
            if port["port"] not in {*declared, 53}
        ]
    return [*wrong, *_addresses_in_the_open(settings.join, services)]


def _addresses_in_the_open(join: tuple[str, ...], services: dict[str, Any]) -> list[str]:
    return [
        f"it is to join {address}: no such Service and port"
        for address in join
        for host, _, port in [address.rpartition(":")]
        if int(port) not in services.get(host.partition(".")[0], {}).values()
    ]


def probes_ask_what_they_are_for(objects: list[Object]) -> list[str]:
    """A restart is for a process that makes no progress, after some time, and for nothing else."""
    container = _node(objects)
    wrong = [
        f"{name} asks {container[name]['httpGet']['path']}"
        for name, path in (
            ("startupProbe", "/livez"),
            ("readinessProbe", "/readyz"),
            ("livenessProbe", "/livez"),
        )
        if container[name]["httpGet"]["path"] != path
    ]
    for name, seconds in (("startupProbe", 300), ("livenessProbe", 60)):
        probe = container[name]
        if probe["failureThreshold"] * probe["periodSeconds"] < seconds:
            wrong.append(f"{name} gives up within {seconds} s")
    wrong += [
        f"the ServiceMonitor asks {endpoint['path']}"
        for one in _of_kind(objects, "ServiceMonitor")
        for endpoint in one["spec"]["endpoints"]
        if endpoint["path"] != "/metrics"
    ]
    return wrong


def settings_are_taken(objects: list[Object]) -> list[str]:
    """The real parser takes arguments and environment of every node, and knows each variable."""
    container, wrong = _node(objects), []
    for ordinal in range(find(objects, "StatefulSet", "kvorum")["spec"]["replicas"]):
        pod = f"kvorum-{ordinal}"
        start = started(objects, _node_spec(objects), container, pod=pod)
        try:
            settings = node_settings(start)
        except ValueError as error:
            wrong.append(f"{pod}: {error}")
            continue
        if settings.address != f"{pod}.kvorum-peers.default.svc:7100":
            wrong.append(f"{pod} is to be found at {settings.address}")
        if bool(settings.name) != bool(settings.cluster):
            wrong.append(f"{pod} has the name {settings.name!r}: only the volume may say so")
    for workload, container in _containers(objects):
        wrong += [
            f"{workload}: nothing reads {variable}"
            for variable in _variables(objects, container)
            if variable.startswith("KVORUM_") and variable not in read_variables()
        ]
    return wrong


def variables_are_defined_first(objects: list[Object]) -> list[str]:
    """$(NAME) in a value stands for what comes before it, and for nothing else."""
    wrong = []
    for workload, container in _containers(objects):
        known = set(_from_config_maps(objects, container))
        for variable in container.get("env", ()):
            used = set(re.findall(r"\$\(([A-Z_]+)\)", variable.get("value", "")))
            wrong += [
                f"{workload}: {variable['name']} uses {name}" for name in sorted(used - known)
            ]
            known.add(variable["name"])
        used = set(re.findall(r"\$\(([A-Z_]+)\)", " ".join(container.get("args", ()))))
        wrong += [f"{workload}: args use {name}" for name in sorted(used - known)]
    return wrong


def references_exist(objects: list[Object]) -> list[str]:
    """ConfigMaps, Secrets, claims, volumes, accounts, the headless Service: all are there."""
    have = {(one["kind"], _name(one)) for one in objects}
    wrong = []
    for workload, _, spec in pod_specs(objects):
        wanted = {*_wanted_by_volumes(spec), *_wanted_by_containers(spec)}
        if "serviceAccountName" in spec:
            wanted.add(("ServiceAccount", spec["serviceAccountName"]))
        wrong += [f"{workload} needs {kind}/{name}" for kind, name in sorted(wanted - have)]
        mounted = {
            mount["name"]
            for container in spec["containers"]
            for mount in container.get("volumeMounts", ())
        }
        missing = mounted - _volumes(objects, workload, spec)
        wrong += [f"{workload} has no volume {name}" for name in sorted(missing)]
    peers = find(objects, "StatefulSet", "kvorum")["spec"]["serviceName"]
    service = next((one for one in _of_kind(objects, "Service") if _name(one) == peers), None)
    if service is None or service["spec"].get("clusterIP") != "None":
        wrong.append(f"the nodes' names are those of {peers}, which is no headless Service")
    elif not service["spec"].get("publishNotReadyAddresses"):
        wrong.append(f"{peers} hides nodes that are not ready, which are not without it")
    return wrong


def _wanted_by_volumes(spec: Object) -> Iterator[tuple[str, str]]:
    for volume in spec.get("volumes", ()):
        match volume:
            case {"configMap": {"name": name}}:
                yield "ConfigMap", name
            case {"secret": {"secretName": name}}:
                yield "Secret", name
            case {"persistentVolumeClaim": {"claimName": name}}:
                yield "PersistentVolumeClaim", name


def _wanted_by_containers(spec: Object) -> Iterator[tuple[str, str]]:
    for container in spec["containers"]:
        for source in container.get("envFrom", ()):
            yield "ConfigMap", source["configMapRef"]["name"]
        for variable in container.get("env", ()):
            match variable.get("valueFrom", {}):
                case {"configMapKeyRef": {"name": name}}:
                    yield "ConfigMap", name
                case {"secretKeyRef": {"name": name}}:
                    yield "Secret", name


def volumes_are_mounted_where_needed(objects: list[Object]) -> list[str]:
    """The data is in a directory of a volume, which is kept whatever becomes of the pod."""
    spec = find(objects, "StatefulSet", "kvorum")["spec"]
    container = _node(objects)
    directory = node_settings(
        started(objects, _node_spec(objects), container, pod="kvorum-0")
    ).data_dir
    claims = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in claims]
    wrong = [] if mounts == [str(directory.parent)] else [f"{directory} is not below {mounts}"]
    policy = spec.get("persistentVolumeClaimRetentionPolicy")
    if policy != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
        wrong.append(f"volumes are not kept: {policy}")
    return wrong


def there_is_room(objects: list[Object]) -> list[str]:
    """A volume holds two states, as a node that is sent one keeps the old one meanwhile."""
    spec = find(objects, "StatefulSet", "kvorum")["spec"]
    settings = node_settings(started(objects, _node_spec(objects), _node(objects), pod="kvorum-0"))
    [claim] = spec["volumeClaimTemplates"]
    size = quantity(claim["spec"]["resources"]["requests"]["storage"])
    needed = 2 * settings.quota_bytes + settings.min_free_bytes
    wrong = [] if needed <= size else [f"the volume has {size:,} bytes, and {needed:,} are needed"]
    for job in _of_kind(objects, "CronJob"):
        [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        [keep] = [int(one["value"]) for one in container["env"] if one["name"] == "KEEP"]
        request = find(objects, "PersistentVolumeClaim", "kvorum-backups")["spec"]["resources"]
        room = quantity(request["requests"]["storage"])
        needed = (keep + 1) * settings.quota_bytes
        if room < needed:
            wrong.append(f"backups have {room:,} bytes, and {needed:,} are needed")
    return wrong


def memory_is_guaranteed(objects: list[Object]) -> list[str]:
    """What a pod may take is its own, and the node knows how much that is."""
    wrong = []
    for workload, container in _containers(objects):
        resources = container.get("resources", {})
        request = resources.get("requests", {}).get("memory")
        limit = resources.get("limits", {}).get("memory")
        if request is None or request != limit:
            wrong.append(f"{workload} requests {request} of memory, with a limit of {limit}")
    spec, container = _node_spec(objects), _node(objects)
    settings = node_settings(started(objects, spec, container, pod="kvorum-0"))
    if settings.memory_bytes != quantity(container["resources"]["limits"]["memory"]):
        wrong.append(f"the node is told that it has {settings.memory_bytes} bytes")
    return wrong


def a_budget_leaves_a_majority(objects: list[Object]) -> list[str]:
    """Several nodes have a PodDisruptionBudget, below what they can do without."""
    replicas = find(objects, "StatefulSet", "kvorum")["spec"]["replicas"]
    budgets = _of_kind(objects, "PodDisruptionBudget")
    if replicas == 1:
        return [f"{_name(one)} would keep a machine from being drained" for one in budgets]
    if len(budgets) != 1:
        return [f"{len(budgets)} budgets for {replicas} nodes"]
    away = budgets[0]["spec"].get("maxUnavailable")
    tolerable = (replicas - 1) // 2
    if isinstance(away, int) and 0 < away <= tolerable:
        return []
    return [f"{away} nodes may be away, of {replicas}"]


def a_stop_fits_into_the_grace(objects: list[Object]) -> list[str]:
    """First new calls go elsewhere, then the node stops, and never is it killed on the way."""
    spec, container = _node_spec(objects), _node(objects)
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    wrong = [] if before > 0 else ["no sleep before a stop: clients are still sent there"]
    grace = spec.get("terminationGracePeriodSeconds", 30)
    if before + DRAIN_SECONDS > grace:
        wrong.append(f"of {grace} s, {before} s are slept, and {DRAIN_SECONDS} s may go to stop")
    return wrong


def pods_are_restricted(objects: list[Object]) -> list[str]:
    """The restricted Pod Security Standard; and the root's file system is not written to."""
    wrong = []
    for workload, _, spec in pod_specs(objects):
        context = spec.get("securityContext", {})
        expected = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        wrong += [
            f"{workload}: {key} is {context.get(key)}"
            for key, value in expected.items()
            if context.get(key) != value
        ]
        wrong += [
            f"{workload}: {key} is {context.get(key)}"
            for key in ("runAsUser", "runAsGroup", "fsGroup")
            if context.get(key) != NODE_USER
        ]
        wrong += [
            f"{workload}: {key} is on"
            for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")
            if spec.get(key)
        ]
        if spec.get("automountServiceAccountToken") is not False:
            wrong.append(f"{workload} gets a token of the API server")
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        wrong += [
            f"{workload}: the volume {volume['name']}"
            for volume in spec.get("volumes", ())
            if not volume.keys() & allowed
        ]
    for workload, container in _containers(objects):
        expected_security = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        if container.get("securityContext") != expected_security:
            wrong.append(f"{workload}/{container['name']}: {container.get('securityContext')}")
        wrong += [
            f"{workload}: a port of the host"
            for port in container.get("ports", ())
            if "hostPort" in port
        ]
    return wrong


def no_variables_come_from_services(objects: list[Object]) -> list[str]:
    """The Service kvorum would be KVORUM_PORT and more: variables as the settings have them."""
    return [
        f"{workload} has the variables of Services"
        for workload, _, spec in pod_specs(objects)
        if spec.get("enableServiceLinks") is not False
    ]


def there_is_one_image(objects: list[Object]) -> list[str]:
    """The same everywhere, of this version."""
    images = {container["image"] for _, container in _containers(objects)}
    expected = f"kvorum:{kvorum.__version__}"
    return [f"the image is {image}" for image in sorted(images - {expected})]


def nodes_start_together_and_are_updated_apart(objects: list[Object]) -> list[str]:
    """None is ready before a majority is there; one that is not ready ends an update."""
    spec = find(objects, "StatefulSet", "kvorum")["spec"]
    wrong = []
    if spec.get("podManagementPolicy") != "Parallel":
        wrong.append("a node would wait for one that waits for it")
    if spec.get("updateStrategy") != {"type": "RollingUpdate"}:
        wrong.append(f"updates: {spec.get('updateStrategy')}")
    if spec.get("minReadySeconds", 0) < 1:
        wrong.append("an update goes on with the first answer of a new node")
    return wrong


def nodes_are_spread(objects: list[Object]) -> list[str]:
    """Several nodes fail apart: over zones evenly, and never two on a machine."""
    if find(objects, "StatefulSet", "kvorum")["spec"]["replicas"] == 1:
        return []
    spec = _node_spec(objects)
    spread = {
        one["topologyKey"]: (one["maxSkew"], one["whenUnsatisfiable"])
        for one in spec.get("topologySpreadConstraints", ())
    }
    wrong = []
    if spread.get("topology.kubernetes.io/zone") != (1, "DoNotSchedule"):
        wrong.append(f"over zones: {spread}")
    apart = spec.get("affinity", {}).get("podAntiAffinity", {})
    keys = [
        one["topologyKey"]
        for one in apart.get("requiredDuringSchedulingIgnoredDuringExecution", ())
    ]
    if "kubernetes.io/hostname" not in keys:
        wrong.append("two may be on one machine")
    return wrong


def the_network_lets_in_who_has_to_come(objects: list[Object]) -> list[str]:
    """Members alone reach the peers' port, who has the label the nodes, monitoring the figures."""
    wrong = []
    for policy in _of_kind(objects, "NetworkPolicy"):
        callers: dict[str, list[Any]] = {}
        for rule in policy["spec"]["ingress"]:
            for port in rule["ports"]:
                callers.setdefault(port["port"], []).extend(rule.get("from", [{}]))
        member, client = ({"podSelector": {"matchLabels": one}} for one in (NODE, CLIENT))
        monitoring = {"namespaceSelector": {"matchLabels": FOREIGN_NAMESPACE}}
        expected = {"grpc": [client, member], "peer": [member], "admin": [monitoring]}
        if callers != expected:
            wrong.append(f"in: {callers}")
        goals: dict[Any, list[Any]] = {}
        for rule in policy["spec"]["egress"]:
            for port in rule["ports"]:
                goals.setdefault(port["port"], []).extend(rule.get("to", [{}]))
        if goals != {"grpc": [member], "peer": [member], 53: [{}, {}]}:
            wrong.append(f"out: {goals}")
        wrong += [
            f"{workload} is a client, and is not let in"
            for workload, metadata, spec in pod_specs(objects)
            if "KVORUM_TARGET"
            in {name for one in spec["containers"] for name in _variables(objects, one)}
            and not _matches(CLIENT, metadata)
            and not _matches(NODE, metadata)
        ]
    return wrong


def backups_run_one_at_a_time(objects: list[Object]) -> list[str]:
    """Two would write to one volume; one that hangs must not keep the next from running."""
    wrong = []
    for one in _of_kind(objects, "CronJob"):
        spec = one["spec"]
        job = spec["jobTemplate"]["spec"]
        if spec.get("concurrencyPolicy") != "Forbid":
            wrong.append("two at a time")
        if not 0 < job.get("activeDeadlineSeconds", 0) <= 12 * 3600:
            wrong.append("one without an end")
        if job["template"]["spec"]["restartPolicy"] != "Never":
            wrong.append("a failed one leaves no log")
    return wrong


POLICIES: Final[dict[str, Policy]] = {
    policy.__name__: policy
    for policy in (
        selectors_find_pods,
        ports_exist,
        probes_ask_what_they_are_for,
        settings_are_taken,
        variables_are_defined_first,
        references_exist,
        volumes_are_mounted_where_needed,
        there_is_room,
        memory_is_guaranteed,
        a_budget_leaves_a_majority,
        a_stop_fits_into_the_grace,
        pods_are_restricted,
        no_variables_come_from_services,
        there_is_one_image,
        nodes_start_together_and_are_updated_apart,
        nodes_are_spread,
        the_network_lets_in_who_has_to_come,
        backups_run_one_at_a_time,
    )
}


def _of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def _name(one: Object) -> str:
    return str(one["metadata"]["name"])


def _node_spec(objects: list[Object]) -> Object:
    spec: Object = find(objects, "StatefulSet", "kvorum")["spec"]["template"]["spec"]
    return spec


def _node(objects: list[Object]) -> Object:
    [container] = _node_spec(objects)["containers"]
    node: Object = container
    return node


def _containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for workload, _, spec in pod_specs(objects):
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            yield workload, container


def _from_config_maps(objects: list[Object], container: Object) -> Iterator[str]:
    for source in container.get("envFrom", ()):
        yield from find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]


def _variables(objects: list[Object], container: Object) -> Iterator[str]:
    yield from _from_config_maps(objects, container)
    yield from (variable["name"] for variable in container.get("env", ()))


def _volumes(objects: list[Object], workload: str, spec: Object) -> set[str]:
    kind, _, name = workload.partition("/")
    templates = find(objects, kind, name)["spec"].get("volumeClaimTemplates", ())
    return {
        *(volume["name"] for volume in spec.get("volumes", ())),
        *(claim["metadata"]["name"] for claim in templates),
    }


def _matches(selector: dict[str, str], metadata: Object) -> bool:
    labels: dict[str, str] = metadata.get("labels", {})
    return selector.items() <= labels.items()


def _selectors(objects: list[Object]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every selector of pods, with where it stands."""
    for one in objects:
        where, spec = f"{one['kind']}/{_name(one)}", one.get("spec", {})
        match one["kind"]:
            case "Service":
                yield where, spec["selector"]
            case "StatefulSet" | "PodDisruptionBudget":
                yield where, spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                yield where, spec["podSelector"]["matchLabels"]
                for rule in [*spec["ingress"], *spec["egress"]]:
                    for peer in [*rule.get("from", ()), *rule.get("to", ())]:
                        yield where, peer.get("podSelector", {}).get("matchLabels", {})
    for workload, _, spec in pod_specs(objects):
        for constraint in spec.get("topologySpreadConstraints", ()):
            yield f"{workload}, spread", constraint["labelSelector"]["matchLabels"]
        apart = spec.get("affinity", {}).get("podAntiAffinity", {})
        for term in apart.get("requiredDuringSchedulingIgnoredDuringExecution", ()):
            yield f"{workload}, apart", term["labelSelector"]["matchLabels"]
