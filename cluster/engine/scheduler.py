"""Scheduler: who computes how many tokens in this step.

Owns the waiting and the running requests and the token budget. Refuses to know torch, text,
sockets and clocks: the same calls always give the same frames.

There are no phases. A request has known tokens (prompt and output) and computed ones; each step
lets the computed catch up with the known, and the last known token draws a new one:

    known      [ p p p p p p p p p p ]          next step, budget 4:  computes 4, draws nothing
    computed   [ p p p p ]                      then 2: catches up and draws token 11
    decode     known 11, computed 10            computes 1, draws token 12
    drafts     known 11, computed 10, 3 guesses computes 4, draws 1 to 4 tokens

    schedule()  1. the running go on, the oldest first; when blocks run out somebody is preempted:
                   it loses its blocks and waits in front, to be computed again
                2. the waiting are admitted in order while rows, budget and blocks last
                3. when nobody is here, beginnings of next turns are warmed up
    update()    appends what was drawn, publishes full blocks, ends what is over

Between the two the workers compute. A second frame may be planned meanwhile (`can_plan_ahead`): a
token that is being drawn counts as known, its value is not needed, and a request that turns out to
have ended is ignored in the second answer.

Invariants: only the last of the running is not yet computed up to its last known token, so decode
never starves; whoever was added fits the empty pool alone, so the oldest always goes on.
"""

from collections import deque
from dataclasses import dataclass

import msgspec

