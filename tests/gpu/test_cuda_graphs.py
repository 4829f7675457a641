from pathlib import Path

import pytest
import torch

from cluster.device import Device
from tests.gpu.bench import Bench, decode_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@torch.inference_mode()
def test_replayed_steps_give_the_hidden_states_of_eager_ones(tmp_path: Path) -> None:
    bench = Bench(Device.select("cuda", 0), tiny=True, folder=tmp_path)
    worker = bench.started(dtype="bfloat16", num_kv_blocks=40)
    assert worker.graphs is not None, "this device records, but its attention backend does not"
    model = worker._loaded()
    for batch, context in ((1, 700), (3, 520), (8, 257), (5, 9), (1, 1)):
        token_ids, metadata = decode_inputs(batch, context, 256, bench.device.torch_device)
        eager = model(token_ids, worker.kv_cache, worker._backend.plan(metadata))
        replayed = worker.graphs.run(token_ids, metadata)
        assert replayed is not None
        torch.testing.assert_close(replayed, eager, atol=0.05, rtol=0.05)


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["triton", "auto"])
def test_replayed_drafts_give_the_hidden_states_of_eager_ones(
    attention: str, tmp_path: Path
) -> None:
    bench = Bench(Device.select("cuda", 0), tiny=True, folder=tmp_path)
    worker = bench.started(
        dtype="bfloat16", num_kv_blocks=40, speculation="ngram", attention_backend=attention
    )
    assert worker.graphs is not None
    if worker.graphs.max_queries == 1:
        pytest.skip(f"{worker._backend.signature} records no drafts")
    model = worker._loaded()
    for batch, context, queries in ((1, 700, 3), (2, 520, 4), (1, 257, 8), (3, 9, 2)):
        token_ids, metadata = decode_inputs(batch, context, 256, bench.device.torch_device, queries)
        eager = model(token_ids, worker.kv_cache, worker._backend.plan(metadata))
        replayed = worker.graphs.run(token_ids, metadata)
        assert replayed is not None, worker.graphs.refused
        torch.testing.assert_close(replayed, eager, atol=0.05, rtol=0.05)


@torch.inference_mode()
def test_recorded_steps_take_no_more_than_was_measured_before(tmp_path: Path) -> None:
    bench = Bench(Device.select("cuda", 0), tiny=True, folder=tmp_path)
    worker = bench.started(dtype="bfloat16", gpu_memory_utilization=0.5)
    used = bench.device.total_memory() - bench.device.free_memory()
    assert used <= 0.52 * bench.device.total_memory()
    assert worker.facts.num_kv_blocks > 1
