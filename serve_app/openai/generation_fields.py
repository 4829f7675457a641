"""GenerationFields: what every request for text may say, in a chat or as a raw prompt.

Owns sampling, ends, streaming and who asks: bounds, defaults and their way into SamplingParams.
Refuses to know prompts and what is special to one route.
"""

import abc
import re
import secrets
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from cluster.request import (
    INT64_MAX,
    INT64_MIN,
    MAX_BIAS,
    MAX_BIASES,
    MAX_PENALTY,
    MIN_REPETITION_PENALTY,
    SamplingParams,
)
from serve_app.openai.body import STRING_OR_ARRAY, Numbered, Strict
from serve_app.openai.errors import invalid_value
from serve_app.openai.response import StreamUsage

MAX_TOKENS = 32_768
MAX_N = 128
"""OpenAI's own; a server is set to less."""
MAX_STOPS = 16
MAX_STOP_CHARS = 256

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)]
Stop = Annotated[
    Annotated[StopString, Tag("<string>")] | Annotated[Stops, Tag("<array>")], STRING_OR_ARRAY
]
Identifier = Annotated[str, Field(max_length=512)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Scope = Literal["answer", "all"]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
_BIAS_KEY = r"^(0|[1-9][0-9]{0,9})$"
_is_bias_key = re.compile(_BIAS_KEY, re.ASCII).fullmatch


class StreamOptions(Strict):
    """What a stream brings beside the text."""

    include_usage: bool | None = None
    """An event of its own tells the token counts at the end."""
    continuous_usage_stats: bool | None = None
    """With include_usage, every event tells the token counts so far."""


class GenerationFields(Numbered, abc.ABC):
    """How tokens are drawn, when they end and how they are sent."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """The model identifier."""
    temperature: float = Field(default=0.6, ge=0, le=2)
    """0 is greedy, which this model does badly with; 0.6 is recommended."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """0.95 is recommended."""
    top_k: int = Field(default=0, ge=-1, le=INT64_MAX)
    """Draw from the top_k likeliest tokens only (recommended: 20-40); 0 and -1 mean all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    n: int = Field(default=1, ge=1, le=MAX_N)
    """Answers to give; the prompt is computed and counted once. Most servers allow 8."""
    seed: int | None = Field(default=None, ge=INT64_MIN, le=INT64_MAX)
    stop: Stop | None = None
    """One string or up to 16 that end the answer; the string is not sent."""
    stop_scope: Scope = "answer"
    """Where stop strings are looked for: in the answer, or in the thoughts too."""
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256, fail_fast=True)] = []
    ignore_eos: bool = False
    min_tokens: int = Field(default=0, ge=0, le=MAX_TOKENS)
    presence_penalty: Penalty = 0.0
    """Makes less likely what the answer has."""
    frequency_penalty: Penalty = 0.0
    """Makes less likely what the answer has, by how often it has it."""
    repetition_penalty: float = Field(default=1.0, ge=MIN_REPETITION_PENALTY, le=MAX_PENALTY)
    """Divides the logits of what prompt and answer have; 1 changes nothing."""
    penalty_scope: Scope = "answer"
    """Where the three penalties hold and count: in the answer, or in the thoughts too, which they
    harm."""
    logit_bias: dict[str, Bias] = Field(
        default={},
        max_length=MAX_BIASES,
        json_schema_extra={"propertyNames": {"pattern": _BIAS_KEY}},
    )
    """Added to the logits of token ids, in thoughts and answer; 100 forces, -100 bans."""
    return_token_ids: bool = False
    """Tell the ids of the prompt and of what was generated."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    """`priority` and `fast` ask for the class interactive, `flex` for batch, as the header
    x-deeprequest-class does, which goes before it. The response tells the tier that served it."""
    user: Identifier | None = None
    """Older name of safety_identifier."""
    safety_identifier: Identifier | None = None
    """Whom the request is for; only a hash of it is noted."""

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _few_token_ids(cls, value: Any) -> Any:
        if isinstance(value, dict):
            if len(value) > MAX_BIASES:
                raise PydanticCustomError(
                    "invalid_value", f"must have at most {MAX_BIASES} entries"
                )
            if not all(map(_is_bias_key, value)):
                raise PydanticCustomError("invalid_value", "keys must be token ids, such as '42'")
        return value

    @property
    @abc.abstractmethod
    def output_tokens(self) -> int:
        """Most tokens to generate."""

    @property
    @abc.abstractmethod
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell beside each; None: not even the drawn one."""

    @property
    def end_user(self) -> str | None:
        """Whom the request is for, in the client's words."""
        return self.safety_identifier or self.user

    def stream_usage(self, prompt_tokens: int) -> StreamUsage:
        """Which token counts the stream tells."""
        asked = self.stream_options or StreamOptions()
        at_end = bool(asked.include_usage)
        return StreamUsage(at_end, at_end and bool(asked.continuous_usage_stats), prompt_tokens)

    def sampling_params(self) -> SamplingParams:
        """The parameters as the engine wants them; draws a seed if the client gave none."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seed = self.seed if self.seed is not None else secrets.randbits(63)
        return SamplingParams(
            max_tokens=self.output_tokens,
            temperature=abs(self.temperature),
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=abs(self.min_p),
            seed=seed,
            stop=stop,
            stops_thoughts=self.stop_scope == "all",
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            penalizes_thoughts=self.penalty_scope == "all",
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            logprobs=self.num_logprobs,
        )

    def check_vocabulary(self, size: int) -> None:
        """Holds token ids against the model's vocabulary.

        Raises:
            ApiError: a token id that the model does not have.
        """
        named = [(f"stop_token_ids[{at}]", token) for at, token in enumerate(self.stop_token_ids)]
        named += [("logit_bias", int(token)) for token in self.logit_bias]
        for param, token_id in named:
            if token_id >= size:
                message = f"Invalid value for '{param}': token ids are less than {size}."
                raise invalid_value(param, message)

    def check_together(self) -> None:
        """Holds fields against each other.

        Raises:
            ApiError: one asks for what another one rules out.
        """
        if self.stream_options is not None and not self.stream:
            message = "The 'stream_options' parameter is only allowed when 'stream' is true."
            raise invalid_value("stream_options", message)
        if self.min_tokens > self.output_tokens:
            message = "must be at most the number of tokens to generate"
            message = f"Invalid value for 'min_tokens': {message} ({self.output_tokens})."
            raise invalid_value("min_tokens", message)
