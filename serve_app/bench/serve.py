"""A running server as its clients see it: probes, a load, a summary.

Owns the order and what each request asks. Works with every server of the OpenAI chat API; what
such a server does not know (`ignore_eos`) is left out after it was refused once.
"""

from typing import Any, NamedTuple

from serve_app.bench.http_stream import HttpError, Reply, Target, get, stream
from serve_app.bench.load import Arrivals, replies
from serve_app.bench.prompts import Prompts, fitted


class Ask(NamedTuple):
    """What every request is like."""

    model: str | None = None
    """None takes the first that the server lists."""
    prompt_len: int = 128
    """In tokens, chat template included; met on average."""
    output_len: int = 128
    temperature: float = 0.0
    timeout_s: float = 600.0
    seed: int = 0


async def run(target: Target, ask: Ask, arrivals: Arrivals) -> list[Reply]:
    """Ask the server a few times to know it, then put the load on it.

    Raises:
        HttpError, OSError: the server is not there, or refuses even a plain request.
    """
    request = await _accepted(target, ask)

    async def count(text: str) -> int:
        reply = await stream(target, _with(request, text, 1), ask.timeout_s)
        if reply.error or not reply.prompt_tokens:
            raise HttpError(reply.error or "the server tells no usage.prompt_tokens in its streams")
        return reply.prompt_tokens

    prompts = await fitted(ask.prompt_len, ask.seed, count)

    async def send() -> Reply:
        return await stream(target, _with(request, prompts.draw(), ask.output_len), ask.timeout_s)

    return await replies(arrivals, send)


async def _accepted(target: Target, ask: Ask) -> dict[str, Any]:
    """The request without its prompt, in the richest form that the server takes."""
    model = ask.model or await _first_model(target)
    plain: dict[str, Any] = {"model": model, "temperature": ask.temperature}
    warm = Prompts(4, ask.seed).draw()
    for request in ({**plain, "ignore_eos": True}, plain):
        reply = await stream(target, _with(request, warm, 2), ask.timeout_s)
        if not reply.error.startswith(("status 400", "status 422")):
            break
    if reply.error:
        raise HttpError(reply.error)
    return request


async def _first_model(target: Target) -> str:
    listed = await get(target, "/models")
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise HttpError("/models lists no model; name one with --model") from error


def _with(request: dict[str, Any], text: str, tokens: int) -> dict[str, Any]:
    return {**request, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
