"""Trains the demo model: `python train.py --out DIR`.

Owns the loop, the batches, the learning rate and the running mean of the weights that is shipped.
The data are drawn as they are needed; the same seed and steps give the same stream of examples.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from conversation import Example
from data import DataSource
from export import write_checksums, write_configurations, write_weights
from network import Network, Shape
from safetensors.torch import load_file
from torch import Tensor

POOL = 384
"""Examples drawn at once and sorted by length, so that a batch has little padding."""
Batch = tuple[Tensor, Tensor, Tensor]


def collate(examples: list[Example]) -> Batch:
    """Right-padded ids, positions and learn weights, each [B, T]."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    positions, learn = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        positions[row, :length] = torch.tensor(example.positions)
        learn[row, :length] = torch.tensor(example.learn)
    return ids, positions, learn


def batches(source: DataSource, tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Endless batches of at most `tokens` ids, padding included."""
    while True:
        pool = sorted((source.example() for _ in range(POOL)), key=lambda example: len(example.ids))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if groups[-1] and len(example.ids) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            yield collate(group)


def rate(step: int, steps: int, warmup: int = 60, cooldown: float = 0.4) -> float:
    """Learning-rate factor: a short rise, a plateau, a straight fall to 2 %."""
    fall = (steps - step) / (steps * cooldown)
    return min(1.0, (step + 1) / warmup, max(0.02, fall))


def optimizers(network: Network, muon_rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, head, norms and biases."""
    inner = [p for name, p in network.named_parameters() if p.dim() == 2 and ".layers." in name]
    outer = [p for name, p in network.named_parameters() if p.dim() != 2 or ".layers." not in name]
    return [
        torch.optim.Muon(inner, lr=muon_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(outer, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def save(network: Network, mean: dict[str, Tensor], folder: Path, shape: Shape) -> None:
    """What can be shipped now (the mean, bfloat16), and the raw weights to go on from (fp32)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_configurations(folder, shape)
    write_weights(folder / "model.safetensors", mean, torch.bfloat16)
    write_weights(folder / "raw.safetensors", dict(network.named_parameters()), torch.float32)
    write_checksums(folder)


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    shape = Shape()
    network = Network(shape)
    if options.resume:
        network.load_state_dict(load_file(options.resume))
    mean = {name: p.detach().clone() for name, p in network.named_parameters()}
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    steppers = optimizers(network, options.muon_rate, options.adam_rate)
    rates = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    source = DataSource(options.seed)
    source.plain_counts = options.plain_counts
    stream = batches(source, options.batch_tokens, random.Random(options.seed))
    started, tokens, recent = time.monotonic(), 0, 0.0
    for step in range(options.steps):
        easy = options.easy * max(0.0, 1 - step / options.easy_steps)
        source.easy, source.source.max_letters = (
            easy,
            32 if options.resume else int(8 + 24 * (1 - easy)),
        )
        ids, positions, learn = next(stream)
        loss = network(ids, positions, learn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        groups = [group for stepper in steppers for group in stepper.param_groups]
        for group, full in zip(groups, rates, strict=True):
            group["lr"] = full * rate(step, options.steps)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(0.995, (step + 1) / (step + 20))
            for name, parameter in network.named_parameters():
                mean[name].lerp_(parameter, 1 - decay)
        tokens += ids.numel()
        recent += loss.item()
        if (step + 1) % options.report == 0:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}/{options.steps}  loss {recent / options.report:.4f}  "
                f"{tokens / 1e6:.2f} M tokens  {tokens / seconds:,.0f} tokens/s  {seconds:.0f} s",
                flush=True,
            )
            recent = 0.0
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            save(network, mean, options.out, shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--easy", type=float, default=1.0, help="share of easy questions at first")
    parser.add_argument("--easy-steps", type=int, default=1500, help="steps until none is left")
    parser.add_argument("--plain-counts", type=float, default=0.4, help="letter counts among them")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--muon-rate", type=float, default=0.01)
    parser.add_argument("--adam-rate", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--resume", type=Path, help="raw.safetensors of an earlier run")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
