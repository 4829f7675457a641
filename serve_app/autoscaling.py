"""BacklogPolicy: how many model replicas the work at hand needs.

Owns the decision from the engines' own statistics: seconds of backlog -> replicas. Serve calls it
about ten times a second in its controller and applies min and max replicas and both delays around
it. Knows no Redis, no engine and no clock of its own; does no I/O; never scales down blind.

    seconds of backlog = (waiting + running + queued tokens) / (tokens/s of a replica x replicas)

    up     when work waits and the backlog exceeds the target
    down   when one replica fewer would stay under a lower threshold, hold the running KV and keep
           up with the present tokens/s
    keep   when the statistics are missing or old
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

    from serve_app.sections import ScalingSection

POLICY_PATH = "serve_app.autoscaling:BacklogPolicy"
METRICS_INTERVAL_S = 1.0
LOOK_BACK_S = 5.0


@dataclass(frozen=True)
class ReplicaLoad:
    """What one replica's `record_autoscaling_stats()` says; every name is a key of that dict.

    waiting_tokens: tokens still to be computed for requests that wait in the engine.
    running_tokens: tokens that running requests may still produce.
    tokens_per_s: tokens computed a second, prompt and output together; 0 while idle.
    kv_used_fraction: share of the KV blocks that requests hold, 0 to 1.
    queue_tokens: need in tokens of all that waits in Redis, the same in every replica's report;
        negative when Redis cannot be read.
    queue_requests: how many requests that is.
    """

    waiting_tokens: float = 0.0
    running_tokens: float = 0.0
    tokens_per_s: float = 0.0
    kv_used_fraction: float = 0.0
    queue_tokens: float = 0.0
    queue_requests: float = 0.0


METRIC_NAMES = tuple(ReplicaLoad.__dataclass_fields__)


@dataclass(frozen=True)
class Targets:
    """What the policy steers by."""

    target_backlog_s: float = 10.0
    low_fraction: float = 0.5
    """One replica fewer must stay under this share of the target before one is given up."""
    full_fraction: float = 0.8
    """Share of the remaining replicas' KV and rate that present work may take."""
    stale_after_s: float = 15.0
    rate_half_life_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("target_backlog_s", "stale_after_s", "rate_half_life_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("low_fraction", "full_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Capacity:
    """What a replica computes when it is busy, as far as it has been seen."""

    tokens_per_s: float = 0.0
    seen_at: float = 0.0


@dataclass(frozen=True)
class Decision:
    """Wanted replicas, why, and what to remember until the next call."""

    replicas: int
    reason: str
    backlog_s: float
    capacity: Capacity


def observe(
    loads: list[ReplicaLoad], queued: float, now: float, seen: Capacity, half_life_s: float
) -> Capacity:
    """Update the busy rate of a replica (tokens/s).

    A replica shows what it can do only while work waits for it; otherwise its rate is merely the
    demand, which may raise the estimate but never lower it.
    """
    busy = [load for load in loads if load.tokens_per_s > 0 and (queued > 0 or load.waiting_tokens)]
    if busy:
        rate = sum(load.tokens_per_s for load in busy) / len(busy)
        if not seen.tokens_per_s:
            return Capacity(rate, now)
        keep = 0.5 ** (max(0.0, now - seen.seen_at) / half_life_s)
        return Capacity(keep * seen.tokens_per_s + (1 - keep) * rate, now)
    fastest = max((load.tokens_per_s for load in loads), default=0.0)
    return Capacity(max(fastest, seen.tokens_per_s), now)


def decide(
    loads: list[ReplicaLoad], replicas: int, unseen: int, capacity: Capacity, targets: Targets
) -> Decision:
    """Replicas for this load.

    Args:
        loads: fresh reports, at least one; `capacity` has seen them already.
        replicas: the number asked for at present, whether they all run or not.
        unseen: running replicas without a fresh report; they forbid scaling down.
    """
    queued = max(load.queue_tokens for load in loads)
    movable = max(0.0, queued) + sum(load.waiting_tokens for load in loads)
    work = movable + sum(load.running_tokens for load in loads)
    rate = capacity.tokens_per_s
    if work > 0 and rate <= 0:
        return Decision(replicas, "rate unknown", 0.0, capacity)

    def backlog_s(count: int) -> float:
        return work / (rate * count) if work else 0.0

    now_s = backlog_s(replicas)
    if movable > 0 and now_s > targets.target_backlog_s:
        # Running requests stay where they are: new replicas can only take what still waits.
        useful = math.ceil(movable / (rate * targets.target_backlog_s))
        needed = math.ceil(work / (rate * targets.target_backlog_s))
        return Decision(min(needed, replicas + useful), "backlog", now_s, capacity)
    fewer = replicas - 1
    if fewer < 1 or unseen or queued < 0:
        return Decision(replicas, "steady", now_s, capacity)
    fits = targets.full_fraction * fewer
    holds = sum(load.kv_used_fraction for load in loads) <= fits
    # Without this a constant load that one replica cannot carry would swing between two counts.
    keeps_up = sum(load.tokens_per_s for load in loads) <= fits * rate
    if holds and keeps_up and backlog_s(fewer) < targets.target_backlog_s * targets.low_fraction:
        return Decision(fewer, "spare", now_s, capacity)
    return Decision(replicas, "steady", now_s, capacity)


class BacklogPolicy:
    """Ray Serve's class-based autoscaling policy around `decide`.

    Keyword arguments are the fields of `Targets` (plain numbers, as Serve keeps them as JSON).

    Raises:
        ValueError: a target is out of bounds.
    """

    def __init__(self, **targets: float) -> None:
        self._targets = Targets(**targets)

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Wanted replicas and the state that Serve hands back at the next call."""
        now = float(ctx.current_time or 0.0)
        seen = Capacity(
            float(ctx.policy_state.get("tokens_per_s", 0.0)),
            float(ctx.policy_state.get("seen_at", now)),
        )
        loads = fresh_loads(ctx, now - self._targets.stale_after_s)
        if not loads:
            blind = Decision(ctx.target_num_replicas, "blind", 0.0, seen)
            return blind.replicas, _state(blind)
        queued = max(load.queue_tokens for load in loads)
        capacity = observe(loads, queued, now, seen, self._targets.rate_half_life_s)
        unseen = len(ctx.running_replicas) - len(loads)
        decision = decide(loads, ctx.target_num_replicas, unseen, capacity, self._targets)
        return decision.replicas, _state(decision)


def fresh_loads(ctx: AutoscalingContext, oldest: float) -> list[ReplicaLoad]:
    """The newest report of each running replica, unless it is older than `oldest` (seconds).

    Serve's aggregated_metrics are means over the look-back window and carry no time, so the raw
    series are read: metric name -> replica -> [(timestamp, value), ...], oldest first.
    """
    raw = ctx.raw_metrics or {}
    loads = []
    for replica in ctx.running_replicas:
        newest = {
            name: raw[name][replica][-1] for name in METRIC_NAMES if raw.get(name, {}).get(replica)
        }
        if (
            len(newest) == len(METRIC_NAMES)
            and min(point.timestamp for point in newest.values()) >= oldest
        ):
            loads.append(ReplicaLoad(**{name: point.value for name, point in newest.items()}))
    return loads


def _state(decision: Decision) -> dict[str, Any]:
    return {
        "tokens_per_s": decision.capacity.tokens_per_s,
        "seen_at": decision.capacity.seen_at,
        "backlog_s": decision.backlog_s,
        "reason": decision.reason,
    }


def autoscaling_config(scaling: ScalingSection) -> dict[str, Any]:
    """The `autoscaling_config` of the model deployment, as plain data for Serve."""
    return {
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "upscale_delay_s": scaling.upscale_delay_s,
        "downscale_delay_s": scaling.downscale_delay_s,
        "metrics_interval_s": METRICS_INTERVAL_S,
        "look_back_period_s": LOOK_BACK_S,
        "policy": {
            "policy_function": POLICY_PATH,
            "policy_kwargs": {"target_backlog_s": scaling.target_backlog_s},
        },
    }
