import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from cluster.kernels.torch_kernels import TorchKernels
from cluster.model.layers import RMSNorm
from cluster.model.parallel import Placement
from cluster.model.tp_group import TPGroup

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


def test_gate_comes_before_up() -> None:
    gate, up = torch.randn(2, 3, 5)
    want = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(KERNELS.silu_and_mul(torch.cat((gate, up), -1)), want)
