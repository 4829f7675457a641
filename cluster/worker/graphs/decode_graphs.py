"""DecodeGraphs: steps of decodes, and of drafts, recorded once per number of tokens and replayed.

A step of a large model is about a thousand kernels; launching them takes the host longer than the
GPU computes, as soon as several ranks share the model. A replay is one launch.

Owns the recordings: largest first, so that the smaller ones find room in what the largest left, all
in one memory pool; and the rule which steps they serve. Everything a recording reads that differs
between steps lies in `DecodeBuffers`. Knows no requests, and not how a device records.

    plan of 4 tokens      once, outside the recording
    buffers -> model -> hidden [4, D]        recorded; replayed for steps of 3 and 4 tokens

Steps in which a row has drafts, or the short rest of a prompt, have graphs of their own: there each
row may have some tokens, and which are whose is read on the device.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Protocol

from torch import Tensor

from cluster.attention.backend import AttentionBackend, AttentionMetadata, AttentionPlan
from cluster.model.decoder import Decoder
from cluster.worker.graphs.decode_buffers import DecodeBuffers

MIXED = "mixed: a row computes more tokens than drafts"
TOO_MANY_TOKENS = "more tokens than the largest graph"

OnRecorded = Callable[[int], None]
"""(tokens of the graph that was recorded)"""


class Replay(Protocol):
    """A recording."""

    def replay(self) -> None:
        """Compute it again, over the same memory; the host does not wait."""


class Recorder(Protocol):
    """What is needed of a device: `cluster.device.GraphRecorder`."""

    def record(self, run: Callable[[], None], /) -> Replay:
        """Record what `run` lets the device do; all recordings share one memory pool."""


class DecodeGraphs:
    """The recorded steps of one rank; every rank records and replays the same ones."""

    def __init__(
        self,
        model: Decoder,
        backend: AttentionBackend,
        kv_cache: list[Tensor],
        sizes: Sequence[int],
        max_model_len: int,
        max_queries: int = 1,
    ) -> None:
        """`sizes`: numbers of tokens; `max_model_len`: tokens the longest row will ever see;
        `max_queries`: of a row, drafts included; at most what the backend can capture."""
        self._model = model
        self._backend = backend
        self._kv_cache = kv_cache
        self._sizes = sorted(sizes)
        self._max_k = max_model_len
        self._queries = sorted({1, max_queries})
        block_size = kv_cache[0].shape[2]
        pages = -(-max_model_len // block_size)
        self.buffers = DecodeBuffers(self._sizes[-1], pages, kv_cache[0].device)
        self._hidden: Tensor | None = None
        self._recorded: dict[tuple[int, int], Replay] = {}
        self._plans: list[AttentionPlan] = []
        """Whose memory the recordings write into; a recording holds addresses, not tensors."""
        self.replayed = 0
        """Steps served by a graph so far."""
        self.refused: Counter[str] = Counter()
        """Steps that were not, by reason."""

    @property
    def max_queries(self) -> int:
        """Of a row, in a step that is replayed."""
        return self._queries[-1]

    @property
    def num_recordings(self) -> int:
        """How many graphs there are, or will be."""
        return len(self._kinds())

    def record(self, recorder: Recorder, on_recorded: OnRecorded = lambda tokens: None) -> None:
        """Record every size, the largest first; collective where ranks share the model."""
        for size, queries in self._kinds():
            metadata = self.buffers.metadata(size, queries, self._max_k)
            self._plans.append(self._backend.plan(metadata))
            run = partial(self._run, size, self._plans[-1])
            run()  # whatever compiles, measures or allocates for good does so before
            self._recorded[size, queries] = recorder.record(run)
            on_recorded(size)
        for kv_layer in self._kv_cache:
            kv_layer[:, 0] = 0

    def run(self, token_ids: Tensor, metadata: AttentionMetadata) -> Tensor | None:
        """[T] ids -> [T, D] hidden states, overwritten by the next run; None: compute them
        without, the reason is counted."""
        reason = self._reason_against(len(token_ids), metadata.max_q)
        if reason is not None:
            self.refused[reason] += 1
            return None
        size = next(size for size in self._sizes if size >= len(token_ids))
        self.buffers.fill(token_ids, metadata, size)
        self._recorded[size, self._queries[metadata.max_q > 1]].replay()
        self.replayed += 1
        assert self._hidden is not None, "record first"
        return self._hidden[: len(token_ids)]

    def _kinds(self) -> list[tuple[int, int]]:
        """(tokens, of a row) of all graphs; a row with drafts is two tokens at least."""
        every = product(reversed(self._sizes), self._queries)
        return [(size, queries) for size, queries in every if size > 1 or queries == 1]

    def _reason_against(self, num_tokens: int, max_q: int) -> str | None:
        if max_q > self._queries[-1]:
            return MIXED
        if num_tokens > self._sizes[-1]:
            return TOO_MANY_TOKENS
        return None

    def _run(self, size: int, plan: AttentionPlan) -> None:
        hidden = self._model(self.buffers.token_ids[:size], self._kv_cache, plan)
        if self._hidden is None:
            self._hidden = hidden.new_zeros((self._sizes[-1], hidden.shape[1]))
        self._hidden[:size].copy_(hidden)
