"""ModelRunner: one frame in, the drawn tokens of every sampling row out.

Owns the step: batch -> model -> head on the rows that are drawn from, or judged -> sampler -> which
drafts stand; and on rank 0 what to draft next. Knows no sockets and no scheduler.

A device that computes by itself need not wait for the host. Its next step is launched before the
host knows what the last one drew; the tokens in between are taken where they were drawn:

    host     launch 1   launch 2            settle 1   launch 3             settle 2
             forward 1  draw 1, forward 2   wait       draw 2, forward 3    wait
    device   | forward 1 | draw 1 | forward 2          | draw 2 | forward 3        |

A draw is begun as late as that, when everything before it is settled: masks, penalties and forced
tokens depend on what was drawn. Where a draw turns out to need the host after all, the forward pass
behind it is launched again with the right tokens; it overwrites what the first one left.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cluster.attention.backend import AttentionBackend, make_finite
from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.device import sent
from cluster.model.decoder import Decoder
from cluster.request import TokenLogprobs
from cluster.worker.drawn import Drawn
from cluster.worker.graphs.decode_graphs import DecodeGraphs
from cluster.worker.input_batch import InputBatch, StepInputs
from cluster.worker.rejection import accept
from cluster.worker.row_grammars import RowGrammars
from cluster.worker.row_prompts import Judged
from cluster.worker.sampler import Sampler
from cluster.worker.speculative import Speculator
from cluster.worker.step import LaunchedStep, Step

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
        self._last: Step | None = None
        self._settled_s = 0.0

    def execute(self, frame: SchedulerOutput) -> ModelRunnerOutput:
        """Compute one step; the same answer on every rank, but for the proposals.

        Raises:
            FrameError: the frame contradicts the mirrored batch.
        """
        return self.launch(frame).result()

    def launch(self, frame: SchedulerOutput) -> LaunchedStep:
        """Let the device compute one step; it draws when the next is launched, or asked for.

        Raises:
            FrameError: the frame contradicts the mirrored batch.
        """
        before = self._last
        if before is not None:
            self._leave_behind(before)
        started = time.perf_counter()
        self._batch.apply(frame)
        self._grammars.apply(frame)
        if self._speculator is not None:
            self._speculator.apply(frame)
        inputs = self._batch.prepare(frame.scheduled) if frame.scheduled else None
        step = Step(started, ModelRunnerOutput(frame.step, [], []), inputs, None, before)
        self._forward(step)
        self._last = step
        return LaunchedStep(step, self._draw, self._needs_settling, self._settle)

    def follow(self, frame: SchedulerOutput | None) -> None:
        """What other ranks than 0 do with a frame; None: settle the last one, as rank 0 does."""
        if frame is not None:
            self.launch(frame)
        last = self._last
        if last is not None:
            self._draw(last)
            if frame is None or not last.late:
                self._settle(last)

    def _leave_behind(self, step: Step) -> None:
        """Go on to another step; what is not late, or was drafted, is settled before."""
        self._draw(step)
        if not step.late or (step.inputs is not None and any(step.inputs.drafts)):
            self._settle(step)
        elif step.inputs is not None and step.inputs.sample_rows:
            self._batch.expect(step.inputs.sample_rows)
            step.expected = True

    def _needs_settling(self, step: Step) -> bool:
        self._draw(step)
        return step is self._last and step.late

    def _forward(self, step: Step) -> None:
        inputs = step.inputs
        if inputs is None:
            return
        token_ids = inputs.token_ids
        if inputs.awaited is not None:
            assert step.before is not None
            assert step.before.draw is not None
            drawn = step.before.draw.on(token_ids.device)
            taken = drawn[inputs.awaited.clamp(min=0)]
            token_ids = torch.where(inputs.awaited >= 0, taken, token_ids)
        wanted = torch.cat((inputs.sample_index, inputs.chunk_index, inputs.judged_index))
        step.hidden = self._hidden(token_ids, inputs, wanted)

    def _hidden(self, token_ids: Tensor, inputs: StepInputs, wanted: Tensor) -> Tensor:
        """The hidden states of the `wanted` tokens, [S, D]."""
        if self._graphs is not None:
            replayed = self._graphs.run(token_ids, inputs.metadata)
            if replayed is not None:
                return replayed[wanted]
        plan = self._backend.plan(inputs.metadata)
        return self._model(token_ids, self._kv_cache, plan, wanted)

    def _draw(self, step: Step) -> None:
        """Begin the draw; whatever came before is settled first."""
        if step.drawn:
            return
        if step.before is not None:
            self._settle(step.before)
            step.before = None
        step.drawn = True
        inputs, hidden = step.inputs, step.hidden
        if inputs is None or hidden is None:
            return
        num_sampling = len(inputs.sample_index)
        num_last = num_sampling + len(inputs.chunk_index)
        if inputs.judged is not None:
            told = self._judge(hidden[num_last:], inputs.judged)
            self._spoil(hidden[:num_last], inputs, told)
            step.output.prompt_logprobs = told
        if inputs.sample_rows:
            logits = self._model.compute_logits(hidden[:num_sampling])
            rows, drafts = inputs.sample_rows, inputs.drafts
            settings, allowed = self._batch.sampling(inputs), self._grammars.allowed(rows, drafts)
            step.draw = self._sampler.begin(logits, settings, allowed)
        if inputs.chunk_rows:
            step.chunks = self._sampler.fetch(hidden[num_sampling:num_last].isfinite().all(-1))
        step.hidden = None

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

    def _settle(self, step: Step) -> ModelRunnerOutput:
        """Wait for what was drawn, and book it."""
        self._draw(step)
        if step.settled:
            return step.output
        step.settled = True
        inputs, last = step.inputs, self._last
        if inputs is not None and step.draw is not None:
            drawn = step.draw.result()
            if step.draw.redrawn and step.expected and last is not None:
                self._forward(last)  # once more, with the right tokens
            self._book(step, inputs, drawn)
        if inputs is not None and step.chunks is not None:
            finite = step.chunks.numpy().tolist()
            pairs = zip(inputs.chunk_rows, finite, strict=True)
            self._fail([row for row, good in pairs if not good], step)
        if inputs is not None and self._speculator is not None:
            self._measure(self._speculator, step, inputs)
        return step.output

    def _book(self, step: Step, inputs: StepInputs, drawn: Drawn) -> None:
        rows, drafts, output = inputs.sample_rows, inputs.drafts, step.output
        given = accept(drafts, drawn.token_ids.tolist(), drawn.healthy.tolist())
        first = 0
        for row, tokens, draft in zip(rows, given, drafts, strict=True):
            if tokens:
                output.rows.append(row)
                output.token_ids.append(tokens)
                if drawn.logprobs is not None:
                    told = drawn.logprobs[first : first + len(tokens)]
                    output.logprobs.append([one for one in told if one is not None] or None)
            first += 1 + len(draft)
        if step.expected:
            here = self._batch.fill(rows, given)
            rows, given = [rows[place] for place in here], [given[place] for place in here]
        else:
            self._batch.record(rows, given)
        self._grammars.record(rows, given)
        if not drawn.healthy.all():
            self._book_broken(step, inputs, drawn)
        if self._speculator is not None and output.rows:
            self._propose(self._speculator, output, dict(zip(rows, given, strict=True)))

    def _book_broken(self, step: Step, inputs: StepInputs, drawn: Drawn) -> None:
        output = step.output
        broken = [row for row in inputs.sample_rows if row not in set(output.rows)]
        self._fail(broken, step)
        output.ungrammatical_rows = [row for row in broken if self._grammars.broken(row)]
        # rows of which only a draft broke go on, but nothing of it may stay in their blocks
        counts = np.array([1 + len(draft) for draft in inputs.drafts])
        owners = np.repeat(np.array(inputs.sample_rows), counts)
        for row in set(owners[~drawn.healthy].tolist()):
            self._scrub(row, step)

    def _propose(
        self, speculator: Speculator, output: ModelRunnerOutput, given: dict[int, list[int]]
    ) -> None:
        """For the rows that drew and are still here."""
        rows = [row for row in output.rows if row in given]
        drafts = dict(
            zip(rows, speculator.propose(rows, [given[row] for row in rows]), strict=True)
        )
        output.draft_token_ids = [drafts.get(row, []) for row in output.rows]

    def _measure(self, speculator: Speculator, step: Step, inputs: StepInputs) -> None:
        now, num_positions = time.perf_counter(), len(inputs.token_ids)
        if num_positions == len(inputs.sample_index):
            speculator.cost.observe(num_positions, now - max(step.started, self._settled_s))
        self._settled_s = now

    def _fail(self, rows: Sequence[int], step: Step) -> None:
        for row in rows:
            step.output.failed_rows.append(row)
            self._scrub(row, step)

    def _scrub(self, row: int, step: Step) -> None:
        """Make a row's blocks finite. A step that was launched since has written nonsense, too."""
        for one in (step, self._last):
            if one is None or one.inputs is None:
                continue
            table = one.inputs.metadata.block_table
            at = sent(np.flatnonzero(one.inputs.rows == row), table.device)
            blocks = torch.unique(table[at]).long()
            for kv_layer in self._kv_cache:
                make_finite(kv_layer, blocks)
