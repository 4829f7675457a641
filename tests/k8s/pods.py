"""The pods that the rendered objects lead to, as KubeRay 1.7 and Kubernetes make them.

Owns what KubeRay adds and a check must therefore see: its labels, the autoscaler's container, the
workers' init container. Knows no files.
"""

import copy
import re
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
_UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Pod:
    """One kind of pod: its role, the labels that selectors see, its spec and rayStartParams."""

    role: str
    labels: dict[str, str]
    spec: Object
    start: dict[str, str]

    @property
    def main(self) -> Object:
        container = self.spec["containers"][0]
        assert isinstance(container, dict)
        return container

    @property
    def environment(self) -> dict[str, str]:
        return {item["name"]: item.get("value", "") for item in self.main.get("env", [])}

    def limit(self, resource: str) -> float:
        return quantity(self.main["resources"]["limits"][resource])

    def mounts(self) -> dict[str, Object]:
        """Mount path -> volume of the main container."""
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        return {mount["mountPath"]: volumes[mount["name"]] for mount in self.main["volumeMounts"]}


def quantity(text: str | int) -> float:
    """A Kubernetes quantity in units (cores, bytes)."""
    match = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|Ti)?", str(text))
    assert match, text
    return float(match[1]) * _UNITS[match[2] or ""]


def one(objects: dict[str, Object], kind: str) -> Object:
    (found,) = [item for item in objects.values() if item["kind"] == kind]
    return found


def pods(objects: dict[str, Object]) -> dict[str, Pod]:
    """head, worker, redis and admin."""
    cluster = one(objects, "RayService")["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    redis = one(objects, "StatefulSet")["spec"]["template"]
    admin = one(objects, "Deployment")["spec"]["template"]
    return {
        "head": _ray_pod("head", cluster["headGroupSpec"], _with_autoscaler(cluster)),
        "worker": _ray_pod("worker", group, _with_init_container(group)),
        "redis": Pod("redis", redis["metadata"]["labels"], redis["spec"], {}),
        "admin": Pod("admin", admin["metadata"]["labels"], admin["spec"], {}),
    }


def _ray_pod(role: str, group: Object, spec: Object) -> Pod:
    labels = {
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": role,
        "ray.io/group": group.get("groupName", "headgroup"),
    }
    own = group["template"].get("metadata", {}).get("labels", {})
    return Pod(role, own | labels, spec, group["rayStartParams"])


def _with_autoscaler(cluster: Object) -> Object:
    spec: Object = copy.deepcopy(cluster["headGroupSpec"]["template"]["spec"])
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster["autoscalerOptions"]
        taken = ("resources", "securityContext", "volumeMounts")
        added = {key: options[key] for key in taken if key in options}
        image = spec["containers"][0]["image"]
        spec["containers"].append({"name": "autoscaler", "image": image, **added})
    return spec


def _with_init_container(group: Object) -> Object:
    spec: Object = copy.deepcopy(group["template"]["spec"])
    taken = ("image", "securityContext", "volumeMounts", "env")
    main = spec["containers"][0]
    waiting = {"name": "wait-gcs-ready", "resources": {"limits": {"cpu": "200m"}}}
    spec["initContainers"] = [{**waiting, **{key: main[key] for key in taken}}]
    return spec


def selects(selector: Object, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, selector
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def weaknesses(spec: Object) -> list[str]:
    """What the restricted Pod Security Standard and this project's stricter rules object to."""
    found = []
    pod = spec.get("securityContext", {})
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
        found.append("may run as root")
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("no seccomp profile")
    if spec.get("automountServiceAccountToken") is not False:
        found.append("mounts an API token")
    if spec.get("enableServiceLinks") is not False:
        found.append("service links become settings")
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("shares the host's namespaces")
    kinds = {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"}
    found += [f"volume {v['name']}" for v in spec["volumes"] if not set(v) <= kinds | {"name"}]
    found += [
        f"volume {v['name']} has no size limit"
        for v in spec["volumes"]
        if "emptyDir" in v and "sizeLimit" not in v["emptyDir"]
    ]
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        found += [f"{container['name']}: {problem}" for problem in _container(container)]
    return found


def _container(container: Object) -> list[str]:
    security = container.get("securityContext", {})
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    found = [key for key, value in wanted.items() if security.get(key) != value]
    if not container.get("resources", {}).get("limits"):
        found.append("no limits")
    return found
