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


def check(config: ServeConfig) -> None:
    """Raises ConfigError for the first thing that cannot work."""
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
