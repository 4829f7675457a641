"""CoreLoop: what rank 0's main thread does for the rest of its life.

Owns the alternation of inbox and step: take in what came, step while there is work, send one frame
per step, sleep in the kernel when there is none. A request with a grammar is taken in when all
ranks have compiled it. Knows no processes and no torch.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from cluster.engine.core_messages import AbortRequest, AddRequest, StepOutputs, ToRank
from cluster.engine.engine_core import EngineCore
from cluster.engine.grammar_wait import GrammarWait
from cluster.request import EngineCoreOutput, EngineCoreOutputs

GRAMMAR_POLL_S = 0.002
"""How often an idle loop asks whether a grammar is compiled."""


class Inbox(Protocol):
    """What the loop needs of `cluster.engine.rank_link.RankLink`."""

    def pending(self, timeout_s: float = 0.0, /) -> bool: ...

    def receive(self) -> ToRank: ...

    def send(self, message: StepOutputs, /) -> None: ...

    def busy(self) -> AbstractContextManager[None]: ...


class CoreLoop:
    """Drives an engine core by what its replica asks."""

    def __init__(self, core: EngineCore, link: Inbox, grammars: GrammarWait) -> None:
        self._core = core
        self._link = link
        self._grammars = grammars

    def run(self) -> None:
        """Never returns.

        Raises:
            ChannelClosedError: the replica or a rank is gone.
        """
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait until there is something to do, do it, and tell the replica."""
        messages = list(self._messages())
        with self._link.busy():
            outputs = [output for message in messages if (output := self._take_in(message))]
            ready = self._grammars.take_ready()
            outputs += [output for request in ready if (output := self._core.add(request))]
            if self._core.has_work:
                outputs += self._core.step()
        self.report(outputs)

    def report(self, outputs: list[EngineCoreOutput]) -> None:
        """One frame, with the load as it is now."""
        stats = self._core.stats()
        stats.waiting += len(self._grammars)
        stats.waiting_tokens += self._grammars.num_tokens
        self._link.send(StepOutputs(EngineCoreOutputs(outputs, stats)))

    def _messages(self) -> Iterator[ToRank]:
        if not self._core.has_work and not self._wait_for_grammar():
            yield self._link.receive()
        while self._link.pending():
            yield self._link.receive()

    def _wait_for_grammar(self) -> bool:
        """Sleep until one is compiled or a message comes; False if none is being compiled."""
        while self._grammars and not self._grammars.has_ready():
            if self._link.pending(GRAMMAR_POLL_S):
                break
        return bool(self._grammars)

    def _take_in(self, message: ToRank) -> EngineCoreOutput | None:
        if isinstance(message, AddRequest) and not self._grammars.hold(message.request):
            return self._core.add(message.request)
        if isinstance(message, AbortRequest):
            self._grammars.drop(message.request_id)
            self._core.abort(message.request_id)
        return None
