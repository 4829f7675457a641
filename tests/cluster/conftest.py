"""Shared by the engine's tests: tiny checkpoints, ranks as threads, and a hand-driven batch.

The checkpoints are written by transformers, which is also the oracle; a group of threads stands in
for processes where the collectives themselves are not under test.
"""

import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cluster.batch import AppendedRow, ModelRunnerOutput, ScheduledRow, SchedulerOutput, StartedRow
from cluster.config import EngineConfig
from cluster.model.collectives import TorchCollectives
from cluster.model.tp_group import TPGroup
from cluster.request import SamplingParams
from cluster.worker.worker import Worker

torch.set_num_threads(1)
os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported, which decides then

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "rope_theta": 10_000.0,
    "eos_token_id": 3,
    "bos_token_id": 1,
}


def write_tiny_checkpoint(path: Path, **changes: Any) -> Path:
    """A random Qwen2 checkpoint in float32, biases and norms away from 0 and 1."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(11)
    model = Qwen2ForCausalLM(Qwen2Config(**{**TINY, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if "bias" in name or "norm" in name else 0.12
            parameter.normal_(1.0 if "norm" in name else 0.0, scale)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, 8 query over 4 kv heads, untied head, one safetensors file."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tied_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the head tied to the embedding."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """Write a tiny checkpoint with changed config values: (folder, **changes) -> folder."""
    return write_tiny_checkpoint


@pytest.fixture(scope="session")
def oracle() -> Callable[[Path], Any]:
    """transformers' own model of a checkpoint, float32."""
    from transformers import AutoModelForCausalLM

    loaded: dict[Path, Any] = {}

    def load(path: Path) -> Any:
        if path not in loaded:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            loaded[path] = model.eval()
        return loaded[path]

    return load


class ThreadGroup(TPGroup):
    """A TPGroup whose ranks are threads of this process."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, table: list[Any]) -> None:
        super().__init__(rank, size, TorchCollectives("threads", table))
        self._meeting = meeting
        self._table = table

    def _swap(self, x: Tensor) -> list[Tensor]:
        self._table[self.rank] = x.clone()
        self._meeting.wait(30)
        everyone = list(self._table)
        self._meeting.wait(30)
        return everyone

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._swap(x)).sum(0)) if self.size > 1 else x

    def limit(self, timeout_s: float) -> None:
        """The barrier has its own."""

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._swap(x), -1) if self.size > 1 else x


class Ranks:
    """Runs one function on every rank of a thread group at once; rank 0's result comes back."""

    def __init__(self, size: int) -> None:
        meeting, table = threading.Barrier(size), [None] * size
        self.size = size
        self.groups = [ThreadGroup(rank, size, meeting, table) for rank in range(size)]
        self._meeting = meeting
        self._pool = ThreadPoolExecutor(size)

    def run(self, function: Callable[[ThreadGroup], Any]) -> list[Any]:
        """`function(group)` on every rank; all results."""

        def guarded(group: ThreadGroup) -> Any:
            try:
                return function(group)
            except BaseException:
                self._meeting.abort()
                raise

        futures = [self._pool.submit(guarded, group) for group in self.groups]
        errors = [e for e in (f.exception() for f in futures) if e is not None]
        broken = (threading.BrokenBarrierError,)
        for error in sorted(errors, key=lambda e: isinstance(e, broken)):
            raise error
        return [future.result() for future in futures]

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def ranks(request: pytest.FixtureRequest) -> Callable[[int], Ranks]:
    """A factory of thread groups of a size."""

    def make(size: int) -> Ranks:
        made = Ranks(size)
        request.addfinalizer(made.close)
        return made

    return make


class Driver:
    """Drives workers frame by frame, as a scheduler would, with shuffled physical blocks."""

    def __init__(
        self,
        execute: Callable[[SchedulerOutput], ModelRunnerOutput],
        block_size: int,
        num_blocks: int,
    ) -> None:
        self.execute = execute
        self.block_size = block_size
        self.free = list(range(1, num_blocks))
        random.Random(5).shuffle(self.free)
        self.tokens: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.blocks: dict[int, list[int]] = {}
        self._news: dict[int, AppendedRow] = {}
        self._started: list[StartedRow] = []
        self._released: list[int] = []
        self._step = 0

    def start(
        self,
        row: int,
        tokens: Sequence[int],
        params: SamplingParams,
        num_prompt: int | None = None,
        shared: Sequence[int] = (),
    ) -> None:
        """A request enters a row; `shared` blocks are already computed (a prefix hit)."""
        self.tokens[row] = list(tokens)
        self.computed[row] = len(shared) * self.block_size
        self.blocks[row] = [*shared, *self._take(len(tokens), len(shared))]
        self._started.append(
            StartedRow(
                row,
                list(tokens),
                len(tokens) if num_prompt is None else num_prompt,
                list(self.blocks[row]),
                params,
            )
        )

    def release(self, row: int) -> None:
        self.free.extend(self.blocks.pop(row))
        self._released.append(row)
        self._news.pop(row, None)
        del self.tokens[row], self.computed[row]

    def step(self, shares: dict[int, int] | None = None) -> dict[int, int]:
        """Compute `shares[row]` tokens of each row (all that are known by default)."""
        if shares is None:
            shares = {row: len(known) - self.computed[row] for row, known in self.tokens.items()}
        scheduled = []
        for row, count in shares.items():
            end = self.computed[row] + count
            taken = self._take(end, len(self.blocks[row]))
            if taken:
                self.blocks[row] += taken
                self._news.setdefault(row, AppendedRow(row, [])).block_ids.extend(taken)
            samples = end == len(self.tokens[row])
            scheduled.append(ScheduledRow(row, self.computed[row], count, samples))
            self.computed[row] = end
        self._step += 1
        news = [self._news.pop(row) for row in list(self._news)]
        frame = SchedulerOutput(self._step, self._released, self._started, news, scheduled)
        self._released, self._started = [], []
        output = self.execute(frame)
        assert output.step == self._step
        drawn = {row: tokens[0] for row, tokens in zip(output.rows, output.token_ids, strict=True)}
        for row, token in drawn.items():
            self.tokens[row].append(token)
        self.failed = output.failed_rows
        return drawn

    def _take(self, num_tokens: int, have: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-num_tokens // self.block_size) - have)]


@pytest.fixture
def make_driver(ranks: Callable[[int], Ranks]) -> Callable[..., Driver]:
    """A driver over started workers: (checkpoint, tp=1, **EngineConfig fields) -> Driver."""

    def make(checkpoint: Path, tp: int = 1, **settings: Any) -> Driver:
        config = EngineConfig(
            **{
                "model_path": str(checkpoint),
                "tensor_parallel_size": tp,
                "device": "cpu",
                "block_size": 8,
                "num_kv_blocks": 120,
                "max_num_seqs": 20,
                "load_progress": False,
                **settings,
            }
        )
        everyone = ranks(tp)

        def begin(group: ThreadGroup) -> Worker:
            worker = Worker(config, group.rank, group)
            worker.load()
            worker.init_kv_cache(worker.num_kv_blocks())
            return worker

        workers: list[Worker] = everyone.run(begin)

        def execute(frame: SchedulerOutput) -> ModelRunnerOutput:
            answers = everyone.run(lambda group: workers[group.rank].execute(frame))
            assert answers[1:] == [None] * (tp - 1)
            answer: ModelRunnerOutput = answers[0]
            return answer

        driver = Driver(execute, config.block_size, workers[0].facts.num_kv_blocks)
        driver.workers = workers  # type: ignore[attr-defined]
        return driver

    return make
