import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.kustomize import build
from tests.k8s.pods import one, pods
from tests.k8s.schemas import KUBERNETES_VERSIONS, SchemaError, validate, validate_builtin

Objects = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rendered(tree: Path) -> Objects:
    return build(tree / "overlays" / "cpu")


def test_an_api_server_would_take_every_object(objects: Objects) -> None:
    for item in objects.values():
        validate(item)


def test_pods_that_kuberay_makes_are_valid_pods(objects: Objects) -> None:
    for pod in pods(objects).values():
        for version in KUBERNETES_VERSIONS:
            validate_builtin(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": pod.role, "labels": pod.labels},
                    "spec": pod.spec,
                },
                version,
            )


def _misspell_surge(item: dict[str, Any]) -> None:
    item["spec"]["upgradeStrategy"]["clusterUpgradeOptions"] = {"stepSizePercnt": 5}


def _misspell_image(item: dict[str, Any]) -> None:
    container = item["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][
        0
    ]
    container["imagePullPolcy"] = "Always"


def _number_for_text(item: dict[str, Any]) -> None:
    item["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _unknown_auth_mode(item: dict[str, Any]) -> None:
    item["spec"]["rayClusterConfig"]["authOptions"]["mode"] = "tokn"


def _no_group_name(item: dict[str, Any]) -> None:
    del item["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["groupName"]


@pytest.mark.parametrize(
    "spoil",
    [_misspell_surge, _misspell_image, _number_for_text, _unknown_auth_mode, _no_group_name],
)
def test_wrong_rayservice_is_refused(
    rendered: Objects, spoil: Callable[[dict[str, Any]], None]
) -> None:
    item = copy.deepcopy(one(rendered, "RayService"))
    spoil(item)
    with pytest.raises(SchemaError):
        validate(item)


def test_rayservice_that_leaves_defaults_out_is_taken(rendered: Objects) -> None:
    item = copy.deepcopy(one(rendered, "RayService"))
    group = item["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    del group["minReplicas"], group["maxReplicas"]
    validate(item)


@pytest.mark.parametrize(
    "name",
    [
        "apps/v1/StatefulSet/deeprequest-redis",
        "policy/v1/PodDisruptionBudget/deeprequest-workers",
        "networking.k8s.io/v1/NetworkPolicy/ray",
    ],
)
def test_misspelt_field_of_a_builtin_kind_is_refused(rendered: Objects, name: str) -> None:
    item = copy.deepcopy(rendered[name])
    item["spec"]["selektor"] = {}
    with pytest.raises(SchemaError, match="selektor"):
        validate(item)


def test_unknown_kind_is_refused(rendered: Objects) -> None:
    with pytest.raises(SchemaError):
        validate(one(rendered, "Service") | {"kind": "Servise"})
