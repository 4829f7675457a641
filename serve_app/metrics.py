"""Every metric of the service, once: names, help texts, labels, and how they are filled.

Labels are bounded by construction: a status, a replica, an ingress; never a key, a user, a model
string of a request or a path. Names follow the field's (`time_to_first_token_seconds`,
`num_requests_running`, `kv_cache_usage_perc`), so existing boards adapt. Knows no HTTP and no
Redis: the snapshot of the replicas is handed in.
"""

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cluster.request import EngineStats, Usage

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class ReplicaLoad(Protocol):
    """What a replica last said of itself."""

    @property
    def replica(self) -> str: ...
    @property
    def ready(self) -> bool: ...
    @property
    def stats(self) -> EngineStats: ...


class ClusterLoad(Protocol):
    """The replicas, the queue and the ledger's way into the database at one instant."""

    @property
    def replicas(self) -> Sequence[ReplicaLoad]: ...
    @property
    def queued(self) -> int: ...
    @property
    def ledger_waiting(self) -> int: ...
    @property
    def ledger_dropped(self) -> int: ...


class DoorLoad(Protocol):
    """How an ingress lets requests in."""

    @property
    def degraded(self) -> bool: ...
    @property
    def admitted_alone(self) -> int: ...
    @property
    def journal_bytes(self) -> int: ...


class Metrics:
    """The metrics of one ingress, together with the load of all replicas it knows of."""

    def __init__(self, ingress: str, door: DoorLoad | None = None) -> None:
        self._ingress = ingress
        self._registry = CollectorRegistry()
        self._cluster = _ClusterCollector()
        self._registry.register(self._cluster)
        if door is not None:
            self._registry.register(_DoorCollector(ingress, door))
        self._requests = Counter(
            "deeprequest_requests",
            "Chat requests by the HTTP status of their answer; 499: the client hung up.",
            ("ingress", "status"),
            registry=self._registry,
        )
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of finished requests.")
        self._cached = self._counter("cached_tokens", "Prompt tokens found in the prefix cache.")
        self._generated = self._counter("generation_tokens", "Generated tokens.")
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _SECONDS
        )
        self.inter_token_latency = self._histogram(
            "inter_token_latency_seconds", "Time between the deltas of one request.", _GAPS
        )
        self.request_latency = self._histogram(
            "e2e_request_latency_seconds", "From a request's arrival to its end.", _SECONDS
        )
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "Waiting time in the admission queue.", _SECONDS
        )

    def answered(self, status: int) -> None:
        """Count one answer; a stream that ended in an error counts with that error's status."""
        self._requests.labels(self._ingress, str(status)).inc()

    def used(self, usage: Usage) -> None:
        """Add the tokens of one finished request."""
        self._prompt.inc(usage.prompt_tokens)
        self._cached.inc(usage.cached_tokens)
        self._generated.inc(usage.completion_tokens)

    def exposition(self, load: ClusterLoad | None) -> bytes:
        """The Prometheus text format, with the cluster's load as of this snapshot.

        None: the store that knows it is away, and what it knows is left out.
        """
        self._cluster.load = load
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        name = f"deeprequest_{name}"
        return Counter(name, text, ("ingress",), registry=self._registry).labels(self._ingress)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> "Histogram":
        histogram = Histogram(f"deeprequest_{name}", text, self._ingress, buckets)
        self._registry.register(histogram)
        return histogram


class Histogram(Collector):
    """Counts for one event loop: prometheus_client's own takes locks for every observation, and one
    of these is made for every token."""

    def __init__(self, name: str, text: str, ingress: str, buckets: Sequence[float]) -> None:
        """`buckets`: upper bounds in seconds, rising."""
        self._name, self._text, self._ingress = name, text, ingress
        self._bounds = list(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=("ingress",))
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        totals = itertools.accumulate(self._counts)
        buckets = list(zip(bounds, totals, strict=True))
        family.add_metric([self._ingress], buckets, sum_value=self._sum)
        yield family


