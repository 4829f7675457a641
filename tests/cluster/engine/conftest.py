"""A worker made of paper, and a world in which every request's answer is known beforehand."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cluster.batch import (
    ModelRunnerOutput,
    ScheduledRow,
    SchedulerOutput,
    StartedRow,
    decode_scheduler_output,
    encode,
)
from cluster.engine.booking import NUMERIC_ERROR
from cluster.engine.engine_core import EngineCore
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.scheduler import Scheduler, SchedulerConfig
from cluster.request import (
    EngineCoreOutput,
    EngineRequest,
    FinishReason,
    NextTurn,
    SamplingParams,
    TokenLogprobs,
)

EOS = 7
VOCAB_SIZE = 23


def absorb(state: int, token_id: int) -> int:
    """The 'KV' of a token: it depends on the token and on all before it, like the real one."""
    mixed = (state * 6364136223846793005 + token_id + 1442695040888963407) % 2**64
    return mixed ^ (mixed >> 29)


def draw(state: int, num_output_tokens: int, params: SamplingParams) -> int | None:
    """The next token, a pure function of all known tokens; None when the numbers went wrong."""
    if (state >> 17) % 211 == 0:
        return None
    token_id = (state >> 33) % VOCAB_SIZE
    if token_id == EOS and num_output_tokens < params.min_tokens:
        return EOS + 1
    return token_id


def thought(state: int) -> TokenLogprobs:
    """What is made of the token that follows; it tells which one it was made behind."""
    return TokenLogprobs(-float((state >> 20) % 9973))


def thoughts(request: EngineRequest) -> list[TokenLogprobs]:
    """What is told of a prompt, if it is asked for."""
    if request.params.prompt_logprobs is None:
        return []
    told, state = [], 0
    for token_id in request.prompt_token_ids[:-1]:
        state = absorb(state, token_id)
        told.append(thought(state))
    return told


@dataclass
class Answer:
    """All a request gets."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None


def undisturbed(request: EngineRequest) -> Answer:
    """The answer of a machine that has one request, all memory and no cache."""
    params, state, answer = request.params, 0, Answer()
    for token_id in request.prompt_token_ids:
        state = absorb(state, token_id)
    while True:
        drawn = draw(state, len(answer.token_ids), params)
        if drawn is None:
            answer.finish_reason, answer.error = FinishReason.ERROR, NUMERIC_ERROR
            return answer
        if not params.max_tokens:
            answer.finish_reason = FinishReason.LENGTH
            return answer
        answer.token_ids.append(drawn)
        state = absorb(state, drawn)
        enough = len(answer.token_ids) >= params.min_tokens
        if enough and drawn == EOS and not params.ignore_eos:
            answer.finish_reason = FinishReason.STOP
            return answer
        if enough and drawn in params.stop_token_ids:
            answer.finish_reason, answer.stop_reason = FinishReason.STOP, drawn
            return answer
        if len(answer.token_ids) == params.max_tokens:
            answer.finish_reason = FinishReason.LENGTH
            return answer


@dataclass
class MirroredRow:
    token_ids: list[int]
    block_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    num_computed: int | None = None

    @property
    def is_warm_up(self) -> bool:
        """It knows a token more than its prompt and will never draw."""
        return self.params.max_tokens == 1 and len(self.token_ids) > self.num_prompt_tokens


