"""Reading a checkpoint: each rank takes only its own slices out of safetensors.

Owns the files. Knows no model: it is told which tensor's slice goes where. Never unpickles: `.bin`
and `.pt` files are not read.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cluster.kernels.kernels import ROW_BLOCK
from cluster.model.parallel import TensorShard

Progress = Callable[[str, int, int], None]
"""(tensor name, bytes read so far, bytes this rank will read)."""

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
PIECE_ELEMENTS = 1 << 21
"""Elements of one piece; a piece is all that is held beside the weights."""
_DERIVED = "rotary_emb.inv_freq"
"""Some old checkpoints store this table, which follows from the config."""


class WeightError(ValueError):
    """A checkpoint that cannot be loaded as it is; the message names file, tensor and remedy."""


def load_weights(
    model_dir: Path,
    shards: Iterable[TensorShard],
    progress: Progress | None = None,
    ignore: Iterable[str] = (),
) -> int:
    """Fill every shard's sink from the checkpoint; returns the bytes read.

    All headers are checked before the first tensor is read.

    Args:
        ignore: names that may be in the files without being asked for (a tied head).

    Raises:
        WeightError: a file is missing or truncated; a tensor is missing, has another shape or an
            unknown format, or is not part of the model.
    """
    wanted = {shard.name: shard for shard in shards}
    files = _files(model_dir)
    located = _locate(files, set(wanted), set(ignore))
    total = 0
    for path, names in located.items():
        with _Checkpoint(path) as checkpoint:
            total += sum(checkpoint.check(wanted[name]) for name in names)
    done = 0
    for path, names in located.items():
        with _Checkpoint(path) as checkpoint:
            for name in names:
                done += checkpoint.read(wanted[name])
                if progress is not None:
                    progress(name, done, total)
    return done


def _files(model_dir: Path) -> list[Path]:
    """The safetensors files of a checkpoint, from its index where it has one."""
    index = model_dir / _INDEX
    if not index.exists():
        if not (model_dir / _SINGLE).exists():
            raise WeightError(
                f"{model_dir} holds neither {_SINGLE} nor {_INDEX}: download the safetensors files "
                "(pickled .bin files are not read)"
            )
        return [model_dir / _SINGLE]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightError(f"{index} is not a safetensors index: download it again") from error
    for name in names:
        if Path(name).name != name:
            raise WeightError(f"{index} points outside its folder: {name!r}")
        if not (model_dir / name).exists():
            raise WeightError(f"{model_dir / name} is missing: {index} names it; download it")
    return [model_dir / name for name in names]


def _locate(files: list[Path], wanted: set[str], ignore: set[str]) -> dict[Path, list[str]]:
    """Which file holds which wanted tensor; nothing may be missing and nothing left over."""
    located: dict[Path, list[str]] = {}
    missing = set(wanted)
    for path in files:
        with _Checkpoint(path) as checkpoint:
            names = checkpoint.names()
        for name in names:
            if name not in wanted and name not in ignore and not name.endswith(_DERIVED):
                raise WeightError(
                    f"{path}: tensor {name} is not part of this model; config.json and weights "
                    "belong to different models"
                )
        located[path] = [name for name in names if name in missing]
        missing.difference_update(names)
    if missing:
        where = files[0] if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
        raise WeightError(
            f"{where}: tensor {min(missing)} is missing ({len(missing)} in all); download the "
            "checkpoint again"
        )
    return located


class _Checkpoint:
    """One open safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def __enter__(self) -> "_Checkpoint":
        try:
            opened: Any = safe_open(self.path, framework="pt", device="cpu")
            self._file = opened.__enter__()
        except (SafetensorError, OSError) as error:
            size = self.path.stat().st_size if self.path.exists() else 0
            raise WeightError(
                f"{self.path} ({size} bytes) is truncated or not a safetensors file: {error}; "
                "download it again"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)

    def names(self) -> list[str]:
        return sorted(self._file.keys())

    def check(self, shard: TensorShard) -> int:
        """Bytes of the shard in this file's number format."""
        view = self._file.get_slice(shard.name)
        shape, kind = tuple(view.get_shape()), view.get_dtype()
        if shape != shard.full_shape:
            raise WeightError(
                f"{self.path}: tensor {shard.name} has shape {list(shape)}, config.json asks for "
                f"{list(shard.full_shape)}; they belong to different models"
            )
        if kind not in _BYTES:
            raise WeightError(
                f"{self.path}: tensor {shard.name} is {kind}; quantised weights are not supported, "
                "use the bfloat16 checkpoint"
            )
        return math.prod(shard.sink.shape) * _BYTES[kind]

    def read(self, shard: TensorShard) -> int:
        """Pass the shard on, piece by piece; returns the bytes read."""
        view = self._file.get_slice(shard.name)
        rows, width = shard.sink.shape[0], math.prod(shard.sink.shape[1:])
        step = max(ROW_BLOCK, PIECE_ELEMENTS // width // ROW_BLOCK * ROW_BLOCK)
        done = 0
        for row in range(0, rows, step):
            stop = min(row + step, rows)
            if shard.dim == 0:
                part: torch.Tensor = view[shard.start + row : shard.start + stop]
            else:
                part = view[row:stop, shard.start : shard.start + width]
            shard.sink.write(row, part)
            done += part.numel() * part.element_size()
        return done
