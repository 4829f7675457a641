"""GrammarGate: no grammar reaches the engine that was not tried.

Owns the thread in which an ingress waits for trials, and the verdicts on the most recent grammars.
Knows no schemas and no requests.
"""

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.text.grammar import GrammarError
from cluster.text.grammar_trial import GrammarTrial, TrialLostError
from serve_app.openai import errors

MAX_VERDICTS = 4_096
MAX_WAITING = 32


class GrammarGate:
    """One per ingress. To be used in one event loop."""

    def __init__(self, model_dir: Path) -> None:
        self._trial = GrammarTrial(model_dir)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()
        self._waiting = 0

    def start(self) -> None:
        """Start what trials need; else the first waits for it."""
        self._trial.start()

    async def report(self, source: str) -> str:
        """Why a grammar cannot be served, "" if it can. It may quote the grammar.

        Raises:
            ApiError: 503, too many are being tried, or the machine is too busy to try one.
        """
        digest = hashlib.sha256(source.encode()).digest()
        known = self._verdicts.get(digest)
        if known is not None:
            self._verdicts.move_to_end(digest)
            return known
        if self._waiting >= MAX_WAITING:
            raise errors.schemas_overloaded()
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            verdict = await loop.run_in_executor(self._thread, self._try, source)
        except TrialLostError:
            raise errors.schemas_overloaded() from None
        finally:
            self._waiting -= 1
        self._verdicts[digest] = verdict
        if len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        return verdict

    def close(self) -> None:
        """End the process in which grammars are tried."""
        self._trial.close()

    def _try(self, source: str) -> str:
        try:
            self._trial.run(source)
        except GrammarError as error:
            return str(error)
        return ""
