"""Our engine and its peers on one generated checkpoint: interleaved rounds, medians, ratios.

Every engine runs as a process of its own, one after the other, and the order moves on by one each
round, so that none always runs first. transformers is taken from this environment; other peers
where their Python is named:

    python -m tests.bench.peers --folder CACHE --shape 126m --rounds 5 \\
        --peer openvino=/envs/openvino/bin/python --peer vllm=/envs/vllm/bin/python --int8

CACHE keeps the checkpoint and what peers convert it to. The table goes to standard error and the
medians to standard output as JSON.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from serve_app.bench.workload import Row
from tests.bench.checkpoints import SHAPES, make_checkpoint
from tests.bench.peer_table import Rounds, column, figure, medians, print_table

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "peer-engines"
OURS = "deeprequest"


class Engine(NamedTuple):
    """One line of the table."""

    name: str
    command: list[str]
    int8: bool = False


Prepare = Callable[[str, Path], Path]
"""(the peer's Python, our checkpoint) -> the checkpoint as the peer reads it, made if missing."""


def unchanged(python: str, checkpoint: Path) -> Path:
    """The peer reads safetensors."""
    return checkpoint


def openvino_export(weights: str) -> Prepare:
    """An exported folder beside the checkpoint."""

    def prepare(python: str, checkpoint: Path) -> Path:
        folder = checkpoint.with_name(f"{checkpoint.name}-openvino-{weights}")
        if not (folder / "openvino_model.bin").exists():
            command = [str(Path(python).with_name("optimum-cli")), "export", "openvino"]
            command += ["--model", str(checkpoint), "--task", "text-generation-with-past"]
            command += ["--weight-format", weights, str(folder)]
            subprocess.run(command, check=True, stdout=sys.stderr)
        return folder

    return prepare


class Peer(NamedTuple):
    """A script of `peer-engines`, and what it wants."""

    script: str
    prepare: Prepare
    int8: bool = False


PEERS: dict[str, list[tuple[str, Peer]]] = {
    "transformers": [
        ("transformers generate", Peer("transformers_generate.py", unchanged)),
        ("transformers continuous", Peer("transformers_continuous.py", unchanged)),
    ],
    "openvino": [
        ("openvino", Peer("openvino_cb.py", openvino_export("fp16"))),
        ("openvino int8", Peer("openvino_cb.py", openvino_export("int8"), True)),
    ],
    "vllm": [("vllm", Peer("vllm_offline.py", unchanged))],
}
"""By the name that --peer gives an environment to."""


def main() -> None:
    options = _options()
    checkpoint: Path = options.folder / options.shape
    if not (checkpoint / "config.json").exists():
        make_checkpoint(checkpoint, SHAPES[options.shape])
    pythons = {"transformers": sys.executable} | dict(given.split("=", 1) for given in options.peer)
    engines = _ours(checkpoint, options) + _peers(pythons, checkpoint, options)
    rounds: Rounds = {engine.name: [] for engine in engines}
    for number in range(options.rounds):
        for place in range(len(engines)):
            engine = engines[(place + number) % len(engines)]
            rounds[engine.name].append(_run(engine, options, number))
    found = medians(rounds)
    kinds = {engine.name: engine.int8 for engine in engines}
    print_table(found, kinds, title=f"{options.shape}, {options.rounds} rounds, medians")
    print(json.dumps({"shape": options.shape, "rounds": options.rounds, "medians": found}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="cache of checkpoints")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="126m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prefill-len", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--int8", action="store_true", help="also 8-bit weights")
    parser.add_argument("--no-extension", action="store_true", help="also ours in plain torch")
    parser.add_argument("--only", help="engines whose name holds one of these words, by comma")
    parser.add_argument("--run-limit-s", type=float, default=600.0, help="of one engine's run")
    parser.add_argument("--run-under", default="", help="a command to put before each engine's")
    return parser.parse_args()


def _ours(checkpoint: Path, options: argparse.Namespace) -> list[Engine]:
    program = "from serve_app.cli import main; main()"
    base = [sys.executable, "-c", program, "bench", "offline", "--json", "--model", str(checkpoint)]
    engines = [Engine(OURS, base)]
    if options.no_extension:
        engines.append(Engine(f"{OURS} torch", [*base, "--kernels", "torch"]))
    if options.int8:
        engines.append(Engine(f"{OURS} int8", [*base, "--quantization", "int8"], True))
    return _wanted(engines, options)


def _peers(pythons: dict[str, str], checkpoint: Path, options: argparse.Namespace) -> list[Engine]:
    engines = []
    for family, python in pythons.items():
        if family not in PEERS:
            raise SystemExit(f"--peer {family}: known are {', '.join(PEERS)}")
        for name, peer in PEERS[family]:
            wanted = _wanted([Engine(name, [], peer.int8)], options)
            if not wanted or (peer.int8 and not options.int8):
                continue
            model = peer.prepare(python, checkpoint)
            command = [python, str(SCRIPTS / peer.script), "--model", str(model)]
            engines.append(Engine(name, command, peer.int8))
    return engines


def _wanted(engines: list[Engine], options: argparse.Namespace) -> list[Engine]:
    words = options.only.split(",") if options.only else [""]
    return [engine for engine in engines if any(word in engine.name for word in words)]


def _run(engine: Engine, options: argparse.Namespace, number: int) -> list[Row]:
    """One process's rows, as far as it came; with its last words if it failed."""
    asked: dict[str, Any] = {
        "--batch": options.batch,
        "--prompt-len": options.prompt_len,
        "--output-len": options.output_len,
        "--prefill-len": options.prefill_len,
        "--threads": options.threads,
        "--rounds": 1,
        "--seed": number,
    }
    arguments = [str(part) for pair in asked.items() for part in pair]
    command = [*shlex.split(options.run_under), *engine.command, *arguments]
    printed, trouble = _finish(command, options.run_limit_s)
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith('{"kind"')]
    shown = ", ".join(f"{column(row)} {figure(row):g}" for row in rows)
    print(f"round {number + 1}  {engine.name}: {shown}{trouble}", file=sys.stderr, flush=True)
    return rows


def _finish(command: list[str], limit_s: float) -> tuple[str, str]:
    """(what a process printed, why it did not end well or nothing)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, said = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what --run-under put before it, and it
            printed, _ = process.communicate()
            return printed, f", ended after --run-limit-s {limit_s:g}"
    failed = f", exit code {process.returncode}\n{said[-2000:]}" if process.returncode else ""
    return printed, failed


if __name__ == "__main__":
    main()
