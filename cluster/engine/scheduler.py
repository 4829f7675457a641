"""Scheduler: who computes how many tokens in this step.

Owns the waiting and the running requests, the rows and the token budget. Refuses to know torch,
text, sockets and clocks: the same calls always give the same frames.

There are no phases. A request has known tokens (prompt and output) and computed ones; each step
lets the computed catch up with the known, and the last known token draws a new one:

    known      [ p p p p p p p p p p ]          next step, budget 4:  computes 4, draws nothing
    computed   [ p p p p ]                      then 2: catches up and draws token 11
    decode     known 11, computed 10            computes 1, draws token 12

    schedule()  1. the running go on, the oldest first; when blocks run out the youngest is
                   preempted: it loses its blocks and waits in front, to be computed again
                2. the waiting are admitted in order while rows, budget and blocks last
    update()    appends what was drawn, publishes full blocks, ends what is over

Invariants: only the last of the running is not yet computed up to its last known token, so decode
never starves; whoever was added fits the empty pool alone, so the oldest always goes on.
"""

import heapq
from collections import deque
from dataclasses import dataclass

import msgspec

from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.request import Request
from cluster.request import (
    EngineCoreOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestStatus,
)

NUMERIC_ERROR = "engine_numeric_error"
_MAX_TOKEN_ID = 2**31 - 1

