import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
)

from cluster.attention.cpu import rotary_angles, rotate
from cluster.kernels.torch_kernels import TorchKernels
from cluster.model.layers import RMSNorm, Rotary
from cluster.model.parallel import Placement, TPGroup

CPU = torch.device("cpu")
KERNELS = TorchKernels(CPU, torch.float32)
HERE = Placement(TPGroup(), CPU, torch.float32, KERNELS)


def test_rms_norm_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(24, 1e-5, HERE), Qwen2RMSNorm(24, eps=1e-5)
    ours.weight.data.normal_()
    theirs.weight.data.copy_(ours.weight)
    x = torch.randn(7, 24)
    torch.testing.assert_close(ours(x), theirs(x))
    (shard,) = ours.shards("model.norm")
    assert (shard.name, shard.full_shape, shard.start) == ("model.norm.weight", (24,), 0)


def test_rotation_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    config = Qwen2Config(hidden_size=64, num_attention_heads=4, rope_theta=12_345.0)
    positions = torch.tensor([0, 1, 17, 300, 4000])
    q, k = torch.randn(2, 5, 4, 16)
    their_cos, their_sin = Qwen2RotaryEmbedding(config)(q, positions[None])
    want_q, want_k = apply_rotary_pos_emb(q, k, their_cos[0], their_sin[0], unsqueeze_dim=1)
    cos, sin = rotary_angles(Rotary(16, 12_345.0, 4096, CPU).table, positions)
    torch.testing.assert_close(rotate(q, cos, sin), want_q)
    torch.testing.assert_close(rotate(k, cos, sin), want_k)


def test_rotation_keeps_the_dtype_of_its_input() -> None:
    cos, sin = rotary_angles(Rotary(4, 1e4, 8, CPU).table, torch.tensor([3]))
    assert cos.dtype is torch.float32
    assert rotate(torch.ones(1, 2, 4, dtype=torch.bfloat16), cos, sin).dtype is torch.bfloat16


def test_gate_comes_before_up() -> None:
    gate, up = torch.randn(2, 3, 5)
    want = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(KERNELS.silu_and_mul(torch.cat((gate, up), -1)), want)
