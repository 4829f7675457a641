"""Decode steps of a whole model over batch sizes, eager and replayed, beside their floors."""

from typing import Any

import torch

from cluster.plan.memory import Precision
from cluster.plan.speed import Machine, decode_seconds
from cluster.worker.graphs.decode_graphs import DecodeGraphs
from tests.gpu.bench import Bench, decode_inputs
from tests.gpu.random_model import RandomWorker

MOST_TOKENS = 1 << 17
"""In all contexts of a batch: a cache of 34 GB for the 32B."""
QUERIES = 9
"""Of a row with the usual number of drafts."""
LIKE_SOAK = (64, 320)
"""Clients of the soak, and the tokens that they have in the middle of it."""


def sweep(bench: Bench, worker: RandomWorker, precision: Precision, told: dict[str, Any]) -> None:
    """By batch size, into `told`; a size whose context does not fit the cache is left out."""
    facts = worker.facts
    rows: dict[str, Any] = {}
    told |= {
        "attention": worker._backend.signature,
        "kv_blocks": facts.num_kv_blocks,
        "batches": rows,
    }
    for batch in bench.pick((1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 4)):
        context = bench.pick(min(2048, MOST_TOKENS // batch), 100)
        if not _fits(worker, batch, context) or bench.out_of_time:
            rows[str(batch)] = "the cache is too small" if not bench.out_of_time else "out of time"
            continue
        row = {"context": context} | _one(bench, worker, worker.graphs, batch, context)
        row |= _floor(bench, worker, precision, batch, context)
        if "floor_ms" in row:
            row["share_of_floor"] = row["floor_ms"] / (row["graph_ms"] or row["eager_ms"])
        rows[str(batch)] = row
        bench.save()
    for batch in bench.pick((1, 4), (2,)):
        context = bench.pick(2048, 100)
        graphs = worker.graphs
        if graphs and graphs.max_queries >= QUERIES and _fits(worker, batch, context):
            told[f"{batch} with drafts"] = _one(bench, worker, graphs, batch, context, QUERIES)
    soak = bench.pick(LIKE_SOAK, (3, 70))
    if _fits(worker, *soak):
        told["like the soak"] = _one(bench, worker, worker.graphs, *soak)


def _fits(worker: RandomWorker, batch: int, context: int) -> bool:
    return batch * -(-context // worker.facts.block_size) < worker.facts.num_kv_blocks


def _one(
    bench: Bench,
    worker: RandomWorker,
    graphs: DecodeGraphs | None,
    batch: int,
    context: int,
    queries: int = 1,
) -> dict[str, Any]:
    model, backend, kv_cache = worker._loaded(), worker._backend, worker.kv_cache
    token_ids, metadata = decode_inputs(
        batch, context, worker.facts.block_size, worker.device.torch_device, queries
    )

    def eager() -> torch.Tensor:
        hidden = model(token_ids, kv_cache, backend.plan(metadata))
        return model.compute_logits(hidden).argmax(-1)

    def replayed() -> torch.Tensor:
        assert graphs is not None
        hidden = graphs.run(token_ids, metadata)
        assert hidden is not None, graphs.refused
        return model.compute_logits(hidden).argmax(-1)

    told: dict[str, Any] = {"eager_ms": 1e3 * bench.seconds(eager), "graph_ms": None}
    if graphs is not None:
        told["graph_ms"] = 1e3 * bench.seconds(replayed)
        told["graph_over_eager"] = told["eager_ms"] / told["graph_ms"]
        told["same_tokens"] = float((eager() == replayed()).float().mean())
    told["tokens_per_s"] = 1e3 * batch * queries / (told["graph_ms"] or told["eager_ms"])
    return told


def _floor(
    bench: Bench, worker: RandomWorker, precision: Precision, batch: int, context: int
) -> dict[str, Any]:
    """By the ceilings that were measured on this device, if they were."""
    ceilings = bench.done.get("ceilings", {})
    if not ceilings.get("ok"):
        return {}
    machine = Machine(ceilings["copy_gb_per_s"] * 1e9, ceilings["bf16_tflops"] * 1e12)
    seconds = decode_seconds(
        worker.model_config.shape,
        machine,
        worker.group.size,
        batch=batch,
        context=context,
        precision=precision,
    )
    return {"floor_ms": 1e3 * seconds}
