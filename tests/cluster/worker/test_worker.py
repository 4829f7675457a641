import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cluster.config import EngineConfig
from cluster.device import Device
from cluster.model.model_config import UnsupportedModelError
from cluster.model.tp_group import TPGroup
from cluster.request import SamplingParams
from cluster.worker.worker import Worker

GREEDY = SamplingParams(temperature=0.0, max_tokens=60)
PROMPTS = [
    torch.randint(4, 160, (5 + 7 * n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in range(6)
]


def reference(model: Any, prompt: list[int], count: int) -> list[int]:
    """transformers' own greedy continuation."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    continuation: list[int] = out[0, len(prompt) :].tolist()
    return continuation


def generate(
    driver: Any, prompts: dict[int, list[int]], params: SamplingParams, count: int
) -> dict[int, list[int]]:
    """All prompts at once."""
    for row, prompt in prompts.items():
        driver.start(row, prompt, params)
    for _ in range(count):
        driver.step()
    return {row: driver.tokens[row][len(prompt) :] for row, prompt in prompts.items()}


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "tied_checkpoint"])
def test_greedy_text_is_that_of_transformers_in_a_batch(
    tp: int,
    checkpoint: str,
    request: pytest.FixtureRequest,
    make_driver: Callable[..., Any],
    oracle: Callable[[Path], Any],
) -> None:
    folder = request.getfixturevalue(checkpoint)
    driver = make_driver(folder, tp)
    got = generate(driver, dict(enumerate(PROMPTS)), GREEDY, 20)
    assert list(got.values()) == [reference(oracle(folder), p, 20) for p in PROMPTS]


@pytest.mark.parametrize("tp", [1, 2])
def test_chunks_a_resumed_row_and_a_shared_prefix_change_no_greedy_token(
    tp: int,
    tiny_checkpoint: Path,
    make_driver: Callable[..., Any],
    oracle: Callable[[Path], Any],
) -> None:
    prompt = PROMPTS[5]
    want = reference(oracle(tiny_checkpoint), prompt, 30)
    driver = make_driver(tiny_checkpoint, tp)
    driver.start(0, PROMPTS[2], GREEDY)
    driver.step()
    driver.start(3, prompt, GREEDY)
    for chunk in (1, 9, 8, 3):
        driver.step({0: 1, 3: chunk})
    driver.step({3: len(prompt) - 21})
    for _ in range(11):
        driver.step()
    known = driver.tokens[3]
    assert known[len(prompt) :] == want[:12]
    prefix = driver.blocks[3][:4]
    driver.release(3)  # preempted: known tokens come again, blocks are others, the row too
    driver.start(1, known, GREEDY, num_prompt=len(prompt))
    driver.start(2, prompt, GREEDY, shared=prefix)
    for _ in range(18):
        driver.step()
    assert driver.tokens[1][len(prompt) :] == want
    assert driver.tokens[2][len(prompt) :] == want[:18]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=5, max_tokens=60),
        SamplingParams(seed=-(2**63), temperature=1.0, top_p=1.0, max_tokens=60),
        SamplingParams(seed=77, temperature=1.5, top_k=20, min_p=0.02, max_tokens=60),
    ],
    ids=["nucleus", "unfiltered", "top_k"],
)
def test_a_seed_gives_one_text_alone_in_a_batch_split_and_after_a_preemption(
    params: SamplingParams, tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    prompt = PROMPTS[3]
    alone = make_driver(tiny_checkpoint)
    want = generate(alone, {0: prompt}, params, 24)[0]
    assert len(set(want)) > 5
    for tp in (1, 2, 4):
        driver = make_driver(tiny_checkpoint, tp)
        crowd = {row: PROMPTS[row % 6] for row in range(16) if row != 7}
        for row, other in crowd.items():
            driver.start(row, other, SamplingParams(seed=row, top_p=0.8, max_tokens=60))
        driver.step()
        got = generate(driver, {7: prompt}, params, 12)[7]
        known = driver.tokens[7]
        driver.release(7)
        driver.start(17, known, params, num_prompt=len(prompt))
        for _ in range(12):
            driver.step()
        assert got + driver.tokens[17][len(known) :] == want


def test_end_ids_wait_for_min_tokens_and_stay_banned_after_a_preemption(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    driver = make_driver(tiny_checkpoint)
    everything = tuple(range(150))
    params = SamplingParams(min_tokens=4, stop_token_ids=everything, max_tokens=60)
    driver.start(0, [5, 6], params)
    driver.step()
    driver.step()
    known = driver.tokens[0]
    driver.release(0)
    driver.start(0, known, params, num_prompt=2)
    driver.step()
    driver.step()
    assert min(driver.tokens[0][2:6]) >= 150


def worker(folder: Path, **settings: Any) -> Worker:
    config = EngineConfig(
        **{"model_path": str(folder), "device": "cpu", "load_progress": False, **settings}
    )
    return Worker(config, 0, TPGroup())


def test_facts_are_complete(tiny_checkpoint: Path, make_driver: Callable[..., Any]) -> None:
    first, second = (w.facts for w in make_driver(tiny_checkpoint, 2).workers)
    assert first.kernels
    assert second.kernels  # every rank measures for itself, and may come out otherwise
    assert msgspec.structs.replace(first, kernels=second.kernels) == second
    assert (first.vocab_size, first.num_real_tokens, first.eos_token_ids) == (160, 160, (3,))
    assert (first.max_model_len, first.num_kv_blocks, first.block_size) == (256, 120, 8)
    assert first.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4
    assert (first.device, first.dtype) == ("cpu", "float32")
    assert first.attention_backend in ("native", "cpu")


def test_the_cache_is_sized_by_the_setting_the_memory_or_the_need(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = 16 * 2 * 2 * 4 * 8 * 4
    assert worker(tiny_checkpoint, num_kv_blocks=33).num_kv_blocks() == 33
    assert worker(tiny_checkpoint, kv_cache_gib=100 * block / 2**30).num_kv_blocks() == 100
    need = worker(tiny_checkpoint, max_num_seqs=3, max_model_len=100)
    assert need.num_kv_blocks() == 3 * 7 + 1
    monkeypatch.setattr(Device, "free_memory", lambda self: 4 * 50 * block)
    assert worker(tiny_checkpoint).num_kv_blocks() == 50
    monkeypatch.setattr(Device, "free_memory", lambda self: 0)
    with pytest.raises(ValueError, match="KV cache"):
        worker(tiny_checkpoint).num_kv_blocks()


def test_a_context_that_does_not_fit_the_cache_is_refused_or_cut(tiny_checkpoint: Path) -> None:
    cut = worker(tiny_checkpoint, num_kv_blocks=5)
    cut.load()
    cut.init_kv_cache(5)
    assert cut.facts.max_model_len == 64
    asked = worker(tiny_checkpoint, num_kv_blocks=5, max_model_len=65)
    asked.load()
    with pytest.raises(ValueError, match="max_model_len 65 does not fit"):
        asked.init_kv_cache(5)


def test_ids_beyond_the_tokenizer_are_not_drawn(
    tiny_checkpoint: Path, tmp_path: Path, make_driver: Callable[..., Any]
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    vocab = {f"t{i}": i for i in range(20)} | {"last": 29}
    Tokenizer(WordLevel(vocab, unk_token="t0")).save(str(tmp_path / "tokenizer.json"))
    driver = make_driver(tmp_path)
    assert driver.workers[0].facts.num_real_tokens == 30
    hot = SamplingParams(temperature=2.0, top_p=1.0, max_tokens=60)
    drawn = generate(driver, {row: PROMPTS[row] for row in range(6)}, hot, 20)
    assert max(max(tokens) for tokens in drawn.values()) < 30


def test_what_cannot_be_served_is_refused_before_any_weight_is_read(
    tiny_checkpoint: Path, tmp_path: Path, ranks: Callable[[int], Any]
) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mixtral"}))
    with pytest.raises(UnsupportedModelError, match="mixtral"):
        worker(tmp_path)
    three = EngineConfig(model_path=str(tiny_checkpoint), tensor_parallel_size=3, device="cpu")
    with pytest.raises(ValueError, match="tensor_parallel_size 3 does not divide"):
        Worker(three, 0, ranks(3).groups[0])
    with pytest.raises(ValueError, match="was given a group"):
        Worker(three, 0, TPGroup())
    with pytest.raises(ValueError, match="attention_backend 'triton' is not available on cpu"):
        worker(tiny_checkpoint, attention_backend="triton")


def test_loading_shows_its_progress_on_standard_error(
    tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker(tiny_checkpoint, load_progress=True).load()
    out, err = capfd.readouterr()
    assert out == ""
    assert "loading weights" in err
    worker(tiny_checkpoint).load()
    assert "loading weights" not in capfd.readouterr().err


def test_the_model_runs_in_bfloat16_too(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    driver = make_driver(tiny_checkpoint, 2, dtype="bfloat16")
    got = generate(driver, {0: PROMPTS[1], 1: PROMPTS[2]}, GREEDY, 5)
    assert all(len(tokens) == 5 for tokens in got.values())
    assert driver.workers[0].facts.dtype == "bfloat16"


@pytest.mark.parametrize("tp", [1, 2])
def test_the_second_start_reads_the_ranks_own_cache(
    tp: int,
    tiny_checkpoint: Path,
    tmp_path: Path,
    make_driver: Callable[..., Any],
    oracle: Callable[[Path], Any],
) -> None:
    want = reference(oracle(tiny_checkpoint), PROMPTS[0], 8)
    written = []
    for _ in range(2):
        driver = make_driver(tiny_checkpoint, tp, weight_cache_dir=str(tmp_path))
        assert generate(driver, {0: PROMPTS[0]}, GREEDY, 8)[0] == want
        written.append({file: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")})
    assert len(written[0]) == tp
    assert written[0] == written[1]
