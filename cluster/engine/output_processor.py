"""OutputProcessor: what the engine core drew, as text for the people who asked.

Owns the text state of every request in flight: ids -> reasoning or answer -> characters -> stop
strings -> deltas. Refuses to know HTTP, torch and how reasoning is shown.

The concatenation of a request's deltas is a function of its token ids alone: it does not matter
how many of them a step brings.
"""

from collections.abc import Iterable

from cluster.engine.prediction import PredictionMatch
from cluster.request import (
    EngineCoreOutput,
    EngineRequest,
    FinishReason,
    RequestOutput,
    TokenLogprobs,
    Usage,
)
from cluster.text.detokenizer import Detokenizer
from cluster.text.stop import StopChecker
from cluster.text.tokenizer import Tokenizer
from cluster.thinking import Thinking


class OutputProcessor:
    """Turns the outputs of engine steps into deltas. Not to be shared between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.whole_texts  # noqa: B018 - made now rather than under the first request
        self._tokenizer = tokenizer
        self._texts: dict[str, _RequestText] = {}

    def __len__(self) -> int:
        """Requests that are not finished."""
        return len(self._texts)

    def add(self, request: EngineRequest) -> None:
        """Starts the text state of a request, before the engine core sees it.

        Raises:
            ValueError: the id is in use, or a stop string is empty.
        """
        if request.request_id in self._texts:
            raise ValueError(f"request id {request.request_id!r} is already in use")
        self._texts[request.request_id] = _RequestText(request, self._tokenizer)

    def process(self, outputs: Iterable[EngineCoreOutput]) -> tuple[list[RequestOutput], list[str]]:
        """(deltas, ids of requests to abort in the engine core) of one step.

        An output that shows nothing yet (half a character, a possible stop string) gives no delta;
        its token ids ride on the next one. Outputs of unknown or finished requests are ignored.
        The ids to abort are those that a stop string ended before the core knew.
        """
        deltas: list[RequestOutput] = []
        aborts: list[str] = []
        for output in outputs:
            text = self._texts.get(output.request_id)
            delta = text.advance(output) if text is not None else None
            if delta is None:
                continue
            deltas.append(delta)
            if delta.finish_reason is not None:
                del self._texts[output.request_id]
                if output.finish_reason is None:
                    aborts.append(output.request_id)
        return deltas, aborts

    def discard(self, request_id: str) -> Usage | None:
        """Forgets a request whose reader left; what it used so far, None if it is not in flight."""
        text = self._texts.pop(request_id, None)
        return text.usage() if text is not None else None


class _RequestText:
    """The text side of one request."""

    __slots__ = (
        "_cached_tokens",
        "_completion_tokens",
        "_content",
        "_detokenizer",
        "_eos_token_ids",
        "_logprobs",
        "_min_tokens",
        "_prediction",
        "_prompt_logprobs",
        "_prompt_tokens",
        "_reasoning",
        "_reasoning_ended",
        "_request_id",
        "_stops",
        "_stops_thoughts",
        "_thinking",
        "_token_ids",
    )

    def __init__(self, request: EngineRequest, tokenizer: Tokenizer) -> None:
        self._request_id = request.request_id
        self._min_tokens = request.params.min_tokens
        self._eos_token_ids = tokenizer.eos_token_ids
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopChecker(request.params.stop) if request.params.stop else None
        self._stops_thoughts = request.params.stops_thoughts
        self._thinking = Thinking(request.params.thinking)
        self._prompt_tokens = len(request.prompt_token_ids)
        predicted = request.prediction_token_ids
        self._prediction = PredictionMatch(predicted) if predicted else None
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._begin_delta()

    def _begin_delta(self) -> None:
        self._reasoning = ""
        self._content = ""
        self._reasoning_ended = False
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] | None = None
        self._prompt_logprobs: list[TokenLogprobs] | None = None

    def usage(self) -> Usage:
        """Every generated token is a completion token, closing think and stop tokens included."""
        prediction = self._prediction
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            reasoning_tokens=self._thinking.num_tokens,
            accepted_prediction_tokens=prediction.accepted if prediction is not None else 0,
            rejected_prediction_tokens=prediction.rejected if prediction is not None else 0,
        )

    def advance(self, output: EngineCoreOutput) -> RequestOutput | None:
        """Takes what a step gave; the delta to send, None if nothing can be shown yet."""
        if output.num_cached_tokens > self._cached_tokens:
            self._cached_tokens = output.num_cached_tokens
        if output.logprobs is not None:
            self._logprobs = (self._logprobs or []) + output.logprobs
        self._prompt_logprobs = output.prompt_logprobs
        finish = output.finish_reason
        stop = self._take(output.new_token_ids, None if finish is None else self._ending(output))
        if stop is None and finish is not None:
            stop = self._finish()
        if stop is not None:
            return self._delta(FinishReason.STOP, stop)
        if finish is not None:
            return self._delta(finish, output.stop_reason, output.error)
        if self._shows_something():
            return self._delta()
        return None

    def _shows_something(self) -> bool:
        told = self._reasoning or self._content or self._reasoning_ended or self._prompt_logprobs
        return bool(told)

    def _ending(self, output: EngineCoreOutput) -> frozenset[int] | None:
        """The ids one of which ended the request, if an id did."""
        if output.finish_reason is not FinishReason.STOP:
            return None
        stop_id = output.stop_reason
        return self._eos_token_ids if stop_id is None else frozenset((stop_id,))

    def _take(self, token_ids: list[int], ending: frozenset[int] | None) -> str | None:
        """Reads the new ids up to the one that ends the request; a matched stop string or None.

        What a step brings behind that id was drawn in vain and is not counted.
        """
        for token_id in token_ids:
            self._completion_tokens += 1
            self._token_ids.append(token_id)
            if self._prediction is not None:
                self._prediction.push(token_id)
            if ending is not None and token_id in ending and self._may_end():
                self._close_thoughts_at(token_id)
                return None
            stop = self._read(token_id)
            if stop is not None:
                return stop
        return None

    def _may_end(self) -> bool:
        return self._completion_tokens >= self._min_tokens

    def _read(self, token_id: int) -> str | None:
        if not self._thinking.thinking:
            return self._answer(self._detokenizer.push_one(token_id))
        if self._close_thoughts_at(token_id):
            return None
        return self._thought(self._detokenizer.push_one(token_id))

    def _close_thoughts_at(self, token_id: int) -> bool:
        """Counts an id among the thoughts, if they are open; whether it closed them."""
        closed = self._thinking.push(token_id)
        if closed:
            self._reasoning += self._withheld() + self._detokenizer.flush()
            self._reasoning_ended = True
        return closed

    def _thought(self, text: str) -> str | None:
        if not self._stops_thoughts:
            self._reasoning += text
            return None
        shown, stop = self._until_stop(text)
        self._reasoning += shown
        return stop

    def _answer(self, text: str) -> str | None:
        shown, stop = self._until_stop(text)
        self._content += shown
        return stop

    def _until_stop(self, text: str) -> tuple[str, str | None]:
        """The text as far as no stop string may begin there; the one that ended it."""
        if self._stops is None or self._completion_tokens <= self._min_tokens:
            return text, None
        return self._stops.push(text)

    def _withheld(self) -> str:
        return "" if self._stops is None else self._stops.flush()

    def _finish(self) -> str | None:
        rest = self._detokenizer.flush()
        if self._thinking.thinking:
            stop = self._thought(rest)
            self._reasoning += "" if stop else self._withheld()
        else:
            stop = self._answer(rest)
            self._content += "" if stop else self._withheld()
        return stop

    def _delta(
        self,
        finish_reason: FinishReason | None = None,
        stop_reason: str | int | None = None,
        error: str | None = None,
    ) -> RequestOutput:
        # By position: this is made for every token.
        delta = RequestOutput(
            self._request_id,
            self._reasoning,
            self._content,
            self._reasoning_ended,
            self._token_ids,
            finish_reason,
            stop_reason,
            None if finish_reason is None else self.usage(),
            error,
            None if self._logprobs is None else self._logprobs[: len(self._token_ids)],
            None if finish_reason is None else self._thinking.stop,
            self._prompt_logprobs,
        )
        self._begin_delta()
        return delta
