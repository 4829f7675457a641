import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    DeploymentID,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.autoscaling import (
    METRIC_NAMES,
    BacklogPolicy,
    Capacity,
    ReplicaLoad,
    Targets,
    autoscaling_config,
    decide,
    observe,
)
from serve_app.sections import ScalingSection

DEPLOYMENT = DeploymentID("ModelDeployment", "deeprequest")
REPLICAS = [ReplicaID(f"replica{index}", DEPLOYMENT) for index in range(8)]
BUSY = Capacity(1000.0, 0.0)
CONFIG = AutoscalingConfig(min_replicas=1, max_replicas=4)


def context(
    loads: Iterable[ReplicaLoad],
    target: int,
    now: float = 1000.0,
    age_s: float = 0.0,
    state: dict[str, Any] | None = None,
    running: int | None = None,
) -> AutoscalingContext:
    """Serve's own context with one raw series per metric and replica, as its controller makes."""
    reports = list(loads)
    running = len(reports) if running is None else running
    raw: dict[str, dict[ReplicaID, list[TimeStampedValue]]] = {
        name: {
            replica: [
                TimeStampedValue(now - age_s - 1, 123456.0),
                TimeStampedValue(now - age_s, float(getattr(load, name))),
            ]
            for replica, load in zip(REPLICAS, reports, strict=False)
        }
        for name in METRIC_NAMES
    }
    return AutoscalingContext(
        deployment_id=DEPLOYMENT,
        deployment_name=DEPLOYMENT.name,
        app_name=DEPLOYMENT.app_name,
        current_num_replicas=running,
        target_num_replicas=target,
        running_replicas=REPLICAS[:running],
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics=lambda: {},
        raw_metrics=lambda: raw,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state=state or {},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=now,
        config=CONFIG,
    )


def test_backlog_over_the_target_asks_for_the_replicas_that_would_clear_it() -> None:
    load = ReplicaLoad(waiting_tokens=5_000, tokens_per_s=1000, queue_tokens=20_000)
    assert decide([load], 1, 0, BUSY, Targets(target_backlog_s=10)).replicas == 3


def test_running_work_alone_never_scales_up_since_it_cannot_move() -> None:
    load = ReplicaLoad(running_tokens=1_000_000, tokens_per_s=1000)
    assert decide([load], 1, 0, BUSY, Targets()).replicas == 1


def test_one_short_waiting_request_behind_long_streams_asks_for_one_replica_only() -> None:
    load = ReplicaLoad(running_tokens=1_000_000, waiting_tokens=100, tokens_per_s=1000)
    assert decide([load], 1, 0, BUSY, Targets()).replicas == 2


def test_a_lone_slow_stream_does_not_look_like_a_slow_replica() -> None:
    idle = [ReplicaLoad(running_tokens=900, tokens_per_s=30)]
    assert observe(idle, 0.0, 1.0, BUSY, 30.0) == Capacity(1000.0, 1.0)


def test_busy_rate_follows_what_is_measured_while_work_waits() -> None:
    seen = observe([ReplicaLoad(waiting_tokens=1, tokens_per_s=400)], 0.0, 30.0, BUSY, 30.0)
    assert seen.tokens_per_s == pytest.approx(700.0)


def test_queue_length_is_taken_once_although_every_replica_reports_it() -> None:
    loads = [ReplicaLoad(tokens_per_s=1000, queue_tokens=15_000)] * 2
    decision = decide(loads, 2, 0, BUSY, Targets(target_backlog_s=10))
    assert (decision.replicas, decision.backlog_s) == (2, 7.5)


def test_one_replica_fewer_that_stays_under_the_low_mark_is_given_up() -> None:
    loads = [ReplicaLoad(running_tokens=2_000), ReplicaLoad(running_tokens=2_000)]
    assert decide(loads, 2, 0, BUSY, Targets(target_backlog_s=10)).replicas == 1


def test_between_the_low_mark_and_the_target_nothing_changes() -> None:
    for tokens in range(5_000, 20_000, 1_000):
        loads = [ReplicaLoad(waiting_tokens=tokens), ReplicaLoad()]
        assert decide(loads, 2, 0, BUSY, Targets(target_backlog_s=10)).reason == "steady"


def test_running_kv_that_does_not_fit_in_fewer_replicas_forbids_scaling_down() -> None:
    loads = [ReplicaLoad(kv_used_fraction=0.5), ReplicaLoad(kv_used_fraction=0.4)]
    assert decide(loads, 2, 0, BUSY, Targets()).replicas == 2


