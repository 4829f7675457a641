"""Which backend a GPU gets; the GPUs and libraries are told, not there."""

from tests.cluster import triton_interpreter  # isort: skip

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from cluster.attention.backend import HeadShape
from cluster.attention.gpu_selection import Choice, select_on_gpu
from cluster.config import EngineConfig
from cluster.device import Device

assert triton_interpreter
BF16 = HeadShape(40, 8, 128, torch.bfloat16)
AMPERE, ADA, HOPPER, BLACKWELL = (8, 0), (8, 9), (9, 0), (10, 0)


def device(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> Device:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "the GPU")
    processors = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: processors)
    return Device(torch.device("cuda", 0))


def install(monkeypatch: pytest.MonkeyPatch, *names: str, **shown: object) -> None:
    """These libraries of flash-attn, and no others; `shown`: all that is in them."""
    shown = shown or {"__version__": "2.8.3", "flash_attn_with_kvcache": lambda: None}
    real = importlib.util.find_spec

    def find_spec(name: str) -> Any:
        return name in names or None if name.startswith("flash_attn") else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    for name in names:
        module = ModuleType(name)
        vars(module).update(shown)
        monkeypatch.setitem(sys.modules, name, module)


def choose(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    shape: HeadShape = BF16,
    **settings: Any,
) -> Choice:
    config = EngineConfig(model_path="", **settings)
    return select_on_gpu(config, device(monkeypatch, capability), shape)


@pytest.mark.parametrize(
    ("capability", "installed", "signature"),
    [
        (HOPPER, ("flash_attn", "flash_attn_interface"), "flash_attn 3"),
        (HOPPER, ("flash_attn",), "flash_attn 2.8.3"),
        (HOPPER, (), "triton"),
        (AMPERE, ("flash_attn", "flash_attn_interface"), "flash_attn 2.8.3"),
        (ADA, ("flash_attn",), "flash_attn 2.8.3"),
        (ADA, (), "triton"),
        (BLACKWELL, ("flash_attn", "flash_attn_interface"), "triton"),
    ],
)
def test_a_gpu_gets_the_fastest_that_is_there(
    capability: tuple[int, int],
    installed: tuple[str, ...],
    signature: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, *installed)
    chosen = choose(monkeypatch, capability, block_size=256)
    assert chosen.backend.signature.startswith(signature)
    assert chosen.reason.startswith(f"{chosen.backend.signature}, pages of 256, for prefill")


@pytest.mark.parametrize("capability", [AMPERE, ADA, HOPPER])
@pytest.mark.parametrize(
    "file", ["configs/deepseek-r1-32b.yaml", "k8s/overlays/single-node/config.yaml"]
)
def test_the_configurations_for_gpus_are_served_by_flash_attn_2(
    file: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "flash_attn")
    engine = yaml.safe_load((Path(__file__).parents[3] / file).read_text())["engine"]
    chosen = choose(monkeypatch, capability, BF16.share(4), **engine)
    assert chosen.backend.signature.startswith("flash_attn 2")


def test_the_line_says_what_stood_against_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn")
    chosen = choose(monkeypatch, HOPPER)
    assert chosen.backend.name == "triton"
    assert "flash_attn 3: flash_attn_interface is not installed" in chosen.reason
    assert "flash_attn 2: block_size: 16 is no multiple of 256" in chosen.reason


def test_what_is_asked_for_and_not_there_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch)
    with pytest.raises(
        ValueError, match=r"'flash_attn' is not available on the GPU .*not installed"
    ):
        choose(monkeypatch, HOPPER, attention_backend="flash_attn")
    with pytest.raises(ValueError, match="triton: block_size: 8 does not fit the triton kernels"):
        choose(monkeypatch, HOPPER, attention_backend="triton", block_size=8)


def test_what_is_asked_for_is_taken_before_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn_interface")
    assert choose(monkeypatch, HOPPER, attention_backend="triton").backend.name == "triton"


def test_float32_is_left_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn", "flash_attn_interface")
    shape = BF16._replace(dtype=torch.float32)
    chosen = choose(monkeypatch, HOPPER, shape, block_size=256)
    assert chosen.backend.name == "triton"
    assert "it computes no float32" in chosen.reason


@pytest.mark.parametrize("capability", [ADA, HOPPER, BLACKWELL])
def test_an_fp8_cache_is_left_to_triton(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "flash_attn", "flash_attn_interface")
    chosen = choose(monkeypatch, capability, block_size=256, kv_cache_dtype="fp8")
    assert chosen.backend.name == "triton"
    if capability < BLACKWELL:
        assert "flash_attn 2: it reads no fp8 cache here" in chosen.reason
    with pytest.raises(ValueError, match="'flash_attn' is not available"):
        choose(monkeypatch, capability, attention_backend="flash_attn", kv_cache_dtype="fp8")


def test_an_fp8_cache_is_refused_where_the_gpu_has_no_such_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, "flash_attn")
    with pytest.raises(ValueError, match=r"8\.9 or newer; set kv_cache_dtype: auto"):
        choose(monkeypatch, AMPERE, block_size=256, kv_cache_dtype="fp8")


def test_a_library_that_was_built_for_another_torch_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, "flash_attn")
    real = importlib.import_module

    def import_module(name: str) -> ModuleType:
        if name == "flash_attn":
            raise ImportError("undefined symbol: _ZN3c10")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    chosen = choose(monkeypatch, AMPERE, block_size=256)
    assert chosen.backend.name == "triton"
    assert "flash_attn cannot be imported: undefined symbol" in chosen.reason


def test_generation_4_alone_is_no_generation_2(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn", cute=None)
    chosen = choose(monkeypatch, AMPERE, block_size=256)
    assert chosen.backend.name == "triton"
    assert "flash_attn 2: flash_attn is there, but not its generation 2" in chosen.reason
