"""ChatService: the walk of a chat request from its bytes to an admitted run.

Owns the order of the steps: identify the key, parse, render, check the context, reserve and wait,
submit. Knows no HTTP framework, no Ray and no Redis client: those are handed in.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cluster.request import EngineRequest
from cluster.text.reasoning import PromptState, prompt_state
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from serve_app.chat_run import ChatRun
from serve_app.config import HttpSection
from serve_app.deltas import DeltaServer
from serve_app.generation import Generation, ModelClient
from serve_app.metrics import Metrics
from serve_app.openai import errors
from serve_app.openai.chat import ChatCompletion, ChatStream, ResponseHead
from serve_app.openai.schema import ChatCompletionRequest, ParsedRequest, Prediction
from serve_app.refusal_errors import api_error
from serve_app.tenancy.admission import AdmissionQueue, AdmitRequest, Identity, Ticket
from serve_app.tenancy.refusals import Refusal

_TOKENIZER_THREADS = 2


class ModelFacts(NamedTuple):
    """What is known of the model before any replica runs."""

    id: str
    fingerprint: str
    max_model_len: int
    created: int
    """Unix time in seconds."""
    shown_name: str | None
    """What really answers, if it is not the model of that id."""


class ChatReply(NamedTuple):
    """An admitted request: its run, the builder of its reply, and the headers it carries."""

    run: ChatRun
    request: ChatCompletionRequest
    head: ResponseHead
    thinking: bool
    headers: Mapping[str, str]

    async def body(self) -> bytes:
        """The whole answer. Raises ApiError."""
        return await self.run.answer(
            ChatCompletion(
                self.head,
                self.request.shown_reasoning(),
                thinking=self.thinking,
                metadata=self.request.metadata,
            )
        )

    def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        return self.run.events(
            ChatStream(
                self.head,
                self.request.shown_reasoning(),
                thinking=self.thinking,
                include_usage=self.request.include_usage,
                metadata=self.request.metadata,
            )
        )


class ChatService:
    """One per ingress; all requests share it."""

    def __init__(
        self,
        facts: ModelFacts,
        http: HttpSection,
        tokenizer: Tokenizer,
        queue: AdmissionQueue,
        model: ModelClient,
        deltas: DeltaServer,
        metrics: Metrics,
    ) -> None:
        self.facts = facts
        self.metrics = metrics
        self._http = http
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._queue = queue
        self._model = model
        self._deltas = deltas
        self._threads = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenize")
        longest = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.size))
        self._max_prompt_bytes = facts.max_model_len * longest

    async def identify(self, authorization: str | None) -> Identity:
        """Whose key an Authorization header holds.

        Raises:
            ApiError: 401, or 503 when keys cannot be read.
        """
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret or secret != secret.strip():
            raise errors.invalid_api_key()
        try:
            return await self._queue.identify(secret)
        except Refusal as refusal:
            raise api_error(refusal) from None

    async def begin(
        self, parsed: ParsedRequest, identity: Identity, patience_s: float | None = None
    ) -> ChatReply:
        """Render, reserve, wait for a place, and start the generation.

        Raises:
            ApiError: the request cannot be served, or not now.
        """
        arrived = time.monotonic()
        request = parsed.request
        if request.model != self.facts.id:
            raise errors.model_not_found()
        request.check_vocabulary(self._tokenizer.size)
        prompt = await self._render(request.conversation())
        prediction = await self._predicted(request.prediction)
        room = self.facts.max_model_len
        if len(prompt) + request.output_tokens > room:
            raise errors.context_length_exceeded(len(prompt), request.output_tokens, room)
        head = ResponseHead.new(self.facts.id, self.facts.fingerprint)
        ticket = await self._admit(head.id, identity, len(prompt), request, patience_s)
        self.metrics.queue_time.observe(ticket.queued_s)
        engine_request = EngineRequest(
            head.id,
            prompt,
            request.sampling_params(),
            identity.tenant.encode(),
            prediction_token_ids=prediction,
            next_turn=self._template.next_turn(
                prompt, line_breaks=request.shown_reasoning() == "think_tags"
            ),
        )
        run = ChatRun(
            Generation(engine_request, self._model, self._deltas),
            ticket,
            self.metrics,
            len(prompt),
            arrived=arrived,
            timeout_s=self._http.default_timeout_s,
            keep_alive_s=self._http.keep_alive_s,
        )
        thinking = prompt_state(prompt, self._tokenizer) is PromptState.OPEN
        return ChatReply(run, request, head, thinking, self._headers(parsed, ticket))

    async def _render(self, messages: list[Message]) -> list[int]:
        size = sum(len(message.content) for message in messages)
        if size > self._max_prompt_bytes:
            raise errors.prompt_too_long(self.facts.max_model_len)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._template.render, messages)

    async def _predicted(self, prediction: Prediction | None) -> list[int]:
        """Token ids that the answer may repeat."""
        text = prediction.text() if prediction is not None else ""
        if len(text) > self._max_prompt_bytes:
            message = "Invalid value for 'prediction': it is longer than any answer can be."
            raise errors.invalid_value("prediction", message)
        if not text:
            return []
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._tokenizer.encode_content, text)

    async def _admit(
        self,
        rid: str,
        identity: Identity,
        prompt_tokens: int,
        request: ChatCompletionRequest,
        patience_s: float | None,
    ) -> Ticket:
        try:
            return await self._queue.admit(
                AdmitRequest(
                    rid=rid,
                    digest=identity.digest,
                    prompt_tokens=prompt_tokens,
                    max_tokens=request.output_tokens,
                    deadline_s=patience_s,
                )
            )
        except Refusal as refusal:
            raise api_error(refusal) from None

    def _headers(self, parsed: ParsedRequest, ticket: Ticket) -> dict[str, str]:
        headers = ticket.rate_limit_headers()
        headers["x-deeprequest-queue-ms"] = str(round(ticket.queued_s * 1000))
        if self.facts.shown_name is not None:
            headers["x-deeprequest-model"] = self.facts.shown_name
        if parsed.ignored:
            headers["x-deeprequest-ignored"] = ", ".join(parsed.ignored)
        return headers