from cluster.batch import ModelRunnerOutput, ScheduledRow, SchedulerOutput
from cluster.engine.booking import book_chunk, book_drawn, book_failed, places
from cluster.engine.chunk_budget import ChunkBudget, StepWork
from cluster.engine.feasible import refuse_impossible
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.preemption import victim
from cluster.engine.request import Request
from cluster.engine.rows import Rows
from cluster.engine.warm_up import WarmUps
from cluster.request import (
    EngineCoreOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestStatus,
)

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
    target_gap_s: float | None = None
    """Longest time between two tokens of a running stream that chunks may cause; None: any."""

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
        self._rows = Rows(config.max_num_seqs)
        self._chunks = ChunkBudget(config.target_gap_s)
        self._warm_ups = WarmUps(kv, self._rows, config.max_num_batched_tokens)
        self._under_way: deque[tuple[int, list[Request], bool]] = deque()  # step, whose, drafts?
        self._step = 0
        self._paused_running = False
        self._counters = EngineStats(kv_total_blocks=kv.pool.num_usable, block_size=kv.block_size)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything, if only tell the workers which rows are free again."""
        return bool(self._requests or self._rows.any_released or self._warm_ups.has_work)

    @property
    def can_plan_ahead(self) -> bool:
        """Whether a frame may be planned before the answer to the last one is known.

        Not where that answer decides what is computed next: drafts are proposed or judged, or a
        request might be preempted, which needs all of its tokens.
        """
        roomy = self.kv.pool.num_unused >= len(self._running) > 0
        drafted = any(drafted for _, _, drafted in self._under_way)
        return roomy and not drafted and not any(request.proposed for request in self._running)

    def add(self, request: EngineRequest) -> None:
        """Let a request wait for its first step.

        Raises:
            ValueError: it can never be computed, or its id is in use; the message names the
                numbers and the remedy.
        """
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id!r} is already in use")
        refuse_impossible(request, self.config.max_model_len, self.kv)
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
        frame = SchedulerOutput(self._step, [], [], [], [])
        shares: list[Request] = []
        if self._requests:
            self._warm_ups.pause()
            self._paused_running = self._must_pause_running()
            budget = self.config.max_num_batched_tokens
            self._chunks.begin(self._num_decoding())
            if not self._paused_running:
                budget = self._continue_running(frame, shares, budget)
            self._admit_waiting(frame, shares, budget)
        elif (job := self._warm_ups.plan(frame)) is not None:
            shares.append(job)
        frame.released = self._rows.take_released()
        drafted = any(share.draft_token_ids for share in frame.scheduled)
        self._under_way.append((self._step, shares, drafted))
        return frame

    def update(
        self, scheduled: SchedulerOutput, computed: ModelRunnerOutput
    ) -> list[EngineCoreOutput]:
        """Book what a step computed and drew; steps in the order in which they were planned.

        Returns:
            one output per request that got tokens or ended.

        Raises:
            RuntimeError: the answer belongs to another step or lacks a row.
        """
        step, requests, _ = self._under_way.popleft()
        at = places(step, scheduled, computed)
        outputs = []
        for share, request in zip(scheduled.scheduled, requests, strict=True):
            request.num_pending -= share.samples
            if request.row != share.row:
                continue  # it ended while the step was computed
            if share.row in computed.failed_rows:
                outputs += self._fail(request, computed)
            elif share.samples:
                outputs.append(self._append(request, share, computed, at[share.row]))
            else:
                outputs += book_chunk(request, share, computed, self.kv)
                self._warm_ups.booked(request)
        self._counters.steps += bool(scheduled.scheduled)
        return outputs

    def observe(self, scheduled: SchedulerOutput, seconds: float) -> None:
        """Learn what this frame took; the scheduler has no clock of its own."""
        work = StepWork.of(scheduled)
        if self._running:
            self._chunks.observe(work, seconds)
        elif self._warm_ups.current is not None:
            self._warm_ups.observe(work.tokens, seconds)

    def stats(self) -> EngineStats:
        """The load at this moment, and what was done since the start."""
        return msgspec.structs.replace(
            self._counters,
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_tokens=sum(len(request.token_ids) for request in self._waiting),
            running_tokens=sum(request.num_left + request.num_pending for request in self._running),
            kv_free_blocks=self.kv.pool.num_unused,
            kv_cached_blocks=self.kv.pool.num_unused_cached,
        )

    def check_integrity(self) -> None:
        """Prove that blocks and rows are owned as the books say.

        Raises:
            RuntimeError: they are not.
        """
        warm_up = self._warm_ups.current
        owners = self._running + ([warm_up] if warm_up is not None else [])
        self.kv.check_integrity(request.table for request in owners)
        self._rows.check(owners)
        if len(self._requests) != len(self._running) + len(self._waiting):
            raise RuntimeError("a request is neither running nor waiting")

    # schedule: the running

    def _num_decoding(self) -> int:
        """Streams that wait for their next token; only the last of the running may not be one."""
        catching_up = bool(self._running) and self._running[-1].num_missing > 1
        return len(self._running) - catching_up

    def _continue_running(self, frame: SchedulerOutput, shares: list[Request], budget: int) -> int:
        """Returns the budget left.

        Whoever is preempted here is not admitted again in the same step: it needs all the blocks
        it gave back, and another request took of them. As it waits in front, nobody else is.
        """
        index, block_size = 0, self.kv.block_size
        while index < len(self._running):
            request = self._running[index]
            num_tokens = request.num_missing
            if request.num_pending and request.num_left <= 0:
                index += 1
                continue  # what is being drawn is its last token
            if num_tokens > 1:
                num_tokens = self._chunks.take(request.num_computed, min(num_tokens, budget))
            end, blocks = request.num_computed + num_tokens, request.table.blocks
            if end > len(blocks) * block_size and not self._grow(request, index, end):
                continue
            drafts = self._drafts(request, index, budget) if request.proposed else None
            if len(blocks) > request.num_told_blocks:
                frame.appended.append(request.appended())
            share = request.share(num_tokens, drafts)
            frame.scheduled.append(share)
            shares.append(request)
            budget -= share.num_tokens
            index += 1
        return budget

    def _grow(self, request: Request, index: int, num_tokens: int) -> bool:
        """Preempts for blocks; False when it had to be the request itself, at `index`."""
        while not self.kv.grow(request.table, num_tokens):
            # the oldest is spared, unless it is alone
            first = 1 if index == 0 and len(self._running) > 1 else index
            loser = victim(self._running[first:], self.kv.block_size)
            self._preempt(loser)
            if loser is request:
                return False
        return True

    def _drafts(self, request: Request, index: int, budget: int) -> list[int]:
        """What of its proposals the request may compute now: never at the cost of others."""
        proposed, request.proposed = request.proposed, []
        behind = len(self._running) - index - 1
        most = min(len(proposed), budget - 1 - behind, request.num_left - 1)
        known = request.num_computed + 1
        if self.kv.pool.num_unused <= behind + self.kv.blocks_for(most):
            most = min(most, len(request.table.blocks) * self.kv.block_size - known)
        elif most > 0:
            self.kv.grow(request.table, known + most)
        return proposed[: max(most, 0)]

    def _preempt(self, request: Request) -> None:
        self._leave_running(request)
        request.status = RequestStatus.PREEMPTED
        request.num_computed = 0
        request.proposed = []
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
        return self._may_start(request) and self._num_uncached(request) > beside

    def _admit_waiting(self, frame: SchedulerOutput, shares: list[Request], budget: int) -> None:
        chunked = self.config.enable_chunked_prefill
        while self._waiting and budget > 0 and self._may_start(self._waiting[0]):
            num_tokens = self._num_uncached(self._waiting[0])
            if chunked:
                position = len(self._waiting[0].token_ids) - num_tokens
                num_tokens = self._chunks.take(position, min(num_tokens, budget))
            elif num_tokens > budget and frame.scheduled:
                break
            if not num_tokens:
                break
            request = self._waiting.popleft()
            self._start(frame, request)
            share = request.share(num_tokens)
            frame.scheduled.append(share)
            shares.append(request)
            if not share.samples:
                break  # only the last of the running may have more to catch up with
            budget -= num_tokens

    def _may_start(self, request: Request) -> bool:
        """Not before another's frame under way has computed the same prompt, for it to find."""
        leader = self._requests.get(request.prompt_of or "")
        computing = leader is not None and leader.num_output_tokens == 0
        return not computing and self._fits(request)

    def _fits(self, request: Request) -> bool:
        """Whether a row is free, and blocks for all that is known: never a prompt in part.

        One block stays unused for each of the running, or the newcomer would soon be preempted.
        """
        reserve = len(self._running)
        return self._rows.any_free and self.kv.can_admit(request.table, request.token_ids, reserve)

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
        self._rows.enter(request)
        self._running.append(request)
        frame.started.append(request.started())

    # update

    def _append(
        self, request: Request, share: ScheduledRow, computed: ModelRunnerOutput, index: int
    ) -> EngineCoreOutput:
        output = book_drawn(request, share, computed, index, self.kv, self.eos_token_ids)
        counters = self._counters
        counters.generation_tokens += len(output.new_token_ids)
        counters.num_drafted += output.num_drafted
        counters.num_accepted += output.num_accepted
        if output.finish_reason is not None:
            self._finish(request, output.finish_reason)
        return output

    def _fail(self, request: Request, computed: ModelRunnerOutput) -> list[EngineCoreOutput]:
        """End a request whose row failed; nobody may hit the blocks it computed."""
        if request is self._warm_ups.current:
            self._warm_ups.failed(request)
            return []
        output = book_failed(request, computed, self.kv)
        self._finish(request, FinishReason.ERROR)
        return [output]

    # leaving

    def _finish(self, request: Request, reason: FinishReason) -> None:
        next_turn = request.next_turn
        if reason in (FinishReason.STOP, FinishReason.LENGTH) and next_turn is not None:
            self._warm_ups.offer(request, next_turn)
            self._leave_running(request, next_turn.num_kept_tokens)
        elif request.status is RequestStatus.RUNNING:
            self._leave_running(request)
        request.status = _FINISHED[reason]
        del self._requests[request.request_id]

    def _leave_running(self, request: Request, num_useful: int | None = None) -> None:
        self._running.remove(request)
        self._rows.leave(request)
        self.kv.free(request.table, num_useful)
