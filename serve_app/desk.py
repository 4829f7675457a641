"""Desk: what happens to every request for text between its parsing and its answer.

Owns who asks, the checks that need the model's facts, tokenizing beside the event loop, the wait
for a ticket, and the start of the run. Refuses to know routes and what a request looks like on the
wire. Knows no HTTP framework, no Ray and no Redis client: those are handed in.
"""

import asyncio
import hashlib
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

from cluster.request import EngineRequest
from cluster.text.tokenizer import Tokenizer
from serve_app.answer_run import AnswerRun
from serve_app.deltas import DeltaServer
from serve_app.generation import Generation, ModelClient
from serve_app.grammar_gate import GrammarGate
from serve_app.key_check import KeyLookup, identified
from serve_app.metrics import Metrics
from serve_app.openai import errors
from serve_app.openai.generation_fields import GenerationFields
from serve_app.openai.service_tiers import CLASS_OF_TIER, TIER_OF_CLASS
from serve_app.queue_wishes import CLASS_HEADER, QueueWishes
from serve_app.refusal_errors import api_error
from serve_app.sections import HttpSection, PriceSection
from serve_app.tenancy.admission import AdmitRequest, Identity
from serve_app.tenancy.admit_reply import QueuePlace
from serve_app.tenancy.keys import Scope
from serve_app.tenancy.refusals import Figures, Refusal, StoreUnavailable
from serve_app.tenancy.ticket import Ticket

_TOKENIZER_THREADS = 2
T = TypeVar("T")


class ModelFacts(NamedTuple):
    """What is known of the model, for the most part before any replica runs."""

    id: str
    fingerprint: str
    """Of files and settings; where replicas report their kernels, of these too."""
    max_model_len: int
    created: int
    """Unix time in seconds."""
    shown_name: str | None
    """What really answers, if it is not the model of that id."""
    price: PriceSection | None = None
    closing_words: str = ""
    """What thoughts that are closed by force end with."""


class Caller(NamedTuple):
    """Who asks, since when, and how they would wait."""

    identity: Identity
    arrived: float
    """A time of time.monotonic()."""
    wishes: QueueWishes = QueueWishes()
    on_queued: Callable[["Waiting"], None] | None = None
    """Told when the request has to wait for its place."""

    @classmethod
    def now(cls, identity: Identity, wishes: QueueWishes) -> "Caller":
        return cls(identity, time.monotonic(), wishes)

    def deadline_left_s(self) -> float | None:
        """How long it may still wait for its place."""
        deadline_s = self.wishes.deadline_s
        if deadline_s is None:
            return None
        return max(0.0, self.arrived + deadline_s - time.monotonic())

    def at_tier(self, tier: str | None) -> "Caller":
        """As a body with that service_tier has it; the header's class goes before it."""
        service_class = self.wishes.service_class or CLASS_OF_TIER.get(tier or "")
        return self._replace(wishes=self.wishes._replace(service_class=service_class))


class Waiting(NamedTuple):
    """A request in the queue."""

    rid: str
    place: QueuePlace


class Admission(Protocol):
    """Who lets requests in: `serve_app.tenancy.door.Door`, where these are explained."""

    async def identify(self, secret: str, *, fresh: bool = False) -> Identity: ...
    async def admit(
        self, request: AdmitRequest, on_queued: Callable[[QueuePlace], None] | None = None
    ) -> Ticket: ...
    async def place(self, rid: str) -> QueuePlace | None: ...
    async def stop_request(self, rid: str, key_id: str) -> bool: ...


class Started(NamedTuple):
    """An admitted request that runs, and the response headers that admission gave."""

    run: AnswerRun
    headers: dict[str, str]
    service_tier: str
    """Told by the response."""


