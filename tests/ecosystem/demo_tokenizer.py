"""The demo model's tokenizer, for clients that count tokens with transformers.

Beside the config.json of a Qwen2 model, AutoTokenizer puts that family's own word pattern in place
of the checkpoint's; alone, tokenizer.json is taken as it is.
"""

import shutil
from pathlib import Path

_CHECKPOINT = Path(__file__).resolve().parents[2] / "configs" / "models" / "deeprequest-demo"


def tokenizer_folder() -> Path:
    """A folder in the check's own home with nothing but the tokenizer."""
    folder = Path.home() / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_CHECKPOINT / name, folder)
    return folder
