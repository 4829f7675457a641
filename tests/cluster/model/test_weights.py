import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.kernels.kernels import LinearWeight, Quantization
from cluster.kernels.torch_kernels import TorchKernels
from cluster.model.checkpoint import WeightError
from cluster.model.decoder import Decoder
from cluster.model.model_config import read_model_config
from cluster.model.parallel import Placement, TensorShard, TensorSink, WeightSink
from cluster.model.tp_group import TPGroup
from cluster.model.weight_cache import held_tensors
from cluster.model.weights import load_weights
from cluster.plan.memory import Precision, weight_bytes


def build(
    folder: Path, group: TPGroup, device: str = "cpu", quantization: Quantization = "none"
) -> Decoder:
    there = torch.device(device)
    kernels = TorchKernels(there, torch.float32, quantization=quantization)
    where = Placement(group, there, torch.float32, kernels)
    return Decoder(read_model_config(folder), where, 64)


def load(folder: Path, group: TPGroup | None = None, **options: Any) -> Decoder:
    model = build(folder, group or TPGroup())
    load_weights(folder, model.shards(), **options)
    return model


def copy_of(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors")
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    return to


def matrix(weight: LinearWeight) -> torch.Tensor:
    return weight.embedding(torch.arange(weight.shape[0]))


def held(shard: TensorShard) -> torch.Tensor:
    """What a shard's sink has taken in."""
    if isinstance(shard.sink, TensorSink):
        return shard.sink.tensor
    assert isinstance(shard.sink, WeightSink)
    (weight,) = shard.sink.weights
    return matrix(weight)[shard.sink.first :][: shard.sink.rows]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_together_read_every_byte_and_each_only_its_own(
    size: int, tiny_checkpoint: Path, ranks: Callable[[int], Any]
) -> None:
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    whole = sum(tensor.numel() * 4 for tensor in tensors.values())
    norms = sum(tensor.numel() * 4 for name, tensor in tensors.items() if "norm" in name)

    def read(group: TPGroup) -> int:
        return load_weights(tiny_checkpoint, build(tiny_checkpoint, group).shards())

    per_rank = ranks(size).run(read)
    assert per_rank == [norms + (whole - norms) // size] * size


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("quantization", ["none", "int8", "fp8"])
@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "tied_checkpoint"])
def test_a_rank_holds_the_bytes_that_were_planned(
    size: int,
    quantization: Quantization,
    checkpoint: str,
    ranks: Callable[[int], Any],
    request: pytest.FixtureRequest,
) -> None:
    """Embedding and head included, which differ where they are one matrix; scales are left out,
    and parts of merged biases, which are counted whole."""
    folder = request.getfixturevalue(checkpoint)
    linear = 4 if quantization == "none" else 1
    precision = Precision(linear=linear, head=1 if quantization == "int8" else 4, other=4)

    def held_bytes(group: TPGroup) -> int:
        held = held_tensors(build(folder, group, quantization=quantization).shards())
        extra = (".scale", "_proj.bias")
        return sum(tensor.nbytes for name, tensor in held.items() if not name.endswith(extra))

    planned = weight_bytes(read_model_config(folder).shape, size, precision)
    assert ranks(size).run(held_bytes) == [planned] * size


def test_merged_matrices_hold_the_ranks_own_heads(
    tiny_checkpoint: Path, ranks: Callable[[int], Any]
) -> None:
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    models = ranks(2).run(lambda group: load(tiny_checkpoint, group))
    q, k, v = (tensors[f"model.layers.1.self_attn.{n}_proj.weight"] for n in "qkv")
    second = models[1].layers[1].self_attn.qkv_proj.weight
    assert torch.equal(matrix(second), torch.cat((q[32:], k[16:], v[16:])))
    down = tensors["model.layers.0.mlp.down_proj.weight"]
    (second,) = models[1].layers[0].mlp.down_proj.weights
    assert torch.equal(matrix(second), down[:, 48:])


def test_progress_ends_at_its_total(tiny_checkpoint: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    load(tiny_checkpoint, progress=lambda *step: seen.append(step))
    names, done, totals = zip(*seen, strict=True)
    assert len(set(names)) == len(names) == 27
    assert list(done) == sorted(done)
    assert done[-1] == totals[0] == totals[-1]


def test_a_checkpoint_in_several_files_is_the_same_model(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, str] = {}
    for part in range(3):
        file = f"model-{part + 1:05}-of-00003.safetensors"
        mine = {name: tensors[name] for name in names[part::3]}
        save_file(mine, tmp_path / file)
        index |= dict.fromkeys(mine, file)
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    whole, parts = (list(load(folder).shards()) for folder in (tiny_checkpoint, tmp_path))
    assert [shard.name for shard in whole] == [shard.name for shard in parts]
    assert all(torch.equal(held(one), held(other)) for one, other in zip(whole, parts, strict=True))

    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightError, match=r"model-00002-of-00003\.safetensors is missing"):
        load(tmp_path)


def test_bfloat16_files_are_widened(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    model = load(copy_of(tiny_checkpoint, tmp_path, narrow))
    norm = load_file(tiny_checkpoint / "model.safetensors")["model.norm.weight"]
    assert model.norm.weight.dtype is torch.float32
    assert torch.equal(model.norm.weight, norm.bfloat16().float())


def test_a_tied_head_is_the_embedding(tied_checkpoint: Path, tmp_path: Path) -> None:
    model = load(tied_checkpoint)
    assert model.embed_tokens.tied is model.lm_head.weight

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = torch.zeros(160, 64)

    spare = copy_of(tied_checkpoint, tmp_path, add_head)
    load(spare, ignore=["lm_head.weight"])
    with pytest.raises(WeightError, match=r"lm_head\.weight is not part"):
        load(spare)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.self_attn.k_proj.bias"]


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.zeros(65)


def quantise(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = torch.zeros(160, 64, dtype=torch.int8)


def pack(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(64, 12, dtype=torch.int32)


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.zeros(8)


def add_table(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop, r"tensor model.layers.1.self_attn.k_proj.bias is missing \(1 in all\)"),
        (reshape, r"tensor model.norm.weight has shape \[65\], config.json asks for \[64\]"),
        (quantise, r"tensor lm_head\.weight is I8\. Quantised .*bfloat16"),
        (pack, r"up_proj\.qweight is packed\. Quantised .*quantization: fp8"),
        (add, "q_norm.weight is not part of this model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(
    change: Callable[[dict[str, torch.Tensor]], None],
    complaint: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(WeightError, match=complaint) as refusal:
        load(copy_of(tiny_checkpoint, tmp_path, change))
    assert "model.safetensors" in str(refusal.value)


def test_a_stored_rotary_table_is_ignored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    load(copy_of(tiny_checkpoint, tmp_path, add_table))


@pytest.mark.parametrize("keep", [0, 5, 2000, -1])
def test_a_truncated_file_is_named(keep: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy_of(tiny_checkpoint, tmp_path, lambda tensors: None)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:keep])
    with pytest.raises(WeightError, match=r"model\.safetensors \(\d+ bytes\) is truncated"):
        load(tmp_path)


def test_a_folder_without_safetensors_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightError, match=r"pickled \.bin files are not read"):
        load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for text in ("{", "[]", "{}"):
        index.write_text(text)
        with pytest.raises(WeightError, match="not a safetensors index"):
            load(tmp_path)
    index.write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(WeightError, match="outside its folder"):
        load(tmp_path)
