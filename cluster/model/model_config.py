"""ModelConfig: what a checkpoint's config.json says about a Qwen2 or Llama model.

Owns reading and refusing: a model that this code would compute wrongly is not loaded. Knows no
torch and no weights.

    qwen2   DeepSeek-R1-Distill-Qwen 1.5B, 7B, 14B, 32B   q, k and v have a bias
    llama   DeepSeek-R1-Distill-Llama 8B, 70B             no bias; rope stretched by llama3's rule
"""

from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import msgspec

from cluster.plan.memory import ModelShape

Architecture = Literal["qwen2", "llama"]
SUPPORTED = "qwen2 and llama (the DeepSeek-R1-Distill family)"

QUANTISED = (
    "Quantised checkpoints are not read: use the bfloat16 one; it is quantised while it is loaded, "
    "with quantization: fp8 on a GPU, quantization: int8 on a CPU"
)
"""Why: docs/adr/0010-rounded-while-loading.md."""

_DEFAULT_POSITIONS = {"qwen2": 32768, "llama": 2048}
_DEFAULT_THETA = 10_000.0


class UnsupportedModelError(ValueError):
    """The checkpoint is not one that this engine computes rightly."""


class Llama3Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """How Llama 3.1 stretches its rotary waves from one context length to a longer one."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes and constants of one model."""

    architecture: Architecture = "qwen2"
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    rope_theta: float
    rope_scaling: Llama3Scaling | None = None
    rms_norm_eps: float
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have a bias; nothing else ever has."""
        return self.architecture == "qwen2"

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
            qkv_bias=self.qkv_bias,
        )


class _Json(msgspec.Struct, kw_only=True):
    """config.json as transformers 4 and 5 write it; fields that change no number are ignored."""

    model_type: Architecture
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int | None = None
    original_max_position_embeddings: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    eos_token_id: int | list[int] | None = None
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None

    @property
    def positions(self) -> int:
        return self.max_position_embeddings or _DEFAULT_POSITIONS[self.model_type]

    @property
    def rope(self) -> tuple[str, dict[str, Any]]:
        """What is said of the rotary angles, and the field that says it.

        transformers 4 writes `rope_scaling` beside `rope_theta`, transformers 5 `rope_parameters`
        with everything in it; where both are, the older one counts.
        """
        if self.rope_scaling:
            return "rope_scaling", self.rope_scaling
        return "rope_parameters", self.rope_parameters or {}


class _Model(msgspec.Struct):
    """The one field that must be looked at before the others mean anything."""

    model_type: str = ""


class _Generation(msgspec.Struct):
    """The one field of generation_config.json that the engine obeys."""

    eos_token_id: int | list[int] | None = None


def read_model_config(model_dir: Path) -> ModelConfig:
    """Read `config.json` (and the end-of-sequence ids of `generation_config.json`).

    Raises:
        UnsupportedModelError: neither Qwen2 nor Llama, or a variant (sliding window, another rope
            scaling, quantised) that is not computed here; the message names file, field and value.
        FileNotFoundError: there is no config.json.
    """
    path = model_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: model_path must be a checkpoint's folder")
    raw = _decode(path)
    _refuse_variants(path, raw)
    head_dim = raw.head_dim or raw.hidden_size // raw.num_attention_heads
    kv_heads = raw.num_key_value_heads or raw.num_attention_heads
    if head_dim % 2 or raw.num_attention_heads % kv_heads:
        raise UnsupportedModelError(
            f"{path}: {raw.num_attention_heads} query heads over {kv_heads} key/value heads of "
            f"{head_dim} do not fit together"
        )
    theta, scaling = _read_rope(path, raw)
    return ModelConfig(
        architecture=raw.model_type,
        hidden_size=raw.hidden_size,
        num_layers=raw.num_hidden_layers,
        num_heads=raw.num_attention_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=raw.intermediate_size,
        vocab_size=raw.vocab_size,
        max_position=raw.positions,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=raw.rms_norm_eps,
        tie_word_embeddings=raw.tie_word_embeddings,
        eos_token_ids=_eos_token_ids(model_dir, raw),
    )


def _decode(path: Path) -> _Json:
    data = path.read_bytes()
    try:
        model_type = msgspec.json.decode(data, type=_Model).model_type
        if model_type not in get_args(Architecture):
            raise UnsupportedModelError(
                f"{path}: model_type is {model_type!r}; this engine computes {SUPPORTED}"
            )
        return msgspec.json.decode(data, type=_Json)
    except msgspec.DecodeError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error


def _refuse_variants(path: Path, raw: _Json) -> None:
    """Everything a config can ask for that this code does not do."""
    if raw.use_sliding_window or "sliding_attention" in (raw.layer_types or ()):
        raise UnsupportedModelError(f"{path}: sliding-window attention is not supported")
    if raw.hidden_act != "silu":
        _refuse(path, "hidden_act", raw.hidden_act)
    if raw.quantization_config:
        raise UnsupportedModelError(
            f"{path}: quantization_config says that the weights are {_format(raw)}. {QUANTISED}"
        )
    # Qwen2 has its biases whatever these say; Llama's would be on q, k, v and o.
    if raw.model_type == "llama":
        for field in ("attention_bias", "mlp_bias"):
            if getattr(raw, field):
                _refuse(path, field, True)


def _format(raw: _Json) -> str:
    """`awq, 4 bits`, in the words of the file."""
    about = raw.quantization_config or {}
    method = about.get("quant_method", "quantised by an unnamed method")
    bits = about.get("bits", about.get("w_bit"))
    return f"{method}" if bits is None else f"{method}, {bits} bits"


def _read_rope(path: Path, raw: _Json) -> tuple[float, Llama3Scaling | None]:
    """The base of the rotary frequencies, and how they are stretched."""
    field, rope = raw.rope
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        _refuse(path, f"{field}.rope_type", kind, "'default' and 'llama3' are")
    for layers in (name for name, value in rope.items() if isinstance(value, dict)):
        _refuse(path, f"{field}.{layers}", rope[layers], "one rotation for all layers is")
    partial = rope.get("partial_rotary_factor", raw.partial_rotary_factor)
    if partial not in (None, 1, 1.0):
        _refuse(path, "partial_rotary_factor", partial)
    theta = rope.get("rope_theta")
    if theta is None:
        theta = _DEFAULT_THETA if raw.rope_theta is None else raw.rope_theta
    if not _is_above(theta, 1):
        _refuse(path, "rope_theta", theta, "a number above 1 is")
    return float(theta), _llama3(path, field, rope, raw) if kind == "llama3" else None


def _llama3(path: Path, field: str, rope: dict[str, Any], raw: _Json) -> Llama3Scaling:
    old = raw.original_max_position_embeddings
    numbers = {"original_max_position_embeddings": raw.positions, **rope}
    if old is not None:
        numbers["original_max_position_embeddings"] = old
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for name in names:
        value = numbers.get(name)
        if not _is_above(value, 0):
            _refuse(path, f"{field}.{name}", value, "a number above 0 is")
    factor, low, high, context = (numbers[name] for name in names)
    if factor < 1:
        _refuse(path, f"{field}.factor", factor, "1 or more is")
    if high <= low:
        _refuse(path, f"{field}.high_freq_factor", high, f"more than low_freq_factor ({low}) is")
    return Llama3Scaling(
        factor=float(factor),
        low_freq_factor=float(low),
        high_freq_factor=float(high),
        original_max_position=int(context),
    )


def _is_above(value: Any, least: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > least


def _refuse(path: Path, field: str, value: Any, instead: str = "") -> NoReturn:
    hint = f"; {instead}" if instead else ""
    raise UnsupportedModelError(f"{path}: {field} {value!r} is not supported{hint}")


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
