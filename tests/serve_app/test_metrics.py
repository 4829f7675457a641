"""The exposition parses as Prometheus text and says what the replicas said."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as LibraryHistogram
from prometheus_client.parser import text_string_to_metric_families

from cluster.request import EngineStats, Usage
from serve_app.metrics import Histogram, Metrics


@dataclass
class Load:
    replica: str
    ready: bool
    stats: EngineStats


@dataclass
class View:
    replicas: Sequence[Load]
    queued: int
    ledger_waiting: int = 0
    ledger_dropped: int = 0


def samples(text: bytes) -> dict[str, float]:
    families = text_string_to_metric_families(text.decode())
    return {s.name: s.value for family in families for s in family.samples}


def test_replica_stats_become_gauges_and_counters() -> None:
    stats = EngineStats(running=3, waiting=2, kv_total_blocks=100, kv_free_blocks=75, steps=9)
    stats.num_drafted, stats.num_accepted = 40, 30
    values = samples(Metrics("in-1").exposition(View([Load("r1", True, stats)], 4)))
    assert values["deeprequest_num_requests_running"] == 3
    assert values["deeprequest_kv_blocks_used"] == 25
    assert values["deeprequest_kv_cache_usage_perc"] == 0.25
    assert values["deeprequest_engine_steps_total"] == 9
    assert values["deeprequest_spec_decode_num_draft_tokens_total"] == 40
    assert values["deeprequest_spec_decode_num_accepted_tokens_total"] == 30
    assert values["deeprequest_queue_length"] == 4
    assert values["deeprequest_replicas_ready"] == 1
    assert values["deeprequest_admission_store_up"] == 1


def test_the_ledger_s_backlog_and_losses_are_told() -> None:
    view = View([], 0, ledger_waiting=7, ledger_dropped=2)
    values = samples(Metrics("in-1").exposition(view))
    assert values["deeprequest_ledger_entries_waiting"] == 7
    assert values["deeprequest_ledger_entries_dropped_total"] == 2


def test_finished_requests_add_up() -> None:
    metrics = Metrics("in-1")
    for _ in range(2):
        metrics.answered(200)
        metrics.used(Usage(10, 5, 8, 2))
        metrics.time_to_first_token.observe(0.2)
    values = samples(metrics.exposition(View([], 0)))
    assert values["deeprequest_requests_total"] == 2
    assert values["deeprequest_prompt_tokens_total"] == 20
    assert values["deeprequest_cached_tokens_total"] == 16
    assert values["deeprequest_generation_tokens_total"] == 10
    assert values["deeprequest_time_to_first_token_seconds_count"] == 2


def test_without_the_store_the_ingress_still_tells_what_it_counted_itself() -> None:
    metrics = Metrics("in-1")
    metrics.answered(200)
    metrics.exposition(View([Load("r1", True, EngineStats(running=3))], 4))
    values = samples(metrics.exposition(None))
    assert values["deeprequest_requests_total"] == 1
    assert values["deeprequest_admission_store_up"] == 0
    assert "deeprequest_queue_length" not in values
    assert "deeprequest_num_requests_running" not in values


def test_histograms_read_as_the_librarys_own() -> None:
    seconds = [0.0, 0.01, 0.010001, 0.3, 600.0, 601.0, 0.1]
    metrics, registry = Metrics("in-1"), CollectorRegistry()
    name, bounds = "deeprequest_time_to_first_token_seconds", (0.01, 0.1, 0.25, 600)
    own = Histogram(name, "text", "in-1", bounds)
    reference = LibraryHistogram(name, "text", ("ingress",), registry=registry, buckets=bounds)
    for value in seconds:
        own.observe(value)
        reference.labels("in-1").observe(value)
        metrics.time_to_first_token.observe(value)
    (told,), (expected,) = own.collect(), reference.collect()
    created = f"{name}_created"
    wanted = [sample for sample in expected.samples if sample.name != created]
    assert {(sample.name, *sample.labels.values()): sample.value for sample in told.samples} == {
        (sample.name, *sample.labels.values()): sample.value for sample in wanted
    }
    assert samples(metrics.exposition(None))[f"{name}_sum"] == sum(seconds)
