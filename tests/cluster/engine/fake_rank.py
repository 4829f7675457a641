"""A rank with no model: everything of a rank process but torch. Imported by name in children.

`model_path` says how it behaves, e.g. `fake?step_s=0.01&raise_in_load=1&raise_in_step=0`.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import msgspec

from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.engine.rank_main import run_rank
from cluster.worker.gang import RankSpec

FIRST_TOKEN, NUM_TOKENS = 100, 50


@dataclass
class Facts:
    vocab_size: int = 704
    eos_token_ids: tuple[int, ...] = (653,)
    max_model_len: int = 200_000
    num_kv_blocks: int = 20_000
    block_size: int = 16
    device: str = "cpu"
    dtype: str = "float32"


class FakeWorker:
    """The token after n known tokens is FIRST_TOKEN + n % NUM_TOKENS."""

    def __init__(self, spec: RankSpec, rendezvous: str) -> None:
        self._spec = spec
        self._options = parse_qs(urlsplit(spec.config.model_path).query)
        self._known: dict[int, int] = {}
        self._num_steps = 0
        self.facts = Facts()

    def load(self) -> None:
        if self._is_me("raise_in_load"):
            raise FileNotFoundError("no such checkpoint")
        if self._is_me("die_in_load"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self._number("load_s"))

    def num_kv_blocks(self) -> int:
        return self.facts.num_kv_blocks

    def init_kv_cache(self, num_blocks: int) -> None:
        assert num_blocks == self.facts.num_kv_blocks

    def launch(self, frame: SchedulerOutput) -> "Launched":
        return Launched(self._compute(frame))

    def follow(self, frame: SchedulerOutput | None) -> None:
        assert frame is not None
        self._compute(frame)

    def compile_grammar(self, source: str, done: Callable[[], None]) -> None:
        done()

    def _compute(self, frame: SchedulerOutput) -> ModelRunnerOutput:
        time.sleep(self._number("step_s"))
        self._num_steps += 1
        if self._is_me("raise_in_step") and self._num_steps > 10:
            raise ArithmeticError("the numbers went wrong")
        if self._is_me("hang_in_step") and self._num_steps > 10:
            time.sleep(600)
        for started in frame.started:
            self._known[started.row] = len(started.token_ids)
        rows = [share.row for share in frame.scheduled if share.samples]
        tokens = [[FIRST_TOKEN + self._known[row] % NUM_TOKENS] for row in rows]
        for row in rows:
            self._known[row] += 1
        return ModelRunnerOutput(frame.step, rows, tokens)

    def _is_me(self, option: str) -> bool:
        return self._options.get(option) == [str(self._spec.rank)]

    def _number(self, option: str) -> float:
        return float(self._options.get(option, ["0"])[0])


class Launched(NamedTuple):
    """A frame that was computed at once."""

    output: ModelRunnerOutput

    def begin_draw(self) -> None:
        """It was drawn at once."""

    def needs_settling(self) -> bool:
        return False

    def result(self) -> ModelRunnerOutput:
        return self.output


def main(spec: RankSpec) -> None:
    run_rank(spec, FakeWorker)


def deaf_main(spec: RankSpec) -> None:
    """Dies before it calls the replica."""
    raise SystemExit(3)


def forgetful_main(spec: RankSpec) -> None:
    """Does not know the token."""
    run_rank(msgspec.structs.replace(spec, token="guess"), FakeWorker)


def note_gpus(spec: RankSpec) -> None:
    """A rank that does no more than write down which GPUs it sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    Path(spec.directory or "", f"gpus {spec.rank}").write_text(visible)
