"""Who may reach what, who may do what, and where secrets are."""

import copy
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private import constants as serve

from serve_app.config import ServeConfig
from tests.k8s.pods import one, pods, selects, weaknesses

ROOT = Path(__file__).resolve().parents[2]

Objects = dict[str, dict[str, Any]]
Range = tuple[int, int]
STRANGER = {"app": "stranger"}


def policies(objects: Objects) -> dict[str, dict[str, Any]]:
    return {
        item["metadata"]["name"]: item["spec"]
        for item in objects.values()
        if item["kind"] == "NetworkPolicy"
    }


def port_ranges(rule: dict[str, Any]) -> set[Range]:
    return {(port["port"], port.get("endPort", port["port"])) for port in rule["ports"]}


def opened(
    objects: Objects, direction: str, labels: dict[str, str], peer: dict[str, str], namespace: str
) -> set[Range]:
    """Ports of the pod with `labels` open to `peer` (ingress), or of `peer` for it (egress)."""
    found: set[Range] = set()
    side = "from" if direction == "ingress" else "to"
    for spec in policies(objects).values():
        if selects(spec["podSelector"], labels):
            for rule in spec.get(direction, []):
                if side not in rule or any(_is_peer(p, peer, namespace) for p in rule[side]):
                    found |= port_ranges(rule)
    return found


def _is_peer(description: dict[str, Any], labels: dict[str, str], namespace: str) -> bool:
    if "ipBlock" in description:
        return False
    where = description.get("namespaceSelector")
    if where is None:
        right_place = namespace == "deeprequest"
    else:
        right_place = selects(where, {"kubernetes.io/metadata.name": namespace})
    return right_place and selects(description.get("podSelector", {}), labels)


def ports_in_use(objects: Objects, config: ServeConfig) -> Iterator[tuple[str, Range]]:
    """Every port on which a Ray pod listens for another Ray pod."""
    for role in ("head", "worker"):
        pod = pods(objects)[role]
        for name, value in pod.start.items():
            if (
                name.endswith("port")
                and "worker-port" not in name
                and name != "metrics-export-port"
            ):
                yield f"{role} {name}", (int(value), int(value))
        yield (
            f"{role} workers",
            (int(pod.start["min-worker-port"]), int(pod.start["max-worker-port"])),
        )
        (sysctl,) = pod.spec["securityContext"]["sysctls"]
        low, high = map(int, sysctl["value"].split())
        yield f"{role} ephemeral", (low, high)
    yield "deltas", (config.deltas.min_port, config.deltas.max_port)
    yield "fallback", (serve.RAY_SERVE_FALLBACK_PROXY_HTTP_PORT,) * 2
    yield (
        "direct HTTP",
        (
            serve.RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT,
            serve.RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT,
        ),
    )
    yield (
        "direct gRPC",
        (
            serve.RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT,
            serve.RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT,
        ),
    )
    yield "proxy", (8000, 8000)
    yield "dashboard", (8265, 8265)


def test_ports_that_ray_pods_use_are_open_among_them(overlay: Path, objects: Objects) -> None:
    config = ServeConfig.load(overlay / "config.yaml")
    head, worker = pods(objects)["head"].labels, pods(objects)["worker"].labels
    for one_side, other in ((head, worker), (worker, head), (worker, worker)):
        for direction in ("ingress", "egress"):
            open_ranges = opened(objects, direction, one_side, other, "deeprequest")
            for name, (low, high) in ports_in_use(objects, config):
                covered = any(a <= low and high <= b for a, b in open_ranges)
                assert covered, f"{name} {low}-{high} is closed ({direction})"


def test_port_ranges_do_not_overlap(overlay: Path, objects: Objects) -> None:
    config = ServeConfig.load(overlay / "config.yaml")
    ranges = dict(ports_in_use(objects, config))
    worker = {name: r for name, r in ranges.items() if not name.startswith("head")}
    ordered = sorted(worker.values())
    for (_, end), (start, _) in itertools.pairwise(ordered):
        assert end < start, f"{end} and {start} overlap"


def test_strangers_reach_the_workers_http_port_and_nothing_else(objects: Objects) -> None:
    made = pods(objects)
    for namespace in ("deeprequest", "elsewhere"):
        reach = {
            role: opened(objects, "ingress", pod.labels, STRANGER, namespace)
            for role, pod in made.items()
        }
        assert reach == {
            "head": set(),
            "worker": {(8000, 8000)},
            "redis": set(),
            "admin": set(),
        }


