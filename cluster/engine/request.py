"""Request: one request while the scheduler has it.

Owns its known and computed tokens, what its row was told, and the rules by which it ends. Refuses
to know the queues, the budget and other requests.

    known    [ p p p p t | . ]     `.` is pending: a frame under way draws it
    computed [ p p p p t ]         all frames planned so far included
    missing              | . |     what the next frame may compute: 1
"""

from dataclasses import dataclass, field

from cluster.batch import AppendedRow, ScheduledRow, StartedRow
from cluster.engine.kv_cache import BlockTable
from cluster.request import (
    EngineRequest,
    FinishReason,
    NextTurn,
    RequestStatus,
    SamplingParams,
)


@dataclass(slots=True, eq=False)
class Request:
    """The mutable state behind an EngineRequest."""

    request_id: str
    token_ids: list[int]
    """All known tokens: the prompt, then the output."""
    num_prompt_tokens: int
    params: SamplingParams
    table: BlockTable
    status: RequestStatus = RequestStatus.WAITING
    row: int = -1
    num_computed: int = 0
    """Tokens whose KV lies in the table's blocks, or will when the frames under way are done."""
    num_pending: int = 0
    """Frames under way that draw a token of this request, at least one each."""
    proposed: list[int] = field(default_factory=list)
    """What a proposer would compute ahead, behind the last known token."""
    num_told_blocks: int = 0
    """What the frames since the row was given have told the workers."""
    num_cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache at first admission; None before it."""
    prediction_token_ids: list[int] = field(default_factory=list)
    next_turn: NextTurn | None = None
    prompt_of: str | None = None
    """The request that computes this one's prompt."""
    num_judged: int = 0
    """Prompt tokens whose logprobs were told."""

    @classmethod
    def of(cls, asked: EngineRequest) -> "Request":
        return cls(
            request_id=asked.request_id,
            token_ids=list(asked.prompt_token_ids),
            num_prompt_tokens=len(asked.prompt_token_ids),
            params=asked.params,
            table=BlockTable(asked.cache_salt, asked.params.prompt_logprobs is None),
            prediction_token_ids=asked.prediction_token_ids,
            next_turn=asked.next_turn,
            prompt_of=asked.prompt_of,
        )

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_missing(self) -> int:
        """Tokens still to be computed, pending ones included."""
        return len(self.token_ids) + self.num_pending - self.num_computed

    @property
    def num_left(self) -> int:
        """Tokens that may still be drawn, at least those that no frame under way draws."""
        return (
            self.params.max_tokens + self.num_prompt_tokens - len(self.token_ids) - self.num_pending
        )

    def started(self) -> StartedRow:
        """All a row must know of its new request."""
        self.num_told_blocks = len(self.table.blocks)
        return StartedRow(
            row=self.row,
            token_ids=list(self.token_ids),
            num_prompt_tokens=self.num_prompt_tokens,
            block_ids=self.table.block_ids,
            params=self.params,
            prediction_token_ids=self.prediction_token_ids,
        )

    def appended(self) -> AppendedRow:
        """The blocks that the row was not told yet."""
        block_ids = [block.block_id for block in self.table.blocks[self.num_told_blocks :]]
        self.num_told_blocks += len(block_ids)
        return AppendedRow(self.row, block_ids)

    def share(self, num_tokens: int, drafts: list[int] | None = None) -> ScheduledRow:
        """Plan to compute the next `num_tokens` and, behind the last known one, the drafts."""
        start, samples = self.num_computed, num_tokens == self.num_missing
        self.num_pending += samples
        if not drafts:
            self.num_computed += num_tokens
            return ScheduledRow(self.row, start, num_tokens, samples)
        num_tokens += len(drafts)
        self.num_computed += num_tokens
        return ScheduledRow(self.row, start, num_tokens, samples, drafts)

    def take(
        self, token_ids: list[int], eos_token_ids: frozenset[int]
    ) -> tuple[int, FinishReason | None, int | None]:
        """Append what was drawn, up to the token that ends the output.

        Returns:
            how many were appended, why the output ends with the last of them, and the stop token.
        """
        if not self.params.max_tokens:
            return 0, FinishReason.LENGTH, None
        for count, token_id in enumerate(token_ids, 1):
            self.token_ids.append(token_id)
            reason, stop_reason = self.end(eos_token_ids)
            if reason is not None:
                return count, reason, stop_reason
        return len(token_ids), None, None

    def end(self, eos_token_ids: frozenset[int]) -> tuple[FinishReason | None, int | None]:
        """Why the last known token ends the output, and which stop token it is.

        max_model_len needs no rule: the scheduler refuses a request that could reach beyond it.
        """
        params, token_id = self.params, self.token_ids[-1]
        num_output_tokens = len(self.token_ids) - self.num_prompt_tokens
        if num_output_tokens >= params.min_tokens:
            if token_id in eos_token_ids and not params.ignore_eos:
                return FinishReason.STOP, None
            if token_id in params.stop_token_ids:
                return FinishReason.STOP, token_id
        if num_output_tokens >= params.max_tokens:
            return FinishReason.LENGTH, None
        return None, None
