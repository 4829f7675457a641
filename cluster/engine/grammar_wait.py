"""GrammarWait: requests that no row is given to yet, as ranks still compile their grammar.

Owns them between the inbox and the scheduler. So a grammar that takes long costs its own request
alone: a row that had to wait for it would hold up the step, and every stream in it. Knows no ranks
and no rows.
"""

from typing import NamedTuple, Protocol

from cluster.request import EngineRequest


class Calls(Protocol):
    """What the wait needs of `cluster.worker.grammar_call.GrammarCall`."""

    def begin(self, source: str, /) -> int: ...

    def collect(self) -> None: ...

    def is_done(self, number: int, /) -> bool: ...


class GrammarWait:
    """Lets requests through in the order in which their grammars are done."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._held: dict[str, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def num_tokens(self) -> int:
        """Of the prompts that wait."""
        return sum(len(held.request.prompt_token_ids) for held in self._held.values())

    def hold(self, request: EngineRequest) -> bool:
        """Whether the request must wait; False if it has no grammar, or waits already."""
        grammar = request.params.grammar
        if grammar is None or request.request_id in self._held:
            return False
        self._held[request.request_id] = _Held(request, self._calls.begin(grammar))
        return True

    def drop(self, request_id: str) -> None:
        """Nobody waits for this request any more, if it is here."""
        self._held.pop(request_id, None)

    def has_ready(self) -> bool:
        """Whether `take_ready` would return any."""
        self._calls.collect()
        return any(self._calls.is_done(held.number) for held in self._held.values())

    def take_ready(self) -> list[EngineRequest]:
        """The requests whose grammar all ranks have by now."""
        if not self._held:
            return []
        self._calls.collect()
        done = [held.request for held in self._held.values() if self._calls.is_done(held.number)]
        for request in done:
            del self._held[request.request_id]
        return done


class _Held(NamedTuple):
    request: EngineRequest
    number: int
