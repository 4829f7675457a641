"""Bytes: what a model's weights and a token's keys and values take, and what they leave room for.

Owns the arithmetic and the sentences that refuse what cannot work, with the numbers and the
setting to change. Bytes are per rank unless a name says otherwise.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a checkpoint that memory and speed depend on."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    qkv_bias: bool = True

    @property
    def layer_linear_params(self) -> int:
        """Weights of one layer's matrices: q, k, v, o, gate, up, down."""
        attention = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim
        return self.hidden_size * (attention + 3 * self.intermediate_size)

    @property
    def layer_bias_params(self) -> int:
        """q, k and v have a bias in Qwen2, not in Llama; o and the MLP never have one."""
        if not self.qkv_bias:
            return 0
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def head_params(self) -> int:
        """The lm_head."""
        return self.vocab_size * self.hidden_size

    @property
    def linear_params(self) -> int:
        """Every matrix that activations are multiplied with, the lm_head among them."""
        return self.num_layers * self.layer_linear_params + self.head_params

    @property
    def embedding_params(self) -> int:
        """An embedding of its own; none where it is the lm_head's matrix."""
        return 0 if self.tie_word_embeddings else self.head_params

    @property
    def norm_params(self) -> int:
        """Two RMSNorms a layer and the last one; every rank holds them whole."""
        return (2 * self.num_layers + 1) * self.hidden_size

    @property
    def num_params(self) -> int:
        biases = self.num_layers * self.layer_bias_params
        return self.linear_params + biases + self.embedding_params + self.norm_params


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes per number: 2 for bfloat16, 1 for fp8 and int8, 4 for float32."""

    linear: int = 2
    """The matrices of layers."""
    head: int = 2
    """The lm_head, and the embedding where that is the lm_head's."""
    other: int = 2
    """An embedding of its own, biases and norms."""
    kv: int = 2


BF16 = Precision()
PRECISIONS = {
    "bf16": BF16,
    "fp8": Precision(linear=1),
    "int8": Precision(linear=1, head=1),
    "fp32": Precision(linear=4, head=4, other=4, kv=4),
}

GPU_UTILIZATION = 0.92
GPU_OVERHEAD = 5 * GIB // 2
"""CUDA itself, kernels, graphs and one step's activations."""
CPU_KV_SHARE, CPU_KV_BYTES = 0.25, 2 * GIB
"""Default KV cache on a CPU, all ranks together: this share of the free memory, at most this."""


def tensor_parallel_sizes(shape: ModelShape, largest: int = 8) -> list[int]:
    """The numbers of ranks that can share this model: they divide all that is split."""
    return [size for size in range(1, largest + 1) if not _undivided(shape, size)]


def check_tensor_parallel_size(shape: ModelShape, size: int) -> None:
    """Raises ValueError: `size` does not divide the model; the message names the sizes that do."""
    undivided = _undivided(shape, size)
    if undivided:
        sizes = ", ".join(str(fit) for fit in tensor_parallel_sizes(shape, max(size, 8)))
        raise ValueError(
            f"tensor_parallel_size {size} does not divide {' and '.join(undivided)}; "
            f"this model can be split by {sizes}"
        )


def matrix_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes, on all ranks, of the matrices that activations are multiplied with."""
    layers = shape.num_layers * shape.layer_linear_params
    return layers * precision.linear + shape.head_params * precision.head


def weight_bytes(shape: ModelShape, tp: int, precision: Precision = BF16) -> int:
    """Bytes of one rank's weights: a `tp`-th of the matrices, and all norms."""
    linear = matrix_bytes(shape, precision)
    other = (shape.num_layers * shape.layer_bias_params + shape.embedding_params) * precision.other
    return (linear + other) // tp + shape.norm_params * precision.other


def kv_bytes_per_token(shape: ModelShape, tp: int, kv_bytes: int = 2) -> int:
    """Bytes one token's keys and values take in one rank's pool, all layers together."""
    return 2 * shape.num_layers * (shape.num_kv_heads // tp) * shape.head_dim * kv_bytes


def kv_room(
    device_bytes: int,
    weights: int,
    utilization: float = GPU_UTILIZATION,
    overhead: int = GPU_OVERHEAD,
) -> int:
    """Bytes left for KV: the share of the device we may use, less weights and working memory."""
    return max(0, int(utilization * device_bytes) - weights - overhead)


def num_kv_blocks(room_bytes: int, token_bytes: int, block_size: int) -> int:
    """Blocks, the dummy block included, that a pool of this many bytes holds.

    Raises:
        ValueError: not even one usable block fits; the message names the settings.
    """
    blocks = room_bytes // (token_bytes * block_size)
    if blocks < 2:
        raise ValueError(
            f"{_gib(room_bytes)} are left for the KV cache, but two blocks of {block_size} tokens "
            f"take {_gib(2 * block_size * token_bytes)}: raise tensor_parallel_size, "
            f"gpu_memory_utilization or kv_cache_gib, or use devices with more memory"
        )
    return blocks


def longest_sequence(num_blocks: int, block_size: int) -> int:
    """Tokens of the longest sequence that a pool holds; block 0 is never used."""
    return (num_blocks - 1) * block_size


def fit_max_model_len(
    asked: int | None, max_positions: int, num_blocks: int, block_size: int
) -> int:
    """The context length to serve: what was asked, else the most that model and pool allow.

    Raises:
        ValueError: what was asked does not fit; the message names what does, and the settings.
    """
    longest = longest_sequence(num_blocks, block_size)
    if asked is None:
        return min(max_positions, longest)
    if not 1 <= asked <= max_positions:
        raise ValueError(
            f"max_model_len {asked} is not between 1 and the model's {max_positions} positions"
        )
    if asked > longest:
        raise ValueError(
            f"max_model_len {asked} does not fit: the KV cache holds {longest} tokens "
            f"({num_blocks - 1} blocks of {block_size}); set max_model_len to at most {longest}, "
            f"or raise num_kv_blocks, kv_cache_gib, gpu_memory_utilization or tensor_parallel_size"
        )
    return asked


def _undivided(shape: ModelShape, size: int) -> list[str]:
    parts = {
        "query heads": shape.num_heads,
        "kv heads": shape.num_kv_heads,
        "MLP columns": shape.intermediate_size,
        "vocabulary rows": shape.vocab_size,
    }
    return [f"{count} {name}" for name, count in parts.items() if size < 1 or count % size]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
