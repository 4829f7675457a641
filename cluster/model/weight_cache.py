"""The second start: each rank's slices, kept in the form its kernels want.

Owns one file a rank, in the safetensors format, beside a key of everything its content follows from
(checkpoint, ranks, kernels, quantisation). A file that does not fit is ignored and written again;
nothing read from it is trusted without its checksum.

    <folder>/<key of 32 hex digits>-rank0of2.safetensors
"""

import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from cluster.model.checkpoint import bytes_of, checkpoint_files
from cluster.model.parallel import TensorShard, TensorSink, WeightSink

_DTYPES = {
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.float8_e4m3fn: "F8_E4M3",
}

_log = logging.getLogger(__name__)


class _Tensor(msgspec.Struct):
    """One entry of the header."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


def held_tensors(shards: Iterable[TensorShard]) -> dict[str, Tensor]:
    """What a model's sinks hold, by name; a merged matrix goes by the name of its first part."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for shard in shards:
        if isinstance(shard.sink, TensorSink):
            if shard.sink.tensor.data_ptr() not in seen:
                tensors[shard.name] = shard.sink.tensor
            continue
        assert isinstance(shard.sink, WeightSink)
        for number, weight in enumerate(shard.sink.weights):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            for part, tensor in weight.tensors().items():
                tensors[f"{shard.name}.{number}.{part}"] = tensor
                seen.add(tensor.data_ptr())
    return tensors


def cache_key(model_dir: Path, facts: Iterable[object]) -> str:
    """What the content follows from: the checkpoint's files and `facts` (ranks, kernels, ...)."""
    digest = hashlib.sha256(repr([*facts]).encode())
    for path in (model_dir / "config.json", *checkpoint_files(model_dir)):
        about = path.stat()
        digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


class WeightCache:
    """One rank's file."""

    def __init__(self, folder: Path, key: str, rank: int, size: int) -> None:
        self.path = folder / f"{key}-rank{rank}of{size}.safetensors"

    def load(self, tensors: dict[str, Tensor]) -> bool:
        """Fill the tensors from the file; False: there is none that fits."""
        try:
            with self.path.open("rb", buffering=0) as file:
                if _read_header(file.fileno()) != _header(tensors):
                    return False
                sums = [_read_tensor(file.fileno(), tensor) for tensor in tensors.values()]
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            _log.warning("the weight cache %s is not used: %s", self.path, error)
            return False
        if sums != self._sums():
            _log.warning("the weight cache %s is damaged; it is written again", self.path)
            return False
        return True

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Write the file; a full or read-only disk is a warning, no error."""
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with temporary.open("wb") as file:
                file.write(_encode(_header(tensors)))
                for tensor in tensors.values():
                    file.write(bytes_of(tensor))
            sums = [zlib.crc32(bytes_of(tensor)) for tensor in tensors.values()]
            self._sums_path.write_bytes(msgspec.json.encode(sums))
            temporary.replace(self.path)
        except OSError as error:
            _log.warning("the weight cache %s cannot be written: %s", self.path, error)
            with contextlib.suppress(OSError):
                temporary.unlink()

    @property
    def _sums_path(self) -> Path:
        return self.path.with_suffix(".crc32.json")

    def _sums(self) -> list[int]:
        try:
            return msgspec.json.decode(self._sums_path.read_bytes(), type=list[int])
        except (OSError, msgspec.DecodeError):
            return []


def _header(tensors: dict[str, Tensor]) -> dict[str, _Tensor]:
    entries, offset = {}, 0
    for name, tensor in tensors.items():
        stop = offset + tensor.nbytes
        entries[name] = _Tensor(_DTYPES[tensor.dtype], list(tensor.shape), [offset, stop])
        offset = stop
    return entries


def _encode(header: dict[str, _Tensor]) -> bytes:
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def _read_header(descriptor: int) -> dict[str, _Tensor]:
    size = int.from_bytes(os.read(descriptor, 8), "little")
    if size > os.fstat(descriptor).st_size:
        raise ValueError("it is not a safetensors file")
    return msgspec.json.decode(os.read(descriptor, size), type=dict[str, _Tensor])


def _read_tensor(descriptor: int, tensor: Tensor) -> int:
    """Read on into the tensor; the checksum of what was read."""
    target, crc = bytes_of(tensor), 0
    while target:
        count = os.readv(descriptor, [target[: 1 << 24]])
        if count == 0:
            raise ValueError("it ends early")
        crc = zlib.crc32(target[:count], crc)
        target = target[count:]
    return crc