class PaperExecutor:
    """Mirrors rows from frames as a worker does, and doubts every frame.

    `memory[block][offset]` is what was written there; a row may only compute when all positions
    before it hold exactly what its own tokens would have written. Frames are computed in order,
    and not before their answers are asked for. `drafts`: it proposes so many tokens ahead, most of
    them right.
    """

    def __init__(
        self, config: SchedulerConfig, num_blocks: int, block_size: int, ahead: bool, drafts: int
    ) -> None:
        self.config = config
        self.block_size = block_size
        self.memory = [[-1] * block_size for _ in range(num_blocks)]
        self.rows: dict[int, MirroredRow] = {}
        self.frames: list[SchedulerOutput] = []
        self.paused = False
        self.ahead = ahead
        self.drafts = drafts
        self.meanwhile: Callable[[], None] | None = None
        self._submitted: deque[SchedulerOutput] = deque()

    def submit(self, frame: SchedulerOutput) -> "PaperExecutor":
        self._submitted.append(decode_scheduler_output(encode(frame)))
        assert len(self._submitted) <= 1 + self.ahead
        return self

    def result(self) -> ModelRunnerOutput:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return self._execute(self._submitted.popleft())

    def _execute(self, frame: SchedulerOutput) -> ModelRunnerOutput:
        self.frames.append(frame)
        self._mirror(frame)
        self._check_shares(frame)
        answer = ModelRunnerOutput(frame.step, [], [])
        for share in frame.scheduled:
            states = self._compute(share)
            self._judge(share, states, answer)
            if share.samples:
                self._draw(share, states[-1 - len(share.draft_token_ids) :], answer)
        return answer

    def _mirror(self, frame: SchedulerOutput) -> None:
        for row in frame.released:
            del self.rows[row]
        for started in frame.started:
            self._start(started)
        for appended in frame.appended:
            self.rows[appended.row].block_ids += appended.block_ids
        for mirrored in self.rows.values():
            assert len(set(mirrored.block_ids)) == len(mirrored.block_ids)
            assert all(0 < block_id < len(self.memory) for block_id in mirrored.block_ids)

    def _start(self, started: StartedRow) -> None:
        assert started.row not in self.rows, "the row is taken"
        assert 0 <= started.row < self.config.max_num_seqs
        self.rows[started.row] = MirroredRow(
            list(started.token_ids),
            list(started.block_ids),
            started.num_prompt_tokens,
            started.params,
        )
        needed = -(-len(started.token_ids) // self.block_size)
        assert len(started.block_ids) == needed, "a prompt is admitted whole"

    def _check_shares(self, frame: SchedulerOutput) -> None:
        rows = [share.row for share in frame.scheduled]
        assert len(set(rows)) == len(rows)
        assert all(share.num_tokens > 0 for share in frame.scheduled)
        if self.ahead:
            return  # rows of requests that ended may be among them, or be missing already
        within = frame.total_tokens <= self.config.max_num_batched_tokens
        if self.config.enable_chunked_prefill:
            assert within
            assert set(rows) == set(self.rows), "a running request was left out"
            return
        assert within or len(rows) == 1, "only a prompt alone may exceed the budget"
        cut = [self.rows[share.row] for share in frame.scheduled if not share.samples]
        assert all(row.is_warm_up for row in cut), "a prompt was cut in chunks"
        was_paused, self.paused = self.paused, set(rows) != set(self.rows)
        assert not (was_paused and self.paused), "the running waited twice in a row"

    def _compute(self, share: ScheduledRow) -> list[int]:
        """The states at all positions up to the last one computed."""
        mirrored = self.rows[share.row]
        drafts = share.draft_token_ids
        token_ids = mirrored.token_ids + drafts
        end = share.num_computed + share.num_tokens
        assert end <= len(token_ids) <= self.config.max_model_len
        assert end <= len(mirrored.block_ids) * self.block_size
        assert share.samples == (end == len(token_ids))
        assert share.samples or not drafts
        assert len(drafts) < share.num_tokens
        if mirrored.num_computed is None:
            assert share.num_computed % self.block_size == 0, "a hit is whole blocks"
        else:
            assert share.num_computed == mirrored.num_computed, "positions are contiguous"
        mirrored.num_computed = end - len(drafts)
        others = {
            block_id
            for row, other in self.rows.items()
            if row != share.row
            for block_id in other.block_ids
        }
        state, states = 0, []
        for position, token_id in enumerate(token_ids[:end]):
            state = absorb(state, token_id)
            states.append(state)
            block_id = mirrored.block_ids[position // self.block_size]
            if position >= share.num_computed:
                assert block_id not in others, "a shared block was written"
                self.memory[block_id][position % self.block_size] = state
            held = self.memory[block_id][position % self.block_size]
            assert held == state, f"row {share.row} reads another prefix at {position}"
        return states

    def _judge(self, share: ScheduledRow, states: list[int], answer: ModelRunnerOutput) -> None:
        mirrored = self.rows[share.row]
        judged = states[share.num_computed : mirrored.num_prompt_tokens - 1]
        if mirrored.params.prompt_logprobs is not None and judged:
            answer.prompt_logprobs[share.row] = [thought(state) for state in judged]

    def _draw(self, share: ScheduledRow, states: list[int], answer: ModelRunnerOutput) -> None:
        mirrored = self.rows[share.row]
        num_output_tokens = len(mirrored.token_ids) - mirrored.num_prompt_tokens
        drawn: list[int] = []
        for state, draft in zip(states, [*share.draft_token_ids, None], strict=True):
            token_id = draw(state, num_output_tokens + len(drawn), mirrored.params)
            if token_id is None:
                break
            drawn.append(token_id)
            if token_id != draft:
                break
        mirrored.token_ids += drawn or [0]
        assert mirrored.num_computed is not None
        mirrored.num_computed += max(0, len(drawn) - 1)
        if not drawn:
            answer.failed_rows.append(share.row)
            return
        answer.rows.append(share.row)
        answer.token_ids.append(drawn)
        if self.drafts:
            answer.draft_token_ids.append(self._propose(mirrored))

    def _propose(self, mirrored: MirroredRow) -> list[int]:
        """What would be drawn, with an error now and then; nothing now and then."""
        state = 0
        for token_id in mirrored.token_ids:
            state = absorb(state, token_id)
        proposed: list[int] = []
        for _ in range((state >> 7) % (self.drafts + 1)):
            num_output_tokens = len(mirrored.token_ids) + len(proposed) - mirrored.num_prompt_tokens
            token_id = draw(state, num_output_tokens, mirrored.params) or 0
            proposed.append(token_id if (state >> 11) % 4 else (token_id + 1) % VOCAB_SIZE)
            state = absorb(state, proposed[-1])
        return proposed


def paper_clock() -> Callable[[], float]:
    """Seconds that pass from one look to the next, the same in every run: no plan may depend on how
    busy this machine is."""
    passing, now = random.Random(7), 0.0

    def look() -> float:
        nonlocal now
        now += passing.uniform(0, 2e-4)
        return now

    return look


class World:
    """An engine core on paper, whose every output is compared with the undisturbed answer."""

    def __init__(
        self,
        *,
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 16,
        max_model_len: int = 64,
        enable_chunked_prefill: bool = True,
        num_blocks: int = 33,
        block_size: int = 4,
        enable_prefix_caching: bool = True,
        target_gap_s: float | None = None,
        plans_ahead: bool = False,
        drafts: int = 0,
    ) -> None:
        self.config = SchedulerConfig(
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len,
            enable_chunked_prefill,
            target_gap_s,
        )
        self.kv = KVCacheManager(num_blocks, block_size, enable_prefix_caching)
        self.scheduler = Scheduler(self.config, self.kv, frozenset({EOS}))
        self.executor = PaperExecutor(self.config, num_blocks, block_size, plans_ahead, drafts)
        self.core = EngineCore(self.scheduler, self.executor, plans_ahead, paper_clock())
        self.asked: dict[str, EngineRequest] = {}
        self.answers: dict[str, Answer] = {}
        self.cached: dict[str, int] = {}
        self.told: dict[str, list[TokenLogprobs]] = {}
        self.live: set[str] = set()
        self.num_steps = 0
        self._num_asked = 0

    def ask(
        self,
        prompt: list[int],
        salt: bytes = b"",
        next_turn: NextTurn | None = None,
        prompt_of: str | None = None,
        **params: object,
    ) -> str:
        """Add a request that may be impossible; its id."""
        request_id = f"r{self._num_asked}"
        self._num_asked += 1
        settings = SamplingParams(**params)  # type: ignore[arg-type]
        request = EngineRequest(
            request_id, prompt, settings, salt, next_turn=next_turn, prompt_of=prompt_of
        )
        self.asked[request_id] = request
        self.answers[request_id] = Answer()
        refusal = self.core.add(request)
        assert (refusal is None) == self.possible(request)
        if refusal is None:
            self.live.add(request_id)
        else:
            assert refusal.finish_reason is FinishReason.ERROR
            self.answers[request_id] = Answer([], refusal.finish_reason, None, refusal.error)
        return request_id

    def possible(self, request: EngineRequest) -> bool:
        most = len(request.prompt_token_ids) + max(request.params.max_tokens, 1)
        places = (len(self.executor.memory) - 1) * self.executor.block_size
        within = most <= self.config.max_model_len and most - 1 <= places
        return bool(request.prompt_token_ids) and within

    def abort(self, request_id: str) -> None:
        assert self.core.abort(request_id) == (request_id in self.live)
        self.live.discard(request_id)
        self.scheduler.check_integrity()

    def step(self, abort_meanwhile: str | None = None) -> list[EngineCoreOutput]:
        """One step; perhaps with an abort while the workers compute."""
        self.num_steps += 1
        if abort_meanwhile is not None:
            self.executor.meanwhile = lambda: self.abort(abort_meanwhile)
        outputs = self.core.step()
        for output in outputs:
            self._receive(output)
        self._check()
        return outputs

    def drain(self) -> None:
        """Step until nothing is left, which must come; every answer is then complete."""
        patience = 200 + sum(2 * len(self.asked[name].prompt_token_ids) for name in self.live)
        patience += sum(20 * self.asked[name].params.max_tokens for name in self.live)
        while self.core.has_work:
            self.step()
            patience -= 1
            assert patience, "the engine does not come to an end"
        stats = self.core.stats()
        assert not self.live
        assert not self.executor.rows
        assert (stats.running, stats.waiting, stats.waiting_tokens, stats.running_tokens) == (
            (0,) * 4
        )
        assert stats.kv_free_blocks == stats.kv_total_blocks

    def _receive(self, output: EngineCoreOutput) -> None:
        assert output.request_id in self.live, "an output for a request that is gone"
        request, answer = self.asked[output.request_id], self.answers[output.request_id]
        told = self.told.setdefault(output.request_id, [])
        assert not (answer.token_ids and output.prompt_logprobs), "the prompt comes first"
        told += output.prompt_logprobs or []
        answer.token_ids += output.new_token_ids
        cached = self.cached.setdefault(output.request_id, output.num_cached_tokens)
        assert cached == output.num_cached_tokens < len(request.prompt_token_ids)
        assert cached % self.executor.block_size == 0
        assert self.kv.enable_prefix_caching or cached == 0
        expected = undisturbed(request)
        if output.finish_reason is None:
            length = len(answer.token_ids)
            goes_on = length < len(expected.token_ids) or expected.error is not None
            assert goes_on or not output.new_token_ids
            assert output.new_token_ids or output.prompt_logprobs
            assert answer.token_ids == expected.token_ids[:length]
            return
        answer.finish_reason, answer.stop_reason = output.finish_reason, output.stop_reason
        answer.error = output.error
        self.live.remove(output.request_id)
        assert answer == expected
        whole = thoughts(request)
        assert told == (whole[: len(told)] if answer.error else whole)

    def _check(self) -> None:
        self.scheduler.check_integrity()
        stats = self.core.stats()
        running = [
            row for row in self.executor.rows.values() if row.num_computed is not None
        ]  # rows that left in this step are released by the next frame only
        assert stats.running <= len(running) or self.executor.ahead
        assert stats.running + stats.waiting == len(self.live)
        assert 0 <= stats.kv_cached_blocks <= stats.kv_free_blocks <= stats.kv_total_blocks
        assert stats.prefix_hit_tokens <= stats.prompt_tokens


@pytest.fixture
def make_world() -> Callable[..., World]:
    return World


@pytest.fixture
def undisturbed_answer() -> Callable[[EngineRequest], Answer]:
    return undisturbed
