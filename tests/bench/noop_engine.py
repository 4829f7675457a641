"""A rank without a model: one token per running request and step, as fast or as slow as asked.

Takes the place of rank 0 (scheduler, cache, worker) so that what lies between an engine and its
clients can be measured alone. Its outputs are real frames on a real link; the tokens repeat the
request's own prompt's words, so that every one of them is text.
"""

import time
from dataclasses import dataclass

from cluster.engine.core_messages import (
    AbortRequest,
    AddRequest,
    EngineFacts,
    Ready,
    Start,
    StepOutputs,
)
from cluster.engine.rank_link import RankLink
from cluster.request import EngineCoreOutput, EngineCoreOutputs, EngineStats, FinishReason
from cluster.text.tokenizer import Tokenizer
from cluster.worker.gang import RankSpec

TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all; "
THINK_TOKENS = 500
"""After so many tokens a stream closes its think block."""
KV_BLOCKS, BLOCK_SIZE = 1 << 16, 16


@dataclass
class _Stream:
    request_id: str
    left: int
    period_s: float
    emitted: int = 0


def main(spec: RankSpec) -> None:
    """Be rank 0. A request's `seed` is its pace in tokens a second; 0 is flat out."""
    link = RankLink(spec)
    link.greet(Start("", ""))
    tokenizer = Tokenizer(spec.config.model_path)
    model_len = spec.config.max_model_len or 4096
    eos = tuple(tokenizer.eos_token_ids)
    facts = EngineFacts(tokenizer.size, eos, model_len, KV_BLOCKS, BLOCK_SIZE, "none", "none")
    link.send(Ready(facts))
    _Emitter(link, tokenizer).run()


class _Emitter:
    def __init__(self, link: RankLink, tokenizer: Tokenizer) -> None:
        self._link = link
        self._tokens = tokenizer.encode_content(TEXT)
        self._think_end = tokenizer.think_end_id
        self._streams: dict[str, _Stream] = {}
        self._stats = EngineStats(
            kv_total_blocks=KV_BLOCKS, kv_free_blocks=KV_BLOCKS, block_size=BLOCK_SIZE
        )

    def run(self) -> None:
        due = time.monotonic()
        while True:
            self._take_in()
            period = max((stream.period_s for stream in self._streams.values()), default=0.0)
            now = time.monotonic()
            if period and now < due:
                time.sleep(due - now)
            due = max(due + period, now)
            outputs = [self._next(stream) for stream in list(self._streams.values())]
            self._stats.running = len(self._streams)
            self._stats.steps += 1
            self._stats.generation_tokens += len(outputs)
            self._link.send(StepOutputs(EngineCoreOutputs(outputs, self._stats)))

    def _take_in(self) -> None:
        while not self._streams or self._link.pending():
            message = self._link.receive()
            if isinstance(message, AddRequest):
                params = message.request.params
                name, pace = message.request.request_id, params.seed
                self._streams[name] = _Stream(name, params.max_tokens, 1 / pace if pace else 0.0)
            elif isinstance(message, AbortRequest):
                self._streams.pop(message.request_id, None)

    def _next(self, stream: _Stream) -> EngineCoreOutput:
        token = self._tokens[stream.emitted % len(self._tokens)]
        stream.emitted += 1
        if stream.emitted == THINK_TOKENS:
            token = self._think_end
        if stream.emitted < stream.left:
            return EngineCoreOutput(stream.request_id, [token])
        del self._streams[stream.request_id]
        return EngineCoreOutput(stream.request_id, [token], FinishReason.LENGTH)
