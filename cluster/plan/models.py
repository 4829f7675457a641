"""The family by name: what its published config.json files say, for plans without a checkpoint."""

from dataclasses import dataclass

from cluster.plan.memory import ModelShape


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A published model: what it is called, its shape, and how many positions it was made for."""

    name: str
    published_as: str
    shape: ModelShape
    max_position: int = 131_072


def _qwen(
    hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int
) -> ModelShape:
    return ModelShape(hidden, layers, heads, kv_heads, 128, inner, vocab)


def _llama(hidden: int, layers: int, heads: int, inner: int) -> ModelShape:
    return ModelShape(hidden, layers, heads, 8, 128, inner, 128_256, qkv_bias=False)


MODELS = tuple(
    KnownModel(f"deepseek-r1-{short}", f"DeepSeek-R1-Distill-{published}", shape)
    for short, published, shape in (
        ("1.5b", "Qwen-1.5B", _qwen(1536, 28, 12, 2, 8960, 151_936)),
        ("7b", "Qwen-7B", _qwen(3584, 28, 28, 4, 18_944, 152_064)),
        ("14b", "Qwen-14B", _qwen(5120, 48, 40, 8, 13_824, 152_064)),
        ("32b", "Qwen-32B", _qwen(5120, 64, 40, 8, 27_648, 152_064)),
        ("llama-8b", "Llama-8B", _llama(4096, 32, 32, 14_336)),
        ("llama-70b", "Llama-70B", _llama(8192, 80, 64, 28_672)),
    )
)


def find_model(name: str) -> KnownModel | None:
    """By short or published name, whoever is said to be its publisher: `32b` is enough."""
    wanted = _plain(name)
    return next((m for m in MODELS if wanted in (_plain(m.name), _plain(m.published_as))), None)


def _plain(name: str) -> str:
    """What tells a name apart: `deepseek-ai/DeepSeek-R1-Distill-Qwen-32B` -> `32b`."""
    words = name.lower().rpartition("/")[2].replace("_", "-").split("-")
    return "-".join(w for w in words if w not in ("deepseek", "r1", "distill", "qwen"))
