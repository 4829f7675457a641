import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.kustomize import KustomizeError, apply, build, identity


def write(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    return directory


MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata:\n  a: b\n"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_interpreter_renders_what_kubectl_renders(overlay: Path) -> None:
    text = subprocess.run(
        ["kubectl", "kustomize", str(overlay)], check=True, capture_output=True, text=True
    ).stdout
    theirs = {identity(item): item for item in yaml.safe_load_all(text)}
    for item in theirs.values():
        if item["kind"] == "Secret":  # kustomize breaks base64 into lines
            item["data"] = {key: "".join(text.split()) for key, text in item["data"].items()}
    assert build(overlay) == theirs


def test_secret_files_become_base64_under_their_key(objects: dict[str, dict[str, Any]]) -> None:
    secret = objects["v1/Secret/deeprequest-ray-auth"]
    assert base64.b64decode(secret["data"]["auth_token"]) == b"a" * 64
    assert secret["metadata"]["namespace"] == "deeprequest"


def test_build_without_the_users_secrets_fails(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "k8s"
    shutil.copytree(tree, copy)
    (copy / "secrets" / "key-pepper").unlink()
    with pytest.raises(KustomizeError, match="key-pepper"):
        build(copy / "overlays" / "cpu")


@pytest.mark.parametrize(
    ("kustomization", "complaint"),
    [
        ("resources: [m.yaml]\nnamePrefix: x-\n", "namePrefix"),
        ("resources: [m.yaml, m.yaml]\n", "exists twice"),
        ("resources: [missing.yaml]\n", "missing.yaml"),
        ("resources: [m.yaml]\nnamespace: a\nnamespace: b\n", "repeated keys"),
        ("configMapGenerator:\n- {name: c, files: [m.yaml]}\n", "suffix"),
        (
            "resources: [m.yaml]\npatches:\n- {path: p.yaml, target: {kind: Pod, name: m}}\n",
            "0 obj",
        ),
        (
            "resources: [m.yaml]\npatches:\n- {path: p.yaml, target: {kind: ConfigMap, name: m}}\n",
            "c",
        ),
    ],
)
def test_what_is_misspelt_or_not_interpreted_is_refused(
    tmp_path: Path, kustomization: str, complaint: str
) -> None:
    patch = "- {op: replace, path: /data/c, value: d}\n"
    with pytest.raises(KustomizeError, match=complaint):
        build(write(tmp_path, kustomization=kustomization, m=MAP, p=patch))


def test_json_patch_operations() -> None:
    document: dict[str, Any] = {"a": [1, 2], "b": {"c/d": 1}}
    for operation in (
        {"op": "add", "path": "/a/-", "value": 3},
        {"op": "add", "path": "/a/0", "value": 0},
        {"op": "remove", "path": "/a/1"},
        {"op": "replace", "path": "/b/c~1d", "value": 2},
        {"op": "test", "path": "/b/c~1d", "value": 2},
    ):
        apply(document, operation)
    assert document == {"a": [0, 2, 3], "b": {"c/d": 2}}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a/0", "value": 2},
        {"op": "replace", "path": "/a/5", "value": 2},
        {"op": "replace", "path": "/x", "value": 2},
        {"op": "remove", "path": "/b/c"},
        {"op": "copy", "path": "/a/0", "value": 2},
    ],
)
def test_patch_that_leads_nowhere_is_refused(operation: dict[str, Any]) -> None:
    with pytest.raises(KustomizeError):
        apply({"a": [1], "b": {}}, operation)
