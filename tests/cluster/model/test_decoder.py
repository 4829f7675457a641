import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from cluster.attention.backend import allocate_kv_layer
from cluster.attention.cpu import TorchAttention
from cluster.batch import AppendedRow, ScheduledRow, SchedulerOutput, StartedRow
from cluster.kernels.torch_kernels import TorchKernels
from cluster.model.decoder import Decoder, DecoderLayer
from cluster.model.model_config import ModelConfig, read_model_config
from cluster.model.parallel import Placement
from cluster.model.tp_group import TPGroup
from cluster.model.weights import load_weights
from cluster.request import SamplingParams
from cluster.worker.input_batch import InputBatch

CPU = torch.device("cpu")
R1_32B = ModelConfig(
    hidden_size=5120,
    num_layers=64,
    num_heads=40,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=27648,
    vocab_size=152064,
    max_position=131072,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    eos_token_ids=(151643,),
)


class AllLogits:
    """One rank that computes the logits of every scheduled token."""

    def __init__(self, folder: Path, group: TPGroup) -> None:
        config = read_model_config(folder)
        self.group = group
        where = Placement(group, CPU, torch.float32, TorchKernels(CPU, torch.float32))
        self.model = Decoder(config, where, config.max_position)
        load_weights(folder, self.model.shards(), ignore=["lm_head.weight"])
        heads = config.num_kv_heads // group.size
        self.cache = [
            allocate_kv_layer(90, 8, heads, config.head_dim, torch.float32, CPU)
            for _ in range(config.num_layers)
        ]
        self.backend = TorchAttention(8, heads * config.head_dim, torch.float32)
        self.batch = InputBatch(8, config.max_position, 8, (), CPU)

    @torch.inference_mode()
    def step(self, frame: SchedulerOutput) -> Tensor:
        """[T, V] in the batch's order."""
        self.batch.apply(frame)
        inputs = self.batch.prepare(frame.scheduled)
        plan = self.backend.plan(inputs.metadata)
        hidden = self.model(inputs.token_ids, self.cache, plan)
        return self.group.all_gather(self.model.compute_logits(hidden))


def start(row: int, tokens: list[int], blocks: list[int]) -> StartedRow:
    return StartedRow(row, tokens, len(tokens), blocks, SamplingParams())


def frames(a: list[int], b: list[int]) -> list[tuple[SchedulerOutput, list[tuple[str, int, int]]]]:
    """A prefill in one go, one in odd chunks, 20 decodes mixed with them, and a resumed row.

    With each frame: which positions of which text its logits belong to, in the batch's order.
    """
    blocks_a, blocks_b = [70, 3, 41, 8, 22, 9], [5, 60, 61, 2, 1, 77, 80]
    steps = [
        (
            SchedulerOutput(
                1, [], [start(2, a, blocks_a[:3])], [], [ScheduledRow(2, 0, 21, False)]
            ),
            [("a", 0, 21)],
        )
    ]
    b_chunks = iter([(0, 7), (7, 9), (16, 1), (17, 16), (33, 10)])
    for number in range(20):
        position = 21 + number
        new_block = [blocks_a[position // 8]] if position % 8 == 0 else []
        appended = [AppendedRow(2, new_block)] if new_block else []
        scheduled = [ScheduledRow(2, position, 1, False)]
        wanted = [("a", position, 1)]
        chunk = next(b_chunks, None)
        started = [start(5, b, blocks_b)] if number == 0 else []
        if chunk is not None:
            first, count = chunk
            scheduled.insert(0, ScheduledRow(5, first, count, first + count == len(b)))
            both = [*wanted, ("b", first, count)]
            # rows with one query come first, the longest of them first
            wanted = sorted(both, key=lambda w: (w[2] > 1, -(w[1] + w[2]) if w[2] == 1 else 0))
        steps.append((SchedulerOutput(2 + number, [], started, appended, scheduled), wanted))
    resumed = SchedulerOutput(
        30, [2], [start(2, a[:41], [50, 51, 52, 53, 54, 55])], [], [ScheduledRow(2, 0, 41, True)]
    )
    return [*steps, (resumed, [("a", 0, 41)])]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "tied_checkpoint"])
def test_logits_are_those_of_transformers_in_every_kind_of_step(
    size: int,
    checkpoint: str,
    request: pytest.FixtureRequest,
    ranks: Callable[[int], Any],
    oracle: Callable[[Path], Any],
) -> None:
    folder = request.getfixturevalue(checkpoint)
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randint(4, 160, (n,), generator=generator).tolist() for n in (42, 43))
    with torch.no_grad():
        logits = {n: oracle(folder)(torch.tensor([t])).logits[0] for n, t in (("a", a), ("b", b))}
    everyone = ranks(size)
    models = everyone.run(lambda group: AllLogits(folder, group))
    for frame, wanted in frames(a, b):
        want = torch.cat([logits[name][first : first + count] for name, first, count in wanted])
        for got in everyone.run(lambda group, frame=frame: models[group.rank].step(frame)):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def on_meta(group: TPGroup) -> Placement:
    meta = torch.device("meta")
    return Placement(group, meta, torch.bfloat16, TorchKernels(meta, torch.bfloat16))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_shards_of_the_32b_have_the_published_shapes(
    size: int, ranks: Callable[[int], Any]
) -> None:
    config = msgspec.structs.replace(R1_32B, num_layers=1)
    group = ranks(size).groups[-1]
    model = Decoder(config, on_meta(group), 8)
    layer = model.layers[0]
    assert isinstance(layer, DecoderLayer)
    assert layer.self_attn.qkv_proj.weight.shape == (7168 // size, 5120)
    assert [w.shape for w in layer.self_attn.o_proj.weights] == [(5120, 5120 // size)]
    assert layer.mlp.gate_up_proj.weight.shape == (55296 // size, 5120)
    assert [w.shape for w in layer.mlp.down_proj.weights] == [(5120, 27648 // size)]
    assert model.lm_head.weight.shape == (152064 // size, 5120)
    assert model.embed_tokens.weight is not None
    assert model.embed_tokens.weight.shape == (152064 // size, 5120)
    starts = {shard.name: shard.start for shard in model.shards()}
    assert starts["lm_head.weight"] == 152064 // size * (size - 1)
    assert starts["model.layers.0.self_attn.k_proj.bias"] == 1024 // size * (size - 1)


def test_the_whole_32b_is_65_and_a_half_gigabytes(ranks: Callable[[int], Any]) -> None:
    shards = Decoder(R1_32B, on_meta(TPGroup()), 8).shards()
    assert sum(math.prod(shard.sink.shape) for shard in shards) == 32_763_876_352


@pytest.mark.parametrize("size", [3, 5, 6, 16])
def test_a_parallel_size_that_does_not_divide_the_heads_is_refused(
    size: int, ranks: Callable[[int], Any]
) -> None:
    where = on_meta(ranks(size).groups[0])
    with pytest.raises(ValueError, match=rf"tensor_parallel_size {size} does not divide .*heads"):
        Decoder(R1_32B, where, 8)
