"""A chat rendered and not run: its prompt, its settings, and what its sender should know.

Owns the reply of /v1/chat/completions/render and the advice in it. Refuses to know how a prompt is
made. Advice is given on what will be done otherwise than the request looks, and on settings which
this model is known to do badly with; nothing here is an error.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from cluster.text.tokenizer import ASSISTANT, BOS, EOS, THINK_END, THINK_START, USER
from serve_app.openai.schema import ChatCompletionRequest, ParsedRequest

ADVISED_TEMPERATURE = (0.5, 0.7)
FEW_TOKENS = 500
"""Answers to the model's simplest questions have about half as many, thoughts included."""
_MARKERS = (BOS, EOS, USER, ASSISTANT, THINK_START, THINK_END)
_SYSTEM_ROLES = ("system", "developer")


class Warned(NamedTuple):
    """One piece of advice. `param` names the field, never its value."""

    code: str
    param: str
    message: str


def warnings(request: ChatCompletionRequest) -> list[Warned]:
    """What the sender of a valid request should know, in the order of its fields."""
    return [*_of_system(request), *_of_history(request), *_of_settings(request)]


def render_body(
    parsed: ParsedRequest,
    tokens: Sequence[int],
    text: str,
    max_model_len: int,
    cached_tokens: int | None,
) -> bytes:
    """`tokens` and `text` are the prompt; `cached_tokens` None says that it is not known."""
    request = parsed.request
    return orjson.dumps(
        {
            "object": "chat.completion.render",
            "model": request.model,
            "prompt": text,
            "token_ids": tokens,
            "prompt_tokens": len(tokens),
            "cached_tokens": cached_tokens,
            "max_tokens": request.output_tokens,
            "max_model_len": max_model_len,
            "sampling": _sampling(request),
            "warnings": [warning._asdict() for warning in warnings(request)],
            "ignored": parsed.ignored,
        }
    )


def _of_system(request: ChatCompletionRequest) -> Iterator[Warned]:
    roles = [message.role for message in request.messages]
    places = [place for place, role in enumerate(roles) if role in _SYSTEM_ROLES]
    if not places:
        return
    field = f"messages[{places[0]}]"
    if len(places) > 1 or places[0] > 0:
        yield Warned(
            "system_messages_moved",
            field,
            "System messages are joined in order and put before all others, where this model looks "
            "for them.",
        )
    yield Warned(
        "system_prompt_not_advised",
        field,
        "DeepSeek advises to give this model no system prompt: put instructions into the user "
        "message.",
    )


def _of_history(request: ChatCompletionRequest) -> Iterator[Warned]:
    for place, message in enumerate(request.messages):
        text, field = message.text(), f"messages[{place}].content"
        if message.role == "assistant" and (
            THINK_START in text or THINK_END in text or message.reasoning_content
        ):
            yield Warned(
                "thoughts_dropped",
                field,
                "The thoughts of past turns are left out of the prompt, as the model was trained.",
            )
        elif any(marker in text for marker in _MARKERS):
            yield Warned(
                "control_text_is_text",
                field,
                "Text that spells a control token is given to the model as ordinary characters.",
            )
    if request.messages[-1].role == "assistant":
        yield Warned(
            "last_turn_is_not_the_users",
            f"messages[{len(request.messages) - 1}]",
            "The conversation ends with an assistant's turn: the model begins a new one after it.",
        )


def _of_settings(request: ChatCompletionRequest) -> Iterator[Warned]:
    low, high = ADVISED_TEMPERATURE
    if not low <= request.temperature <= high:
        yield Warned(
            "temperature_not_advised",
            "temperature",
            f"Outside {low} to {high} this model tends to repeat itself or to lose its thread; "
            "0.6 is recommended.",
        )
    if request.output_tokens < FEW_TOKENS:
        given = request.max_completion_tokens is not None
        yield Warned(
            "max_tokens_few",
            "max_completion_tokens" if given else "max_tokens",
            f"The model thinks before it answers: with fewer than {FEW_TOKENS} tokens the thoughts "
            "may leave no room for an answer.",
        )


def _sampling(request: ChatCompletionRequest) -> dict[str, Any]:
    params = request.sampling_params()
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "seed": request.seed,
        "stop": params.stop,
    }
