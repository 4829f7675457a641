"""`deeprequest plan` as typed: figures, refusals, exit codes, and how little it imports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import app

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "configs/models/deeprequest-demo")


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "120"})


def planned(*words: str, exit_code: int = 0) -> dict[str, Any]:
    result = typed(*words, "--json")
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("tp", "weight_gb", "token_bytes", "thousands", "one_stream"),
    [
        (1, 65.53, 262_144, 40, 52),
        (2, 32.76, 131_072, 329, 99),
        (4, 16.38, 65_536, 909, 187),
        (8, 8.19, 32_768, 2068, 316),
    ],
)
def test_the_32b_on_h100s_is_planned_as_published(
    tp: int, weight_gb: float, token_bytes: int, thousands: int, one_stream: int
) -> None:
    found = planned("deepseek-r1-32b", "--gpu", "H100-80", "--tp", str(tp))
    assert found["fits"]
    assert found["per_rank"]["weight_bytes"] / 1e9 == pytest.approx(weight_gb, abs=0.01)
    assert found["per_rank"]["kv_bytes_per_token"] == token_bytes
    assert found["kv_bytes_per_token"] == 262_144
    assert found["kv_tokens"] / 1000 == pytest.approx(thousands, abs=1)
    assert found["one_stream"]["floor_tokens_per_s"] == pytest.approx(one_stream, abs=1)


def test_what_does_not_fit_is_told_with_settings_that_do() -> None:
    found = planned("32b", "--gpu", "H100-80", "--max-model-len", "131072", exit_code=2)
    assert "max_model_len 131,072 does not fit" in found["problem"]
    assert "tensor_parallel_size: 2" in found["remedies"]
    shown = typed("32b", "--gpu", "H100-80", "--max-model-len", "131072")
    assert shown.exit_code == 2
    assert "tensor_parallel_size: 2" in shown.stdout


def test_ranks_that_do_not_divide_are_refused_with_those_that_do() -> None:
    found = planned("32b", "--gpu", "H100-80", "--tp", "3", exit_code=2)
    assert "40 query heads and 8 kv heads" in found["problem"]
    assert found["tensor_parallel_sizes"] == [1, 2, 4, 8]
    assert "split by 1, 2, 4, 8" in typed("32b", "--tp", "3").stdout


def test_a_price_and_a_rate_give_the_cost_of_a_million_tokens() -> None:
    found = planned("32b", "--gpu", "H200", "--tp", "2", "--price", "4", "--batch", "128")
    (row,) = found["decode"]
    assert row["floor_ms"] == pytest.approx(16.4, abs=0.06)
    per_second = row["expected_tokens_per_s"]
    assert row["cost_per_million_tokens"] == pytest.approx(
        2 * 4 / 3600 / per_second * 1e6, rel=0.01
    )


def test_a_folder_is_planned_from_its_config() -> None:
    found = planned(DEMO, "--device", "cpu", "--gb-per-s", "30", "--dtype", "fp32")
    assert found["model"] == "deeprequest-demo"
    assert found["device"]["gb_per_s"] == 30
    assert found["settings"]["weight_bytes_per_number"] == 4
    assert found["per_rank"]["weight_bytes"] == found["settings"]["parameters"] * 4


def test_few_requests_need_a_small_cache() -> None:
    words = (DEMO, "--device", "cpu", "--max-model-len", "512", "--max-num-seqs", "4")
    rank = planned(*words)["per_rank"]
    assert rank["kv_cache_bytes"] == (4 * 32 + 1) * 16 * rank["kv_bytes_per_token"]


def test_a_services_file_brings_model_and_settings() -> None:
    found = planned("--config", str(ROOT / "configs/deepseek-r1-32b.yaml"), "--gpu", "H100-80")
    assert found["model"] == "deepseek-r1-32b"
    assert found["settings"]["tensor_parallel_size"] == 4
    assert found["settings"]["max_model_len"] == 131_072
    quick = planned("--config", str(ROOT / "configs/quickstart.yaml"), "--model", DEMO)
    assert quick["device"]["name"] == "cpu"
    assert quick["kv_tokens"] == 4096 * 16


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("deepseek-r1-33b",), "did you mean deepseek-r1-32b?"),
        (("32b", "--gpu", "H300"), "H300 is not a known device; known are A10G"),
        (("--config", "none.yaml"), "none.yaml"),
        (("1.5b", "--device", "cpu", "--dtype", "fp8"), "on a CPU use --dtype int8"),
    ],
)
def test_what_is_not_known_is_an_error_line(words: tuple[str, ...], complaint: str) -> None:
    result = typed(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert complaint in result.stderr


def test_figures_that_cannot_be_are_refused() -> None:
    for words in (("--memory-gib", "0"), ("--batch", "0"), ("--max-model-len", "-5")):
        assert typed("32b", *words).exit_code == 2


def test_keys_and_values_are_planned_in_the_formats_that_the_engine_keeps_them_in() -> None:
    assert planned("32b", "--kv-dtype", "fp32")["settings"]["kv_bytes_per_number"] == 4
    assert typed("32b", "--kv-dtype", "fp8").exit_code == 2
    usual, narrow = planned("32b"), planned("32b", "--kv-cache-dtype", "fp8")
    assert narrow["settings"]["kv_bytes_per_number"] == 1
    assert narrow["kv_tokens"] == pytest.approx(2 * usual["kv_tokens"], abs=1)
    assert narrow["per_rank"]["weight_bytes"] == usual["per_rank"]["weight_bytes"]


def test_a_services_file_says_how_keys_and_values_are_kept(tmp_path: Path) -> None:
    written = (ROOT / "configs/deepseek-r1-32b.yaml").read_text()
    file = tmp_path / "service.yaml"
    file.write_text(written.replace("engine:\n", "engine:\n  kv_cache_dtype: fp8\n"))
    found = planned("--config", str(file), "--gpu", "H100-80")
    assert found["kv_bytes_per_token"] == 131_072


def test_help_names_every_option() -> None:
    shown = typed("--help")
    assert shown.exit_code == 0
    assert "--max-model-len" in shown.stdout


def test_a_plan_needs_none_of_the_heavy_libraries() -> None:
    heavy = {"torch", "transformers", "ray", "fastapi", "pydantic", "yaml", "asyncio", "numpy"}
    check = (
        f"import sys; sys.argv = ['deeprequest', 'plan', {DEMO!r}, '--json']\n"
        "from serve_app.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"sys.exit(' '.join({heavy!r} & set(sys.modules)) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
