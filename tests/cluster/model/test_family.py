"""Every member of the family against transformers, as a tiny random checkpoint of its shape rules.

The ratios of heads, the biases, the untied head, the rotary base and its stretching are those of
the published configs; widths are small, and so is the context beyond which waves are stretched.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from cluster.attention.backend import AttentionMetadata, RotaryTable, allocate_kv_layer
from cluster.attention.cpu import TorchAttention
from cluster.kernels.torch_kernels import TorchKernels
from cluster.model.decoder import Decoder
from cluster.model.model_config import read_model_config
from cluster.model.parallel import Placement
from cluster.model.rotary import inverse_frequencies, rotary_table
from cluster.model.tp_group import TPGroup
from cluster.model.weights import load_weights
from cluster.request import SamplingParams

CPU = torch.device("cpu")
LENGTH = 120
"""Long enough for waves of all three kinds: kept, between, stretched."""
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MEMBERS: dict[str, dict[str, Any]] = {
    "qwen-1.5b": {"heads": 12, "kv_heads": 2, "head_dim": 8, "theta": 1e4, "eps": 1e-6},
    "qwen-7b": {"heads": 28, "kv_heads": 4, "head_dim": 4, "theta": 1e4, "eps": 1e-6},
    "qwen-14b": {"heads": 40, "kv_heads": 8, "head_dim": 4, "theta": 1e6, "eps": 1e-5, "layers": 3},
    "qwen-32b": {"heads": 40, "kv_heads": 8, "head_dim": 4, "theta": 1e6, "eps": 1e-5},
    "llama-8b": {"heads": 32, "kv_heads": 8, "head_dim": 8, "rope": LLAMA3, "eps": 1e-5},
    "llama-70b": {"heads": 64, "kv_heads": 8, "head_dim": 4, "rope": LLAMA3, "eps": 1e-5},
}
ALL = pytest.mark.parametrize("member", MEMBERS)


def tiny(member: str) -> Qwen2Config | LlamaConfig:
    about = MEMBERS[member]
    rope = about.get("rope") or {"rope_type": "default", "rope_theta": about["theta"]}
    sizes: dict[str, Any] = {
        "hidden_size": about["heads"] * about["head_dim"],
        "num_hidden_layers": about.get("layers", 2),
        "num_attention_heads": about["heads"],
        "num_key_value_heads": about["kv_heads"],
        "intermediate_size": 96,
        "vocab_size": 160,
        "max_position_embeddings": 512,
        "rms_norm_eps": about["eps"],
        "rope_parameters": dict(rope),
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    return LlamaConfig(**sizes) if member.startswith("llama") else Qwen2Config(**sizes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a member's tiny checkpoint, written once by transformers."""
    written: dict[str, Path] = {}

    def write(member: str) -> Path:
        if member not in written:
            torch.manual_seed(17)
            model = AutoModelForCausalLM.from_config(tiny(member))
            for name, parameter in model.named_parameters():
                scale = 0.3 if "bias" in name or "norm" in name else 0.1
                torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, scale)
            written[member] = tmp_path_factory.mktemp(member)
            model.save_pretrained(written[member])
        return written[member]

    return write


def prompt(length: int) -> list[int]:
    ids: list[int] = torch.arange(length).mul(37).add(11).remainder(156).add(4).tolist()
    return ids


def prefill(folder: Path, group: TPGroup, tokens: list[int], first_position: int = 0) -> Tensor:
    """[T, V] logits of one prompt that begins at `first_position`."""
    config = read_model_config(folder)
    where = Placement(group, CPU, torch.float32, TorchKernels(CPU, torch.float32))
    model = Decoder(config, where, config.max_position)
    load_weights(folder, model.shards())
    if first_position:
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        far = rotary_table(frequencies, first_position + len(tokens), CPU)
        model.rotary = RotaryTable(far.cos[first_position:], far.sin[first_position:])
    heads, count = config.num_kv_heads // group.size, len(tokens)
    pages = -(-count // 8)
    layers = [
        allocate_kv_layer(pages + 1, 8, heads, config.head_dim, torch.float32, CPU)
        for _ in range(config.num_layers)
    ]
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32),
        seq_lens_k=torch.tensor([count], dtype=torch.int32),
        block_table=torch.arange(1, pages + 1, dtype=torch.int32)[None],
        positions=torch.arange(count),
        slot_mapping=torch.arange(8, 8 + count),
        max_q=count,
        max_k=count,
        num_decode=0,
    )
    backend = TorchAttention(8, heads * config.head_dim, torch.float32)
    with torch.inference_mode():
        hidden = model(torch.tensor(tokens), layers, backend.plan(metadata))
        return group.all_gather(model.compute_logits(hidden))


@ALL
@pytest.mark.parametrize("size", [1, 2])
def test_logits_are_those_of_transformers(
    member: str,
    size: int,
    checkpoint: Callable[[str], Path],
    oracle: Callable[[Path], Any],
    ranks: Callable[[int], Any],
) -> None:
    folder, tokens = checkpoint(member), prompt(LENGTH)
    with torch.no_grad():
        want = oracle(folder)(torch.tensor([tokens])).logits[0]
    for got in ranks(size).run(lambda group: prefill(folder, group, tokens)):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@ALL
@pytest.mark.parametrize("size", [1, 2])
def test_greedy_answers_are_those_of_transformers(
    member: str,
    size: int,
    checkpoint: Callable[[str], Path],
    oracle: Callable[[Path], Any],
    make_driver: Callable[..., Any],
) -> None:
    folder, tokens = checkpoint(member), prompt(30)
    driver = make_driver(folder, size, dtype="float32")
    driver.start(0, tokens, SamplingParams(temperature=0.0, ignore_eos=True))
    for _ in range(40):
        driver.step()
    with torch.no_grad():
        want = oracle(folder).generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert driver.tokens[0] == want[0].tolist()


@pytest.mark.parametrize("member", ["qwen-7b", "qwen-32b", "llama-8b", "llama-70b"])
@pytest.mark.parametrize("first_position", [8_192, 131_072 - 48])
def test_logits_at_far_positions_are_those_of_transformers(
    member: str,
    first_position: int,
    checkpoint: Callable[[str], Path],
    oracle: Callable[[Path], Any],
) -> None:
    folder, tokens = checkpoint(member), prompt(48)
    positions = torch.arange(first_position, first_position + 48)[None]
    with torch.no_grad():
        want = oracle(folder)(torch.tensor([tokens]), position_ids=positions).logits[0]
    got = prefill(folder, TPGroup(), tokens, first_position)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_llama_has_no_bias_and_its_shape_says_so(checkpoint: Callable[[str], Path]) -> None:
    config = read_model_config(checkpoint("llama-8b"))
    where = Placement(TPGroup(), CPU, torch.float32, TorchKernels(CPU, torch.float32))
    names = [shard.name for shard in Decoder(config, where, 8).shards()]
    assert not [name for name in names if name.endswith("bias")]
    assert config.shape.layer_bias_params == 0
