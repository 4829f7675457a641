import gc
import random
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cluster.request import SamplingParams
from cluster.worker.graphs.decode_graphs import MIXED, TOO_MANY_TOKENS, DecodeGraphs
from tests.cluster.worker.graphs.recording import DeviceAttention, FakeRecorder

GREEDY = SamplingParams(temperature=0.0, max_tokens=100)
HOT = SamplingParams(temperature=1.0, seed=9, max_tokens=100)
PROMPTS = [
    torch.randint(4, 160, (3 + 9 * n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in range(5)
]


@torch.inference_mode()
def record(
    driver: Any, sizes: Sequence[int], max_queries: int = 1
) -> list[tuple[DecodeGraphs, FakeRecorder]]:
    """Give every rank of a driver's workers recorded steps."""
    made = []
    for worker in driver.workers:
        runner = worker._runner
        runner._backend = DeviceAttention(runner._backend)
        graphs = DecodeGraphs(
            runner._model,
            runner._backend,
            runner._kv_cache,
            sizes,
            worker.facts.max_model_len,
            max_queries,
        )
        recorder = FakeRecorder(graphs.buffers)
        graphs.record(recorder)
        runner._graphs = graphs
        made.append((graphs, recorder))
    return made


def play(driver: Any, params: SamplingParams) -> dict[int, list[int]]:
    """Rows come and go, so that steps have one to five rows, and blocks change hands."""
    for row in (3, 1):
        driver.start(row, PROMPTS[row], params)
    for _ in range(9):
        driver.step()
    for row in (0, 2, 4):
        driver.start(row, PROMPTS[row], params)
    for _ in range(12):
        driver.step()
    told = {row: driver.tokens[row] for row in (3, 1)}
    for row in (3, 1):
        driver.release(row)
    driver.start(5, PROMPTS[3], params)
    for _ in range(20):
        driver.step()
    return {**told, **driver.tokens}


def play_in_pieces(driver: Any, most: int) -> dict[int, list[int]]:
    """Prompts in pieces of up to `most` tokens, as long as a row with drafts, beside decodes."""
    choose = random.Random(4)
    for row in range(5):
        driver.start(row, PROMPTS[row], GREEDY)
        for _ in range(6):
            left = {one: len(known) - driver.computed[one] for one, known in driver.tokens.items()}
            driver.step({one: min(n, choose.randint(1, most)) for one, n in left.items()})
    for _ in range(9):
        left = {one: len(known) - driver.computed[one] for one, known in driver.tokens.items()}
        driver.step({one: min(n, most) for one, n in left.items()})
    told: dict[int, list[int]] = driver.tokens
    return told


@pytest.mark.parametrize("params", [GREEDY, HOT], ids=["greedy", "by chance"])
def test_replayed_steps_draw_what_eager_ones_draw(
    params: SamplingParams, tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    want = play(make_driver(tiny_checkpoint, kernels="torch"), params)
    driver = make_driver(tiny_checkpoint, kernels="torch")
    [(graphs, recorder)] = record(driver, [1, 2, 4, 8])
    assert play(driver, params) == want
    assert graphs.replayed == 38
    assert graphs.refused == {MIXED: 3}
    by_size = [recording.replays for recording in recorder.recordings]
    assert by_size == [11, 19, 8, 0]  # 8 rows first: the largest is recorded first


def test_steps_of_rows_with_some_tokens_each_are_replayed_like_those_with_drafts(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    want = play_in_pieces(make_driver(tiny_checkpoint, kernels="torch"), 4)
    driver = make_driver(tiny_checkpoint, kernels="torch")
    [(graphs, recorder)] = record(driver, [1, 2, 4, 12, 20], max_queries=4)
    assert play_in_pieces(driver, 4) == want
    assert graphs.replayed == 39
    assert not graphs.refused
    assert len(recorder.recordings) == graphs.num_recordings == 9  # one token is no drafts
    by_drafts = [sum(one.replays for one in recorder.recordings[kind::2]) for kind in (0, 1)]
    assert min(by_drafts) > 5
    assert sum(by_drafts) == 39


def test_rows_with_more_tokens_than_was_recorded_are_computed_without(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    want = play_in_pieces(make_driver(tiny_checkpoint, kernels="torch"), 4)
    driver = make_driver(tiny_checkpoint, kernels="torch")
    [(graphs, _)] = record(driver, [4, 20], max_queries=2)
    assert play_in_pieces(driver, 4) == want
    assert graphs.refused.keys() == {MIXED}
    assert graphs.replayed + graphs.refused[MIXED] == 39


@torch.inference_mode()
def test_a_replay_gives_the_hidden_states_of_its_rows(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    driver = make_driver(tiny_checkpoint, kernels="torch")
    seen: list[tuple[Tensor, Tensor]] = []
    [(graphs, _)] = record(driver, [4])
    runner = driver.workers[0]._runner
    replay = graphs.run

    def both(token_ids: Tensor, metadata: Any) -> Tensor | None:
        eager = runner._model(token_ids, runner._kv_cache, runner._backend.plan(metadata))
        replayed = replay(token_ids, metadata)
        if replayed is not None:
            seen.append((replayed.clone(), eager))
        return replayed

    runner._graphs.run = both
    for row in (0, 1, 4):
        driver.start(row, PROMPTS[row], GREEDY)
    for _ in range(6):
        driver.step()
    assert len(seen) == 5
    for replayed, eager in seen:
        torch.testing.assert_close(replayed, eager, atol=1e-5, rtol=1e-5)
    assert not runner._kv_cache[0][:, 0, 1:].any()  # padding wrote to one slot of the dummy block
    assert runner._kv_cache[0][:, 0].isfinite().all()


def test_steps_that_no_graph_serves_are_computed_and_counted_by_reason(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    want = play(make_driver(tiny_checkpoint, kernels="torch"), GREEDY)
    driver = make_driver(tiny_checkpoint, kernels="torch")
    [(graphs, _)] = record(driver, [1, 2])
    assert play(driver, GREEDY) == want
    assert graphs.replayed == 8
    assert graphs.refused == {MIXED: 3, TOO_MANY_TOKENS: 30}


@torch.inference_mode()
def test_sizes_are_recorded_largest_first_and_leave_the_dummy_block_clean(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    runner = make_driver(tiny_checkpoint, kernels="torch").workers[0]._runner
    backend = DeviceAttention(runner._backend)
    graphs = DecodeGraphs(runner._model, backend, runner._kv_cache, [2, 16, 4], 256)
    told: list[int] = []
    graphs.record(FakeRecorder(), told.append)
    assert told == [16, 4, 2]
    assert not any(layer[:, 0].any() for layer in runner._kv_cache)


@torch.inference_mode()
def test_what_a_plan_made_room_for_lives_as_long_as_its_recording(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    """A recording holds addresses: memory that only `run` kept is somebody else's at the replay."""
    runner = make_driver(tiny_checkpoint, kernels="torch").workers[0]._runner
    made: list[weakref.ref[Any]] = []

    class Watched(DeviceAttention):
        def plan(self, metadata: Any) -> Any:
            plan = super().plan(metadata)
            made.append(weakref.ref(plan))
            return plan

    class Forgetful:
        def record(self, run: Callable[[], None]) -> Any:
            return None

    backend = Watched(runner._backend)
    graphs = DecodeGraphs(runner._model, backend, runner._kv_cache, [4, 2], 256)
    graphs.record(Forgetful())
    gc.collect()
    assert len(made) == 2
    assert all(plan() is not None for plan in made)


def forget(graphs: DecodeGraphs, name: str) -> None:
    """From now on an input stays as it is when a step's are filled in."""
    buffers, fill = graphs.buffers, graphs.buffers.fill

    def forgetful(*args: Any) -> None:
        stale = getattr(buffers, name).clone()
        fill(*args)
        getattr(buffers, name).copy_(stale)

    buffers.fill = forgetful  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize(
    "forgotten", ["token_ids", "positions", "slots", "seq_lens", "block_table"]
)
def test_an_input_that_is_not_refreshed_does_not_pass_unseen(
    forgotten: str, tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    eager = make_driver(tiny_checkpoint, kernels="torch")
    for row in (1, 4):
        eager.start(row, PROMPTS[row], GREEDY)
    for _ in range(20):
        eager.step()
    want = eager.tokens
    driver = make_driver(tiny_checkpoint, kernels="torch")
    [(graphs, _)] = record(driver, [4])
    forget(graphs, forgotten)
    try:
        for row in (1, 4):
            driver.start(row, PROMPTS[row], GREEDY)
        for _ in range(20):
            driver.step()
    except IndexError:
        return
    assert driver.tokens != want


@pytest.mark.parametrize("forgotten", ["seq_lens", "block_table", "cuts"])
def test_what_drafts_read_beside_their_tokens_does_not_stay_as_it_was_unseen(
    forgotten: str, tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    want = play_in_pieces(make_driver(tiny_checkpoint, kernels="torch"), 4)
    driver = make_driver(tiny_checkpoint, kernels="torch")
    [(graphs, _)] = record(driver, [20], max_queries=4)
    forget(graphs, forgotten)
    try:
        told = play_in_pieces(driver, 4)
    except (IndexError, RuntimeError):
        return
    assert told != want
