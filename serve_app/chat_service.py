"""ChatService: the walk of a chat request from its fields to an admitted run.

Owns the order of the steps: check, render, check the context, reserve and wait, submit; and which
builder answers. What is the same for raw prompts is the desk's.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.request import EngineRequest, NextTurn
from cluster.text.template import ChatTemplate
from serve_app.answer_grammars import AnswerGrammars
from serve_app.answer_run import RunReply
from serve_app.choices import fork
from serve_app.desk import Caller, Desk
from serve_app.end_users import note_end_user
from serve_app.openai import errors
from serve_app.openai.chat import ChatCompletion, ChatStream
from serve_app.openai.chat_choice import ChatStyle
from serve_app.openai.messages import Prediction
from serve_app.openai.response import ResponseHead
from serve_app.openai.schema import ChatCompletionRequest, ParsedRequest
from serve_app.thinking_rules import ThinkingRules


class ChatService:
    """One per ingress; all requests share it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tokenizer = desk.tokenizer
        self._template = ChatTemplate(desk.tokenizer)
        self._rules = ThinkingRules(desk.tokenizer, desk.facts.closing_words)
        self._grammars = AnswerGrammars(desk.gate)

    async def begin(self, parsed: ParsedRequest, caller: Caller) -> RunReply:
        """Render, reserve, wait for a place, and start the generation.

        Raises:
            ApiError: the request cannot be served, or not now.
        """
        request = parsed.request
        prompt = await self.prompt(request)
        self.check_room(request, prompt)
        grammar = await self._grammars.grammar(request)
        prediction = await self._predicted(request.prediction)
        facts, rule = self._desk.facts, self._rules.rule(request, prompt)
        head = ResponseHead.new("chatcmpl", facts.id, facts.fingerprint)
        engine_request = EngineRequest(
            head.id,
            prompt,
            msgspec.structs.replace(request.sampling_params(), thinking=rule, grammar=grammar),
            caller.identity.tenant.encode(),
            prediction_token_ids=prediction,
            next_turn=self._next_turn(request, prompt),
        )
        run, headers, tier = await self._desk.start(
            head.id,
            fork(engine_request, request.n),
            request.output_tokens * request.n,
            caller.at_tier(request.service_tier),
        )
        head = head._replace(service_tier=tier)
        note_end_user(head.id, request.end_user, caller.identity)
        if parsed.ignored:
            headers["x-deeprequest-ignored"] = ", ".join(parsed.ignored)
        style, n = self._style(request, thinking=rule is not None), request.n
        echo, usage = _echo(request, prompt), request.stream_usage(len(prompt))
        return RunReply(
            run,
            headers,
            lambda: ChatCompletion(head, style, n=n, echo=echo),
            lambda: ChatStream(head, style, n=n, usage=usage, echo=echo),
        )

    async def prompt(self, request: ChatCompletionRequest) -> list[int]:
        """The token ids that the model would be given.

        Raises:
            ApiError: another model, a token id that it does not have, or no prompt can be so long.
        """
        self._desk.check(request)
        messages = request.conversation()
        size = sum(len(one.content) + len(one.thoughts) + len(one.calls) for one in messages)
        if size > self._desk.max_prompt_bytes:
            raise errors.prompt_too_long(self._desk.facts.max_model_len)
        ending = self._rules.ending(request)
        return await self._desk.beside(self._template.render, messages, ending)

    def check_room(self, request: ChatCompletionRequest, prompt: Sequence[int]) -> None:
        """Raises ApiError where prompt and answer do not fit into the context together."""
        room = self._desk.facts.max_model_len
        if len(prompt) + request.output_tokens > room:
            raise errors.context_length_exceeded(len(prompt), request.output_tokens, room)

    def _next_turn(self, request: ChatCompletionRequest, prompt: list[int]) -> NextTurn | None:
        """None where the next prompt is not likely to show the answer as it was said here."""
        ending = self._rules.ending(request)
        if request.n > 1 or ending in ("continued", "bare"):
            return None
        shown = request.shown_reasoning()
        return self._template.next_turn(prompt, ending, line_breaks=shown == "think_tags")

    def _style(self, request: ChatCompletionRequest, *, thinking: bool) -> ChatStyle:
        return ChatStyle(
            request.shown_reasoning(),
            thinking,
            request.continue_final_message,
            self._tokenizer,
            request.num_logprobs,
            request.return_token_ids,
            request.calling is not None,
        )

    async def _predicted(self, prediction: Prediction | None) -> list[int]:
        """Token ids that the answer may repeat."""
        text = prediction.text() if prediction is not None else ""
        if len(text) > self._desk.max_prompt_bytes:
            message = "Invalid value for 'prediction': it is longer than any answer can be."
            raise errors.invalid_value("prediction", message)
        return await self._desk.beside(self._tokenizer.encode_content, text) if text else []


def _echo(request: ChatCompletionRequest, prompt: list[int]) -> dict[str, Any]:
    """What of a request its response repeats."""
    echo: dict[str, Any] = {}
    if request.metadata is not None:
        echo["metadata"] = request.metadata
    if request.return_token_ids:
        echo["prompt_token_ids"] = prompt
    return echo
