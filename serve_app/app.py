"""The wiring: which deployments there are and how they hold each other.

Owns the options that Ray Serve gets. Everything else is in the rooms this file joins.
"""

import time
from pathlib import Path

from ray import serve

from cluster.engine.rank_main import main as model_rank
from cluster.worker.gang import RankMain
from serve_app.autoscaling import autoscaling_config
from serve_app.config import ServeConfig
from serve_app.ingress import Ingress
from serve_app.model_deployment import ModelDeployment
from serve_app.preflight import check_redis_url

# Serve must never be the queue: what admission grants has to reach a replica at once.
_MAX_ONGOING_REQUESTS = 4096
_HEALTH = {"health_check_period_s": 1.0, "health_check_timeout_s": 5.0}


def build_app(config: ServeConfig, rank_main: RankMain = model_rank) -> serve.Application:
    """The Serve application of a resolved configuration; Redis must be named in it.

    `rank_main` is what the engine's rank processes run.
    """
    values = config.model_dump(mode="json")
    deployment = config.deployment
    ranks = config.engine_config().tensor_parallel_size
    model = (
        serve.deployment(ModelDeployment)
        .options(
            autoscaling_config=autoscaling_config(config.scaling),
            ray_actor_options={"num_cpus": deployment.replica_cpus},
            placement_group_bundles=[
                {"CPU": deployment.replica_cpus},
                *[_rank_bundle(config) for _ in range(ranks)],
            ],
            placement_group_strategy=deployment.placement_strategy,
            max_ongoing_requests=_MAX_ONGOING_REQUESTS,
            graceful_shutdown_timeout_s=deployment.drain_timeout_s,
            **_HEALTH,
        )
        .bind(values, rank_main)
    )
    return (
        serve.deployment(serve.ingress()(Ingress))
        .options(
            num_replicas=deployment.ingress_replicas,
            ray_actor_options={"num_cpus": deployment.ingress_cpus},
            max_ongoing_requests=_MAX_ONGOING_REQUESTS,
            graceful_shutdown_timeout_s=deployment.drain_timeout_s,
            **_HEALTH,
        )
        .bind(values, model, time.time_ns() // 1_000_000)  # who was built later is newer
    )


def build(args: dict[str, str]) -> serve.Application:
    """The builder that a Serve config file names: `import_path: serve_app.app:build`.

    `args` holds one key, `config`: the path of the YAML file.

    Raises:
        ConfigError: a setting is wrong, or Redis is not named.
    """
    config = ServeConfig.load(Path(args["config"]))
    config.require_redis()
    check_redis_url(config.admission.redis_url or "")
    return build_app(config)


def _rank_bundle(config: ServeConfig) -> dict[str, float]:
    bundle = {"CPU": config.deployment.rank_cpus}
    return bundle | {"GPU": 1.0} if config.engine_config().device == "cuda" else bundle
