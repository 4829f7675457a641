"""CompletionService: the walk of a raw prompt from its fields to an admitted run.

Owns the order of the steps: check, tokenize, check the context, reserve and wait, submit. One
request may hold several prompts, each answered several times: all run on one replica under one
ticket. What is the same for chats is the desk's.
"""

from collections.abc import Sequence

from cluster.request import MAX_PROMPT_LOGPROBS, EngineRequest
from serve_app.answer_run import RunReply
from serve_app.choices import fork
from serve_app.desk import Caller, Desk
from serve_app.end_users import note_end_user
from serve_app.openai import errors
from serve_app.openai.completion_schema import CompletionRequest, ParsedCompletion
from serve_app.openai.completions import RawPrompt, TextCompletion, TextStream, TextStyle
from serve_app.openai.response import ResponseHead


class CompletionService:
    """One per ingress; all requests share it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def begin(self, parsed: ParsedCompletion, caller: Caller) -> RunReply:
        """Tokenize, reserve, wait for a place, and start the generation.

        Raises:
            ApiError: the request cannot be served, or not now.
        """
        request = parsed.request
        self._check(request)
        prompts = await self._prompts(request)
        self._check_room(request, prompts)
        facts = self._desk.facts
        head = ResponseHead.new("cmpl", facts.id, facts.fingerprint)
        runs = self._runs(head.id, request, prompts, caller.identity.tenant.encode())
        most = max(request.output_tokens, 1) * len(runs)
        asker = caller.at_tier(request.service_tier)
        run, headers, tier = await self._desk.start(head.id, runs, most, asker)
        head = head._replace(service_tier=tier)
        note_end_user(head.id, request.end_user, caller.identity)
        if parsed.ignored:
            headers["x-deeprequest-ignored"] = ", ".join(parsed.ignored)
        style = TextStyle(
            self._desk.tokenizer,
            request.echo,
            request.logprobs is not None,
            request.return_token_ids,
        )
        usage = request.stream_usage(sum(len(prompt.token_ids) for prompt in prompts))
        return RunReply(
            run,
            headers,
            lambda: TextCompletion(head, style, prompts, n=request.n, runs=request.runs),
            lambda: TextStream(head, style, prompts, n=request.n, usage=usage),
        )

    def _check(self, request: CompletionRequest) -> None:
        self._desk.check(request)
        if request.runs > self._desk.http.max_choices:
            message = f"must be at most {self._desk.http.max_choices}."
            raise errors.invalid_value("best_of", f"Invalid value for 'best_of': {message}")

    async def _prompts(self, request: CompletionRequest) -> list[RawPrompt]:
        for prompt in request.prompts:
            if len(prompt) > self._desk.max_prompt_bytes:
                raise errors.prompt_too_long(self._desk.facts.max_model_len, "prompt")
        return await self._desk.beside(lambda: [*map(self._prompt, request.prompts)])

    def _prompt(self, asked: str | list[int]) -> RawPrompt:
        """A text begins with the token that begins every prompt, which it may spell itself."""
        if not isinstance(asked, str):
            return RawPrompt(asked, 0)
        begin, token_ids = self._desk.tokenizer.bos_id, self._desk.tokenizer.encode(asked)
        said = token_ids[:1] == [begin]
        return RawPrompt(token_ids, 0) if said else RawPrompt([begin, *token_ids], 1)

    def _check_room(self, request: CompletionRequest, prompts: Sequence[RawPrompt]) -> None:
        """Raises ApiError where a prompt and its answer do not fit into the context together, or
        the prompts' logprobs into a reply."""
        room, most = self._desk.facts.max_model_len, max(request.output_tokens, 1)
        for prompt in prompts:
            if len(prompt.token_ids) + most > room:
                raise errors.context_length_exceeded(len(prompt.token_ids), most, room, "prompt")
        if request.echo and request.logprobs is not None:
            num_logprobs = sum(len(prompt.token_ids) for prompt in prompts) * (1 + request.logprobs)
            if num_logprobs > MAX_PROMPT_LOGPROBS:
                message = f"prompt tokens times 1 + logprobs must be at most {MAX_PROMPT_LOGPROBS}"
                remedy = "where 'echo' is true: ask for fewer, or send shorter prompts."
                raise errors.invalid_value(
                    "logprobs", f"Invalid value for 'logprobs': {message} {remedy}"
                )

    def _runs(
        self, rid: str, request: CompletionRequest, prompts: Sequence[RawPrompt], salt: bytes
    ) -> list[EngineRequest]:
        """All runs of the first prompt, then those of the next; without a seed each prompt gets one
        of its own."""
        runs: list[EngineRequest] = []
        for place, prompt in enumerate(prompts):
            params = request.sampling_params()
            asked = EngineRequest(f"{rid}.{place}", prompt.token_ids, params, salt)
            runs += fork(asked, request.runs)
        return runs
