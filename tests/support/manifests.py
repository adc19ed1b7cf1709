"""The Kubernetes objects of deploy/kubernetes, as they would be applied.

`render` has kubectl do it where it is installed. Elsewhere the part of kustomize that our
files use is carried out here; whatever goes beyond that part is refused, and never guessed.
tests/deploy/test_rendering.py compares both.
"""

import copy
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import yaml

Object: TypeAlias = dict[str, Any]
"""A Kubernetes object, as its YAML is read."""

KUBERNETES: Final = Path(__file__).parents[2] / "deploy/kubernetes"

OVERLAYS: Final = tuple(sorted(path.name for path in (KUBERNETES / "overlays").iterdir()))

_FIELDS: Final = {
    *("apiVersion", "kind", "resources", "components"),
    *("configMapGenerator", "images", "patches"),
}

_MERGED_BY: Final = {"containers": "name", "env": "name", "volumeMounts": "mountPath"}
"""Lists whose items a patch finds by a key. It replaces all other lists as a whole."""

_HASH_ALPHABET: Final = str.maketrans("013ae", "ghkmt")
"""So that a hash spells no word."""


class NotRendered(Exception):
    """The files use more of kustomize than this module knows."""


def render(overlay: str) -> list[Object]:
    """All objects of an overlay: `render("prod")`."""
    folder = KUBERNETES / "overlays" / overlay
    return render_by_kubectl(folder) if has_kubectl() else render_here(folder)


def has_kubectl() -> bool:
    return shutil.which("kubectl") is not None


def render_by_kubectl(folder: Path) -> list[Object]:
    """What `kubectl kustomize` makes of a folder."""
    ran = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return cast("list[Object]", list(yaml.safe_load_all(ran.stdout)))


def render_here(folder: Path) -> list[Object]:
    """The same, by this module."""
    objects: list[Object] = []
    _accumulate(folder, objects)
    _name_by_content(objects)
    return objects


def read(path: Path) -> list[Object]:
    """The objects of a file."""
    objects: list[Object] = list(yaml.safe_load_all(path.read_text("utf-8")))
    if any(one["kind"] == "ConfigMap" for one in objects):
        raise NotRendered(f"{path}: a ConfigMap that is written, not generated")
    return objects


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    [found] = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod_specs(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """What runs: the workload (`StatefulSet/kvorum`), its pods' metadata and their spec."""
    for one in objects:
        spec = one.get("spec", {})
        match one["kind"]:
            case "StatefulSet" | "Deployment" | "DaemonSet" | "Job":
                template = spec["template"]
            case "CronJob":
                template = spec["jobTemplate"]["spec"]["template"]
            case "Pod":
                template = one
            case _:
                continue
        yield f"{one['kind']}/{one['metadata']['name']}", template["metadata"], template["spec"]


def _accumulate(folder: Path, objects: list[Object]) -> None:
    """Add what a kustomization brings; a component changes what is already there, too."""
    content: Object = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    unknown = content.keys() - _FIELDS
    if unknown:
        raise NotRendered(f"{folder}: {', '.join(sorted(unknown))}")
    for resource in content.get("resources", ()):
        path = folder / resource
        if path.is_dir():
            _accumulate(path, objects)
        else:
            objects += read(path)
    for generator in content.get("configMapGenerator", ()):
        _generate(folder, generator, objects)
    for component in content.get("components", ()):
        _accumulate(folder / component, objects)
    for patch in content.get("patches", ()):
        _patch(yaml.safe_load((folder / _only(patch, "path")).read_text("utf-8")), objects)
    for image in content.get("images", ()):
        _set_image(image, objects)


def _only(item: Mapping[str, Any], field: str) -> Any:
    if item.keys() != {field}:
        raise NotRendered(f"{item} has more than {field}")
    return item[field]


def _generate(folder: Path, generator: Object, objects: list[Object]) -> None:
    """Make a ConfigMap of files, or put more into one that is there."""
    unknown = generator.keys() - {"name", "behavior", "envs", "literals", "files"}
    if unknown:
        raise NotRendered(f"configMapGenerator: {', '.join(sorted(unknown))}")
    lines = [
        line
        for path in generator.get("envs", ())
        for line in (folder / path).read_text("utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    lines += generator.get("literals", ())
    data = dict(line.split("=", 1) for line in lines)
    data |= {name: (folder / name).read_text("utf-8") for name in generator.get("files", ())}
    name = generator["name"]
    match generator.get("behavior", "create"):
        case "create":
            metadata = {"name": name}
            objects.append(
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
            )
        case "merge":
            find(objects, "ConfigMap", name)["data"].update(data)
        case other:
            raise NotRendered(f"configMapGenerator: behavior {other}")


def _patch(patch: Object, objects: list[Object]) -> None:
    target = find(objects, patch["kind"], patch["metadata"]["name"])
    merged = _merged(target, patch, "")
    target.clear()
    target.update(cast("Object", merged))


def _merged(old: Any, new: Any, field: str) -> Any:
    """A strategic merge: mappings by key, some lists by the key of their items."""
    if isinstance(old, dict) and isinstance(new, dict):
        if any(key.startswith("$") for key in new):
            raise NotRendered(f"a directive in a patch: {new}")
        return {
            key: _merged(old.get(key), new[key], key) if key in new else old[key]
            for key in [*old, *(key for key in new if key not in old)]
        }
    if isinstance(old, list) and isinstance(new, list) and field in _MERGED_BY:
        key = _MERGED_BY[field]
        changes = {item[key]: item for item in new}
        if changes.keys() - {item[key] for item in old}:
            raise NotRendered(f"a patch that adds to {field}: it would come first")
        return [_merged(item, changes.get(item[key], {}), "") for item in old]
    return copy.deepcopy(new)


def _set_image(image: Object, objects: list[Object]) -> None:
    for _, _, spec in pod_specs(objects):
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"


def _name_by_content(objects: list[Object]) -> None:
    """Give what was generated its final name, wherever it is mentioned."""
    names: dict[str, str] = {}
    for one in objects:
        if one["kind"] == "ConfigMap":
            name = one["metadata"]["name"]
            one["metadata"]["name"] = names[name] = _hashed_name(one)
    for _, _, spec in pod_specs(objects):
        mentions = [
            source["configMapRef"]
            for container in spec["containers"]
            for source in container.get("envFrom", ())
            if "configMapRef" in source
        ]
        mentions += [
            volume["configMap"] for volume in spec.get("volumes", ()) if "configMap" in volume
        ]
        for mention in mentions:
            mention["name"] = names.get(mention["name"], mention["name"])


def _hashed_name(config_map: Object) -> str:
    """As kustomize does it: of the content as JSON, in which Go escapes what HTML would read.

    The name is none of what it hashes, whatever its code looks like.
    """
    name: str = config_map["metadata"]["name"]
    content = {"data": config_map["data"], "kind": "ConfigMap", "name": ""}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{name}-{digest[:10].translate(_HASH_ALPHABET)}"
