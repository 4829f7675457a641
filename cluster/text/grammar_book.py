"""GrammarBook: compiled grammars, each compiled once, beside the steps of a rank.

Owns the thread that compiles (at low priority, and without the interpreter's lock) and the most
recently used grammars. Knows no rows.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cluster.text.grammar import GrammarCompiler, Matcher
from cluster.text.tokenizer import Tokenizer

MAX_GRAMMARS = 128
MAX_BYTES = 2**22
"""Of all sources together; a compiled grammar grows with its source."""
_NICENESS = 10


class Prepared:
    """A grammar that is being compiled, or was: whoever holds it need not compile it again."""

    def __init__(self, compiled: Future[Matcher]) -> None:
        self._compiled = compiled

    def matcher(self) -> Matcher:
        """A new answer's place in it; waits until it is compiled.

        Raises:
            GrammarError: see `GrammarCompiler.matcher`.
            TokenizerError: the checkpoint has no tokenizer that grammars could be of.
        """
        return self._compiled.result().copy()


class GrammarBook:
    """Grammars over one checkpoint's vocabulary, for one rank. Used by one thread."""

    def __init__(self, model_dir: str | Path) -> None:
        """Begins to read the vocabulary."""
        self._thread = ThreadPoolExecutor(1, "grammar", _lower_priority)
        self._compiler = self._thread.submit(lambda: GrammarCompiler(Tokenizer(model_dir)))
        self._begun: OrderedDict[str, Future[Matcher]] = OrderedDict()
        self._bytes = 0

    def prepare(self, source: str) -> Prepared:
        """Begin to compile a grammar, unless it is known."""
        return Prepared(self._future(source))

    def compile(self, source: str, done: Callable[[], None]) -> None:
        """The same. `done` is called when it is compiled, or cannot be: by the thread that
        compiles, or at once."""
        self._future(source).add_done_callback(lambda _: done())

    def _future(self, source: str) -> Future[Matcher]:
        known = self._begun.get(source)
        if known is not None:
            self._begun.move_to_end(source)
            return known
        begun = self._begun[source] = self._thread.submit(self._compile, source)
        self._bytes += len(source)
        while len(self._begun) > MAX_GRAMMARS or (self._bytes > MAX_BYTES and len(self._begun) > 1):
            self._bytes -= len(self._begun.popitem(last=False)[0])
        return begun

    def _compile(self, source: str) -> Matcher:
        return self._compiler.result().matcher(source)


def _lower_priority() -> None:
    """Of the calling thread alone: on Linux each has a niceness of its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
