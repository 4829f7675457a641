"""The engine without a service: no HTTP, no text, no Ray.

Owns an engine sized for the workload, in this process for one rank and in a process per rank for
more, and its answer as rows. Knows no command line.
"""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol

import msgspec

from cluster.config import EngineConfig
from cluster.request import EngineCoreOutput, EngineCoreOutputs, EngineRequest, SamplingParams
from serve_app.bench.rank_memory import rank_memory
from serve_app.bench.workload import WARM_TOKENS, Clock, Row, Stamp, Workload, load_row, measured

BLOCK_SIZE = 16


class EngineOptions(NamedTuple):
    """The settings of the engine that a benchmark may vary."""

    tp: int = 1
    quantization: Literal["none", "int8", "fp8"] = "none"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: the checkpoint's own number format."""
    kernels: Literal["auto", "native", "torch"] = "auto"
    speculation: Literal["off", "ngram"] = "off"
    threads: int | None = None
    """Of each rank; None shares all cores this process may use."""
    deterministic: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Engine(Protocol):
    """An engine that stands."""

    def generate(self, prompts: list[list[int]], tokens: int) -> list[Stamp]: ...


def run(workload: Workload, options: EngineOptions) -> Iterator[Row]:
    """Start the engine, measure it, end it.

    Raises:
        ValueError, OSError, RuntimeError: the checkpoint or the settings cannot be served.
    """
    config = engine_config(workload, options)
    begin = time.perf_counter()
    with _started(config) as engine:
        yield load_row(begin)
        yield from measured(workload, engine.generate)
        yield from rank_memory(config)


def engine_config(workload: Workload, options: EngineOptions) -> EngineConfig:
    """An engine for exactly this workload: its KV cache holds the largest phase and no more."""
    sequence = workload.prompt_len + max(workload.output_len, WARM_TOKENS)
    phases = [(max(workload.batches), sequence), (1, workload.prefill_len + 1)]
    blocks = max(count * -(-length // BLOCK_SIZE) for count, length in phases)
    seqs = max(workload.batches)
    cores = len(os.sched_getaffinity(0))
    return EngineConfig(
        model_path=str(workload.model),
        tensor_parallel_size=options.tp,
        device=options.device,
        dtype=_dtype(workload, options),
        max_model_len=workload.longest,
        block_size=BLOCK_SIZE,
        num_kv_blocks=blocks + 1,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, EngineConfig(model_path="").max_num_batched_tokens),
        enable_prefix_caching=False,
        quantization=options.quantization,
        kernels=options.kernels,
        speculation=options.speculation,
        threads_per_rank=options.threads or max(1, cores // options.tp),
        deterministic=options.deterministic,
        load_progress=False,
    )


def _dtype(workload: Workload, options: EngineOptions) -> Literal["auto", "float32", "bfloat16"]:
    if options.dtype != "auto":
        return options.dtype
    config = json.loads((workload.model / "config.json").read_bytes())
    named = config.get("dtype") or config.get("torch_dtype")
    return "bfloat16" if named == "bfloat16" else "auto"


def _started(config: EngineConfig) -> AbstractContextManager[Engine]:
    return InlineEngine(config) if config.tensor_parallel_size == 1 else GangEngine(config)


def _requests(first: int, prompts: list[list[int]], tokens: int) -> list[EngineRequest]:
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return [EngineRequest(str(first + i), prompt, params) for i, prompt in enumerate(prompts)]


def _note(clock: Clock, first: int, outputs: list[EngineCoreOutput]) -> None:
    """Raises RuntimeError: the engine refused or lost a request."""
    for output in outputs:
        if output.error is not None:
            raise RuntimeError(f"the engine ended a request: {output.error}")
        clock.add(int(output.request_id) - first, len(output.new_token_ids))
    clock.stamp()


class InlineEngine:
    """One rank in this process."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._submitted = 0

    def __enter__(self) -> "InlineEngine":
        from cluster.engine.core_messages import EngineFacts
        from cluster.engine.rank_main import engine_core
        from cluster.model.tp_group import TPGroup
        from cluster.worker.executor import InlineExecutor
        from cluster.worker.worker import Worker

        worker = Worker(self._config, 0, TPGroup())
        worker.load()
        worker.init_kv_cache(worker.num_kv_blocks())
        facts = msgspec.convert(worker.facts, EngineFacts, from_attributes=True)
        self._core = engine_core(self._config, facts, InlineExecutor(worker))
        return self

    def __exit__(self, *exception: object) -> None:
        del self._core

    def generate(self, prompts: list[list[int]], tokens: int) -> list[Stamp]:
        first = self._submitted
        requests = _requests(first, prompts, tokens)
        self._submitted += len(requests)
        clock = Clock(len(prompts))
        for request in requests:
            refused = self._core.add(request)
            if refused is not None:
                _note(clock, first, [refused])
        while self._core.has_work:
            _note(clock, first, self._core.step())
        return clock.stamps


class GangEngine:
    """A process per rank, as a service has them."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._submitted = 0
        self._loop = asyncio.Runner()
        self._run: _Run | None = None

    def __enter__(self) -> "GangEngine":
        try:
            self._loop.run(self._start())
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.run(self._client.stop())
        self._loop.close()

    def generate(self, prompts: list[list[int]], tokens: int) -> list[Stamp]:
        return self._loop.run(self._generate(prompts, tokens))

    async def _start(self) -> None:
        from cluster.engine.core_client import CoreClient, EngineDeadError
        from cluster.engine.rank_main import main
        from cluster.worker.process_gang import ProcessGang

        self._client = CoreClient(
            self._config, lambda specs: ProcessGang(main, specs), self._on_step, self._on_death
        )
        try:
            await self._client.start()
        except EngineDeadError as error:
            raise RuntimeError(f"the engine did not start: {error}") from error

    async def _generate(self, prompts: list[list[int]], tokens: int) -> list[Stamp]:
        requests = _requests(self._submitted, prompts, tokens)
        self._run = run = _Run(self._submitted, len(prompts), tokens)
        self._submitted += len(requests)
        for request in requests:
            self._client.add(request)
        return await run.done

    def _on_step(self, step: EngineCoreOutputs) -> None:
        if self._run is not None and step.outputs:
            self._run.take(step.outputs)

    def _on_death(self, reason: str) -> None:
        if self._run is not None and not self._run.done.done():
            self._run.done.set_exception(RuntimeError(reason))


class _Run:
    """One call of `generate`, until all its tokens are out."""

    def __init__(self, first: int, prompts: int, tokens: int) -> None:
        self.done: asyncio.Future[list[Stamp]] = asyncio.get_running_loop().create_future()
        self._first = first
        self._clock = Clock(prompts)
        self._wanted = prompts * tokens

    def take(self, outputs: list[EngineCoreOutput]) -> None:
        try:
            _note(self._clock, self._first, outputs)
        except RuntimeError as error:
            self.done.set_exception(error)
            return
        if sum(self._clock.out) == self._wanted:
            self.done.set_result(self._clock.stamps)
