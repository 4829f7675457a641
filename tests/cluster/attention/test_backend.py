import torch

from cluster.attention.backend import AttentionBackend, AttentionPlan, allocate_kv_layer
from cluster.attention.cpu import TorchAttention, TorchPlan


def test_the_cache_of_a_layer_starts_as_zeros_in_the_agreed_layout() -> None:
    layer = allocate_kv_layer(5, 16, 2, 8, torch.bfloat16, torch.device("cpu"))
    assert layer.shape == (2, 5, 16, 2, 8)
    assert layer.dtype is torch.bfloat16
    assert not layer.any()


def test_the_torch_backend_keeps_the_interface() -> None:
    backend: AttentionBackend = TorchAttention(16, 16, torch.float32)
    nothing = torch.zeros(0, dtype=torch.int64)
    plan: AttentionPlan = TorchPlan(nothing, nothing, [], [])
    assert backend.name == "cpu"
    assert plan is not None
