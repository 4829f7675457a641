"""The offline benchmark on a tiny random checkpoint, as its command is typed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve_app.bench.offline import EngineOptions, engine_config
from serve_app.bench.workload import Workload
from serve_app.cli import app
from tests.bench.checkpoints import SHAPES, Shape, make_checkpoint

MIDDLING = Shape(1024, 4, 16, 8, 2816, 65_536, False, 2048)
"""179 M parameters, most of them in embedding and head: a rank's weights are no trifle."""
SMALL = ["--batch", "1,3", "--prompt-len", "5", "--output-len", "4", "--prefill-len", "20"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a tokenizer: a benchmark needs none."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, SHAPES["tiny"])
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("middling")
    make_checkpoint(folder, MIDDLING)
    return folder


def bench_rows(*arguments: str) -> list[dict[str, Any]]:
    """Of a process of its own: its children are the ranks, and its memory is measured."""
    command = [sys.executable, "-c", "from serve_app.cli import main; main()", "bench", "offline"]
    done = subprocess.run(
        [*command, "--json", "--rounds", "1", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("ranks", [1, 2])
def test_json_is_one_object_a_row_and_nothing_else(checkpoint: Path, ranks: int) -> None:
    arguments = ["--model", str(checkpoint), *SMALL, "--tp", str(ranks), "--threads", "1"]
    rows = bench_rows(*arguments)
    assert {row["kind"] for row in rows} == {
        "load", "ttft", "decode", "end_to_end", "prefill", "memory", "rank_memory",
    }  # fmt: skip
    assert [row["batch"] for row in rows if row["kind"] == "decode"] == [1, 3]
    assert all(row["tokens_per_s"] > 0 for row in rows if "tokens_per_s" in row)
    assert next(row["length"] for row in rows if row["kind"] == "prefill") == 20
    assert [row["rank"] for row in rows if row["kind"] == "rank_memory"] == list(range(ranks))


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_rank_takes_a_tenth_more_or_less_memory_than_planned(
    middling: Path, ranks: int, quantization: str
) -> None:
    arguments = ["--model", str(middling), *SMALL, "--tp", str(ranks), "--threads", "1"]
    rows = bench_rows(*arguments, "--quantization", quantization)
    memory = [row for row in rows if row["kind"] == "rank_memory"]
    assert len(memory) == ranks
    assert all(row["of_plan"] == pytest.approx(1, abs=0.1) for row in memory), memory


def test_the_cache_holds_the_largest_phase_and_no_more(checkpoint: Path) -> None:
    workload = Workload(checkpoint, (1, 8), 100, 28, 64)
    config = engine_config(workload, EngineOptions())
    assert config.num_kv_blocks == 8 * 128 // config.block_size + 1
    assert config.max_model_len == 128
    assert config.dtype == "bfloat16"  # the checkpoint's own
    assert not config.enable_prefix_caching


def test_a_folder_without_a_checkpoint_is_told_plainly(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "offline", "--model", str(tmp_path), "--json"])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "config.json" in done.stderr
