"""Request: one request while the scheduler has it.

Owns its known and computed tokens, what its row was told, and the rules by which it ends. Refuses
to know the queues, the budget and other requests.
"""

from dataclasses import dataclass

from cluster.batch import AppendedRow, ScheduledRow, StartedRow
from cluster.engine.kv_cache import BlockTable
from cluster.request import EngineRequest, FinishReason, RequestStatus, SamplingParams


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
    """Known tokens whose KV lies in the table's blocks."""
    num_told_tokens: int = 0
    num_told_blocks: int = 0
    """What the frames since the row was given have told the workers."""
    num_cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache at first admission; None before it."""

    @classmethod
    def of(cls, asked: EngineRequest) -> "Request":
        return cls(
            request_id=asked.request_id,
            token_ids=list(asked.prompt_token_ids),
            num_prompt_tokens=len(asked.prompt_token_ids),
            params=asked.params,
            table=BlockTable(salt=asked.cache_salt),
        )

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_missing(self) -> int:
        """Known tokens still to be computed."""
        return len(self.token_ids) - self.num_computed

    def started(self) -> StartedRow:
        """All a row must know of its new request."""
        self.num_told_tokens = len(self.token_ids)
        self.num_told_blocks = len(self.table.blocks)
        return StartedRow(
            row=self.row,
            token_ids=list(self.token_ids),
            num_prompt_tokens=self.num_prompt_tokens,
            block_ids=self.table.block_ids,
            params=self.params,
        )

    def appended(self) -> AppendedRow | None:
        """What the row was not told yet; None when it knows all."""
        token_ids = self.token_ids[self.num_told_tokens :]
        block_ids = [block.block_id for block in self.table.blocks[self.num_told_blocks :]]
        if not token_ids and not block_ids:
            return None
        self.num_told_tokens += len(token_ids)
        self.num_told_blocks += len(block_ids)
        return AppendedRow(self.row, token_ids, block_ids)

    def scheduled(self, num_tokens: int) -> ScheduledRow:
        samples = num_tokens == self.num_missing
        return ScheduledRow(self.row, self.num_computed, num_tokens, samples)

    def end(self, eos_token_ids: frozenset[int]) -> tuple[FinishReason | None, int | None]:
        """Why the last known token ends the output, and which stop token it is.

        max_model_len needs no rule: the scheduler refuses a request that could reach beyond it.
        """
        params, token_id = self.params, self.token_ids[-1]
        if self.num_output_tokens >= params.min_tokens:
            if token_id in eos_token_ids and not params.ignore_eos:
                return FinishReason.STOP, None
            if token_id in params.stop_token_ids:
                return FinishReason.STOP, token_id
        if self.num_output_tokens >= params.max_tokens:
            return FinishReason.LENGTH, None
        return None, None
