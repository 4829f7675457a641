"""The kernels of GPUs as one set: chosen where they can be, complete, and compiled for Hopper."""

from tests.cluster import triton_interpreter  # isort: skip

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config import EngineConfig
from cluster.device import Device
from cluster.kernels.fp8 import Fp8Weight
from cluster.kernels.kernels import Quantization
from cluster.kernels.selection import select_kernels
from cluster.kernels.tiled import TILE, TiledWeight
from cluster.kernels.torch_kernels import TorchKernels
from cluster.kernels.triton_kernels import TritonKernels
from tests.bench import bench_quantization
from tests.bench.bench_quantization import DEMO, logits, settings
from tests.cluster.test_fp8_logits import texts

assert triton_interpreter
CPU = torch.device("cpu")
GPU = Device(torch.device("cuda", 0))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "H200")


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(model_path="", **settings)


@pytest.mark.usefixtures("hopper")
def test_a_gpu_takes_triton_where_it_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = select_kernels(GPU, torch.bfloat16, config())
    assert isinstance(kernels, TritonKernels)
    assert "triton" in kernels.signature()
    assert any(line.startswith("norms, activation, maxima: triton") for line in kernels.describe())
    asked = select_kernels(GPU, torch.bfloat16, config(kernels="torch"))
    assert isinstance(asked, TorchKernels)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    without = select_kernels(GPU, torch.bfloat16, config())
    assert isinstance(without, TorchKernels)
    assert "triton cannot be imported" in without.describe()[0]


@pytest.mark.usefixtures("hopper")
def test_compiled_cpu_kernels_are_refused_on_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="kernels: native cannot be served: the device is a GPU"):
        select_kernels(GPU, torch.bfloat16, config(kernels="native"))


@pytest.mark.usefixtures("hopper")
def test_deterministic_mode_cuts_products_itself_or_is_refused_on_a_gpu() -> None:
    kernels = select_kernels(GPU, torch.bfloat16, config(deterministic=True))
    assert f"by {TILE} rows" in kernels.signature()
    with pytest.raises(RuntimeError, match="deterministic: true cannot be served: kernels: torch"):
        select_kernels(GPU, torch.bfloat16, config(deterministic=True, kernels="torch"))
    made = TritonKernels(CPU, torch.bfloat16, deterministic=True)
    assert isinstance(made.linear_weight(16, 16), TiledWeight)
    assert isinstance(made.head_weight(16, 16), TiledWeight)


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_a_whole_model_says_what_it_says_in_torch(
    quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = texts()[0]
    ids = text.ids[: text.prompt + 30]
    made: list[TritonKernels | TorchKernels] = []

    def select(device: Device, dtype: torch.dtype, asked: EngineConfig) -> Any:
        made.append(
            TorchKernels(CPU, dtype, quantization=quantization)
            if not made
            else TritonKernels(CPU, dtype, quantization)
        )
        return made[-1]

    monkeypatch.setattr(bench_quantization, "select_kernels", select)
    asked = settings(DEMO, quantization)
    want, got = logits(asked, ids), logits(asked, ids)
    assert isinstance(made[1], TritonKernels)
    assert (got - want).square().mean().sqrt() < 0.01 * (want.max() - want.min())
    assert torch.equal(got.argmax(-1)[-30:], want.argmax(-1)[-30:])
    assert isinstance(made[1].linear_weight(16, 16), Fp8Weight) == (quantization == "fp8")


def test_every_kernel_compiles_for_hopper_without_one(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    compiled = subprocess.run(
        [sys.executable, "-m", "tests.cluster.kernels.compile_triton"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    names = [line.split()[0] for line in compiled.stdout.splitlines()]
    assert names == ["_norm", "_norm", "_silu_and_mul", "_quantize", "_draw", "_parts", "_whole"]
