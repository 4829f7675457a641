"""ModelConfig: what a checkpoint's config.json says about a Qwen2 model.

Owns reading and refusing: a model that this code would compute wrongly is not loaded. Knows no
torch and no weights.
"""

from pathlib import Path
from typing import Any

import msgspec

from cluster.plan import ModelShape

SUPPORTED = "qwen2 (DeepSeek-R1-Distill-Qwen and its family)"


class UnsupportedModelError(ValueError):
    """The checkpoint is not one that this engine computes rightly."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes and constants of one Qwen2 model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]

    @property
    def shape(self) -> ModelShape:
        """The sizes that memory and sharding depend on."""
        return ModelShape(
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tie_word_embeddings,
        )


class _Json(msgspec.Struct, kw_only=True):
    """config.json as transformers 4 and 5 write it; fields that change no number are ignored."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    eos_token_id: int | list[int] | None = None
    hidden_act: str = "silu"
    use_sliding_window: bool = False
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None


class _Model(msgspec.Struct):
    """The one field that must be looked at before the others mean anything."""

    model_type: str = ""


class _Generation(msgspec.Struct):
    """The one field of generation_config.json that the engine obeys."""

    eos_token_id: int | list[int] | None = None


def read_model_config(model_dir: Path) -> ModelConfig:
    """Read `config.json` (and the end-of-sequence ids of `generation_config.json`).

    Raises:
        UnsupportedModelError: not Qwen2, or a variant (sliding window, rope scaling, quantised)
            that is not computed here; the message names file, field and value.
        FileNotFoundError: there is no config.json.
    """
    path = model_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: model_path must be a checkpoint's folder")
    data = path.read_bytes()
    try:
        model_type = msgspec.json.decode(data, type=_Model).model_type
        if model_type != "qwen2":
            raise UnsupportedModelError(
                f"{path}: model_type is {model_type!r}; this engine computes {SUPPORTED}"
            )
        raw = msgspec.json.decode(data, type=_Json)
    except msgspec.DecodeError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error
    _refuse_variants(path, raw)
    head_dim = raw.head_dim or raw.hidden_size // raw.num_attention_heads
    kv_heads = raw.num_key_value_heads or raw.num_attention_heads
    if head_dim % 2 or raw.num_attention_heads % kv_heads:
        raise UnsupportedModelError(
            f"{path}: {raw.num_attention_heads} query heads over {kv_heads} key/value heads of "
            f"{head_dim} do not fit together"
        )
    return ModelConfig(
        hidden_size=raw.hidden_size,
        num_layers=raw.num_hidden_layers,
        num_heads=raw.num_attention_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=raw.intermediate_size,
        vocab_size=raw.vocab_size,
        max_position=raw.max_position_embeddings,
        rope_theta=_rope_theta(raw),
        rms_norm_eps=raw.rms_norm_eps,
        tie_word_embeddings=raw.tie_word_embeddings,
        eos_token_ids=_eos_token_ids(model_dir, raw),
    )


def _refuse_variants(path: Path, raw: _Json) -> None:
    """Everything a Qwen2 config can ask for that this code does not do."""
    if raw.use_sliding_window or "sliding_attention" in (raw.layer_types or ()):
        raise UnsupportedModelError(f"{path}: sliding-window attention is not supported")
    if raw.hidden_act != "silu":
        raise UnsupportedModelError(f"{path}: hidden_act {raw.hidden_act!r} is not supported")
    if raw.quantization_config:
        raise UnsupportedModelError(
            f"{path}: quantised weights are not supported; use the bfloat16 checkpoint"
        )
    for rope in (raw.rope_scaling or {}, raw.rope_parameters or {}):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UnsupportedModelError(f"{path}: rope scaling {kind!r} is not supported")


def _rope_theta(raw: _Json) -> float:
    """transformers 4 writes it at the top, transformers 5 under rope_parameters."""
    theta = (raw.rope_parameters or {}).get("rope_theta", raw.rope_theta)
    return 10_000.0 if theta is None else float(theta)


def _eos_token_ids(model_dir: Path, raw: _Json) -> tuple[int, ...]:
    """Union of both files: a chat model often ends its turn with an id only the second knows."""
    found = [raw.eos_token_id]
    generation = model_dir / "generation_config.json"
    if generation.exists():
        decoded = msgspec.json.decode(generation.read_bytes(), type=_Generation)
        found.append(decoded.eos_token_id)
    ids: set[int] = set()
    for value in found:
        ids.update([value] if isinstance(value, int) else value or [])
    return tuple(sorted(ids))
