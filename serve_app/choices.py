"""Choices: several answers to one request, and what they used together.

Owns how one engine request becomes n that share a prompt, and the sum of their token counts. Knows
no HTTP, no wire format and no engine.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from cluster.request import EngineRequest, RequestOutput, Usage


class ChoiceOutput(NamedTuple):
    """A delta of one of a request's choices."""

    choice: int
    output: RequestOutput


def fork(request: EngineRequest, n: int) -> list[EngineRequest]:
    """`n` requests with one prompt: the first computes it, the others find it computed.

    A request with n > 1 gives as its first choice what it would give with n = 1; that alone tells
    the prompt's logprobs.
    """
    if n == 1:
        return [request]
    first = msgspec.structs.replace(request, request_id=f"{request.request_id}.0")
    others = (
        msgspec.structs.replace(
            request,
            request_id=f"{request.request_id}.{index}",
            params=msgspec.structs.replace(
                request.params,
                seed=derived_seed(request.params.seed, index),
                prompt_logprobs=None,
            ),
            prompt_of=first.request_id,
        )
        for index in range(1, n)
    )
    return [first, *others]


def derived_seed(seed: int, index: int) -> int:
    """The int64 seed of choice `index`; that of choice 0 is the request's own."""
    if index == 0:
        return seed
    told = seed.to_bytes(8, "little", signed=True) + index.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little", signed=True)


class Tally:
    """Token counts of a request's choices, exact at their ends and as delivered before."""

    def __init__(self, requests: Sequence[EngineRequest]) -> None:
        self._pays_prompt = [request.prompt_of is None for request in requests]
        self._used = [
            Usage(len(request.prompt_token_ids) if pays else 0, 0, 0, 0)
            for request, pays in zip(requests, self._pays_prompt, strict=True)
        ]
        self.unfinished = len(requests)
        """Choices that have not ended."""

    def add(self, delta: ChoiceOutput) -> None:
        """Takes the next delta."""
        index, output = delta
        used = self._used[index]
        self.unfinished -= output.finish_reason is not None
        if output.usage is None:
            used.completion_tokens += len(output.token_ids)
        elif self._pays_prompt[index]:
            self._used[index] = output.usage
        else:
            self._used[index] = msgspec.structs.replace(
                output.usage, prompt_tokens=0, cached_tokens=0
            )

    def total(self) -> Usage:
        """Of all choices; a prompt counts once, however many choices answer it."""
        columns = zip(*(msgspec.structs.astuple(used) for used in self._used), strict=True)
        return Usage(*(sum(column) for column in columns))
