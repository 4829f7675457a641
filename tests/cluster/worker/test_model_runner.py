import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.batch import ScheduledRow, SchedulerOutput
from cluster.request import SamplingParams
from cluster.worker.input_batch import FrameError

GREEDY = SamplingParams(temperature=0.0, max_tokens=40)


def test_a_frame_without_work_is_bookkeeping_only(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    driver = make_driver(tiny_checkpoint)
    driver.start(1, [5, 6, 7], GREEDY)
    assert driver.step({}) == {}
    assert list(driver.step()) == [1]


def test_a_chunk_that_does_not_end_its_prompt_draws_nothing(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    driver = make_driver(tiny_checkpoint)
    driver.start(0, list(range(5, 25)), GREEDY)
    assert driver.step({0: 7}) == {}
    driver.start(3, [9, 10], GREEDY)
    assert list(driver.step({0: 6, 3: 2})) == [3]
    assert sorted(driver.step({3: 1, 0: 7})) == [0, 3]


def test_a_frame_from_another_history_is_refused(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    driver = make_driver(tiny_checkpoint)
    with pytest.raises(FrameError, match="disagree"):
        driver.execute(SchedulerOutput(1, [], [], [], [ScheduledRow(0, 0, 1, True)]))


@pytest.mark.parametrize(("tp", "cache"), [(1, "auto"), (2, "auto"), (1, "fp8")])
def test_a_row_whose_numbers_break_fails_alone_and_leaves_clean_blocks(
    tp: int, cache: str, tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    driver = make_driver(tiny_checkpoint, tp, kv_cache_dtype=cache)
    prompts = {0: [5, 6, 7, 8, 9], 1: [15, 16, 17], 2: [25, 26, 27, 28]}
    for row, prompt in prompts.items():
        driver.start(row, prompt, GREEDY)
    driver.step()
    reference = {row: list(tokens) for row, tokens in driver.tokens.items()}
    with torch.inference_mode():
        for worker in driver.workers:
            worker._runner._kv_cache[1][1, driver.blocks[1][0], 0] = math.nan
    drawn = driver.step()
    assert driver.failed == [1]
    assert sorted(drawn) == [0, 2]
    for worker in driver.workers:
        assert all(layer.float().isfinite().all() for layer in worker._runner._kv_cache)
    driver.release(1)
    # whoever inherits the blocks draws what a fresh start draws
    driver.start(4, prompts[1], GREEDY)
    assert driver.step({4: 3})[4] == reference[1][-1]


@pytest.mark.parametrize("tp", [1, 2])
def test_an_fp8_cache_gives_the_same_tokens_however_a_prompt_is_cut(
    tp: int, tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    prompt = list(range(5, 45))
    drawn = []
    for cut in (40, 13):
        driver = make_driver(tiny_checkpoint, tp, kv_cache_dtype="fp8")
        layers = driver.workers[0]._runner._kv_cache
        assert all(layer.dtype is torch.float8_e4m3fn for layer in layers)
        driver.start(2, prompt, GREEDY)
        while not driver.step({2: min(cut, len(prompt) - driver.computed[2])}):
            pass
        drawn.append([driver.step()[2] for _ in range(12)])
        assert driver.workers[0].facts.kernels.endswith("; cache fp8")
    assert drawn[0] == drawn[1]
