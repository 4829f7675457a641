"""Steps launched before the answer to the last is there: the same tokens, and nobody waits."""

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from cluster.batch import SchedulerOutput
from cluster.config import EngineConfig
from cluster.engine.core_messages import EngineFacts
from cluster.engine.engine_core import EngineCore
from cluster.engine.rank_main import engine_core
from cluster.model.tp_group import TPGroup
from cluster.request import EngineRequest, FinishReason, SamplingParams
from cluster.worker.executor import InlineExecutor
from cluster.worker.model_runner import ModelRunner
from cluster.worker.step import LaunchedStep, Step
from cluster.worker.worker import Worker
from tests.cluster.worker.late_device import make_late

Answers = dict[str, tuple[list[int], list[Any], FinishReason | None]]

KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 0.8, "top_k": 20, "frequency_penalty": 0.7},
    {"temperature": 0.7, "min_p": 0.05, "logit_bias": {7: 3.0}},
    {"temperature": 0.0, "repetition_penalty": 1.3, "min_tokens": 12},
]
FLAT: list[dict[str, Any]] = [{"temperature": 2.0, "top_p": 0.999}, {"temperature": 0.0}]
"""Draws that reach beyond what is offered."""
TOLD: list[dict[str, Any]] = [*KINDS[:2], {"temperature": 1.0, "logprobs": 2}]
"""Draws that the host makes."""


def asked(kinds: list[dict[str, Any]]) -> list[EngineRequest]:
    made = []
    for n in range(9):
        params = SamplingParams(max_tokens=12 + 2 * n, seed=n, **kinds[n % len(kinds)])
        made.append(EngineRequest(f"r{n}", [5 + n, 9, 30, 41 + n, 9] * (1 + n), params))
    return made


def settings(checkpoint: Path, **changes: Any) -> EngineConfig:
    return EngineConfig(
        **{
            "model_path": str(checkpoint),
            "device": "cpu",
            "kernels": "torch",
            "block_size": 8,
            "num_kv_blocks": 90,
            "max_num_seqs": 5,
            "max_num_batched_tokens": 24,
            "speculation": "off",
            "load_progress": False,
            **changes,
        }
    )


def ready(config: EngineConfig, group: TPGroup, events: list[str] | None = None) -> Worker:
    worker = Worker(config, group.rank, group)
    worker.load()
    worker.init_kv_cache(worker.num_kv_blocks())
    if events is not None:
        make_late(worker, group, events)
    return worker


def core_over(worker: Worker, executor: Any) -> EngineCore:
    facts = msgspec.convert(worker.facts, EngineFacts, from_attributes=True)
    return engine_core(worker.config, facts, executor)


def run(core: EngineCore, requests: list[EngineRequest], abort_at: int = 0) -> Answers:
    answers: Answers = {request.request_id: ([], [], None) for request in requests}
    for request in requests:
        assert core.add(request) is None
    steps = 0
    while core.has_work:
        steps += 1
        if steps == abort_at:
            core.abort("r3")
        for output in core.step():
            tokens, logprobs, _ = answers[output.request_id]
            tokens += output.new_token_ids
            logprobs += [pytest.approx(one.logprob, abs=1e-4) for one in output.logprobs or ()]
            answers[output.request_id] = tokens, logprobs, output.finish_reason
    core.scheduler.check_integrity()
    return answers


class Noted:
    """Launches on one rank, and notes it."""

    def __init__(self, worker: Worker, events: list[str]) -> None:
        self._worker = worker
        self._events = events

    def submit(self, frame: SchedulerOutput) -> LaunchedStep:
        self._events.append(f"launch {frame.step}")
        launched = self._worker.launch(frame)
        self._events.append("launched")
        return launched


def late(checkpoint: Path, **changes: Any) -> tuple[EngineCore, Worker, list[str]]:
    events: list[str] = []
    config = settings(checkpoint, async_scheduling=True, **changes)
    worker = ready(config, TPGroup(), events)
    return core_over(worker, Noted(worker, events)), worker, events


def plain(checkpoint: Path, **changes: Any) -> EngineCore:
    worker = ready(settings(checkpoint, **changes), TPGroup())
    return core_over(worker, InlineExecutor(worker))


@pytest.mark.parametrize("kinds", [KINDS, FLAT, TOLD], ids=["filters", "flat", "logprobs"])
@pytest.mark.parametrize("changes", [{}, {"num_kv_blocks": 15}, {"speculation": "ngram"}], ids=str)
def test_late_answers_change_no_token(
    changes: dict[str, Any], kinds: list[dict[str, Any]], tiny_checkpoint: Path
) -> None:
    expected = run(plain(tiny_checkpoint, **changes), asked(kinds))
    core, _, events = late(tiny_checkpoint, **changes)
    assert run(core, asked(kinds)) == expected
    assert (core.stats().preemptions > 0) == ("num_kv_blocks" in changes)
    assert "wait" in events


