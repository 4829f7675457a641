"""The offline benchmark on a tiny random checkpoint, as its command is typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.bench.offline import EngineOptions, engine_config
from serve_app.bench.workload import Workload
from serve_app.cli import app
from tests.bench.checkpoints import SHAPES, make_checkpoint

SMALL = ["--batch", "1,3", "--prompt-len", "5", "--output-len", "4", "--prefill-len", "20"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a tokenizer: a benchmark needs none."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, SHAPES["tiny"])
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_json_is_one_object_a_row_and_nothing_else(checkpoint: Path, ranks: int) -> None:
    arguments = ["--model", str(checkpoint), *SMALL, "--tp", str(ranks), "--threads", "1"]
    done = CliRunner().invoke(app, ["bench", "offline", "--json", "--rounds", "1", *arguments])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kind"] for row in rows} == {
        "load", "ttft", "decode", "end_to_end", "prefill", "memory",
    }  # fmt: skip
    assert [row["batch"] for row in rows if row["kind"] == "decode"] == [1, 3]
    assert all(row["tokens_per_s"] > 0 for row in rows if "tokens_per_s" in row)
    assert next(row["length"] for row in rows if row["kind"] == "prefill") == 20


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
