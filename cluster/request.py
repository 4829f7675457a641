"""The nouns of generation: what is asked, what state it is in, what comes back.

Owns the plain data that travels between ingress, replica and engine core. Refuses to know torch,
text processing, HTTP and tenants.
"""

import enum

import msgspec

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 2**17
"""Tokens of a prompt times the ids told beside each, itself included: they travel in one frame."""
MAX_GRAMMAR_CHARS = 2**18
MAX_BIASES = 1024
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
MIN_REPETITION_PENALTY = 0.01
"""Dividing by less would make other logits meaningless."""


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class RequestStatus(enum.StrEnum):
    """Where a request is in the engine."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED_STOPPED = "finished_stopped"
    FINISHED_LENGTH = "finished_length"
    FINISHED_ABORTED = "finished_aborted"
    FINISHED_ERROR = "finished_error"

    @property
    def finished(self) -> bool:
        return self.value.startswith("finished")


class ReasoningStop(enum.StrEnum):
    """What closed the thoughts, where the model did not."""

    BUDGET = "budget"
    LOOP = "loop"


class ThinkingRule(msgspec.Struct, frozen=True, array_like=True):
    """What holds while the think block that a prompt leaves open is not closed.

    Raises:
        ValueError: a value is out of bounds; the message names the field.
    """

    end_id: int
    """The id that closes the block."""
    budget: int | None = None
    """Thoughts after which the block is closed; None: as many as the model likes."""
    closing: tuple[int, ...] = ()
    """What is said to close it: some last words perhaps, `end_id`, and what may follow that."""
    breaks_loops: bool = False
    """Whether thoughts that go round in a circle are closed, too."""

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 0:
            raise ValueError("budget is out of bounds")
        stops = self.budget is not None or self.breaks_loops
        if (stops and self.end_id not in self.closing) or any(i < 0 for i in self.closing):
            raise ValueError("closing is out of bounds")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens of one request are drawn and when it ends.

    The bounds are checked here again, behind the API's own validation, so that no caller can hurt
    a batch.

    Raises:
        ValueError: a value is out of bounds; the message names the field.
    """

    max_tokens: int = 100
    """0: nothing is generated; what the prompt's own tokens are worth may still be told."""
    temperature: float = 0.6
    """0 is greedy."""
    top_p: float = 0.95
    top_k: int = 0
    """0 switches the filter off."""
    min_p: float = 0.0
    seed: int = 0
    """int64. Always concrete: whoever submits a request without a seed draws one."""
    stop: tuple[str, ...] = ()
    """Stop strings; they act on the answer ..."""
    stops_thoughts: bool = False
    """... and, here, on the thoughts too."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    presence_penalty: float = 0.0
    """Taken from the logit of every id that the output has ..."""
    frequency_penalty: float = 0.0
    """... and, here, as many times as the output has it."""
    repetition_penalty: float = 1.0
    """The logit of every id that prompt or output has is divided by it, multiplied if negative."""
    penalizes_thoughts: bool = False
    """Whether the three hold and count among the thoughts too, and not in the answer alone."""
    logit_bias: dict[int, float] = {}
    """Added to logits, of thoughts and answer; at +-MAX_BIAS it outweighs everything."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told beside each drawn one, with their logarithmic
    probabilities; None tells none, 0 only the drawn one's."""
    prompt_logprobs: int | None = None
    """The same of each token of the prompt but the first. All of the prompt is computed for it,
    whatever the prefix cache holds. At most MAX_PROMPT_LOGPROBS numbers in all."""
    thinking: ThinkingRule | None = None
    """None: the prompt leaves no think block open."""
    grammar: str | None = None
    """What the answer must look like, in the words of `cluster.text.grammar`; the thoughts before
    it are free, but cannot end the output. None: anything."""

    def __post_init__(self) -> None:
        checks = (
            ("max_tokens", self.max_tokens >= 0),
            ("temperature", 0.0 <= self.temperature <= 2.0),
            ("top_p", 0.0 < self.top_p <= 1.0),
            ("top_k", 0 <= self.top_k <= INT64_MAX),
            ("min_p", 0.0 <= self.min_p <= 1.0),
            ("seed", INT64_MIN <= self.seed <= INT64_MAX),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens),
            ("presence_penalty", abs(self.presence_penalty) <= MAX_PENALTY),
            ("frequency_penalty", abs(self.frequency_penalty) <= MAX_PENALTY),
            (
                "repetition_penalty",
                MIN_REPETITION_PENALTY <= self.repetition_penalty <= MAX_PENALTY,
            ),
            ("logit_bias", _is_bias(self.logit_bias)),
            ("logprobs", _is_count(self.logprobs)),
            ("prompt_logprobs", _is_count(self.prompt_logprobs)),
            ("stop_token_ids", all(token >= 0 for token in self.stop_token_ids)),
            ("grammar", self.grammar is None or 0 < len(self.grammar) <= MAX_GRAMMAR_CHARS),
        )
        for name, ok in checks:
            if not ok:
                raise ValueError(f"{name} is out of bounds")

    @property
    def penalizes(self) -> bool:
        """Whether any of the penalties changes anything."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


def _is_count(named: int | None) -> bool:
    return named is None or 0 <= named <= MAX_LOGPROBS


def _is_bias(bias: dict[int, float]) -> bool:
    within = all(i >= 0 and abs(value) <= MAX_BIAS for i, value in bias.items())
    return within and len(bias) <= MAX_BIASES


class NextTurn(msgspec.Struct, frozen=True, array_like=True):
    """How the next prompt of a conversation will show this request: its prompt's beginning, the
    answer without the thoughts before it, and an end marker. The cache may be made ready for it.
    """

    num_kept_tokens: int
    """Prompt tokens before what opens this turn's thoughts."""
    answer_follows: int | None
    """The token behind whose last occurrence in the output the answer begins; None: all of the
    output is answer."""
    end_token_id: int
    dropped_token_ids: list[int] = []
    """Tokens that the next prompt leaves out where they begin the answer."""


