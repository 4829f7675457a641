"""`deeprequest plan`: what a model needs and could do on given devices, before anything starts.

Owns the options; the figures are `cluster.plan`'s. The options are read by argparse, because typer
loads pydantic to convert them, and everything else is imported where it is needed: a plan takes a
blink. Exit code 0 where it fits, 2 where it does not, 1 where a name or a file is not known.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.plan.deployment import Deployment
    from cluster.plan.devices import DeviceSpec
    from cluster.plan.memory import ModelShape, Precision

NOT_KNOWN, DOES_NOT_FIT = 1, 2
NUMBERS = ("bf16", "fp8", "int8", "fp32")
KV_NUMBERS = ("bf16", "fp32")
CACHES = ("auto", "fp8")
SETTINGS = (
    *("device", "tensor_parallel_size", "dtype", "kv_dtype", "kv_cache_dtype", "max_model_len"),
    *("gpu_memory_utilization", "kv_cache_gib", "max_num_seqs"),
)
FIGURES = ("memory_gib", "gb_per_s", "tflops", "price_per_hour")


def run(words: Sequence[str]) -> int:
    """Plan what the words of the command line ask for; the exit code."""
    from cluster.plan.report import report

    asked = _parser().parse_args(words)
    try:
        given = {name: getattr(asked, name) for name in SETTINGS}
        given["model"] = asked.model or asked.model_option
        settings = (_configured(asked.config) if asked.config else {}) | _told(given)
        figures = _told({name: getattr(asked, name) for name in FIGURES})
        name, deployment = _deployment(settings, figures)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return NOT_KNOWN
    wanted = _told({"lengths": asked.length, "batches": asked.batch, "context": asked.context})
    found = {"model": name} | report(deployment, **wanted)
    if asked.json:
        import json

        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    else:
        from serve_app.plan_tables import show

        show(found)
    return 0 if found["fits"] else DOES_NOT_FIT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deeprequest plan",
        description="What fits, how fast it could be, and what a million tokens cost. Nothing is "
        "started. Exit code 2: it does not fit.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", nargs="?", help="a checkpoint's folder, or a name such as deepseek-r1-32b")
    add("--model", dest="model_option", metavar="MODEL", help="the same")
    add("--config", type=Path, help="the service's YAML file: its model and engine settings")
    add("--gpu", "--device", dest="device", help="H100-80, H200, A100-80, L40S ..., or cpu")
    add(
        "--tp",
        "--gpus",
        "--tensor-parallel-size",
        dest="tensor_parallel_size",
        type=int,
        help="ranks, one a GPU",
    )
    add("--dtype", choices=NUMBERS, help="of the weights; bf16 unless told")
    add("--kv-dtype", choices=KV_NUMBERS, help="of what is not quantised, keys and values among it")
    add("--kv-cache-dtype", choices=CACHES, help="fp8: keys and values take one byte each")
    add("--max-model-len", type=_count, help="the context wanted")
    add("--max-num-seqs", type=_count, help="requests in a step at most; 64 unless told")
    add("--length", type=_count, action="append", help="tokens of a request, for concurrency")
    add("--batch", type=_count, action="append", help="requests in a step, for speed")
    add("--context", type=int, help="tokens in each request's cache, for speed")
    add("--memory-gib", "--gpu-mem", type=_positive, help="of one device")
    add("--gb-per-s", type=_positive, help="memory bandwidth of one device")
    add("--tflops", type=_positive, help="reached in bf16 by one device")
    add("--price", dest="price_per_hour", type=float, help="of one device for an hour")
    add("--gpu-memory-utilization", type=_positive, help="share of a GPU that is used")
    add("--kv-cache-gib", type=_positive, help="of all ranks together")
    add("--json", action="store_true", help="print JSON")
    return parser


def _count(word: str) -> int:
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not 1 or more")
    return number


def _positive(word: str) -> float:
    if not (number := float(word)) > 0:
        raise argparse.ArgumentTypeError(f"{word} is not above 0")
    return number


def _told(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _configured(path: Path) -> dict[str, Any]:
    """What the service's file says, in this command's words."""
    from serve_app.config import ServeConfig

    service = ServeConfig.load(path)
    engine = service.engine_config()
    on_cpu = engine.device == "cpu"
    wide = engine.dtype == "float32" or (engine.dtype == "auto" and on_cpu)
    stored = "fp32" if wide else "bf16"
    settings = {
        "model": service.model.path,
        "device": "cpu" if on_cpu else None,
        "dtype": stored if engine.quantization == "none" else engine.quantization,
        "kv_dtype": stored,
    }
    same = (
        *("tensor_parallel_size", "max_model_len", "max_num_seqs", "block_size"),
        *("gpu_memory_utilization", "kv_cache_gib", "kv_cache_dtype", "num_kv_blocks"),
    )
    return _told(settings | {name: getattr(engine, name) for name in same})


def _deployment(settings: dict[str, Any], figures: dict[str, float]) -> tuple[str, "Deployment"]:
    """Raises ValueError or OSError: a model or device that is not known, a file that is wrong."""
    from cluster.plan.deployment import Deployment
    from cluster.plan.memory import GIB, GPU_UTILIZATION, kv_bytes_per_token

    name, shape, max_position = _model(settings.get("model", "deepseek-r1-32b"))
    tp, precision = settings.get("tensor_parallel_size", 1), _precision(settings)
    device = _device(settings.get("device", "H100-80"), figures)
    if device.is_cpu and settings.get("dtype") == "fp8":
        raise ValueError("fp8 pays on GPUs alone; on a CPU use --dtype int8")
    cache = settings.get("kv_cache_gib")
    cache_bytes = None if cache is None else int(cache * GIB)
    block_size = settings.get("block_size", 16)
    if "num_kv_blocks" in settings:
        token_bytes = kv_bytes_per_token(shape, 1, precision.kv)
        cache_bytes = settings["num_kv_blocks"] * block_size * token_bytes
    return name, Deployment(
        shape=shape,
        max_position=max_position,
        device=device,
        tp=tp,
        precision=precision,
        max_model_len=settings.get("max_model_len"),
        utilization=settings.get("gpu_memory_utilization", GPU_UTILIZATION),
        kv_cache_bytes=cache_bytes,
        max_num_seqs=settings.get("max_num_seqs", 64),
        block_size=block_size,
    )


def _precision(settings: dict[str, Any]) -> "Precision":
    from dataclasses import replace

    from cluster.plan.memory import PRECISIONS

    precision = PRECISIONS[settings.get("dtype", "bf16")]
    if "kv_dtype" in settings:
        wide = PRECISIONS[settings["kv_dtype"]].kv
        precision = replace(precision, kv=wide, other=wide)
    return replace(precision, kv=1) if settings.get("kv_cache_dtype") == "fp8" else precision


def _model(name: str) -> tuple[str, "ModelShape", int]:
    """(name, shape, positions) of a checkpoint's folder, or else of a known name."""
    from cluster.plan.models import MODELS, find_model

    if (Path(name) / "config.json").exists():
        from cluster.model.model_config import read_model_config

        config = read_model_config(Path(name))
        return Path(name).resolve().name, config.shape, config.max_position
    known = find_model(name)
    if known is None:
        from difflib import get_close_matches

        names = [model.name for model in MODELS]
        near = get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"{name} is neither a folder with a config.json nor a known model; {hint}known are "
            f"{', '.join(names)}"
        )
    return known.name, known.shape, known.max_position


def _device(name: str, figures: dict[str, float]) -> "DeviceSpec":
    import os
    from dataclasses import replace

    from cluster.plan.devices import DEVICES, find_device
    from cluster.plan.memory import GIB

    spec = find_device(name)
    if spec is None:
        names = ", ".join(device.name for device in DEVICES)
        raise ValueError(f"{name} is not a known device; known are {names}")
    if spec.is_cpu:
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        spec = replace(spec, memory_gib=round(host, 2))
    if "tflops" in figures:
        spec = replace(spec, tflops_8bit=figures["tflops"] * spec.tflops_8bit / spec.tflops)
    return replace(spec, **figures)  # type: ignore[arg-type]