class _DoorCollector(Collector):
    """What an ingress does while Redis is away."""

    def __init__(self, ingress: str, door: DoorLoad) -> None:
        self._ingress, self._door = ingress, door

    def collect(self) -> Iterable[Metric]:
        degraded = GaugeMetricFamily(
            "deeprequest_admission_degraded",
            "Whether requests are let in without Redis, 0 or 1.",
            labels=("ingress",),
        )
        degraded.add_metric([self._ingress], self._door.degraded)
        yield degraded
        alone = CounterMetricFamily(
            "deeprequest_admitted_alone", "Requests let in without Redis.", labels=("ingress",)
        )
        alone.add_metric([self._ingress], self._door.admitted_alone)
        yield alone
        unheard = GaugeMetricFamily(
            "deeprequest_journal_bytes",
            "Settled requests on disk that Redis has not heard of.",
            labels=("ingress",),
        )
        unheard.add_metric([self._ingress], self._door.journal_bytes)
        yield unheard


class _ClusterCollector(Collector):
    """Gauges and counters that the replicas keep themselves."""

    def __init__(self) -> None:
        self.load: ClusterLoad | None = None

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "deeprequest_admission_store_up",
            "Whether Redis answered when this was read, 0 or 1.",
            value=self.load is not None,
        )
        if self.load is None:
            return
        replicas = self.load.replicas
        yield GaugeMetricFamily(
            "deeprequest_queue_length",
            "Requests waiting in the admission queue.",
            value=self.load.queued,
        )
        yield GaugeMetricFamily(
            "deeprequest_ledger_entries_waiting",
            "Ledger entries in Redis that are not in the database yet.",
            value=self.load.ledger_waiting,
        )
        yield CounterMetricFamily(
            "deeprequest_ledger_entries_dropped",
            "Ledger entries dropped by Redis before they were in the database.",
            value=self.load.ledger_dropped,
        )
        yield GaugeMetricFamily(
            "deeprequest_replicas_ready",
            "Model replicas that answer.",
            value=sum(replica.ready for replica in replicas),
        )
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(f"deeprequest_{name}", text, labels=("replica",))
            for replica in replicas:
                gauge.add_metric([replica.replica], read(replica.stats))
            yield gauge
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(f"deeprequest_{name}", text, labels=("replica",))
            for replica in replicas:
                counter.add_metric([replica.replica], read(replica.stats))
            yield counter


def _used_blocks(stats: EngineStats) -> float:
    return stats.kv_total_blocks - stats.kv_free_blocks


def _usage(stats: EngineStats) -> float:
    return _used_blocks(stats) / stats.kv_total_blocks if stats.kv_total_blocks else 0.0


_Read = Callable[[EngineStats], float]
_GAUGES: tuple[tuple[str, str, _Read], ...] = (
    ("num_requests_running", "Requests in the engine's batch.", lambda s: s.running),
    ("num_requests_waiting", "Requests waiting inside the engine.", lambda s: s.waiting),
    ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", _usage),
    ("kv_blocks_total", "KV blocks of the replica.", lambda s: s.kv_total_blocks),
    ("kv_blocks_used", "KV blocks held by requests.", _used_blocks),
    ("kv_blocks_free", "KV blocks that a new request could take.", lambda s: s.kv_free_blocks),
    ("kv_blocks_cached", "Free KV blocks that a prefix may hit.", lambda s: s.kv_cached_blocks),
)
_COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    ("engine_steps", "Engine steps.", lambda s: s.steps),
    ("engine_prompt_tokens", "Prompt tokens computed.", lambda s: s.prompt_tokens),
    ("engine_generation_tokens", "Tokens generated.", lambda s: s.generation_tokens),
    ("prefix_cache_hit_tokens", "Prompt tokens found in the cache.", lambda s: s.prefix_hit_tokens),
    ("spec_decode_num_draft_tokens", "Tokens computed ahead.", lambda s: s.num_drafted),
    ("spec_decode_num_accepted_tokens", "Of those, the ones drawn.", lambda s: s.num_accepted),
    ("preemptions", "Requests preempted for want of KV blocks.", lambda s: s.preemptions),
)
