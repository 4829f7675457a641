"""A checkpoint's safetensors files: which there are, which tensors they hold, slices of them.

Owns the format and its refusals. Knows no model: it is told which slice is wanted. Never unpickles:
`.bin` and `.pt` files are not read.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from cluster.kernels.kernels import ROW_BLOCK
from cluster.model.model_config import QUANTISED
from cluster.model.parallel import TensorShard

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
PIECE_ELEMENTS = 1 << 21
"""Elements of one piece; a piece is all that is held beside the weights."""
_PACKED = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv")
"""How AWQ, GPTQ, compressed-tensors and FP8 checkpoints name what stands for a matrix."""
_DERIVED = "rotary_emb.inv_freq"
"""Some old checkpoints store this table, which follows from the config."""


class WeightError(ValueError):
    """A checkpoint that cannot be loaded as it is; the message names file, tensor and remedy."""


def checkpoint_files(model_dir: Path) -> list[Path]:
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


def locate(
    files: Sequence["CheckpointFile"], wanted: set[str], ignore: set[str]
) -> list[tuple["CheckpointFile", list[str]]]:
    """Which file holds which wanted tensor; nothing may be missing and nothing left over.

    Raises:
        WeightError: a tensor is missing, or is not part of the model.
    """
    located = []
    missing = set(wanted)
    for file in files:
        names = file.names()
        for name in names:
            if name.endswith(_PACKED):
                raise WeightError(f"{file.path}: tensor {name} is packed. {QUANTISED}")
            if name not in wanted and name not in ignore and not name.endswith(_DERIVED):
                raise WeightError(
                    f"{file.path}: tensor {name} is not part of this model; config.json and "
                    "weights belong to different models"
                )
        located.append((file, [name for name in names if name in missing]))
        missing.difference_update(names)
    if missing:
        first = files[0].path
        where = first if len(files) == 1 else f"{first.parent} ({len(files)} files)"
        raise WeightError(
            f"{where}: tensor {min(missing)} is missing ({len(missing)} in all); download the "
            "checkpoint again"
        )
    return located


class _Header(msgspec.Struct):
    """What a safetensors header says of one tensor; offsets count from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class CheckpointFile:
    """One open safetensors file.

    It is read, not mapped: mapped pages count as this process's memory until they are dropped,
    which would double its size while it loads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._headers: dict[str, _Header] = {}
        self._start = 0
        self._descriptor = -1

    def __enter__(self) -> "CheckpointFile":
        try:
            checked: Any = safe_open(self.path, framework="pt", device="cpu")
            with checked:
                self._read_header()
        except (SafetensorError, OSError) as error:
            size = self.path.stat().st_size if self.path.exists() else 0
            raise WeightError(
                f"{self.path} ({size} bytes) is truncated or not a safetensors file: {error}; "
                "download it again"
            ) from error
        self._descriptor = os.open(self.path, os.O_RDONLY)
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def _read_header(self) -> None:
        with self.path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            raw = msgspec.json.decode(file.read(size), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        self._headers = {
            name: msgspec.json.decode(header, type=_Header) for name, header in raw.items()
        }
        self._start = 8 + size

    def names(self) -> list[str]:
        return sorted(self._headers)

    def check(self, shard: TensorShard) -> int:
        """Bytes of the shard in this file's number format."""
        header = self._headers[shard.name]
        if header.shape != shard.full_shape:
            raise WeightError(
                f"{self.path}: tensor {shard.name} has shape {list(header.shape)}, config.json "
                f"asks for {list(shard.full_shape)}; they belong to different models"
            )
        if header.dtype not in _DTYPES:
            raise WeightError(f"{self.path}: tensor {shard.name} is {header.dtype}. {QUANTISED}")
        return math.prod(shard.sink.shape) * _DTYPES[header.dtype].itemsize

    def pieces(self, shard: TensorShard) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of the shard, piece by piece, in the file's number format.

        Raises:
            WeightError: the file ends early, or a number is not finite.
        """
        rows, width = shard.sink.shape[0], math.prod(shard.sink.shape[1:])
        step = max(ROW_BLOCK, PIECE_ELEMENTS // width // ROW_BLOCK * ROW_BLOCK)
        for row in range(0, rows, step):
            piece = self._piece(shard, row, min(row + step, rows))
            if not piece.abs().max().isfinite():
                raise WeightError(
                    f"{self.path}: tensor {shard.name} holds numbers that are not finite; the file "
                    "is damaged, download it again"
                )
            yield row, piece

    def _piece(self, shard: TensorShard, first: int, stop: int) -> torch.Tensor:
        """Rows `first ... stop` of the shard."""
        header = self._headers[shard.name]
        dtype = _DTYPES[header.dtype]
        piece = torch.empty((stop - first, *shard.sink.shape[1:]), dtype=dtype)
        raw = bytes_of(piece)
        row_bytes = math.prod(header.shape[1:]) * dtype.itemsize
        start = self._start + header.data_offsets[0]
        if shard.dim == 0 or shard.sink.shape == header.shape:
            row = first + (shard.start if shard.dim == 0 else 0)
            self._read_into(raw, start + row * row_bytes, shard.name)
            return piece
        width = len(raw) // (stop - first)
        start += first * row_bytes + shard.start * dtype.itemsize
        for number in range(stop - first):
            part = raw[number * width : (number + 1) * width]
            self._read_into(part, start + number * row_bytes, shard.name)
        return piece

    def _read_into(self, target: memoryview, offset: int, name: str) -> None:
        while target:
            count = os.preadv(self._descriptor, [target], offset)
            if count == 0:
                raise WeightError(
                    f"{self.path}: the file ends within tensor {name}; download it again"
                )
            target, offset = target[count:], offset + count


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
