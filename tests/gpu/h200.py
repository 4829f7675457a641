"""One short run on a GPU: numerics, kernels, the 32B with random weights, soak, peers.

    python -m tests.gpu.h200 --out results                       # all stages, within 29 minutes
    python -m tests.gpu.h200 --out results --stages ceilings,decode --limit-s 240
    python -m tests.gpu.h200 --out results --device cpu --tiny   # everywhere: that it still runs

The stages of most worth come first. On a GPU each has a process of its own: one that crashes, hangs
or poisons the device takes no other with it, and what it told before lies in `<stage>.json`. Its
failure is a result too: the next stage runs. Stages that build on others' results find those of
earlier runs in `--out`. A GPU of 80 GB holds the 32B with a small cache: stages that want a large
one take e4m3 there, and say so. Needs torch, Triton (and a C compiler for its launchers), numpy,
msgspec, psutil, rich, safetensors, tokenizers, and transformers for `peers`; no Ray, Redis or
network.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from cluster.device import Device
from tests.gpu.bench import Bench

STAGES = {
    "ceilings": 60,
    "numerics": 180,
    "decode": 330,
    "fp8": 330,
    "prefill": 200,
    "soak": 240,
    "attention": 180,
    "peers": 360,
    "shards": 240,
}
"""Seconds each may take; `tests/gpu/stage_<name>.py` has a `run(bench, told)`."""
TOTAL_S = 29 * 60
GRACE_S = 20
"""What a stage's process may take beside its stage, before it is killed."""
LEAST_S = 20
"""A stage with less time left is not begun."""
NEEDED = ("numpy", "msgspec", "psutil", "rich", "safetensors", "tokenizers")


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every stage that was asked for succeeded."""
    asked = _arguments(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    device = Device.select(asked.device, rank=0)
    if asked.inside:
        _inside(asked, device)
    about = _about(device)
    sys.stdout.write(f"{json.dumps(about)}\n")
    end = time.monotonic() + asked.total_s
    failed = 0
    for name in asked.stages:
        limit_s = min(asked.limit_s or STAGES[name], end - time.monotonic() - GRACE_S)
        result = _stage(asked, device, name, limit_s)
        word = "ok" if result["ok"] else result["error"]
        sys.stdout.write(f"{name}: {word} ({result['seconds']} s)\n")
        sys.stdout.flush()
        failed += not result["ok"]
        (asked.out / "all.json").write_text(json.dumps(about | _done(asked.out), indent=1))
    return int(failed > 0)


def _stage(asked: argparse.Namespace, device: Device, name: str, limit_s: float) -> dict[str, Any]:
    if limit_s < LEAST_S and asked.limit_s is None:
        told = {"ok": False, "error": "not begun: the run is out of time", "seconds": 0.0}
        _write(asked.out, name, told)
        return told
    if device.is_cuda:
        return _apart(asked, name, limit_s)
    return _run_stage(asked, device, name, limit_s)


def _apart(asked: argparse.Namespace, name: str, limit_s: float) -> dict[str, Any]:
    """The stage in a process of its own, which is killed when it does not end by itself."""
    command = [sys.executable, "-m", "tests.gpu.h200", "--inside", "--stages", name]
    command += ["--out", str(asked.out), "--device", asked.device, "--limit-s", str(limit_s)]
    begun = time.monotonic()
    _write(asked.out, name, {"ok": False, "error": "unfinished", "seconds": 0.0})
    process = subprocess.Popen(command + (["--tiny"] if asked.tiny else []), start_new_session=True)
    ended = f"ended with {{}} after {limit_s:g} s at most"
    try:
        ended = ended.format(process.wait(limit_s + GRACE_S))
    except subprocess.TimeoutExpired:
        ended = ended.format("a kill: it did not hear the bell")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the ranks it started, too
    process.wait()
    told: dict[str, Any] = json.loads((asked.out / f"{name}.json").read_text())
    if told.get("error") == "unfinished":
        told |= {"error": f"its process {ended}", "seconds": round(time.monotonic() - begun, 1)}
        _write(asked.out, name, told)
    return told


def _inside(asked: argparse.Namespace, device: Device) -> NoReturn:
    """Leaves no thread the chance to hold the process: all is written."""
    (name,) = asked.stages
    code = int(not _run_stage(asked, device, name, asked.limit_s)["ok"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run_stage(
    asked: argparse.Namespace, device: Device, name: str, limit_s: float
) -> dict[str, Any]:
    begun = time.monotonic()
    told: dict[str, Any] = {"ok": False, "error": "unfinished", "seconds": 0.0}
    told["device"] = device.name

    def save() -> None:
        told["seconds"] = round(time.monotonic() - begun, 1)
        _write(asked.out, name, told)

    bench = Bench(device, asked.tiny, asked.out / "models", begun + 0.8 * limit_s)
    bench.done, bench.save = _done(asked.out), save
    try:
        with _time_limit(limit_s):
            importlib.import_module(f"tests.gpu.stage_{name}").run(bench, told)
        told["ok"] = True
        del told["error"]
    except Exception as error:
        told |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        told["traceback"] = traceback.format_exc().splitlines()[-12:]
    save()
    gc.collect()
    return told


def _write(out: Path, name: str, told: dict[str, Any]) -> None:
    """Whole, or not at all."""
    partial = out / f"{name}.json.partial"
    partial.write_text(json.dumps(told, indent=1))
    partial.replace(out / f"{name}.json")


def _done(out: Path) -> dict[str, Any]:
    files = {name: out / f"{name}.json" for name in STAGES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


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
    parser.add_argument("--total-s", type=float, default=TOTAL_S, help="seconds of all stages")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for any machine")
    parser.add_argument("--inside", action="store_true", help="run the one stage in this process")
    asked = parser.parse_args(argv)
    asked.stages = asked.stages.split(",")
    unknown = set(asked.stages) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"not installed: pip install {' '.join(missing)}")
    if asked.inside and (len(asked.stages) > 1 or asked.limit_s is None):
        parser.error("--inside takes one stage and --limit-s")
    return asked


if __name__ == "__main__":
    sys.exit(main())
