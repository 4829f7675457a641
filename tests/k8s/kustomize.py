"""A strict interpreter of the part of kustomize that k8s/ uses, so that its tests run anywhere.

Owns nothing but the meaning of these files: resources, namespace, labels (pairs), images,
configMapGenerator and secretGenerator without name suffixes, JSON 6902 patches. Everything else is
an error: what is not interpreted here is not used there. `test_kustomize.py` compares it with
kubectl's own kustomize wherever that is installed.
"""

import base64
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
CLUSTER_SCOPED = {"Namespace"}
KEYS = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "labels",
    "images",
    "patches",
    "configMapGenerator",
    "secretGenerator",
    "generatorOptions",
}


class KustomizeError(ValueError):
    """The files mean nothing, or something that this interpreter does not know."""


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            raise KustomizeError(f"repeated keys {sorted(repeated)}{node.start_mark}")
        return super().construct_mapping(node, deep)


def load(path: Path) -> list[Any]:
    """All documents of a YAML file; repeated keys are errors."""
    return [item for item in yaml.load_all(path.read_text(), _Loader) if item is not None]


def identity(item: Object) -> str:
    return f"{item['apiVersion']}/{item['kind']}/{item['metadata']['name']}"


def build(directory: Path) -> dict[str, Object]:
    """What `kubectl kustomize DIRECTORY` prints, by identity (apiVersion/kind/name).

    Raises:
        KustomizeError: a file is missing, repeated, or uses what is not interpreted here.
    """
    if not (directory / "kustomization.yaml").is_file():
        raise KustomizeError(f"{directory} has no kustomization.yaml")
    (top,) = load(directory / "kustomization.yaml")
    _only(top, KEYS, directory)
    objects: dict[str, Object] = {}
    for item in [*_resources(top, directory), *_generated(top, directory)]:
        if identity(item) in objects:
            raise KustomizeError(f"{identity(item)} exists twice")
        objects[identity(item)] = item
    for patch in top.get("patches", []):
        _patch(objects, patch, directory)
    for item in objects.values():
        _transform(item, top)
    return objects


def _only(value: Object, allowed: set[str], where: object) -> None:
    unknown = set(value) - allowed
    if unknown:
        raise KustomizeError(f"{where}: {sorted(unknown)} is not interpreted")


def _resources(top: Object, directory: Path) -> list[Object]:
    found: list[Object] = []
    for name in top.get("resources", []):
        path = (directory / name).resolve()
        if path.is_dir():
            found += build(path).values()
        elif not path.is_relative_to(directory.resolve()) or not path.is_file():
            raise KustomizeError(f"{directory}: no file {name} inside the folder")
        else:
            found += load(path)
    return found


def _generated(top: Object, directory: Path) -> list[Object]:
    kinds = {"configMapGenerator": "ConfigMap", "secretGenerator": "Secret"}
    found = []
    for generator, kind in kinds.items():
        for entry in top.get(generator, []):
            _only(entry, {"name", "files"}, directory)
            if top.get("generatorOptions") != {"disableNameSuffixHash": True}:
                raise KustomizeError(f"{directory}: names with a suffix are not interpreted")
            data = dict(_file_entry(item, directory, kind) for item in entry["files"])
            item: Object = {"apiVersion": "v1", "kind": kind, "data": data}
            item["metadata"] = {"name": entry["name"]}
            found.append(item | ({"type": "Opaque"} if kind == "Secret" else {}))
    return found


def _file_entry(entry: str, directory: Path, kind: str) -> tuple[str, str]:
    key, _, name = entry.rpartition("=")
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()) or not path.is_file():
        raise KustomizeError(f"{directory}: no file {name} inside the folder")
    content = path.read_bytes()
    text = base64.b64encode(content).decode() if kind == "Secret" else content.decode()
    return key or path.name, text


def _patch(objects: dict[str, Object], patch: Object, directory: Path) -> None:
    _only(patch, {"path", "target"}, directory)
    _only(patch["target"], {"kind", "name"}, directory)
    targets = [
        item
        for item in objects.values()
        if (item["kind"], item["metadata"]["name"])
        == (patch["target"]["kind"], patch["target"]["name"])
    ]
    if len(targets) != 1:
        raise KustomizeError(f"{patch['path']}: its target names {len(targets)} objects")
    (operations,) = load(directory / patch["path"])
    for operation in operations:
        apply(targets[0], operation)


def apply(document: Any, operation: Object) -> None:
    """One operation of a JSON patch (RFC 6902), in place; copy and move are not interpreted.

    Raises:
        KustomizeError: the path leads nowhere, or a `test` fails.
    """
    _only(operation, {"op", "path", "value"}, "patch")
    *parents, last = [
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    ]
    place = document
    try:
        for part in parents:
            place = place[int(part) if isinstance(place, list) else part]
        if isinstance(place, list):
            _apply_to_list(place, last, operation)
        else:
            _apply_to_mapping(place, last, operation)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise KustomizeError(f"{operation['op']} {operation['path']}: {error!r}") from None


def _apply_to_list(place: list[Any], last: str, operation: Object) -> None:
    op = operation["op"]
    if op == "add":
        place.insert(len(place) if last == "-" else int(last), operation["value"])
    elif op == "replace":
        place[int(last)] = operation["value"]
    elif op == "remove":
        del place[int(last)]
    elif op != "test" or place[int(last)] != operation["value"]:
        raise ValueError("failed")


def _apply_to_mapping(place: Object, last: str, operation: Object) -> None:
    op = operation["op"]
    if op == "add":
        place[last] = operation["value"]
    elif op == "replace":
        if last not in place:
            raise KeyError(last)
        place[last] = operation["value"]
    elif op == "remove":
        del place[last]
    elif op != "test" or place[last] != operation["value"]:
        raise ValueError("failed")


def _transform(item: Object, top: Object) -> None:
    metadata = item["metadata"]
    if "namespace" in top and item["kind"] not in CLUSTER_SCOPED:
        metadata["namespace"] = top["namespace"]
    for label in top.get("labels", []):
        _only(label, {"pairs"}, "labels")
        metadata["labels"] = metadata.get("labels", {}) | label["pairs"]
    for image in top.get("images", []):
        _only(image, {"name", "newName", "newTag"}, "images")
        for container in _containers(item):
            _set_image(container, image)


def _containers(value: Any) -> list[Object]:
    """Every container of an object, wherever its pod template lies."""
    found = []
    if isinstance(value, list):
        for item in value:
            found += _containers(item)
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("containers", "initContainers") and isinstance(item, list):
                found += item
            found += _containers(item)
    return found


def _set_image(container: Object, image: Object) -> None:
    name, _, tag = container["image"].partition(":")
    if name == image["name"]:
        tag = image.get("newTag", tag)
        container["image"] = image.get("newName", name) + (f":{tag}" if tag else "")