class EngineRequest(msgspec.Struct, frozen=True, array_like=True):
    """One request as it travels to the engine core: exact token ids, no text."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    cache_salt: bytes = b""
    """Mixed into the root of the prefix-cache hash chain: tenants never share cached blocks."""
    prediction_token_ids: list[int] = []
    """What the output is likely to repeat: tokens for the proposer to draw on, and to be counted
    against the output. They never change what is generated."""
    next_turn: NextTurn | None = None
    """None: nothing is known of a next turn."""
    prompt_of: str | None = None
    """The id of a request with the same prompt and salt, added before this one: this one waits
    until that one's prompt is computed, and finds it in the prefix cache."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Logarithmic probabilities at one token, drawn or of a prompt: of the model's softmax over the
    whole vocabulary in float32, before penalties, biases, temperature and filters."""

    logprob: float
    """The token's own."""
    top_ids: list[int] = []
    """The likeliest tokens, the likeliest first."""
    top_logprobs: list[float] = []


class EngineCoreOutput(msgspec.Struct, array_like=True, gc=False):
    """What one step gave one request."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    """The stop token id that ended the request, when it was not the end-of-sequence id."""
    num_cached_tokens: int = 0
    """Prompt tokens served from the prefix cache at first admission."""
    error: str | None = None
    """A fixed code such as `engine_numeric_error` when finish_reason is ERROR."""
    num_drafted: int = 0
    """Tokens that were proposed ahead and computed in this step ..."""
    num_accepted: int = 0
    """... and how many of them were drawn."""
    logprobs: list[TokenLogprobs] | None = None
    """One per new token where the request asked for them."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """The next of the prompt's, from its second token on; all have come with the first new one."""


class EngineStats(msgspec.Struct, array_like=True):
    """The engine's own account of its load; counters grow for the life of the engine core."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    """Known tokens of waiting and preempted requests still to be computed."""
    running_tokens: int = 0
    """Output tokens that running requests may still produce (sum of max_tokens left)."""
    kv_total_blocks: int = 0
    kv_free_blocks: int = 0
    """Blocks a new request could take: free ones and cached ones nobody uses."""
    kv_cached_blocks: int = 0
    """Unused blocks whose content can still be hit by a prefix."""
    block_size: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    num_drafted: int = 0
    """Tokens proposed ahead and computed ..."""
    num_accepted: int = 0
    """... and those of them that were drawn."""


class EngineCoreOutputs(msgspec.Struct, array_like=True):
    """One frame from the engine core to its replica: everything one step produced."""

    outputs: list[EngineCoreOutput]
    stats: EngineStats


class Usage(msgspec.Struct, array_like=True):
    """Exact token counts of one request, counted in the engine."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    accepted_prediction_tokens: int = 0
    """Tokens of the request's prediction that the output repeated ..."""
    rejected_prediction_tokens: int = 0
    """... and those that it did not."""


class RequestOutput(msgspec.Struct, array_like=True, gc=False):
    """A delta of one request, after detokenization: raw text, split by reasoning and answer.

    `reasoning` and `content` are the model's exact text on either side of the closing think token;
    the tag itself is in neither. `reasoning_ended` is true on the one delta in which that token was
    seen. How the two are shown (`<think>` tags, separate fields, hidden) is the service's matter.
    """

    request_id: str
    reasoning: str = ""
    content: str = ""
    reasoning_ended: bool = False
    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    """On the last delta only."""
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    """One per token id where the request asked for them."""
    reasoning_stop: ReasoningStop | None = None
    """On the last delta: what closed the thoughts, where the model did not."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """The next of the prompt's, as in `EngineCoreOutput`."""
