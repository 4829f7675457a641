"""Preflight: what can be known to be wrong before anything is started.

Owns checks that need no GPU, no Ray and no torch: the checkpoint is there and of a kind that the
engine computes, the ranks divide it, its tokenizer and chat template are what they must be. Each
finding names the setting or the file.
"""

from pathlib import Path

from cluster.model.model_config import read_model_config
from cluster.plan.memory import check_tensor_parallel_size
from cluster.text.template import ChatTemplate
from cluster.text.tokenizer import Tokenizer
from serve_app.config import ConfigError, ServeConfig
from serve_app.tenancy.redis_url import RedisUrlError, read_url


def check(config: ServeConfig) -> None:
    """Raises ConfigError for the first thing that cannot work."""
    if config.admission.redis_url is not None:
        check_redis_url(config.admission.redis_url)
    folder = Path(config.model.path)
    engine = config.engine_config()
    try:
        model = read_model_config(folder)
        check_tensor_parallel_size(model.shape, engine.tensor_parallel_size)
        ChatTemplate(Tokenizer(folder)).verify()
    except (ValueError, OSError) as error:
        raise ConfigError(f"model.path {folder}: {error}") from None
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"model.path {folder}: holds no *.safetensors file; download the weights")
    longest = engine.max_model_len
    if longest is not None and longest > model.max_position:
        raise ConfigError(
            f"engine.max_model_len {longest} is more than the {model.max_position} "
            "tokens this model was made for"
        )


def check_redis_url(url: str) -> None:
    """Raises ConfigError when nothing can be reached under it."""
    try:
        read_url(url)
    except RedisUrlError as error:
        raise ConfigError(str(error)) from None