def test_present_rate_that_fewer_replicas_cannot_carry_forbids_scaling_down() -> None:
    loads = [ReplicaLoad(tokens_per_s=500), ReplicaLoad(tokens_per_s=400)]
    assert decide(loads, 2, 0, BUSY, Targets()).replicas == 2
    assert decide([ReplicaLoad(tokens_per_s=350)] * 2, 2, 0, BUSY, Targets()).replicas == 1


def test_a_replica_without_a_fresh_report_forbids_scaling_down() -> None:
    assert decide([ReplicaLoad()], 2, 1, BUSY, Targets()).replicas == 2
    assert BacklogPolicy()(context([ReplicaLoad()], target=2, running=2))[0] == 2


def test_unreadable_queue_forbids_scaling_down_but_not_up() -> None:
    idle, busy = ReplicaLoad(queue_tokens=-1), ReplicaLoad(queue_tokens=-1, waiting_tokens=15_000)
    assert decide([idle, idle], 2, 0, BUSY, Targets()).replicas == 2
    assert decide([busy], 1, 0, BUSY, Targets()).replicas == 2


def test_missing_statistics_keep_the_last_decision_and_the_memory() -> None:
    state = {"tokens_per_s": 500.0, "seen_at": 7.0}
    replicas, kept = BacklogPolicy()(context([], target=3, running=3, state=state))
    assert replicas == 3
    assert kept == state | {"backlog_s": 0.0, "reason": "blind"}


def test_old_statistics_count_as_none() -> None:
    huge = ReplicaLoad(queue_tokens=1e9, tokens_per_s=1.0)
    policy = BacklogPolicy(stale_after_s=15.0)
    assert policy(context([huge], target=2, age_s=16.0))[1]["reason"] == "blind"
    assert policy(context([huge], target=2, age_s=14.0))[0] > 2


def test_newest_sample_counts_not_the_mean_of_the_window() -> None:
    replicas, state = BacklogPolicy()(context([ReplicaLoad(), ReplicaLoad()], target=2))
    assert (replicas, state["backlog_s"]) == (1, 0.0)


def test_work_before_anything_was_measured_changes_nothing() -> None:
    waiting = ReplicaLoad(waiting_tokens=1e6)
    assert BacklogPolicy()(context([waiting], target=1))[1]["reason"] == "rate unknown"


def test_state_and_kwargs_survive_json() -> None:
    replicas, state = BacklogPolicy(**json.loads('{"target_backlog_s": 5}'))(
        context([ReplicaLoad(queue_tokens=30_000, tokens_per_s=1000)], target=1)
    )
    assert replicas == 6
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    "wrong", [{"target_backlog_s": 0}, {"low_fraction": 1.0}, {"full_fraction": 0.0}]
)
def test_targets_out_of_bounds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BacklogPolicy(**wrong)


def test_misspelt_target_is_refused() -> None:
    with pytest.raises(TypeError, match="target_backlog"):
        BacklogPolicy(target_backlog=3.0)


class Service:
    """A closed loop of ideal engines: work is shared evenly, each computes `rate` tokens/s."""

    def __init__(self, rate: float, low: int, high: int) -> None:
        self.policy = BacklogPolicy(target_backlog_s=10.0)
        self.rate, self.low, self.high = rate, low, high
        self.replicas, self.work, self.now = low, 0.0, 0.0
        self.state: dict[str, Any] = {}
        self.history: list[int] = []

    def second(self, arriving: float) -> None:
        self.work += arriving
        done = min(self.work, self.rate * self.replicas)
        self.work -= done
        running = min(self.work, self.rate * self.replicas)
        load = ReplicaLoad(
            running_tokens=running / self.replicas,
            tokens_per_s=done / self.replicas,
            kv_used_fraction=0.7 * running / (self.rate * self.replicas),
            queue_tokens=self.work - running,
        )
        self.now += 1.0
        wanted, self.state = self.policy(
            context([load] * self.replicas, self.replicas, self.now, state=self.state)
        )
        self.replicas = min(self.high, max(self.low, wanted))
        self.history.append(self.replicas)

    def changes(self) -> list[int]:
        """The replica counts gone through, repetitions dropped."""
        return [
            count
            for index, count in enumerate(self.history)
            if index == 0 or count != self.history[index - 1]
        ]


