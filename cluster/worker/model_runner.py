"""ModelRunner: one frame in, the drawn tokens of every sampling row out.

Owns the step: batch -> model -> head on the rows that are drawn from, or judged -> sampler -> which
drafts stand; and on rank 0 what to draft next. Knows no sockets and no scheduler.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cluster.attention.backend import AttentionBackend, AttentionMetadata
from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.model.decoder import Decoder
from cluster.request import TokenLogprobs
from cluster.worker.graphs.decode_graphs import DecodeGraphs
from cluster.worker.input_batch import InputBatch, StepInputs
from cluster.worker.rejection import accept
from cluster.worker.row_grammars import RowGrammars
from cluster.worker.row_prompts import Judged
from cluster.worker.sampler import Drawn, Sampler
from cluster.worker.speculative import Speculator

MAX_JUDGED_LOGITS = 2**24
"""Of one rank at once, for the logprobs of prompts."""


class ModelRunner:
    """Runs steps on one rank; every rank runs the same steps in the same order."""

    def __init__(
        self,
        model: Decoder,
        backend: AttentionBackend,
        kv_cache: list[Tensor],
        batch: InputBatch,
        sampler: Sampler,
        grammars: RowGrammars,
        speculator: Speculator | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        """`speculator`: on rank 0, if tokens are to be proposed ahead; `graphs`: recorded."""
        self._graphs = graphs
        self._model = model
        self._backend = backend
        self._kv_cache = kv_cache
        self._batch = batch
        self._sampler = sampler
        self._grammars = grammars
        self._speculator = speculator

    def execute(self, frame: SchedulerOutput) -> ModelRunnerOutput:
        """Compute one step; the same answer on every rank, but for the proposals.

        Raises:
            FrameError: the frame contradicts the mirrored batch.
        """
        started = time.perf_counter()
        self._batch.apply(frame)
        self._grammars.apply(frame)
        if self._speculator is not None:
            self._speculator.apply(frame)
        output = ModelRunnerOutput(frame.step, [], [])
        if not frame.scheduled:
            return output
        inputs = self._batch.prepare(frame.scheduled)
        wanted = torch.cat((inputs.sample_index, inputs.chunk_index, inputs.judged_index))
        hidden = self._hidden(inputs, wanted)
        num_sampling = len(inputs.sample_index)
        num_last = num_sampling + len(inputs.chunk_index)
        sampling, chunks = hidden[:num_sampling], hidden[num_sampling:num_last]
        if inputs.judged is not None:
            output.prompt_logprobs = self._judge(hidden[num_last:], inputs.judged)
            self._spoil(hidden[:num_last], inputs, output.prompt_logprobs)
        if inputs.sample_rows:
            self._draw(self._model.compute_logits(sampling), inputs, output)
        self._fail_chunks(chunks, inputs, output)  # asks the device: behind what the draw asks
        if self._speculator is not None:
            seconds = time.perf_counter() - started
            self._propose(self._speculator, inputs, output, seconds)
        return output

    def _hidden(self, inputs: StepInputs, wanted: Tensor) -> Tensor:
        """The hidden states of the `wanted` tokens, [S, D]."""
        if self._graphs is not None:
            replayed = self._graphs.run(inputs.token_ids, inputs.metadata)
            if replayed is not None:
                return replayed[wanted]
        plan = self._backend.plan(inputs.metadata)
        return self._model(inputs.token_ids, self._kv_cache, plan, wanted)

    def _judge(self, hidden: Tensor, judged: Judged) -> dict[int, list[TokenLogprobs]]:
        """By row; a few tokens at a time, as the logits of a long prompt could fill the device."""
        told: dict[int, list[TokenLogprobs]] = {row: [] for row in judged.rows}
        size = max(1, MAX_JUDGED_LOGITS // self._sampler.local_vocab)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = self._model.compute_logits(hidden[part])
            thought = self._sampler.judge(logits, judged.token_ids[part], judged.counts[part])
            for row, one in zip(judged.rows[part], thought, strict=True):
                told[row].append(one)
        return told

    def _spoil(
        self, hidden: Tensor, inputs: StepInputs, told: dict[int, list[TokenLogprobs]]
    ) -> None:
        """A row of which a judged token broke fails as if its last one had."""
        for row, thought in told.items():
            if not all(math.isfinite(one.logprob) for one in thought):
                owners = np.repeat(inputs.sample_rows, [1 + len(d) for d in inputs.drafts])
                owners = np.concatenate((owners, inputs.chunk_rows))
                hidden[torch.from_numpy(owners == row)] = math.nan

    def _fail_chunks(self, hidden: Tensor, inputs: StepInputs, output: ModelRunnerOutput) -> None:
        """Rows that only computed, and computed nonsense: it reaches their last token, if any."""
        if not inputs.chunk_rows:
            return
        finite = hidden.isfinite().all(-1).tolist()
        broken = [row for row, good in zip(inputs.chunk_rows, finite, strict=True) if not good]
        self._fail(broken, output)

    def _draw(self, logits: Tensor, inputs: StepInputs, output: ModelRunnerOutput) -> None:
        rows, drafts = inputs.sample_rows, inputs.drafts
        drawn = self._sampler.sample(logits, inputs.sampling, self._grammars.allowed(rows, drafts))
        healthy = drawn.healthy.tolist()
        given = accept(drafts, drawn.token_ids.tolist(), healthy)
        self._batch.record(rows, given)
        self._grammars.record(rows, given)
        first = 0
        for row, tokens, draft in zip(rows, given, drafts, strict=True):
            if tokens:
                output.rows.append(row)
                output.token_ids.append(tokens)
                if drawn.logprobs is not None:
                    told = drawn.logprobs[first : first + len(tokens)]
                    output.logprobs.append([one for one in told if one is not None] or None)
            first += 1 + len(draft)
        if not drawn.healthy.all():
            broken = [row for row, tokens in zip(rows, given, strict=True) if not tokens]
            self._fail(broken, output)
            output.ungrammatical_rows = [row for row in broken if self._grammars.broken(row)]
            self._scrub_drafts(inputs, drawn)

    def _fail(self, rows: Sequence[int], output: ModelRunnerOutput) -> None:
        for row in rows:
            output.failed_rows.append(row)
            self._scrub(row)

    def _scrub_drafts(self, inputs: StepInputs, drawn: Drawn) -> None:
        """Rows of which only a draft broke go on, but nothing of it may stay in their blocks."""
        counts = np.array([1 + len(draft) for draft in inputs.drafts])
        owners = np.repeat(np.array(inputs.sample_rows), counts)
        for row in set(owners[~drawn.healthy].tolist()):
            self._scrub(row)

    def _propose(
        self, speculator: Speculator, inputs: StepInputs, output: ModelRunnerOutput, seconds: float
    ) -> None:
        num_positions = len(inputs.token_ids)
        if num_positions == len(inputs.sample_index):
            speculator.cost.observe(num_positions, seconds)
        if output.rows:
            output.draft_token_ids = speculator.propose(output.rows, output.token_ids)

    def _scrub(self, row: int) -> None:
        """Make a row's blocks finite: masked slots are multiplied too (0 * nan = nan)."""
        blocks = self._batch.blocks(row)
        for kv_layer in self._kv_cache:
            kv_layer[:, blocks] = kv_layer[:, blocks].nan_to_num(0.0, 0.0, 0.0)


def run_dummy(
    model: Decoder, backend: AttentionBackend, kv_cache: list[Tensor], num_tokens: int
) -> None:
    """One prefill of `num_tokens` whose keys and values all land in the dummy block.

    It measures a step's memory and warms every kernel; the dummy block is zero again afterwards.
    """
    device = kv_cache[0].device
    block_size = kv_cache[0].shape[2]
    positions = torch.arange(num_tokens, device=device)
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        seq_lens_k=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        block_table=torch.zeros(
            (1, -(-num_tokens // block_size)), dtype=torch.int32, device=device
        ),
        positions=positions,
        slot_mapping=positions % block_size,
        max_q=num_tokens,
        max_k=num_tokens,
        num_decode=int(num_tokens == 1),
    )
    hidden = model(torch.zeros_like(positions), kv_cache, backend.plan(metadata))
    model.compute_logits(hidden[-1:])
    for kv_layer in kv_cache:
        kv_layer[:, 0] = 0
