"""system_fingerprint: a short name for the weights and settings that an answer came from.

Owns what goes into it. Reads the ends of weight files, not gigabytes: a retrained or re-sharded
checkpoint changes them. Knows no HTTP and no engine.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cluster.config import EngineConfig

SEED_ALGORITHM = 1
"""Grows whenever the same seed begins to draw other tokens from the same logits."""
_SAMPLED_BYTES = 2**20


class Fingerprint:
    """Of one configuration and its checkpoint; equal on all ingresses that have equal ones."""

    def __init__(self, config: EngineConfig, *, closing_words: str = "") -> None:
        """`closing_words`: what thoughts that are closed by force end with.

        Raises:
            OSError: the checkpoint cannot be read.
        """
        self._digest = hashlib.sha256()
        folder = Path(config.model_path)
        settings = msgspec.structs.replace(config, model_path="")
        self._digest.update(msgspec.json.encode((settings, SEED_ALGORITHM, closing_words)))
        for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
            self._digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            self._digest.update(_ends(path))

    def name(self, kernels: Iterable[str] = ()) -> str:
        """`fp_` and 12 hexadecimal digits.

        `kernels`: what the replicas report of who computes, in any order and number.
        """
        digest = self._digest.copy()
        digest.update(msgspec.json.encode(sorted(set(kernels))))
        return f"fp_{digest.hexdigest()[:12]}"


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(_SAMPLED_BYTES)
        file.seek(max(0, path.stat().st_size - _SAMPLED_BYTES))
        return head + file.read()
