"""The 32B on no device at all: what every rank holds, and what a step makes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cluster.kernels.torch_kernels import TorchKernels
from cluster.model.collectives import TorchCollectives
from cluster.model.decoder import Decoder
from cluster.model.model_config import ModelConfig, read_model_config
from cluster.model.parallel import Placement
from cluster.model.tp_group import TPGroup
from cluster.worker.graphs.decode_buffers import DecodeBuffers
from tests.gpu.random_model import R1_32B, write_shape

META = torch.device("meta")
SHAPES = {
    1: ((7168, 5120), (5120, 5120), (55_296, 5120), (5120, 27_648), (152_064, 5120)),
    2: ((3584, 5120), (5120, 2560), (27_648, 5120), (5120, 13_824), (76_032, 5120)),
    4: ((1792, 5120), (5120, 1280), (13_824, 5120), (5120, 6912), (38_016, 5120)),
    8: ((896, 5120), (5120, 640), (6912, 5120), (5120, 3456), (19_008, 5120)),
}
"""qkv, o, gate and up, down, embedding and head: [out, in] of one rank."""


class Quiet(TPGroup):
    """A rank among others that add nothing."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size, TorchCollectives("quiet", None))

    def all_reduce(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return read_model_config(write_shape(tmp_path_factory.mktemp("32b"), R1_32B))


def decoder(config: ModelConfig, rank: int, size: int, device: torch.device) -> Decoder:
    kernels = TorchKernels(device, torch.bfloat16)
    where = Placement(Quiet(rank, size), device, torch.bfloat16, kernels)
    return Decoder(config, where, max_position=4096)


def num_params(shards: Iterator[Any], norms: bool) -> int:
    sizes = (s for s in shards if norms or "norm" not in s.name)
    return sum(torch.Size(shard.sink.shape).numel() for shard in sizes)


@pytest.mark.parametrize("size", SHAPES)
def test_every_rank_holds_its_share(size: int, config: ModelConfig) -> None:
    for rank in range(size):
        model = decoder(config, rank, size, META)
        layer = model.layers[63]
        assert model.embed_tokens.weight is not None
        held = (
            layer.self_attn.qkv_proj.weight.shape,
            layer.self_attn.o_proj.weights[0].shape,
            layer.mlp.gate_up_proj.weight.shape,
            layer.mlp.down_proj.weights[0].shape,
            model.lm_head.weight.shape,
        )
        assert held == SHAPES[size]
        assert tuple(model.embed_tokens.weight.shape) == SHAPES[size][4]
        bias = layer.self_attn.qkv_proj.weight.bias
        assert bias is not None
        assert bias.shape == (SHAPES[size][0][0],)
        assert layer.mlp.gate_up_proj.weight.bias is None


def test_eight_ranks_hold_65_53_gb_together(config: ModelConfig) -> None:
    ranks = [decoder(config, rank, 8, META) for rank in range(8)]
    shared = num_params(ranks[0].shards(), True) - num_params(ranks[0].shards(), False)
    total = sum(num_params(model.shards(), False) for model in ranks) + shared
    assert total == 32_763_876_352
    assert round(2 * total / 1e9, 2) == 65.53


class NoAttention:
    """Gives attention's shape."""

    def attend(self, kv_layer: Any, qkv: Tensor, rotary: Any, wanted: Any = None) -> Tensor:
        return qkv.new_empty((len(qkv), 5, 128))


def test_the_host_waits_for_nothing_between_a_steps_inputs_and_its_logits(
    config: ModelConfig,
) -> None:
    # nobody knows a number on the meta device: whatever asks for one, or for a copy, fails
    model = decoder(config, 3, 8, META)
    inputs = DecodeBuffers(5, 7, META).metadata(5, 1, 112)
    buffers = DecodeBuffers(8, 9, META)
    buffers.fill(torch.zeros(5, dtype=torch.int64, device=META), inputs, 8)
    drafts = DecodeBuffers(5, 7, META).metadata(5, 3, 112)
    buffers.fill(torch.zeros(5, dtype=torch.int64, device=META), drafts, 8)
    cache: list[Any] = [None] * 64
    finite = model.compute_logits(model(buffers.token_ids, cache, NoAttention())).isfinite()
    for wait in (finite.all().item, finite.cpu, finite.tolist, finite.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()


def test_a_step_of_one_of_eight_gpus_has_the_shapes_it_should(config: ModelConfig) -> None:
    with FakeTensorMode():
        gpu = torch.device("cuda", 0)
        model = decoder(config, 3, 8, gpu)
        token_ids = torch.zeros(17, dtype=torch.int64, device=gpu)
        cache: list[Any] = [None] * 64
        hidden = model(token_ids, cache, NoAttention())
        logits = model.compute_logits(hidden)
    assert (hidden.shape, hidden.dtype, hidden.device) == ((17, 5120), torch.bfloat16, gpu)
    assert logits.shape == (17, 19_008)
