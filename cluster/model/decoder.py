"""Decoder: token ids and positions in, hidden states and this rank's logits out.

Owns the shape of the network, which Qwen2 and Llama share: they differ in what `ModelConfig` says
of biases and rotary angles. Attention over the paged cache comes in as a plan of the step, the
ranks as a constructor argument; so nothing here knows requests, pages or processes.

Shape letters: T tokens, D hidden, N query heads, K kv heads, H head dim, F intermediate, V
vocabulary, S sampling rows; N, K, F and V are this rank's share.
"""

from collections.abc import Iterator

from torch import Tensor

from cluster.attention.backend import AttentionPlan, RotaryTable
from cluster.model.kv_scales import KVScales
from cluster.model.layers import RMSNorm
from cluster.model.model_config import ModelConfig
from cluster.model.parallel import (
    ColumnParallelLinear,
    ParallelLMHead,
    Placement,
    RowParallelLinear,
    TensorShard,
    VocabParallelEmbedding,
)
from cluster.model.rotary import inverse_frequencies, rotary_table
from cluster.plan.memory import check_tensor_parallel_size


class Attention:
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: ModelConfig, where: Placement) -> None:
        self.head_dim = config.head_dim
        self.num_heads = where.split("query heads", config.num_heads)
        self.num_kv_heads = where.split("key/value heads", config.num_kv_heads)
        kv_size = config.num_kv_heads * config.head_dim
        parts = {
            "q_proj": config.num_heads * config.head_dim,
            "k_proj": kv_size,
            "v_proj": kv_size,
        }
        self.qkv_proj = ColumnParallelLinear(config.hidden_size, parts, config.qkv_bias, where)
        self.o_proj = RowParallelLinear(parts["q_proj"], config.hidden_size, where)
        self.kv_scales: KVScales | None = None

    def __call__(
        self,
        x: Tensor,
        rotary: RotaryTable,
        kv_layer: Tensor,
        attention: AttentionPlan,
        wanted: Tensor | None,
    ) -> Tensor:
        n, k = self.num_heads, self.num_kv_heads
        qkv = self.qkv_proj(x).view(-1, n + 2 * k, self.head_dim)  # [T, N + 2K, H]
        if self.kv_scales is not None:
            qkv = qkv * self.kv_scales.before
        out = attention.attend(kv_layer, qkv, rotary, wanted)  # [T, N, H]
        if wanted is not None:
            out = out[wanted]
        if self.kv_scales is not None:
            out = out * self.kv_scales.behind
        return self.o_proj(out.reshape(-1, n * self.head_dim))  # [T, D]

    def shards(self, prefix: str) -> Iterator[TensorShard]:
        yield from self.qkv_proj.shards(prefix)
        yield from self.o_proj.shards(f"{prefix}.o_proj")


class MLP:
    """SwiGLU."""

    def __init__(self, config: ModelConfig, where: Placement) -> None:
        inner = config.intermediate_size
        parts = {"gate_proj": inner, "up_proj": inner}
        self.kernels = where.kernels
        self.gate_up_proj = ColumnParallelLinear(config.hidden_size, parts, False, where)
        self.down_proj = RowParallelLinear(inner, config.hidden_size, where)

    def __call__(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(x)  # [T, 2F]
        return self.down_proj(self.kernels.silu_and_mul(gate_up))  # [T, F] -> [T, D]

    def shards(self, prefix: str) -> Iterator[TensorShard]:
        yield from self.gate_up_proj.shards(prefix)
        yield from self.down_proj.shards(f"{prefix}.down_proj")


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x)).

    The sum travels beside what is to be added to it, so that every addition joins the norm that
    follows it.
    """

    def __init__(self, config: ModelConfig, where: Placement) -> None:
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, where)
        self.self_attn = Attention(config, where)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, where)
        self.mlp = MLP(config, where)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        rotary: RotaryTable,
        kv_layer: Tensor,
        attention: AttentionPlan,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(what is to be added, sum so far) -> the same, one layer on.

        `wanted`: of these tokens alone; the others only leave their keys and values.
        """
        if residual is None:
            x, residual = self.input_layernorm(x), x
        else:
            x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, rotary, kv_layer, attention, wanted)
        if wanted is not None:
            residual = residual[wanted]
        x, residual = self.post_attention_layernorm.add(x, residual)
        return self.mlp(x), residual

    def shards(self, prefix: str) -> Iterator[TensorShard]:
        yield from self.input_layernorm.shards(f"{prefix}.input_layernorm")
        yield from self.self_attn.shards(f"{prefix}.self_attn")
        yield from self.post_attention_layernorm.shards(f"{prefix}.post_attention_layernorm")
        yield from self.mlp.shards(f"{prefix}.mlp")


class Decoder:
    """The whole network. Weights are uninitialised until `weights.load_weights` has filled them."""

    def __init__(self, config: ModelConfig, where: Placement, max_position: int) -> None:
        """`max_position`: how far the rotary tables reach.

        Raises:
            ValueError: the group's size does not divide the model.
        """
        check_tensor_parallel_size(config.shape, where.group.size)
        self.config = config
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, where)
        tied = self.lm_head.weight if config.tie_word_embeddings else None
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, where, tied
        )
        self.layers = [DecoderLayer(config, where) for _ in range(config.num_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, where)
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.rotary = rotary_table(frequencies, max_position, where.device)

    def __call__(
        self,
        token_ids: Tensor,
        kv_cache: list[Tensor],
        attention: AttentionPlan,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """[T] ids at the plan's positions -> [T, D] hidden states, the same on every rank.

        `wanted` [S]: return these tokens' alone, [S, D], and spare the last layer the others.
        """
        x = self.embed_tokens(token_ids)
        residual: Tensor | None = None
        last = len(self.layers) - 1
        for number, (layer, kv_layer) in enumerate(zip(self.layers, kv_cache, strict=True)):
            rows = wanted if number == last else None
            x, residual = layer(x, residual, self.rotary, kv_layer, attention, rows)
        assert residual is not None, "a model has at least one layer"
        return self.norm.add(x, residual)[0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[S, D] -> [S, V]: this rank's slice of the vocabulary."""
        return self.lm_head(hidden)

    def scale_kv(self, largest: list[Tensor]) -> None:
        """Fit what layers keep to a cache of e4m3; see `KVScales.fitting`."""
        for layer, one in zip(self.layers, largest, strict=True):
            attention = layer.self_attn
            attention.kv_scales = KVScales.fitting(one, attention.num_heads)

    def shards(self) -> Iterator[TensorShard]:
        """Every tensor of the checkpoint, and where this rank's slice of it goes."""
        yield from self.embed_tokens.shards("model.embed_tokens")
        for number, layer in enumerate(self.layers):
            yield from layer.shards(f"model.layers.{number}")
        yield from self.norm.shards("model.norm")
        tied = self.config.tie_word_embeddings
        yield from self.lm_head.shards("model.embed_tokens" if tied else "lm_head")
