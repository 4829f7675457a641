"""One short run on a GPU: numerics, kernels, the 32B with random weights, soak, peers.

    python -m tests.gpu.h200 --out results                       # all stages
    python -m tests.gpu.h200 --out results --stages ceilings,decode --limit-s 240
    python -m tests.gpu.h200 --out results --device cpu --tiny   # everywhere: that it still runs

Every stage has its time, writes `<stage>.json` when it ends, and its failure is a result too: the
next stage runs. Stages that build on others' results find those of earlier runs in `--out`. Needs
torch, Triton and (for `peers`) transformers; no Ray, Redis or network.
"""

import argparse
import contextlib
import gc
import importlib
import json
import platform
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cluster.device import Device
from tests.gpu.bench import Bench

STAGES = {
    "ceilings": 60,
    "numerics": 180,
    "attention": 240,
    "decode": 400,
    "fp8": 300,
    "prefill": 240,
    "shards": 240,
    "soak": 300,
    "peers": 400,
}
"""Seconds each may take; `tests/gpu/stage_<name>.py` has a `run(bench)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every stage that was asked for succeeded."""
    asked = _arguments(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    device = Device.select(asked.device, rank=0)
    bench = Bench(device, asked.tiny, asked.out / "models")
    bench.done = {
        name: json.loads((asked.out / f"{name}.json").read_text())
        for name in STAGES
        if (asked.out / f"{name}.json").exists()
    }
    failed = 0
    for name in asked.stages:
        result = _run_stage(bench, name, asked.limit_s or STAGES[name])
        bench.done[name] = result
        (asked.out / f"{name}.json").write_text(json.dumps(result, indent=1))
        word = "ok" if result["ok"] else result["error"]
        sys.stdout.write(f"{name}: {word} ({result['seconds']} s)\n")
        failed += not result["ok"]
    (asked.out / "all.json").write_text(json.dumps(_about(device) | bench.done, indent=1))
    return int(failed > 0)


def _run_stage(bench: Bench, name: str, limit_s: float) -> dict[str, Any]:
    begun = time.monotonic()
    bench.deadline = begun + 0.8 * limit_s
    told: dict[str, Any] = {"ok": True, "device": bench.device.name}
    try:
        with _time_limit(limit_s):
            told |= importlib.import_module(f"tests.gpu.stage_{name}").run(bench)
    except Exception as error:
        told |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        told["traceback"] = traceback.format_exc().splitlines()[-12:]
    gc.collect()
    bench.device.free_memory()  # what the stage held goes back
    return told | {"seconds": round(time.monotonic() - begun, 1)}


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the stage took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _about(device: Device) -> dict[str, Any]:
    return {
        "device": device.name,
        "memory_gib": round(device.total_memory() / 2**30, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--stages", default=",".join(STAGES), help="of: %(default)s")
    parser.add_argument("--limit-s", type=float, help="seconds a stage may take")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for any machine")
    asked = parser.parse_args(argv)
    asked.stages = asked.stages.split(",")
    unknown = set(asked.stages) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
