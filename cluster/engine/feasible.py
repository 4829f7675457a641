"""Which requests can be computed at all, by an engine of this size, alone and with an empty cache.

Owns that rule and the words in which it refuses. Knows no queue and no load.
"""

from cluster.engine.kv_cache import KVCacheManager
from cluster.request import MAX_PROMPT_LOGPROBS, EngineRequest

_MAX_TOKEN_ID = 2**31 - 1


def refuse_impossible(request: EngineRequest, max_model_len: int, kv: KVCacheManager) -> None:
    """Raises ValueError; the message names the numbers and the remedy."""
    prompt = request.prompt_token_ids
    if not prompt or min(prompt) < 0 or max(prompt) > _MAX_TOKEN_ID:
        raise ValueError("the prompt must hold at least one token, and only token ids")
    if (named := request.params.prompt_logprobs) is not None:
        num_logprobs = len(prompt) * (1 + named)
        if num_logprobs > MAX_PROMPT_LOGPROBS:
            raise ValueError(
                f"{num_logprobs} logprobs of the prompt are more than {MAX_PROMPT_LOGPROBS}: "
                "shorten it, or ask for fewer"
            )
    # A prompt is computed by drawing one token behind it, wanted or not.
    num_tokens = len(prompt) + max(request.params.max_tokens, 1)
    asked = f"{len(prompt)} prompt tokens + max_tokens {request.params.max_tokens}"
    if num_tokens > max_model_len:
        raise ValueError(
            f"{asked} = {num_tokens} tokens, but max_model_len is {max_model_len}: "
            f"shorten the prompt, ask for fewer tokens, or raise max_model_len"
        )
    # The last token drawn is never computed, so it needs no place.
    num_blocks, usable = kv.blocks_for(num_tokens - 1), kv.pool.num_usable
    if num_blocks > usable:
        raise ValueError(
            f"{asked} need {num_blocks} KV blocks of {kv.block_size} tokens, but there "
            f"are {usable}: shorten the prompt, ask for fewer tokens, or raise num_kv_blocks"
        )
