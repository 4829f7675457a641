"""What several files say of one thing must agree: manifests, configurations, versions, Ray."""

import copy
import importlib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
import yaml
from ray.scripts.scripts import start
from ray.serve import Deployment
from ray.serve._private.build_app import build_app
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from serve_app import cli
from serve_app.autoscaling import POLICY_PATH
from serve_app.config import ServeConfig
from tests.k8s.kustomize import load
from tests.k8s.pods import Pod, one, pods, quantity

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
R1_HEADS, R1_KV_HEADS, R1_LAYERS, R1_HEAD_DIM, R1_PARAMETERS = 40, 8, 64, 128, 32_763_876_352
GPU_BYTES = 79.6 * 2**30

Objects = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("DEEPREQUEST_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(overlay: Path) -> ServeConfig:
    return ServeConfig.load(overlay / "config.yaml")


def serve_config(objects: Objects) -> dict[str, Any]:
    """The application as Serve will read it.

    Raises:
        ValueError: Serve would refuse it, or silently ignore a part of it.
    """
    parsed: dict[str, Any] = yaml.safe_load(one(objects, "RayService")["spec"]["serveConfigV2"])
    parts = [(parsed, ServeDeploySchema), (parsed.get("http_options", {}), HTTPOptionsSchema)]
    parts += [(app, ServeApplicationSchema) for app in parsed.get("applications", [])]
    for part, schema in parts:
        unknown = set(part) - set(schema.model_fields)
        if unknown:
            raise ValueError(f"Serve does not know {sorted(unknown)}")
    ServeDeploySchema.model_validate(parsed)
    return parsed


def test_serve_accepts_the_application(objects: Objects) -> None:
    parsed = serve_config(objects)
    ports = {port["name"]: port["containerPort"] for port in pods(objects)["worker"].main["ports"]}
    assert parsed["http_options"] == {"host": "0.0.0.0", "port": ports["serve"]}


@pytest.mark.parametrize(
    ("right", "typo"),
    [("http_options:", "htp_options:"), ("import_path:", "import_pth:"), ("host:", "hst:")],
)
def test_typo_in_the_application_is_refused(objects: Objects, right: str, typo: str) -> None:
    spoilt = copy.deepcopy(objects)
    spec = one(spoilt, "RayService")["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace(right, typo)
    with pytest.raises(ValueError, match=r"pth|hst|htp"):
        serve_config(spoilt)


@pytest.fixture
def deployments(
    objects: Objects, overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Deployment]:
    """What the named builder makes of the overlay's configuration, by name."""
    (application,) = serve_config(objects)["applications"]
    module, _, attribute = application["import_path"].partition(":")
    builder = getattr(importlib.import_module(module), attribute)
    monkeypatch.setenv("DEEPREQUEST_REDIS_URL", "redis://redis:6379/0")
    built = build_app(builder({"config": str(overlay / "config.yaml")}), name="deeprequest")
    assert set(application["args"]) == {"config"}
    return {deployment.name: deployment for deployment in built.deployments}


def test_files_the_application_names_are_mounted(objects: Objects, config: ServeConfig) -> None:
    (application,) = serve_config(objects)["applications"]
    made = pods(objects)
    for pod in (made["head"], made["worker"]):
        assert_mounted(objects, pod, Path(application["args"]["config"]))
    assert config.admission.pepper_file is not None
    assert_mounted(objects, made["worker"], Path(config.admission.pepper_file))


def assert_mounted(objects: Objects, pod: Pod, path: Path) -> None:
    volume = pod.mounts()[str(path.parent)]
    kind, name = (
        ("Secret", volume["secret"]["secretName"])
        if "secret" in volume
        else ("ConfigMap", volume["configMap"]["name"])
    )
    assert path.name in objects[f"v1/{kind}/{name}"]["data"]


def test_model_is_in_the_image_or_on_a_volume(objects: Objects, config: ServeConfig) -> None:
    path = Path(config.model.path)
    if path.is_relative_to("/opt/deeprequest"):
        assert (ROOT / path.relative_to("/opt/deeprequest") / "config.json").is_file()
    else:
        assert "persistentVolumeClaim" in pods(objects)["worker"].mounts()[str(path.parent)]


def test_every_object_that_a_pod_refers_to_exists(objects: Objects) -> None:
    for pod in pods(objects).values():
        referred = {f"v1/ServiceAccount/{pod.spec['serviceAccountName']}"}
        for volume in pod.spec["volumes"]:
            if "configMap" in volume:
                referred.add(f"v1/ConfigMap/{volume['configMap']['name']}")
            if "secret" in volume:
                referred.add(f"v1/Secret/{volume['secret']['secretName']}")
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                referred.add(f"v1/PersistentVolumeClaim/{claim}")
        for variable in pod.main.get("env", []):
            if "valueFrom" in variable:
                key = variable["valueFrom"]["secretKeyRef"]
                if key.get("optional"):
                    continue
                referred.add(f"v1/Secret/{key['name']}")
                assert key["key"] in objects[f"v1/Secret/{key['name']}"]["data"]
        assert referred <= set(objects)


def test_ranks_divide_the_heads(config: ServeConfig) -> None:
    engine = config.engine_config()
    heads, kv_heads = R1_HEADS, R1_KV_HEADS
    if config.model.name == "deeprequest-demo":
        shapes = json.loads((ROOT / "configs/models/deeprequest-demo/config.json").read_text())
        heads, kv_heads = shapes["num_attention_heads"], shapes["num_key_value_heads"]
    assert heads % engine.tensor_parallel_size == kv_heads % engine.tensor_parallel_size == 0


def test_replicas_fit_in_the_worker_pods(
    objects: Objects, config: ServeConfig, deployments: dict[str, Deployment]
) -> None:
    group = one(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    worker, model, ingress = pods(objects)["worker"], deployments["ModelDeployment"], "Ingress"
    bundles = model._replica_config.placement_group_bundles
    assert model._replica_config.placement_group_strategy == "STRICT_PACK"
    cpus = sum(bundle["CPU"] for bundle in bundles)
    ingress_cpus = deployments[ingress].ray_actor_options["num_cpus"]
    assert cpus + deployments[ingress].num_replicas * ingress_cpus <= worker.limit("cpu")
    per_pod = int(worker.limit("cpu") // cpus)
    if config.engine_config().device == "cuda":
        gpus = sum(bundle.get("GPU", 0) for bundle in bundles)
        assert gpus == config.engine_config().tensor_parallel_size
        per_pod = min(per_pod, int(worker.limit("nvidia.com/gpu") // gpus))
    assert group["minReplicas"] * per_pod >= config.scaling.min_replicas
    assert group["maxReplicas"] * per_pod >= config.scaling.max_replicas
    assert group["maxReplicas"] <= config.scaling.max_replicas, "pods that nothing would use"


def test_model_scales_by_backlog_within_the_configured_bounds(
    config: ServeConfig, deployments: dict[str, Deployment]
) -> None:
    scaling = deployments["ModelDeployment"]._deployment_config.autoscaling_config
    assert scaling.policy.policy_function == POLICY_PATH
    assert (scaling.min_replicas, scaling.max_replicas) == (
        config.scaling.min_replicas,
        config.scaling.max_replicas,
    )


def test_scaling_of_pods_is_on_exactly_where_pods_are_to_scale(objects: Objects) -> None:
    cluster = one(objects, "RayService")["spec"]["rayClusterConfig"]
    group = cluster["workerGroupSpecs"][0]
    assert cluster["enableInTreeAutoscaling"] == (group["minReplicas"] < group["maxReplicas"])


def test_drain_ends_before_the_pod_is_killed(objects: Objects, config: ServeConfig) -> None:
    spec = one(objects, "RayService")["spec"]
    worker = pods(objects)["worker"]
    (_, pause) = worker.main["lifecycle"]["preStop"]["exec"]["command"]
    drain = float(worker.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    grace = worker.spec["terminationGracePeriodSeconds"]
    assert config.deployment.drain_timeout_s < drain
    assert int(pause) + drain + 30 <= grace
    assert grace <= spec["rayClusterDeletionDelaySeconds"]
    head = pods(objects)["head"]
    head_drain = float(head.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert head_drain < head.spec["terminationGracePeriodSeconds"]


def test_versions_agree(objects: Objects) -> None:
    pins = dict(
        re.findall(r"^([\w-]+)(?:\[\w+\])?==([\w.]+)", "\n".join(PROJECT["dependencies"]), re.M)
    )
    assert one(objects, "RayService")["spec"]["rayClusterConfig"]["rayVersion"] == pins["ray"]
    assert ray.__version__ == pins["ray"]
    images = {
        container["image"]
        for role in ("head", "worker", "admin")
        for key in ("containers", "initContainers")
        for container in pods(objects)[role].spec.get(key, [])
    }
    (image,) = images
    assert image.removesuffix("-cuda").endswith(f":{PROJECT['version']}")
    dockerfile = (ROOT / "k8s/images/Dockerfile").read_text()
    assert f"torch=={pins['torch']}" in dockerfile
    assert f"-t {image} " in dockerfile, "the build command of this image is documented"


def test_every_ray_node_runs_in_the_products_mode(objects: Objects) -> None:
    for role in ("head", "worker"):
        environment = pods(objects)[role].environment
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
        assert environment["RAY_AUTH_MODE"] == "token"


def test_settings_in_the_environment_are_ones_the_project_reads(
    objects: Objects, overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("head", "worker", "admin"):
        own = {k: v for k, v in pods(objects)[role].environment.items() if k.startswith("DEEPREQ")}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        seen = ServeConfig.load(overlay / "config.yaml")
        assert str(seen.state_dir) == own.pop("DEEPREQUEST_STATE_DIR")
        assert seen.admission.redis_url == own.pop("DEEPREQUEST_REDIS_URL")
        assert own.pop("DEEPREQUEST_LEDGER_URL") == ""  # of a secret that need not be there
        assert not own


def test_redis_is_found_under_one_name(objects: Objects) -> None:
    service = one(objects, "Service")
    address = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    cluster = one(objects, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == address
    for role in ("head", "worker", "admin"):
        assert f"@{address}/" in pods(objects)[role].environment["DEEPREQUEST_REDIS_URL"]


def test_shared_memory_holds_the_object_store_and_fits_in_memory(objects: Objects) -> None:
    for role in ("head", "worker"):
        pod = pods(objects)[role]
        shm = pod.mounts()["/dev/shm"]["emptyDir"]
        assert shm["medium"] == "Memory"
        assert int(pod.start["object-store-memory"]) < quantity(shm["sizeLimit"])
        assert quantity(shm["sizeLimit"]) <= pod.limit("memory") / 4


def test_writable_paths_are_mounted_over_the_read_only_root(objects: Objects) -> None:
    for role in ("head", "worker"):
        pod = pods(objects)[role]
        writable = [path for path, volume in pod.mounts().items() if "emptyDir" in volume]
        assert {"/tmp", "/home/deeprequest"} <= set(writable)
        state = pod.environment["DEEPREQUEST_STATE_DIR"]
        assert any(Path(state).is_relative_to(path) for path in writable)


def test_the_32b_configuration_is_the_same_on_kubernetes() -> None:
    (bare,) = load(ROOT / "configs/deepseek-r1-32b.yaml")
    (pod,) = load(ROOT / "k8s/overlays/single-node/config.yaml")
    assert bare["model"]["id"] == pod["model"]["id"]
    for section in ("engine", "scaling", "deployment"):
        assert bare[section] == pod[section]


def test_the_32b_weights_and_one_longest_request_fit_the_gpus() -> None:
    config = ServeConfig.load(ROOT / "configs/deepseek-r1-32b.yaml")
    engine = config.engine_config()
    ranks = engine.tensor_parallel_size
    weights = 2 * R1_PARAMETERS / ranks
    kv_per_token = 2 * R1_LAYERS * R1_KV_HEADS * R1_HEAD_DIM * 2 / ranks
    room = engine.gpu_memory_utilization * GPU_BYTES - weights - 2.5 * 2**30
    assert engine.max_model_len is not None
    assert room / kv_per_token > 6 * engine.max_model_len
    assert config.http.max_body_bytes >= 32 * engine.max_model_len


def test_kuberay_would_not_refuse_the_service(objects: Objects) -> None:
    service = one(objects, "RayService")
    spec, cluster = service["spec"], service["spec"]["rayClusterConfig"]
    made = pods(objects)
    assert len(service["metadata"]["name"]) <= 41
    assert spec["upgradeStrategy"]["type"] in {"NewCluster", "None"}
    assert "serve" in [port["name"] for port in made["head"].main["ports"]]
    forbidden = {
        "REDIS_PASSWORD",
        "REDIS_USERNAME",
        "RAY_REDIS_ADDRESS",
        "RAY_enable_autoscaler_v2",
    }
    assert not forbidden & set(made["head"].environment)
    assert not {"redis-password", "redis-username", "labels"} & set(made["head"].start)
    assert "externalStorageNamespace" not in cluster["gcsFaultToleranceOptions"]
    assert all("restartPolicy" not in pod.spec for pod in made.values())
    assert not any("resources" in group for group in cluster["workerGroupSpecs"])
    assert "auth_token" in objects[f"v1/Secret/{cluster['authOptions']['secretName']}"]["data"]


def test_ray_start_knows_every_parameter(objects: Objects) -> None:
    known = {
        option.lstrip("-"): parameter.is_flag
        for parameter in start.params
        for option in parameter.opts
    }
    for role in ("head", "worker"):
        for name, value in pods(objects)[role].start.items():
            assert known[name] == (value == "true"), name


def test_keys_are_made_under_the_pepper_that_the_service_uses(
    objects: Objects, config: ServeConfig
) -> None:
    made = pods(objects)
    mounts = {mount["mountPath"]: mount for mount in made["admin"].main["volumeMounts"]}
    state = made["admin"].environment["DEEPREQUEST_STATE_DIR"]
    assert "persistentVolumeClaim" in made["admin"].mounts()[state]
    mine = made["admin"].mounts()[f"{state}/pepper"]["secret"]["secretName"]
    pepper = Path(config.admission.pepper_file or "")
    theirs = made["worker"].mounts()[str(pepper.parent)]["secret"]["secretName"]
    assert (mine, mounts[f"{state}/pepper"]["subPath"]) == (theirs, pepper.name)


def test_the_admin_pod_serves_the_admin_api_to_itself_alone(objects: Objects) -> None:
    program, word = pods(objects)["admin"].main["command"]
    assert program == "deeprequest"
    command: Any = typer.main.get_command(cli.app)
    usual = {option.name: option.default for option in command.commands[word].params}
    assert usual["host"] == "127.0.0.1"  # no policy opens it; who may forward ports reaches it
    told = (ROOT / "k8s/README.md").read_text()
    assert f"port-forward deploy/deeprequest-admin {usual['port']}" in told
    assert f"localhost:{usual['port']}/admin/v1/keys" in told
