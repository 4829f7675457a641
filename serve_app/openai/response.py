"""What every response shares: its head, its token counts, and what surrounds a chunk's choices.

Refuses to know what a choice looks like.
"""

import time
import uuid
from typing import Any, NamedTuple

import orjson

from cluster.request import FinishReason, RequestOutput, Usage
from serve_app.openai import sse

_FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class ResponseHead(NamedTuple):
    """What all parts of one response share."""

    id: str
    created: int
    """Unix time in seconds."""
    model: str
    system_fingerprint: str
    """Changes with the weights and with the configuration."""
    service_tier: str = "default"

    @classmethod
    def new(cls, prefix: str, model: str, system_fingerprint: str) -> "ResponseHead":
        """A fresh id, such as chatcmpl-0123... for the prefix chatcmpl."""
        return cls(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model, system_fingerprint)


def usage_object(usage: Usage) -> dict[str, Any]:
    """Token counts in OpenAI's shape, both detail objects always there."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": usage.accepted_prediction_tokens,
            "rejected_prediction_tokens": usage.rejected_prediction_tokens,
        },
    }


def told_reason(last: RequestOutput) -> str:
    """A choice's finish_reason in OpenAI's words.

    Raises:
        ValueError: the delta does not end an answer that a client may be shown.
    """
    if last.error is not None or last.usage is None or last.finish_reason is None:
        raise ValueError("this delta is not the end of an answer")
    finish_reason = _FINISH_REASONS.get(last.finish_reason)
    if finish_reason is None:
        raise ValueError(f"a client is never told that a request ended by {last.finish_reason}")
    return finish_reason


class StreamUsage(NamedTuple):
    """Which token counts a stream tells."""

    at_end: bool = False
    """An event of its own tells them all; other events say null ..."""
    running: bool = False
    """... or, here, the counts so far."""
    prompt_tokens: int = 0

    def so_far(self, completion_tokens: int) -> dict[str, int]:
        """What an event before the last tells."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }


NO_USAGE = StreamUsage()


class ChunkFrame:
    """What surrounds the choices in all chunks of one stream.

    Attributes:
        prefix: an event up to its choices.
        completion_tokens: what all choices have generated so far; whoever knows adds it up.
    """

    def __init__(self, head: ResponseHead, object_name: str, usage: StreamUsage) -> None:
        self.prefix = b"data: " + orjson.dumps(
            {
                "id": head.id,
                "object": object_name,
                "created": head.created,
                "model": head.model,
                "service_tier": head.service_tier,
                "system_fingerprint": head.system_fingerprint,
            }
        ).removesuffix(b"}")
        self.usage = usage
        self.completion_tokens = 0
        self._ending = b',"usage":null}\n\n' if usage.at_end else b"}\n\n"

    def end_of_event(self) -> bytes:
        """What follows the choices of an event."""
        if not self.usage.running:
            return self._ending
        counts = self.usage.so_far(self.completion_tokens)
        return b',"usage":' + orjson.dumps(counts) + b"}\n\n"

    def end_of_stream(self, usage: Usage) -> bytes:
        """What follows once every choice has ended: token counts if asked for, and [DONE]."""
        if not self.usage.at_end:
            return sse.DONE
        counts = orjson.dumps(usage_object(usage))
        return self.prefix + b',"choices":[],"usage":' + counts + b"}\n\n" + sse.DONE
