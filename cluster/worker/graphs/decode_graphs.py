"""DecodeGraphs: decode steps, recorded once per number of rows and replayed.

A step of a large model is about a thousand kernels; launching them takes the host longer than the
GPU computes, as soon as several ranks share the model. A replay is one launch.

Owns the recordings: largest first, so that the smaller ones find room in what the largest left, all
in one memory pool; and the rule which steps they serve. Everything a recording reads that differs
between steps lies in `DecodeBuffers`. Knows no requests, and not how a device records.

    plan of 4 rows        once, outside the recording
    buffers -> model -> hidden [4, D]        recorded; replayed for steps of 3 and 4 rows
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from torch import Tensor

from cluster.attention.backend import AttentionBackend, AttentionMetadata, AttentionPlan
from cluster.model.decoder import Decoder
from cluster.worker.graphs.decode_buffers import DecodeBuffers

MIXED = "mixed: a row computes several tokens"
TOO_MANY_ROWS = "more rows than the largest graph"

OnRecorded = Callable[[int], None]
"""(rows of the graph that was recorded)"""


class Replay(Protocol):
    """A recording."""

    def replay(self) -> None:
        """Compute it again, over the same memory; the host does not wait."""


class Recorder(Protocol):
    """What is needed of a device: `cluster.device.GraphRecorder`."""

    def record(self, run: Callable[[], None], /) -> Replay:
        """Record what `run` lets the device do; all recordings share one memory pool."""


class DecodeGraphs:
    """The recorded decode steps of one rank; every rank records and replays the same ones."""

    def __init__(
        self,
        model: Decoder,
        backend: AttentionBackend,
        kv_cache: list[Tensor],
        sizes: Sequence[int],
        max_model_len: int,
    ) -> None:
        """`sizes`: numbers of rows; `max_model_len`: tokens the longest row will ever see."""
        self._model = model
        self._backend = backend
        self._kv_cache = kv_cache
        self._sizes = sorted(sizes)
        self._max_k = max_model_len
        block_size = kv_cache[0].shape[2]
        pages = -(-max_model_len // block_size)
        self.buffers = DecodeBuffers(self._sizes[-1], pages, kv_cache[0].device)
        self._hidden: Tensor | None = None
        self._recorded: dict[int, Replay] = {}
        self._plans: list[AttentionPlan] = []
        """Whose memory the recordings write into; a recording holds addresses, not tensors."""
        self.replayed = 0
        """Steps served by a graph so far."""
        self.refused: Counter[str] = Counter()
        """Steps that were not, by reason."""

    def record(self, recorder: Recorder, on_recorded: OnRecorded = lambda rows: None) -> None:
        """Record every size, the largest first; collective where ranks share the model."""
        for rows in reversed(self._sizes):
            metadata = self.buffers.metadata(rows, self._max_k)
            self._plans.append(self._backend.plan(metadata))
            run = partial(self._run, rows, self._plans[-1])
            run()  # whatever compiles, measures or allocates for good does so before
            self._recorded[rows] = recorder.record(run)
            on_recorded(rows)
        for kv_layer in self._kv_cache:
            kv_layer[:, 0] = 0

    def run(self, token_ids: Tensor, metadata: AttentionMetadata) -> Tensor | None:
        """[T] ids -> [T, D] hidden states, overwritten by the next run; None: compute them
        without, the reason is counted."""
        reason = self._reason_against(metadata)
        if reason is not None:
            self.refused[reason] += 1
            return None
        rows = next(size for size in self._sizes if size >= len(token_ids))
        self.buffers.fill(token_ids, metadata, rows)
        self._recorded[rows].replay()
        self.replayed += 1
        assert self._hidden is not None, "record first"
        return self._hidden[: len(token_ids)]

    def _reason_against(self, metadata: AttentionMetadata) -> str | None:
        if metadata.max_q > 1:
            return MIXED
        if metadata.num_decode > self._sizes[-1]:
            return TOO_MANY_ROWS
        return None

    def _run(self, rows: int, plan: AttentionPlan) -> None:
        hidden = self._model(self.buffers.token_ids[:rows], self._kv_cache, plan)
        if self._hidden is None:
            self._hidden = hidden.new_zeros((self._sizes[-1], hidden.shape[1]))
        self._hidden[:rows].copy_(hidden)