def test_operator_reaches_the_dashboard_and_monitoring_the_metrics(objects: Objects) -> None:
    head = pods(objects)["head"].labels
    operator = {"app.kubernetes.io/component": "kuberay-operator"}
    assert opened(objects, "ingress", head, operator, "kuberay") == {(8265, 8265)}
    assert opened(objects, "ingress", head, STRANGER, "monitoring") == {(8080, 8080)}


def test_redis_is_reached_by_its_clients_and_reaches_nobody(objects: Objects) -> None:
    made = pods(objects)
    redis = made["redis"].labels
    for role in ("head", "worker", "admin"):
        labels = made[role].labels
        assert opened(objects, "ingress", redis, labels, "deeprequest") == {(6379, 6379)}
        assert (6379, 6379) in opened(objects, "egress", labels, redis, "deeprequest")
    assert not opened(objects, "egress", redis, made["worker"].labels, "deeprequest")


def test_models_cannot_reach_the_internet(objects: Objects) -> None:
    for role in ("worker", "redis", "admin"):
        assert not opened(objects, "egress", pods(objects)[role].labels, STRANGER, "elsewhere")


def test_everything_is_denied_first_and_no_policy_is_idle(objects: Objects) -> None:
    deny = policies(objects)["default-deny"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies(objects).values():
        assert any(selects(spec["podSelector"], pod.labels) for pod in pods(objects).values())
        assert {kind.lower() for kind in spec["policyTypes"]} >= set(spec) - {
            "podSelector",
            "policyTypes",
        }


def test_disruption_budgets_count_the_right_pods_in_the_one_way_that_works(
    objects: Objects,
) -> None:
    made = pods(objects)
    chosen = {}
    for item in objects.values():
        if item["kind"] == "PodDisruptionBudget":
            spec = item["spec"]
            assert isinstance(spec["minAvailable"], int)
            assert "maxUnavailable" not in spec
            chosen[item["metadata"]["name"]] = [
                role for role, pod in made.items() if selects(spec["selector"], pod.labels)
            ]
    assert chosen == {"deeprequest-workers": ["worker"], "deeprequest-redis": ["redis"]}


def test_every_pod_is_restricted(objects: Objects) -> None:
    assert {role: weaknesses(pod.spec) for role, pod in pods(objects).items()} == {
        "head": [],
        "worker": [],
        "redis": [],
        "admin": [],
    }
    labels = one(objects, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("securityContext", "runAsNonRoot"), False),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}),
        (("automountServiceAccountToken",), True),
        (("enableServiceLinks",), True),
        (("hostNetwork",), True),
        (("volumes", 0), {"name": "host", "hostPath": {"path": "/"}}),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("containers", 0, "securityContext", "capabilities"), {"add": ["NET_ADMIN"]}),
        (("containers", 0, "securityContext", "readOnlyRootFilesystem"), False),
        (("containers", 0, "resources"), {}),
    ],
)
def test_a_weaker_pod_is_noticed(objects: Objects, path: tuple[Any, ...], value: Any) -> None:
    spec = copy.deepcopy(pods(objects)["redis"].spec)
    place = spec
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    found = weaknesses(spec)
    assert len(found) == 1, found


def test_only_the_autoscaler_holds_an_api_token(objects: Objects) -> None:
    cluster = one(objects, "RayService")["spec"]["rayClusterConfig"]
    holders = [
        container["name"]
        for pod in pods(objects).values()
        for container in pod.spec["containers"]
        if "api-token" in [mount["name"] for mount in container["volumeMounts"]]
    ]
    assert holders == (["autoscaler"] if cluster["enableInTreeAutoscaling"] else [])
    accounts = [item for item in objects.values() if item["kind"] == "ServiceAccount"]
    assert all(account["automountServiceAccountToken"] is False for account in accounts)


def test_no_secret_is_written_in_a_manifest(objects: Objects) -> None:
    suspicious = re.compile(r"TOKEN|PASSWORD|SECRET|PEPPER", re.IGNORECASE)
    for pod in pods(objects).values():
        for container in pod.spec["containers"]:
            for variable in container.get("env", []):
                assert not suspicious.search(variable["name"]) or "valueFrom" in variable
    ignored = (ROOT / "k8s/secrets/.gitignore").read_text().split()
    assert ignored == ["*", "!.gitignore", "!kustomization.yaml"]
    for path in ROOT.glob("k8s/**/*.yaml"):
        assert "kind: Secret" not in path.read_text()
