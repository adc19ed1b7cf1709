"""Every overlay renders, alike by kubectl and by our own renderer."""

import json
from pathlib import Path

import pytest

from tests.support import manifests
from tests.support.manifests import KUBERNETES, OVERLAYS, NotRendered, Object

needs_kubectl = pytest.mark.skipif(not manifests.has_kubectl(), reason="kubectl is not installed")


def in_order(objects: list[Object]) -> list[str]:
    """Kinds, names and all that is in them, whatever order they came in."""
    return sorted(json.dumps(one, sort_keys=True, indent=1) for one in objects)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_both_renderers_make_the_same(overlay: str) -> None:
    folder = KUBERNETES / "overlays" / overlay
    assert in_order(manifests.render_here(folder)) == in_order(manifests.render_by_kubectl(folder))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_a_cluster(overlay: str) -> None:
    objects = manifests.render(overlay)
    assert {one["kind"] for one in objects} >= {"StatefulSet", "Service", "ConfigMap"}
    assert "StatefulSet/kvorum" in [name for name, _, _ in manifests.pod_specs(objects)]


@pytest.mark.parametrize(
    ("kustomization", "told"),
    [
        ("namePrefix: a-", "namePrefix"),
        ("configMapGenerator: [{name: a, options: {}}]", "options"),
        ("configMapGenerator: [{name: a, behavior: replace}]", "replace"),
        ("{resources: [object.yaml], patches: [{path: patch.yaml, target: {}}]}", "path"),
        ("{resources: [object.yaml], patches: [{path: patch.yaml}]}", "would come first"),
        ("{resources: [object.yaml], patches: [{path: directive.yaml}]}", "directive"),
        ("resources: [config-map.yaml]", "ConfigMap"),
    ],
)
def test_what_the_renderer_does_not_know_is_refused(
    kustomization: str, told: str, tmp_path: Path
) -> None:
    metadata = "metadata: {name: a}"
    write(
        tmp_path,
        kustomization=kustomization,
        object=f"{{kind: Pod, {metadata}, spec: {{containers: [{{name: a, image: a}}]}}}}",
        patch=f"{{kind: Pod, {metadata}, spec: {{containers: [{{name: b}}]}}}}",
        directive=f"{{kind: Pod, {metadata}, spec: {{$patch: replace}}}}",
        **{"config-map": f"{{kind: ConfigMap, {metadata}}}"},
    )
    with pytest.raises(NotRendered, match=told):
        manifests.render_here(tmp_path)