def test_idle_then_load_then_idle_goes_from_one_to_two_and_back() -> None:
    service = Service(rate=1000.0, low=1, high=4)
    for arriving in [0.0] * 10 + [1500.0] * 60 + [0.0] * 60:
        service.second(arriving)
    assert service.changes() == [1, 2, 1]
    assert service.work == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 5000), min_size=1, max_size=60), st.floats(100, 3000))
def test_any_load_is_served_within_bounds_and_the_service_comes_to_rest(
    arrivals: list[float], rate: float
) -> None:
    service = Service(rate, low=1, high=4)
    for arriving in arrivals:
        service.second(arriving)
        assert 1 <= service.replicas <= 4
    for _ in range(math.ceil(sum(arrivals) / rate) + 10):
        service.second(0.0)
    assert service.work == 0.0
    assert service.replicas == 1


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 3900))
def test_constant_load_does_not_flap(arriving: float) -> None:
    service = Service(rate=1000.0, low=1, high=4)
    for _ in range(200):
        service.second(arriving)
    assert len(service.changes()) <= 4


def test_serves_own_controller_state_carries_the_reports_to_the_policy() -> None:
    scaling = ScalingSection(
        min_replicas=1, max_replicas=2, upscale_delay_s=0, downscale_delay_s=0, target_backlog_s=2
    )
    state = DeploymentAutoscalingState(DEPLOYMENT)
    info = DeploymentInfo(
        deployment_config=DeploymentConfig(autoscaling_config=autoscaling_config(scaling)),
        replica_config=ReplicaConfig.create(lambda: None),
        start_time_ms=0,
        deployer_job_id="",
        version="1",
    )
    assert state.register(info, 1) == 1

    def decision(loads: list[ReplicaLoad], target: int) -> int:
        now = time.time()
        state.update_running_replica_ids(REPLICAS[: len(loads)])
        for replica, load in zip(REPLICAS, loads, strict=False):
            metrics = {name: [TimeStampedValue(now, getattr(load, name))] for name in METRIC_NAMES}
            state.record_request_metrics_for_replica(ReplicaMetricReport(replica, metrics, now))
        return int(state.get_decision_num_replicas(target))

    assert decision([ReplicaLoad()], 1) == 1
    assert decision([ReplicaLoad(tokens_per_s=100, queue_tokens=1000)], 1) == 2
    assert decision([ReplicaLoad(), ReplicaLoad()], 2) == 1


LIVE = """
import asyncio, sys, threading, time
import ray
from ray import serve
from serve_app.autoscaling import METRIC_NAMES, autoscaling_config
from serve_app.sections import ScalingSection

SCALING = ScalingSection(
    min_replicas=1, max_replicas=2, upscale_delay_s=0, downscale_delay_s=0.5, target_backlog_s=2
)

@serve.deployment(autoscaling_config=autoscaling_config(SCALING), ray_actor_options={"num_cpus": 0})
class Model:
    def __init__(self):
        self.waiting = 0.0

    def load(self, waiting):
        self.waiting = waiting

    def record_autoscaling_stats(self):
        return dict.fromkeys(METRIC_NAMES, 0.0) | {
            "waiting_tokens": self.waiting, "tokens_per_s": 100.0 if self.waiting else 0.0
        }

def replicas():
    return serve.status().applications["default"].deployments["Model"].replica_states.get(
        "RUNNING", 0)

def until(count):
    while replicas() != count:
        time.sleep(0.1)
    print("replicas", count, flush=True)

ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[1],
         log_to_driver=False)
handle = serve.run(Model.bind(), route_prefix=None)
until(1)
handle.load.remote(1000.0).result()
until(2)
for _ in range(50):
    handle.load.remote(0.0).result()
until(1)
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.e2e
def test_live_serve_goes_from_one_replica_to_two_and_back(tmp_path: Path) -> None:
    environment = os.environ | {
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment.pop("RAY_ADDRESS", None)
    # A Unix socket's path has at most 107 characters, and Ray adds about 60 to this one.
    short = subprocess.run(
        ["mktemp", "-d", "/tmp/drXXXXXX"], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        result = subprocess.run(
            [sys.executable, "-c", LIVE, short],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        subprocess.run(["rm", "-rf", short], check=True)
    seen = [line for line in result.stdout.splitlines() if line.startswith("replicas ")]
    assert seen == ["replicas 1", "replicas 2", "replicas 1"], result.stderr[-4000:]
