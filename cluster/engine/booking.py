"""What an answer of the workers means for the requests of its step.

Owns the match of answer and frame, and how drawn tokens, accepted drafts and computed blocks enter
one request's books. Knows no queues and no budget: whoever books ends the request when told so.
"""

from cluster.batch import ModelRunnerOutput, ScheduledRow, SchedulerOutput
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.request import Request
from cluster.request import EngineCoreOutput, FinishReason, TokenLogprobs

NUMERIC_ERROR = "engine_numeric_error"
GRAMMAR_ERROR = "grammar_too_complex"


def places(step: int, scheduled: SchedulerOutput, computed: ModelRunnerOutput) -> dict[int, int]:
    """Where in the answer each row stands that drew.

    Raises:
        RuntimeError: the answer is not to this frame, or not exactly the sampling rows drew or
            failed.
    """
    at = {row: index for index, row in enumerate(computed.rows)}
    sampling = {share.row for share in scheduled.scheduled if share.samples}
    matches = sampling.difference(computed.failed_rows) == at.keys()
    if not (step == scheduled.step == computed.step and matches):
        raise RuntimeError(f"the answer to step {computed.step} does not match step {step}")
    return at


def book_drawn(
    request: Request,
    share: ScheduledRow,
    computed: ModelRunnerOutput,
    index: int,
    kv: KVCacheManager,
    eos_token_ids: frozenset[int],
) -> EngineCoreOutput:
    """Append what a row drew, up to the token that ends the request, and publish full blocks.

        known t   drafts a b c   drawn a b x      num_computed was told t a b c: c is taken back
                                                  known t a b x, computed up to b

    Only blocks of tokens known to be right are published; what rejected drafts left in the others
    is overwritten.
    """
    drawn, num_drafts = computed.token_ids[index], len(share.draft_token_ids)
    num_right = share.num_tokens - num_drafts + len(drawn) - 1
    request.num_computed -= share.num_tokens - num_right
    count, reason, stop_reason = request.take(drawn, eos_token_ids)
    end = min(share.num_computed + num_right, len(request.token_ids))
    kv.commit(request.table, request.token_ids, end)
    output = EngineCoreOutput(
        request.request_id,
        drawn if count == len(drawn) else drawn[:count],
        reason,
        stop_reason,
        request.num_cached_tokens or 0,
    )
    if num_drafts:
        output.num_drafted, output.num_accepted = num_drafts, len(drawn) - 1
    if computed.logprobs and (logprobs := computed.logprobs[index]) is not None:
        output.logprobs = logprobs[:count]
    output.prompt_logprobs = _judged(request, share, computed)
    if reason is None and computed.draft_token_ids:
        request.proposed = computed.draft_token_ids[index]
    return output


def book_chunk(
    request: Request, share: ScheduledRow, computed: ModelRunnerOutput, kv: KVCacheManager
) -> list[EngineCoreOutput]:
    """Publish the full blocks of a row that drew nothing; what it has to tell nevertheless."""
    kv.commit(request.table, request.token_ids, share.num_computed + share.num_tokens)
    judged = _judged(request, share, computed)
    return [EngineCoreOutput(request.request_id, [], prompt_logprobs=judged)] if judged else []


def _judged(
    request: Request, share: ScheduledRow, computed: ModelRunnerOutput
) -> list[TokenLogprobs] | None:
    """Logprobs of prompt tokens, without those told before a preemption; None: there are none."""
    judged = computed.prompt_logprobs.get(share.row)
    if not judged:
        return None
    fresh = judged[max(request.num_judged - share.num_computed, 0) :]
    request.num_judged += len(fresh)
    request.table.takes_hits = request.num_judged == request.num_prompt_tokens - 1
    return fresh or None


def book_failed(
    request: Request, computed: ModelRunnerOutput, kv: KVCacheManager
) -> EngineCoreOutput:
    """Disown the blocks of a row that drew nothing, and say what went wrong."""
    kv.discard(request.table)
    grammar = request.row in computed.ungrammatical_rows
    return EngineCoreOutput(
        request.request_id,
        [],
        FinishReason.ERROR,
        num_cached_tokens=request.num_cached_tokens or 0,
        error=GRAMMAR_ERROR if grammar else NUMERIC_ERROR,
    )
