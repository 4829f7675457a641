"""CompletionRequest: what may be asked of /v1/completions, and its way into plain data.

Owns the parameters of a raw prompt, their bounds and defaults, and the one door for a request body,
`parse_completion_request`. Refuses to know HTTP, text as tokens and limits of tenants. Nothing here
concerns thoughts: behind a raw prompt all that is generated is text.
"""

from typing import Annotated, Any, NamedTuple, cast

import msgspec
from pydantic import Discriminator, Field, Tag, ValidationError

from cluster.request import MAX_LOGPROBS, SamplingParams
from serve_app.openai.body import at_most, header_names, json_object, unknown_fields
from serve_app.openai.errors import invalid_value
from serve_app.openai.generation_fields import (
    MAX_N,
    MAX_TOKENS,
    GenerationFields,
    StreamOptions,
    TokenId,
)
from serve_app.openai.unsupported import COMPLETION_REFUSALS, take_unsupported
from serve_app.openai.validation import from_validation_error

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own for this route."""
MAX_PROMPTS = 64
MAX_RUNS = 64
"""Generations behind one request: prompts times best_of, or n."""
MAX_PROMPT_IDS = 2**20


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    kinds = {int: "<tokens>", bool: "<tokens>", float: "<tokens>", list: "<token arrays>"}
    return kinds.get(type(first), "<strings>")


TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_IDS, fail_fast=True)]
_Several = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
Prompt = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[str], _Several, Tag("<strings>")]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[list[TokenIds], _Several, Tag("<token arrays>")],
    Discriminator(
        _kind,
        custom_error_type="union_type",
        custom_error_message="a string or an array",
    ),
]


class CompletionRequest(GenerationFields):
    """Text or token ids to go on with, and how."""

    prompt: Prompt
    """A string, up to 64 strings, token ids, or up to 64 arrays of token ids. Strings may spell
    control tokens and get the one that begins every prompt; ids are taken as they are."""
    max_tokens: int = Field(default=DEFAULT_MAX_TOKENS, ge=0, le=MAX_TOKENS)
    """Most tokens to generate; 0, with echo, generates nothing."""
    best_of: int | None = Field(default=None, ge=1, le=MAX_N)
    """Generate so many for each prompt and give the n whose tokens are likeliest on average. All of
    them are counted. Not with stream."""
    echo: bool = False
    """Give the prompt back in front of what is generated, with its logprobs where asked for."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """Tell the logarithmic probability of each token, and so many of the likeliest beside it."""

    @property
    def output_tokens(self) -> int:
        """Most tokens to generate."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """As told; where the likeliest are chosen, they must be known."""
        return 0 if self.logprobs is None and self.runs > self.n else self.logprobs

    @property
    def runs(self) -> int:
        """Generations for each prompt."""
        return self.best_of or self.n

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several, all text or all ids."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast("list[str | list[int]]", [self.prompt] if is_one else self.prompt)

    def sampling_params(self) -> SamplingParams:
        """As for every request; an echo tells what it tells of the rest."""
        judged = self.logprobs if self.echo else None
        return msgspec.structs.replace(super().sampling_params(), prompt_logprobs=judged)

    def check_vocabulary(self, size: int) -> None:
        """As for every request, and the prompt's ids."""
        super().check_vocabulary(size)
        for place, prompt in enumerate(self.prompts):
            at = None if isinstance(prompt, str) else _first_beyond(prompt, size)
            if at is not None:
                param = f"prompt[{at}]" if prompt is self.prompt else f"prompt[{place}][{at}]"
                message = f"Invalid value for '{param}': token ids are less than {size}."
                raise invalid_value(param, message)

    def check_together(self) -> None:
        """As for every request; what is chosen from must be there."""
        super().check_together()
        if self.runs < self.n:
            raise invalid_value("best_of", "Invalid value for 'best_of': must be at least 'n'.")
        if self.stream and self.runs > self.n:
            message = "the best cannot be known before all have ended: do not stream, or leave it"
            raise invalid_value("best_of", f"Invalid value for 'best_of': {message} out.")
        if not (self.max_tokens or self.echo):
            message = "must be at least 1, unless 'echo' is true."
            raise invalid_value("max_tokens", f"Invalid value for 'max_tokens': {message}")
        if len(self.prompts) * self.runs > MAX_RUNS:
            message = f"prompts times 'best_of' (or 'n') must be at most {MAX_RUNS}: send less"
            raise invalid_value("prompt", f"Invalid value for 'prompt': {message} at once.")


def _first_beyond(token_ids: list[int], size: int) -> int | None:
    """Where the first id stands that a vocabulary of that size does not have."""
    if max(token_ids) < size:
        return None
    return next(at for at, token_id in enumerate(token_ids) if token_id >= size)


class ParsedCompletion(NamedTuple):
    """A valid request and the names of what it sent without effect."""

    request: CompletionRequest
    ignored: tuple[str, ...]


def parse_completion_request(body: bytes) -> ParsedCompletion:
    """The one door: bytes from anybody in, a request within all bounds out.

    Raises:
        ApiError: 400, with `param` where a field is at fault.
    """
    fields = json_object(body)
    take_unsupported(fields, COMPLETION_REFUSALS)
    if isinstance(prompt := fields.get("prompt"), list) and _kind(prompt) != "<tokens>":
        at_most("prompt", len(prompt), MAX_PROMPTS, "entries")
    try:
        request = CompletionRequest.model_validate(fields)
    except ValidationError as error:
        # `from None`: pydantic's report quotes the request, which must not reach a log.
        raise from_validation_error(error, _KNOWN) from None
    request.check_together()
    names = [*unknown_fields(request), *unknown_fields(request.stream_options, "stream_options.")]
    return ParsedCompletion(request, header_names(names))


_KNOWN = frozenset((*CompletionRequest.model_fields, *StreamOptions.model_fields))
