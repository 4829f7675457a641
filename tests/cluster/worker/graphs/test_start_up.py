import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.attention.selection import select_attention
from cluster.device import Device
from cluster.kernels import native
from cluster.model.tp_group import TPGroup
from cluster.request import SamplingParams
from cluster.worker import memory
from cluster.worker import worker as worker_module
from cluster.worker.memory import LOGIT_BYTES, RankMemory
from tests.cluster.worker.graphs.recording import DeviceAttention, FakeRecorder

GREEDY = SamplingParams(temperature=0.0, max_tokens=60)


@pytest.fixture
def recording_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that takes itself for a device with graphs."""
    monkeypatch.setattr(Device, "supports_graphs", True)
    monkeypatch.setattr(TPGroup, "capture_ok", True)
    monkeypatch.setattr(Device, "graph_recorder", lambda self: FakeRecorder())
    monkeypatch.setattr(
        worker_module, "select_attention", lambda *args: DeviceAttention(select_attention(*args))
    )


@pytest.mark.usefixtures("recording_cpu")
def test_a_worker_records_its_sizes_shows_how_far_it_is_and_replays(
    tiny_checkpoint: Path,
    make_driver: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        driver = make_driver(tiny_checkpoint, kernels="torch", max_num_seqs=4, load_progress=True)
    assert "5 CUDA graphs of 1, 2, 4 tokens" in caplog.text
    assert "recording CUDA graphs" in capfd.readouterr().err
    driver.start(0, [5, 6, 7], GREEDY)
    for _ in range(5):
        driver.step()
    assert driver.workers[0]._runner._graphs.replayed == 5  # the short prompt, too


@pytest.mark.usefixtures("recording_cpu")
@pytest.mark.parametrize(
    ("settings", "recorded"),
    [
        ({"kernels": "torch"}, 5),  # of 1, 2 and 4 tokens, of drafts from 2 on
        ({"kernels": "torch", "speculation": "off"}, 2),
        pytest.param(
            {"dtype": "float32", "deterministic": True},
            2,
            marks=pytest.mark.skipif(native.load()[0] is None, reason="needs the extension"),
        ),
    ],
)
def test_steps_with_drafts_are_recorded_where_there_can_be_any(
    settings: dict[str, Any],
    recorded: int,
    tiny_checkpoint: Path,
    make_driver: Callable[..., Any],
) -> None:
    driver = make_driver(tiny_checkpoint, max_num_seqs=2, **settings)
    assert driver.workers[0]._runner._graphs.num_recordings == recorded


@pytest.mark.usefixtures("recording_cpu")
def test_the_cache_is_sized_for_what_recorded_steps_leave(
    tiny_checkpoint: Path, make_driver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_driver(tiny_checkpoint, kernels="torch").workers[0]
    plain = make_driver(tiny_checkpoint, kernels="torch", cuda_graph_sizes=[]).workers[0]
    monkeypatch.setattr(Device, "total_memory", lambda self: 1 << 30)
    monkeypatch.setattr(Device, "free_memory", lambda self: 1 << 29)
    monkeypatch.setattr(memory, "graph_bytes", lambda make, sizes, device: 4321)
    rooms = [one._memory._cuda_room(one._loaded()) for one in (plain, worker)]
    assert rooms[0] - rooms[1] == 4321


def test_a_step_larger_than_any_request_is_measured(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    limits = {"max_model_len": 32, "max_num_batched_tokens": 128}
    worker = make_driver(tiny_checkpoint, kernels="torch", **limits).workers[0]
    assert worker._memory.step_bytes(worker._loaded()) > 0


def test_room_is_kept_for_the_draw_of_all_rows_and_their_drafts(
    tiny_checkpoint: Path, make_driver: Callable[..., Any]
) -> None:
    def draw_bytes(**settings: Any) -> int:
        settings |= {"kernels": "torch", "max_num_seqs": 4, "max_num_batched_tokens": 30}
        worker = make_driver(tiny_checkpoint, **settings).workers[0]
        return int(worker._memory.step_bytes(worker._loaded()))

    a_position = 160 * (4 + LOGIT_BYTES)  # float32 logits on this device
    assert draw_bytes(speculation="off") == 4 * a_position
    assert draw_bytes(speculation="ngram", num_speculative_tokens=3) == 16 * a_position
    assert draw_bytes(speculation="ngram", num_speculative_tokens=9) == 30 * a_position


def test_a_second_model_has_its_cache_and_its_steps_reckoned(
    tiny_checkpoint: Path, make_driver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"speculation": "draft", "draft_model_path": str(tiny_checkpoint)}
    worker = make_driver(tiny_checkpoint, kernels="torch", num_kv_blocks=None, **small).workers[0]
    a_block = worker.facts.block_size * worker.facts.kv_bytes_per_token
    monkeypatch.setattr(Device, "is_cuda", True)
    monkeypatch.setattr(Device, "total_memory", lambda self: 100 * a_block)
    monkeypatch.setattr(Device, "free_memory", lambda self: 100 * a_block)
    monkeypatch.setattr(RankMemory, "step_bytes", lambda self, model: 10 * a_block)
    usable = 100 * worker.config.gpu_memory_utilization
    assert worker._memory.num_kv_blocks(worker._loaded) == int(usable - 10)
    assert worker.num_kv_blocks() == int((usable - 20) / 2)


def test_a_cpu_records_nothing(tiny_checkpoint: Path, make_driver: Callable[..., Any]) -> None:
    assert make_driver(tiny_checkpoint).workers[0]._runner._graphs is None
