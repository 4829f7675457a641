"""TokenService: prompts as tokens and tokens as text, without a model behind it.

Owns a thread of its own: whoever counts tokens of a long text must not hold up those whose chats
wait to be tokenized. Generates nothing and reserves nothing. Knows no HTTP framework.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serve_app.chat_service import ChatService
from serve_app.desk import Desk
from serve_app.openai import errors
from serve_app.openai.render import render_body
from serve_app.openai.schema import ParsedRequest
from serve_app.openai.tokens import (
    ParsedDetokenize,
    ParsedTokenize,
    TokenizeRequest,
    detokenize_body,
    tokenize_body,
)

_Result = TypeVar("_Result")


class TokenService:
    """One per ingress; all requests share it."""

    def __init__(self, desk: Desk, chat: ChatService) -> None:
        self._facts = desk.facts
        self._tokenizer = desk.tokenizer
        self._chat = chat
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="count")

    @property
    def model(self) -> str:
        """The id of the model whose tokens they are."""
        return self._facts.id

    async def tokenize(self, parsed: ParsedTokenize) -> bytes:
        """The reply to /tokenize.

        Raises:
            ApiError: another model, text that is not Unicode, or a chat that cannot be rendered.
        """
        if parsed.chat is not None:
            tokens = await self._chat.prompt(parsed.chat.request)
        else:
            assert parsed.text is not None
            tokens = await self._text(parsed.text)
        decode = self._tokenizer.decode
        strings = [decode([token]) for token in tokens] if parsed.with_strings else None
        return tokenize_body(tokens, self._facts.max_model_len, strings)

    async def detokenize(self, parsed: ParsedDetokenize) -> bytes:
        """The reply to /detokenize: the text that /tokenize was given.

        The token that begins every raw prompt is left out where it comes first: /tokenize put it
        there.

        Raises:
            ApiError: another model, or an id that it does not have.
        """
        request = parsed.request
        self._check_model(request.model)
        request.check_vocabulary(self._tokenizer.size)
        tokens = request.tokens
        if tokens[:1] == [self._tokenizer.bos_id]:
            tokens = tokens[1:]
        return detokenize_body(await self._apart(lambda: self._tokenizer.decode(tokens)))

    async def render(self, parsed: ParsedRequest) -> bytes:
        """The reply to /v1/chat/completions/render.

        Raises:
            ApiError: what the chat itself would be refused for before it is admitted.
        """
        tokens = await self._chat.prompt(parsed.request)
        self._chat.check_room(parsed.request, tokens)
        text = await self._apart(lambda: self._tokenizer.decode(tokens))
        return render_body(parsed, tokens, text, self._facts.max_model_len, None)

    async def _text(self, request: TokenizeRequest) -> list[int]:
        self._check_model(request.model)
        first = [self._tokenizer.bos_id] if request.add_special_tokens else []
        return first + await self._apart(lambda: self._tokenizer.encode_content(request.prompt))

    def _check_model(self, named: str | None) -> None:
        if named is not None and named != self.model:
            raise errors.model_not_found()

    async def _apart(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
