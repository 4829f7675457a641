"""ModelRunner: one frame in, one drawn token per sampling row out.

Owns the step: batch -> model -> head on the last hidden rows -> sampler. Knows no sockets and no
scheduler.
"""

import torch
from torch import Tensor

from cluster.attention.backend import AttentionBackend, AttentionMetadata
from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.model.decoder import Decoder
from cluster.worker.input_batch import InputBatch
from cluster.worker.sampler import Sampler


class ModelRunner:
    """Runs steps on one rank; every rank runs the same steps in the same order."""

    def __init__(
        self,
        model: Decoder,
        backend: AttentionBackend,
        kv_cache: list[Tensor],
        batch: InputBatch,
        sampler: Sampler,
    ) -> None:
        self._model = model
        self._backend = backend
        self._kv_cache = kv_cache
        self._batch = batch
        self._sampler = sampler

    def execute(self, frame: SchedulerOutput) -> ModelRunnerOutput:
        """Compute one step; the same answer on every rank.

        Raises:
            FrameError: the frame contradicts the mirrored batch.
        """
        self._batch.apply(frame)
        output = ModelRunnerOutput(frame.step, [], [])
        if not frame.scheduled:
            return output
        inputs = self._batch.prepare(frame.scheduled)
        plan = self._backend.plan(inputs.metadata)
        hidden = self._model(inputs.token_ids, self._kv_cache, plan)
        if not inputs.sample_rows:
            return output
        logits = self._model.compute_logits(hidden[inputs.sample_index])
        token_ids, healthy, _ = self._sampler.sample(logits, inputs.sampling)
        answers = zip(inputs.sample_rows, token_ids.tolist(), healthy.tolist(), strict=True)
        for row, token_id, good in answers:
            if good:
                output.rows.append(row)
                output.token_ids.append(token_id)
            else:
                output.failed_rows.append(row)
                self._scrub(row)
        return output

    def _scrub(self, row: int) -> None:
        """Make a failed row's blocks finite: masked slots are multiplied too (0 * nan = nan)."""
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
