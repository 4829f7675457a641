"""Every attention backend, and the model on the device, against the CPU in float32."""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from cluster.attention.backend import FP8, AttentionMetadata, RotaryTable
from cluster.attention.cpu import TorchAttention
from cluster.model.tp_group import TPGroup
from tests.gpu.bench import Bench, chunk_inputs, decode_inputs
from tests.gpu.random_model import TINY, RandomWorker

HEADS = ((40, 8), (20, 4), (10, 2), (5, 1))
BACKENDS: tuple[tuple[str, Literal["auto", "fp8"]], ...] = (
    ("cpu", "auto"),
    ("triton", "auto"),
    ("triton", "fp8"),
    ("flash_attn", "auto"),
)
"""With how they keep keys and values."""
BROKEN = "broken: "
TOLERANCE = 0.03
"""Of the largest value: bfloat16 has eight bits."""


@torch.inference_mode()
def run(bench: Bench, told: dict[str, Any]) -> None:
    errors: dict[str, Any] = {}
    told["relative_errors"] = errors
    for name, kept in BACKENDS:
        for heads in bench.pick(HEADS, HEADS[-1:]):
            case = f"{name} {heads[0]}/{heads[1]}{' fp8 cache' if kept == 'fp8' else ''}"
            settings = {"attention_backend": name, "kv_cache_dtype": kept}
            errors[case] = _attempt(bench, settings, heads)
            bench.save()
    errors["logits"] = _logits_error(bench)
    wrong = {case: error for case, error in errors.items() if _is_wrong(error)}
    if wrong:
        raise ArithmeticError(f"off by more than {TOLERANCE:.0%}: {wrong}")


def _is_wrong(error: float | str) -> bool:
    return error.startswith(BROKEN) if isinstance(error, str) else not error <= TOLERANCE


def _attempt(bench: Bench, settings: dict[str, Any], heads: tuple[int, int]) -> float | str:
    """A backend that breaks does not keep the others from being looked at."""
    try:
        return _attention_error(bench, settings, heads)
    except Exception as error:
        return f"{BROKEN}{type(error).__name__}: {error}"


def _attention_error(bench: Bench, settings: dict[str, Any], heads: tuple[int, int]) -> float | str:
    """The largest of a decode step and two chunks; why there is none."""
    shape = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": 128}
    config = bench.config("heads", TINY | shape, num_kv_blocks=40, **settings)
    try:
        backend = RandomWorker(config, 0, TPGroup())._backend
    except (ValueError, RuntimeError, ImportError) as absent:
        return f"not here: {absent}"
    device, dtype = bench.device.torch_device, bench.device.dtype("auto")
    oracle = TorchAttention(256, heads[1] * 128, torch.float32)
    worst = 0.0
    for token_ids, metadata in (
        decode_inputs(5, 700, 256, device),
        chunk_inputs(300, 0, 256, device),
        chunk_inputs(77, 523, 256, device),
    ):
        noise = torch.Generator().manual_seed(len(token_ids))
        cache = torch.randn((2, 40, 256, heads[1], 128), generator=noise)
        qkv = torch.randn((len(token_ids), sum(heads) + heads[1], 128), generator=noise)
        angles = torch.outer(torch.arange(1024.0), 1 / 1e4 ** (torch.arange(64) / 64))
        rotary = RotaryTable(angles.cos(), angles.sin())
        kept = FP8 if settings["kv_cache_dtype"] == "fp8" else dtype
        cache = cache.to(kept)
        kv_layer = cache.to(device, copy=True)
        there = RotaryTable(rotary.cos.to(device), rotary.sin.to(device))
        got = backend.plan(metadata).attend(kv_layer, qkv.to(device, dtype, copy=True), there)
        rounded = qkv.to(dtype).float()
        want = oracle.plan(_on_cpu(metadata)).attend(_wide(cache), rounded, rotary)
        worst = max(worst, _relative(got, want))
    return worst


def _wide(cache: Tensor) -> Tensor:
    """What float32 is to attend to: as it was rounded; what the step adds, e4m3 rounds again."""
    return cache if cache.dtype is FP8 else cache.float()


def _on_cpu(metadata: AttentionMetadata) -> AttentionMetadata:
    tensors = {name: value for name, value in vars(metadata).items() if isinstance(value, Tensor)}
    moved: dict[str, Any] = {name: tensor.cpu() for name, tensor in tensors.items()}
    return dataclasses.replace(metadata, **moved)


def _logits_error(bench: Bench) -> float:
    """A prompt and one token more through the tiny model, with the same weights on both."""
    here = bench.started("tiny", TINY, num_kv_blocks=10, dtype="bfloat16")
    oracle = bench.started("tiny", TINY, num_kv_blocks=10, device="cpu", dtype="float32")
    theirs, ours = (w._loaded() for w in (oracle, here))
    for source, sink in zip(theirs.shards(), ours.shards(), strict=True):
        noise = torch.randn(source.sink.shape, generator=torch.Generator().manual_seed(1))
        values = (1 + 0.1 * noise if "norm" in source.name else 0.05 * noise).bfloat16()
        source.sink.write(0, values.float())
        sink.sink.write(0, values.to(bench.device.torch_device))
    logits = []
    for worker, model in ((oracle, theirs), (here, ours)):
        device = worker.device.torch_device
        token_ids, metadata = chunk_inputs(301, 0, 256, device)
        hidden = model(token_ids, worker.kv_cache, worker._backend.plan(metadata))
        logits.append(model.compute_logits(hidden[-8:]).float().cpu())
    return _relative(logits[1], logits[0])


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got.float().cpu() - want).abs().max() / want.abs().max())