_FINISHED = {
    FinishReason.STOP: RequestStatus.FINISHED_STOPPED,
    FinishReason.LENGTH: RequestStatus.FINISHED_LENGTH,
    FinishReason.ABORT: RequestStatus.FINISHED_ABORTED,
    FinishReason.ERROR: RequestStatus.FINISHED_ERROR,
}


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """The limits of one step and of one request.

    Raises:
        ValueError: the budget is smaller than the number of rows.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_chunked_prefill: bool = True

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): every running request needs one token a step"
            )


class Scheduler:
    """Plans each step and books its result.

    Args:
        config: the limits.
        kv: the cache's books; the scheduler is their only user.
        eos_token_ids: the tokens by which the model ends its answer.
    """

    def __init__(
        self, config: SchedulerConfig, kv: KVCacheManager, eos_token_ids: frozenset[int]
    ) -> None:
        self.config = config
        self.kv = kv
        self.eos_token_ids = eos_token_ids
        self._requests: dict[str, Request] = {}
        self._waiting: deque[Request] = deque()  # in order of arrival, the preempted in front
        self._running: list[Request] = []  # in order of admission
        self._rows: list[Request | None] = [None] * config.max_num_seqs
        self._free_rows = list(range(config.max_num_seqs))  # a heap: the lowest is given first
        self._released: list[int] = []
        self._step = 0
        self._paused_running = False
        self._counters = EngineStats(kv_total_blocks=kv.pool.num_usable, block_size=kv.block_size)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything, if only tell the workers which rows are free again."""
        return bool(self._requests or self._released)

    def add(self, request: EngineRequest) -> None:
        """Let a request wait for its first step.

        Raises:
            ValueError: it can never be computed, or its id is in use; the message names the
                numbers and the remedy.
        """
        self._refuse_impossible(request)
        entry = Request.of(request)
        self._requests[request.request_id] = entry
        self._waiting.append(entry)

    def abort(self, request_id: str) -> bool:
        """End a request in whatever state it is; False when it is not (or no longer) here.

        May come between `schedule` and `update`. No output follows.
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        if request.status is not RequestStatus.RUNNING:
            self._waiting.remove(request)
        self._finish(request, FinishReason.ABORT)
        return True

    def schedule(self) -> SchedulerOutput:
        """Plan the next step. Every frame must be executed: the workers mirror rows from frames."""
        self._step += 1
        frame = SchedulerOutput(self._step, self._released, [], [], [])
        self._paused_running = self._must_pause_running()
        budget = self.config.max_num_batched_tokens
        if not self._paused_running:
            budget = self._continue_running(frame, budget)
        self._admit_waiting(frame, budget)
        self._released = []
        return frame

    def update(
        self, scheduled: SchedulerOutput, computed: ModelRunnerOutput
    ) -> list[EngineCoreOutput]:
        """Book what a step computed and drew.

        Returns:
            one output per request that got a token or ended.

        Raises:
            RuntimeError: the answer belongs to another step or lacks a row.
        """
        drawn = dict(zip(computed.rows, computed.token_ids, strict=True))
        sampling = {share.row for share in scheduled.scheduled if share.samples}
        if computed.step != scheduled.step or sampling != drawn.keys() | computed.failed_rows:
            raise RuntimeError(
                f"the answer to step {computed.step} does not match step {scheduled.step}"
            )
        outputs = []
        for share in scheduled.scheduled:
            request = self._rows[share.row]
            if request is None:
                continue  # aborted while the step was computed
            if share.row in computed.failed_rows:
                outputs.append(self._fail(request))
                continue
            request.num_computed += share.num_tokens
            self.kv.commit(request.table, request.token_ids, request.num_computed)
            if share.samples:
                outputs.append(self._append(request, drawn[share.row]))
        self._counters.steps += bool(scheduled.scheduled)
        return outputs

    def stats(self) -> EngineStats:
        """The load at this moment, and what was done since the start."""
        return msgspec.structs.replace(
            self._counters,
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_tokens=sum(len(request.token_ids) for request in self._waiting),
            running_tokens=sum(
                request.params.max_tokens - request.num_output_tokens for request in self._running
            ),
            kv_free_blocks=self.kv.pool.num_unused,
            kv_cached_blocks=self.kv.pool.num_unused_cached,
        )

    def check_integrity(self) -> None:
        """Prove that blocks and rows are owned as the books say.

        Raises:
            RuntimeError: they are not.
        """
        self.kv.check_integrity(request.table for request in self._running)
        in_rows = {request.row: request for request in self._running}
        free = set(self._free_rows)
        for row, request in enumerate(self._rows):
            if in_rows.get(row) is not request or (row in free) != (request is None):
                raise RuntimeError(f"row {row} is not where the books say")
        if len(self._requests) != len(self._running) + len(self._waiting):
            raise RuntimeError("a request is neither running nor waiting")

    # schedule: the running

    def _continue_running(self, frame: SchedulerOutput, budget: int) -> int:
        """Returns the budget left.

        Whoever is preempted here is not admitted again in the same step: it needs all the blocks
        it gave back, and an older request took of them. As it waits in front, nobody else is.
        """
        index = 0
        while index < len(self._running):
            request = self._running[index]
            num_tokens = min(request.num_missing, budget)
            if not self._grow(request, request.num_computed + num_tokens):
                break
            appended = request.appended()
            if appended is not None:
                frame.appended.append(appended)
            frame.scheduled.append(request.scheduled(num_tokens))
            budget -= num_tokens
            index += 1
        return budget

    def _grow(self, request: Request, num_tokens: int) -> bool:
        """Preempts the youngest for blocks; False when that is the request itself."""
        while not self.kv.grow(request.table, num_tokens):
            youngest = self._running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self._leave_running(request)
        request.status = RequestStatus.PREEMPTED
        request.num_computed = 0
        self._waiting.appendleft(request)
        self._counters.preemptions += 1

    # schedule: the waiting

    def _must_pause_running(self) -> bool:
        """Without chunks, a prompt too long to fit beside the running gets a step of its own.

        Never two such steps in a row, so the running go on at least every second step.
        """
        if self.config.enable_chunked_prefill or self._paused_running:
            return False
        if not (self._waiting and self._running):
            return False
        request = self._waiting[0]
        beside = self.config.max_num_batched_tokens - len(self._running)
        return self._fits(request) and self._num_uncached(request) > beside

    def _admit_waiting(self, frame: SchedulerOutput, budget: int) -> None:
        chunked = self.config.enable_chunked_prefill
        while self._waiting and budget > 0 and self._fits(self._waiting[0]):
            num_tokens = self._num_uncached(self._waiting[0])
            if chunked:
                num_tokens = min(num_tokens, budget)
            elif num_tokens > budget and frame.scheduled:
                break
            request = self._waiting.popleft()
            self._start(frame, request)
            frame.scheduled.append(request.scheduled(num_tokens))
            budget -= num_tokens

    def _fits(self, request: Request) -> bool:
        """Whether a row is free, and blocks for all that is known: never a prompt in part.

        One block stays unused for each of the running, or the newcomer would soon be preempted.
        """
        reserve = len(self._running)
        return bool(self._free_rows) and self.kv.can_admit(
            request.table, request.token_ids, reserve
        )

    def _num_uncached(self, request: Request) -> int:
        cached = self.kv.num_cached_tokens(request.table, request.token_ids)
        return len(request.token_ids) - cached

    def _start(self, frame: SchedulerOutput, request: Request) -> None:
        request.num_computed = self.kv.admit(request.table, request.token_ids)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed
            self._counters.prompt_tokens += request.num_prompt_tokens
            self._counters.prefix_hit_tokens += request.num_computed
        request.status = RequestStatus.RUNNING
        request.row = heapq.heappop(self._free_rows)
        self._rows[request.row] = request
        self._running.append(request)
        frame.started.append(request.started())

    # update

    def _append(self, request: Request, token_id: int) -> EngineCoreOutput:
        request.token_ids.append(token_id)
        self._counters.generation_tokens += 1
        output = EngineCoreOutput(
            request.request_id, [token_id], num_cached_tokens=request.num_cached_tokens or 0
        )
        output.finish_reason, output.stop_reason = request.end(self.eos_token_ids)
        if output.finish_reason is not None:
            self._finish(request, output.finish_reason)
        return output

    def _fail(self, request: Request) -> EngineCoreOutput:
        """End a request whose numbers went wrong; nobody may hit the blocks it computed."""
        self.kv.discard(request.table)
        self._finish(request, FinishReason.ERROR)
        return EngineCoreOutput(
            request.request_id,
            [],
            finish_reason=FinishReason.ERROR,
            num_cached_tokens=request.num_cached_tokens or 0,
            error=NUMERIC_ERROR,
        )

    # leaving

    def _finish(self, request: Request, reason: FinishReason) -> None:
        if request.status is RequestStatus.RUNNING:
            self._leave_running(request)
        request.status = _FINISHED[reason]
        del self._requests[request.request_id]

    def _leave_running(self, request: Request) -> None:
        self._running.remove(request)
        self._rows[request.row] = None
        heapq.heappush(self._free_rows, request.row)
        self._released.append(request.row)
        request.row = -1
        self.kv.free(request.table)

    # add

    def _refuse_impossible(self, request: EngineRequest) -> None:
        prompt, limits = request.prompt_token_ids, self.config
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id!r} is already in use")
        if not prompt or min(prompt) < 0 or max(prompt) > _MAX_TOKEN_ID:
            raise ValueError("the prompt must hold at least one token, and only token ids")
        num_tokens = len(prompt) + request.params.max_tokens
        asked = f"{len(prompt)} prompt tokens + max_tokens {request.params.max_tokens}"
        if num_tokens > limits.max_model_len:
            raise ValueError(
                f"{asked} = {num_tokens} tokens, but max_model_len is {limits.max_model_len}: "
                f"shorten the prompt, ask for fewer tokens, or raise max_model_len"
            )
        # The last token drawn is never computed, so it needs no place.
        num_blocks, usable = self.kv.blocks_for(num_tokens - 1), self.kv.pool.num_usable
        if num_blocks > usable:
            raise ValueError(
                f"{asked} need {num_blocks} KV blocks of {self.kv.block_size} tokens, but there "
                f"are {usable}: shorten the prompt, ask for fewer tokens, or raise num_kv_blocks"
            )