def test_the_host_waits_for_no_step_before_the_next_is_launched(tiny_checkpoint: Path) -> None:
    core, _, events = late(tiny_checkpoint)
    greedy = [
        EngineRequest(
            f"r{n}",
            [5 + n, 9],
            SamplingParams(temperature=0.6, top_k=20, max_tokens=30, ignore_eos=True),
        )
        for n in range(3)
    ]
    run(core, greedy)
    at = {event: place for place, event in enumerate(events)}
    steps = [n for n in range(1, 28) if f"launch {n + 1}" in at]
    assert len(steps) > 20
    for step in steps:
        begin = at[f"launch {step + 1}"]
        assert events[begin + 1] == "launched"  # nothing was waited for within
        waits = events[: begin + 1].count("wait")
        assert waits == step - 1  # and not for the step before


def test_a_step_that_took_a_wrong_token_is_launched_again(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, _, events = late(tiny_checkpoint)
    forward = ModelRunner._forward

    def noted(self: ModelRunner, step: Step) -> None:
        events.append("forward")
        forward(self, step)

    monkeypatch.setattr(ModelRunner, "_forward", noted)
    assert run(core, asked(FLAT)) == run(plain(tiny_checkpoint), asked(FLAT))
    launched = events.count("launched")
    own = events[: len(events) - 1 - events[::-1].index("launched")]
    assert own.count("forward") > launched


def test_a_request_that_leaves_while_its_token_is_drawn_disturbs_nobody(
    tiny_checkpoint: Path,
) -> None:
    expected = run(plain(tiny_checkpoint), asked(KINDS), abort_at=7)
    core, _, _ = late(tiny_checkpoint)
    answers = run(core, asked(KINDS), abort_at=7)
    for name, answer in expected.items():
        if name != "r3":
            assert answers[name] == answer


def test_a_row_that_breaks_under_way_fails_alone_and_leaves_clean_blocks(
    tiny_checkpoint: Path,
) -> None:
    expected = run(plain(tiny_checkpoint), asked(KINDS[:1]))
    core, worker, _ = late(tiny_checkpoint)
    requests = asked(KINDS[:1])
    for request in requests:
        core.add(request)
    answers: Answers = {request.request_id: ([], [], None) for request in requests}
    broken, steps = "", 0
    assert worker._runner is not None
    cache = worker._runner._kv_cache
    while core.has_work:
        steps += 1
        if steps == 12:
            victim = core.scheduler._running[1]
            broken = victim.request_id
            with torch.inference_mode():
                cache[1][1, victim.table.blocks[0].block_id, 0] = float("nan")
        for output in core.step():
            tokens, _, _ = answers[output.request_id]
            tokens += output.new_token_ids
            answers[output.request_id] = tokens, [], output.finish_reason
    assert broken
    for name, answer in expected.items():
        if name == broken:
            assert answers[name][2] is FinishReason.ERROR
        else:
            assert answers[name] == answer
    assert all(layer.isfinite().all() for layer in cache)


@pytest.mark.parametrize("kinds", [KINDS, FLAT], ids=["filters", "flat"])
@pytest.mark.parametrize("ahead", [True, False])
def test_two_ranks_settle_in_step(
    ahead: bool, kinds: list[dict[str, Any]], tiny_checkpoint: Path, ranks: Callable[[int], Any]
) -> None:
    """Rank 1 follows frames from a queue, as a rank's process does."""
    expected = run(plain(tiny_checkpoint), asked(kinds))
    everyone = ranks(2)
    config = settings(tiny_checkpoint, tensor_parallel_size=2, async_scheduling=ahead)
    frames: queue.Queue[SchedulerOutput | str | None] = queue.Queue()
    answers: list[Answers] = []

    class Lead:
        def __init__(self, worker: Worker) -> None:
            self._worker = worker

        def submit(self, frame: SchedulerOutput) -> Any:
            frames.put(frame)
            return Settling(self._worker.launch(frame))

    class Settling:
        def __init__(self, launched: LaunchedStep) -> None:
            self._launched = launched

        def result(self) -> Any:
            if self._launched.needs_settling():
                frames.put(None)
            return self._launched.result()

    def on_rank(group: TPGroup) -> None:
        worker = ready(config, group, [])
        if group.rank == 0:
            answers.append(run(core_over(worker, Lead(worker)), asked(kinds)))
            frames.put("end")
            return
        while (frame := frames.get(timeout=120)) != "end":
            assert not isinstance(frame, str)
            worker.follow(frame)

    everyone.run(on_rank)
    assert answers == [expected]
