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


class GrammarBook:
    """Grammars over one checkpoint's vocabulary, for one rank. Used by one thread."""

    def __init__(self, model_dir: str | Path) -> None:
        """Begins to read the vocabulary."""
        self._thread = ThreadPoolExecutor(1, "grammar", _lower_priority)
        self._compiler = self._thread.submit(lambda: GrammarCompiler(Tokenizer(model_dir)))
        self._begun: OrderedDict[str, Future[Matcher]] = OrderedDict()
        self._bytes = 0

    def prepare(self, source: str) -> None:
        """Begin to compile a grammar that will be needed."""
        if source in self._begun:
            self._begun.move_to_end(source)
            return
        self._begun[source] = self._thread.submit(self._compile, source)
        self._bytes += len(source)
        while len(self._begun) > MAX_GRAMMARS or (self._bytes > MAX_BYTES and len(self._begun) > 1):
            self._bytes -= len(self._begun.popitem(last=False)[0])

    def compile(self, source: str, done: Callable[[], None]) -> None:
        """Begin to compile a grammar. `done` is called when it is, or when it cannot be: by the
        thread that compiles, or at once."""
        self.prepare(source)
        self._begun[source].add_done_callback(lambda _: done())

    def matcher(self, source: str) -> Matcher:
        """A new answer's place in a grammar; waits until it is compiled.

        Raises:
            GrammarError: see `GrammarCompiler.matcher`.
            TokenizerError: the checkpoint has no tokenizer that grammars could be of.
        """
        self.prepare(source)
        return self._begun[source].result().copy()

    def _compile(self, source: str) -> Matcher:
        return self._compiler.result().matcher(source)


def _lower_priority() -> None:
    """Of the calling thread alone: on Linux each has a niceness of its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
