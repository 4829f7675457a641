"""DraftModel: a small model of the same tokenizer proposes tokens.

Owns a mirror of the rows: what the small model has computed of each, and the blocks of its own
cache. It draws with the rows' own parameters and the noise of the same positions, so a small model
that thinks alike also draws alike, at any temperature. Runs on rank 0 alone. Knows the small model
only as something that executes frames.

    known     [ p p p t u ]            t u are new: the last draft may have foreseen them
    computed  [ p p p t ]              keys and values in the cache that still hold
    draft 3   computes u, draws a;  computes a, draws b;  computes b, draws c
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from cluster.batch import ModelRunnerOutput, ScheduledRow, SchedulerOutput, StartedRow
from cluster.request import SamplingParams, ThinkingRule
from cluster.worker.speculative import Forecast


class DraftLimits(msgspec.Struct, frozen=True):
    """What the small model can hold, and what the large one understands."""

    max_model_len: int
    num_blocks: int
    """The dummy block included."""
    block_size: int
    step_tokens: int
    """That a step may compute."""
    num_target_tokens: int
    """Ids at or above it do not exist for the large model."""


@dataclass(slots=True)
class _Mirror:
    """One row as the small model has it."""

    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    ahead: list[int] = field(default_factory=list)
    """The last draft, until it is judged."""
    entered: bool = False
    """Whether the small model's batch holds the row."""


class DraftModel:
    """A proposer that runs a model of its own."""

    follows_unasked = False

    def __init__(
        self,
        execute: Callable[[SchedulerOutput], ModelRunnerOutput],
        limits: DraftLimits,
        max_draft: int,
    ) -> None:
        """`execute`: the small model's step, on rows as numbered by the large one's."""
        self._execute = execute
        self._limits = limits
        self._max_draft = max_draft
        self._rows: dict[int, _Mirror] = {}
        self._free = list(range(limits.num_blocks - 1, 0, -1))
        self._released: list[int] = []
        self._step = 0

    def start(self, started: StartedRow) -> None:
        """A request enters a row; nothing is computed before a draft is asked for.

        What is forced or forbidden need not be foreseen: drafts are judged.
        """
        rule = started.params.thinking
        unforced = None if rule is None else ThinkingRule(rule.end_id)
        params = msgspec.structs.replace(
            started.params,
            logprobs=None,
            prompt_logprobs=None,
            thinking=unforced,
            grammar=None,
        )
        self._rows[started.row] = _Mirror(
            list(started.token_ids), started.num_prompt_tokens, params
        )

    def release(self, row: int) -> None:
        """The row's request left."""
        mirror = self._rows.pop(row, None)
        if mirror is None:
            return
        self._free += mirror.blocks
        if mirror.entered:
            self._released.append(row)

    def observe(self, row: int, token_ids: Sequence[int]) -> Forecast:
        """What was drawn; how much of the last draft that was."""
        mirror = self._rows.get(row)
        if mirror is None:
            return Forecast(0, 0, 0, 0)
        hits, both = 0, min(len(mirror.ahead), len(token_ids))
        while hits < both and mirror.ahead[hits] == token_ids[hits]:
            hits += 1
        right = len(mirror.token_ids) + hits
        mirror.token_ids += token_ids
        # the last known token is always computed, as something must be drawn from it
        mirror.num_computed = min(mirror.num_computed, right, len(mirror.token_ids) - 1)
        mirror.ahead = []
        room = self._limits.max_model_len - len(mirror.token_ids)
        return Forecast(max(0, min(self._max_draft, room)), 0, hits, min(hits + 1, both))

    def draft(self, rows: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
        """Up to `counts[i]` tokens behind what `rows[i]` knows; none where blocks are lacking."""
        wanted = {
            row: count
            for row, count in zip(rows, counts, strict=True)
            if count and self._grow(self._rows[row], count)
        }
        drafts: dict[int, list[int]] = {row: [] for row in rows}
        active = list(wanted)
        self._catch_up(active)
        frame, depth = self._first_frame(active), 0
        while active:
            depth += 1
            for row, token_ids in self._draw(frame).items():
                drafts[row] += token_ids
            active = [row for row in active if len(drafts[row]) == depth < wanted[row]]
            frame = self._next_frame(active)
        for row in wanted:
            self._rows[row].ahead = drafts[row]
        return [self._understood(drafts[row]) for row in rows]

    def _grow(self, mirror: _Mirror, count: int) -> bool:
        end = len(mirror.token_ids) + count
        missing = -(-end // self._limits.block_size) - len(mirror.blocks)
        if missing > len(self._free):
            return False
        mirror.blocks += [self._free.pop() for _ in range(missing)]
        return True

    def _catch_up(self, rows: list[int]) -> None:
        """Compute of long prompts, drawing nothing, what is too much for the step that draws."""
        budget = self._limits.step_tokens
        while rows and sum(self._missing(row) for row in rows) > budget:
            row = max(rows, key=self._missing)
            self._draw(self._entering([self._share(row, min(self._missing(row) - 1, budget))]))

    def _first_frame(self, rows: list[int]) -> SchedulerOutput:
        return self._entering([self._share(row, self._missing(row)) for row in rows])

    def _missing(self, row: int) -> int:
        return len(self._rows[row].token_ids) - self._rows[row].num_computed

    def _share(self, row: int, num_tokens: int) -> ScheduledRow:
        mirror = self._rows[row]
        start = mirror.num_computed
        mirror.num_computed += num_tokens
        return ScheduledRow(row, start, num_tokens, mirror.num_computed == len(mirror.token_ids))

    def _entering(self, shares: list[ScheduledRow]) -> SchedulerOutput:
        """Every row anew with all it knows: the last draft may have been wrong."""
        mirrors = {share.row: self._rows[share.row] for share in shares}
        released = self._released + [row for row, mirror in mirrors.items() if mirror.entered]
        self._released = []
        started = []
        for row, mirror in mirrors.items():
            mirror.entered = True
            started.append(
                StartedRow(
                    row, mirror.token_ids, mirror.num_prompt_tokens, mirror.blocks, mirror.params
                )
            )
        return SchedulerOutput(0, released, started, [], shares)

    def _next_frame(self, rows: list[int]) -> SchedulerOutput:
        scheduled = []
        for row in rows:
            mirror = self._rows[row]
            scheduled.append(ScheduledRow(row, mirror.num_computed, 1, True))
            mirror.num_computed += 1
        return SchedulerOutput(0, [], [], [], scheduled)

    def _draw(self, frame: SchedulerOutput) -> dict[int, list[int]]:
        self._step += 1
        frame.step = self._step
        computed = self._execute(frame)
        return dict(zip(computed.rows, computed.token_ids, strict=True))

    def _understood(self, draft: list[int]) -> list[int]:
        """The draft up to its first id that the large model does not have."""
        limit = self._limits.num_target_tokens
        for at, token_id in enumerate(draft):
            if token_id >= limit:
                return draft[:at]
        return draft
