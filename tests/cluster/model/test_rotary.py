"""Rotary tables against those of transformers, out to the last position of the family."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb

from cluster.attention.cpu import rotary_angles, rotate
from cluster.model.model_config import Llama3Scaling
from cluster.model.rotary import inverse_frequencies, rotary_table

CPU = torch.device("cpu")
LONGEST = 131_072
FAR = [0, 1, 17, 300, 4000, 8191, 8192, 32_768, 99_999, 131_070, 131_071]
LLAMA3 = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
)
LLAMA3_JSON = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def of_transformers(theta: float, scaling: Llama3Scaling | None) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 512, "num_attention_heads": 4}
    if scaling is None:
        rope = {"rope_type": "default", "rope_theta": theta}
        return Qwen2RotaryEmbedding(Qwen2Config(**sizes, rope_parameters=rope))
    rope = {**LLAMA3_JSON, "rope_theta": theta}
    return LlamaRotaryEmbedding(
        LlamaConfig(**sizes, rope_parameters=rope, max_position_embeddings=LONGEST)
    )


FAMILY = pytest.mark.parametrize(
    ("theta", "scaling"),
    [(10_000.0, None), (1_000_000.0, None), (500_000.0, LLAMA3)],
    ids=["qwen-1.5b-and-7b", "qwen-14b-and-32b", "llama"],
)


@FAMILY
def test_frequencies_are_those_of_transformers_to_the_bit(
    theta: float, scaling: Llama3Scaling | None
) -> None:
    theirs = of_transformers(theta, scaling).inv_freq
    assert torch.equal(inverse_frequencies(128, theta, scaling), theirs)


@FAMILY
def test_tables_are_those_of_transformers_up_to_the_last_position(
    theta: float, scaling: Llama3Scaling | None
) -> None:
    theirs = of_transformers(theta, scaling)
    table = rotary_table(inverse_frequencies(128, theta, scaling), LONGEST, CPU)
    assert table.cos.dtype is torch.float32
    assert table.cos.shape == table.sin.shape == (LONGEST, 64)
    cos, sin = theirs(torch.zeros(1), torch.tensor([FAR]))
    torch.testing.assert_close(table.cos[FAR], cos[0, :, :64], atol=2e-7, rtol=0)
    torch.testing.assert_close(table.sin[FAR], sin[0, :, :64], atol=2e-7, rtol=0)


@FAMILY
def test_far_positions_turn_heads_as_in_transformers(
    theta: float, scaling: Llama3Scaling | None
) -> None:
    torch.manual_seed(0)
    positions = torch.tensor(FAR)
    q, k = torch.randn(2, len(FAR), 4, 128)
    their_cos, their_sin = of_transformers(theta, scaling)(q, positions[None])
    want_q, want_k = apply_rotary_pos_emb(q, k, their_cos[0], their_sin[0], unsqueeze_dim=1)
    table = rotary_table(inverse_frequencies(128, theta, scaling), LONGEST, CPU)
    cos, sin = rotary_angles(table, positions)
    torch.testing.assert_close(rotate(q, cos, sin), want_q)
    torch.testing.assert_close(rotate(k, cos, sin), want_k)


def test_angles_stay_near_the_true_ones_at_the_last_position() -> None:
    frequencies = inverse_frequencies(128, 1e6)
    table = rotary_table(frequencies, LONGEST, CPU)
    true = 131_071 * 1e6 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    torch.testing.assert_close(table.cos[-1].double(), true.cos(), atol=0.02, rtol=0)


def test_stretching_keeps_short_waves_and_slows_long_ones_by_the_factor() -> None:
    plain, stretched = inverse_frequencies(128, 5e5), inverse_frequencies(128, 5e5, LLAMA3)
    ratio = plain / stretched
    assert ratio[0] == 1.0
    assert ratio[-1] == 8.0
    assert (ratio.diff() >= -1e-5).all()


def test_rotation_keeps_the_dtype_of_its_input() -> None:
    cos, sin = rotary_angles(rotary_table(inverse_frequencies(4, 1e4), 8, CPU), torch.tensor([3]))
    assert cos.dtype is torch.float32
    assert rotate(torch.ones(1, 2, 4, dtype=torch.bfloat16), cos, sin).dtype is torch.bfloat16