class Desk:
    """One per ingress; all routes share it."""

    def __init__(
        self,
        facts: ModelFacts,
        http: HttpSection,
        tokenizer: Tokenizer,
        admission: Admission,
        model: ModelClient,
        deltas: DeltaServer,
        metrics: Metrics,
    ) -> None:
        self.facts = facts
        self.http = http
        tokenizer.whole_texts  # noqa: B018 - made now rather than under the first request
        self.tokenizer = tokenizer
        self.metrics = metrics
        self.gate = GrammarGate(tokenizer.model_dir)
        self._admission = admission
        self._model = model
        self._deltas = deltas
        self._threads = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenize")
        longest = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.size))
        self.max_prompt_bytes = facts.max_model_len * longest
        """No prompt that fits the context is longer."""

    @property
    def lookup(self) -> KeyLookup:
        """Who knows keys."""
        return self._admission

    async def identify(self, authorization: str | None, scope: Scope | None = None) -> Identity:
        """Whose key an Authorization header holds. `scope`: what it must be good for.

        Raises:
            ApiError: 401; 403 where the key lacks the scope; 404 where it is for inference, but not
                with this model; 503 when keys cannot be read.
        """
        identity = await identified(self._admission, authorization, scope)
        if scope == "inference" and not identity.may_use(self.facts.id):
            raise errors.model_not_found()
        return identity

    def check(self, request: GenerationFields) -> None:
        """Holds a request against the model and this server's bounds.

        Raises:
            ApiError: another model, a token id it does not have, too many choices.
        """
        if request.model != self.facts.id:
            raise errors.model_not_found()
        request.check_vocabulary(self.tokenizer.size)
        if request.n > self.http.max_choices:
            message = f"Invalid value for 'n': must be at most {self.http.max_choices}."
            raise errors.invalid_value("n", message)

    async def beside(self, function: Callable[..., T], *args: object) -> T:
        """`function(*args)` in a thread: tokenizing must not hold up the streams."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def start(
        self, rid: str, requests: Sequence[EngineRequest], max_tokens: int, caller: Caller
    ) -> Started:
        """Reserve, wait for a place, and start the generation of all `requests` on one replica.

        Args:
            rid: the whole request's id.
            requests: one per choice.
            max_tokens: the most output to reserve, all choices together.

        Raises:
            ApiError: the request cannot be served now.
        """
        prompts = (len(one.prompt_token_ids) for one in requests if one.prompt_of is None)
        ticket = await self._admit(
            AdmitRequest(
                rid=rid,
                digest=caller.identity.digest,
                prompt_tokens=sum(prompts),
                max_tokens=max_tokens,
                deadline_s=caller.deadline_left_s(),
                service_class=caller.wishes.service_class or "",
                mark=_mark(caller.identity, requests, max_tokens),
                retries=caller.wishes.retries,
            ),
            caller,
        )
        self.metrics.queue_time.observe(ticket.queued_s)
        run = AnswerRun(
            Generation(requests, self._model, self._deltas),
            ticket,
            self.metrics,
            arrived=caller.arrived,
            timeout_s=self.http.default_timeout_s,
            keep_alive_s=self.http.keep_alive_s,
            own_timeout_s=caller.wishes.timeout_s,
        )
        ticket.when_stopped(run.stop)
        ticket.when_asked(run.output_so_far)
        headers = self.headers(ticket.figures, ticket.service_class)
        headers["x-deeprequest-queue-ms"] = str(round(ticket.queued_s * 1000))
        headers["server-timing"] = run.server_timing()
        return Started(run, headers, TIER_OF_CLASS[ticket.service_class])

    def headers(self, figures: Figures, service_class: str | None = None) -> dict[str, str]:
        """What every answer carries: the caller's limits, who answers, and in which class."""
        headers = figures.headers()
        if service_class is not None:
            headers[CLASS_HEADER] = service_class
        if self.facts.shown_name is not None:
            headers["x-deeprequest-model"] = self.facts.shown_name
        return headers

    async def place(self, rid: str) -> QueuePlace | None:
        """Where a request waits; None when it does not, or nobody can tell now."""
        try:
            return await self._admission.place(rid)
        except StoreUnavailable:
            return None

    async def stop(self, rid: str, identity: Identity) -> None:
        """Ends a request of that key, waiting or running, whichever ingress has it.

        Raises:
            ApiError: the key has no such request, or nobody can tell now.
        """
        try:
            found = await self._admission.stop_request(rid, identity.key_id)
        except Refusal as refusal:
            raise api_error(refusal) from None
        if not found:
            raise errors.request_not_found()

    async def _admit(self, request: AdmitRequest, caller: Caller) -> Ticket:
        def queued(place: QueuePlace) -> None:
            if caller.on_queued is not None:
                caller.on_queued(Waiting(request.rid, place))

        try:
            return await self._admission.admit(request, queued)
        except Refusal as refusal:
            raise api_error(refusal) from None


def _mark(identity: Identity, requests: Sequence[EngineRequest], max_tokens: int) -> str:
    """What a request is known again by: whose it is, its prompts, how much it asks for."""
    content = hashlib.blake2b(f"{identity.digest} {max_tokens}".encode(), digest_size=8)
    for request in requests:
        content.update(array("I", [len(request.prompt_token_ids), *request.prompt_token_ids]))
    return content.hexdigest()
