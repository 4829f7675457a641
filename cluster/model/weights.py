"""Loading weights: every slice a rank asks for, read in parallel and passed on piece by piece.

Owns the order and the width of reading. Knows no model (it is told which tensor's slice goes where)
and no file format (see `checkpoint`). What is held beside the weights is one piece per thread.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from cluster.model.checkpoint import CheckpointFile, checkpoint_files, locate
from cluster.model.parallel import TensorShard

Progress = Callable[[str, int, int], None]
"""(tensor name, bytes read so far, bytes this rank will read)."""

MAX_READERS = 8


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
        WeightError: a file is missing, truncated or damaged; a tensor is missing, has another shape
            or an unknown format, or is not part of the model.
    """
    wanted = {shard.name: shard for shard in shards}
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(CheckpointFile(path)) for path in checkpoint_files(model_dir)]
        located = locate(files, set(wanted), set(ignore))
        tasks = [(file, wanted[name]) for file, names in located for name in names]
        meter = _Meter(sum(file.check(shard) for file, shard in tasks), progress)
        readers = min(MAX_READERS, len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(readers, thread_name_prefix="weights") as pool:
            reads = [pool.submit(_read, file, shard, meter) for file, shard in tasks]
            wait(reads, return_when=FIRST_EXCEPTION)
            for read in reads:
                read.cancel()
            for read in reads:
                if not read.cancelled():
                    read.result()
    return meter.done


def _read(file: CheckpointFile, shard: TensorShard, meter: "_Meter") -> None:
    for row, piece in file.pieces(shard):
        shard.sink.write(row, piece)
        meter.add(shard.name, piece.numel() * piece.element_size())


class _Meter:
    """Bytes read by all threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done = 0
        self._total = total
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, name: str, count: int) -> None:
        with self._lock:
            self.done += count
            if self._progress is not None:
                self._progress(name, self.done, self._total)
