"""What 8-bit weights, keys and values cost in quality: logits and answers against 16 bits.

    python -m tests.bench.bench_quantization [--model DIR] [--words 200]

Logits are compared over random token ids (teacher forcing, so one wrong token does not spoil the
rest); answers are the demo model's, greedy, to letter-counting questions it was not given a choice
about. Both engines are bfloat16 apart from their matrices, or from their KV cache.
"""

import argparse
import random
import re
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor

from cluster.attention.backend import AttentionMetadata, HeadShape
from cluster.attention.selection import select_attention
from cluster.config import EngineConfig
from cluster.device import Device
from cluster.engine.core_messages import EngineFacts
from cluster.engine.rank_main import engine_core
from cluster.kernels.kernels import Quantization
from cluster.kernels.selection import select_kernels
from cluster.model.decoder import Decoder
from cluster.model.model_config import read_model_config
from cluster.model.parallel import Placement
from cluster.model.tp_group import TPGroup
from cluster.model.weights import load_weights
from cluster.request import EngineRequest, SamplingParams
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from cluster.worker.executor import InlineExecutor
from cluster.worker.memory import RankMemory
from cluster.worker.sizing import device_spec, plan_rank
from cluster.worker.worker import Worker

DEMO = Path(__file__).parents[2] / "configs" / "models" / "deeprequest-demo"
ROUNDED: tuple[Quantization, ...] = ("int8", "fp8")
WORDS = (
    "strawberry banana refrigerator parallelogram mississippi accommodation bookkeeper committee "
    "engineering tensor attention embarrassment umbrella chrysanthemum queue keyboard television "
    "bubble parrot dinosaur mathematics saxophone pneumonia cinnamon happiness rhythm giraffe"
)


def settings(
    model: Path, quantization: Quantization, cache: Literal["auto", "fp8"] = "auto"
) -> EngineConfig:
    return EngineConfig(
        kv_cache_dtype=cache,
        model_path=str(model),
        device="cpu",
        dtype="bfloat16",
        quantization=quantization,
        num_kv_blocks=2048,
        max_model_len=1024,
        load_progress=False,
    )


def logits(config: EngineConfig, token_ids: Tensor, group: TPGroup | None = None) -> Tensor:
    """float32 [T, V / R] of one text."""
    group = group or TPGroup()
    device = Device.select("cpu", 0)
    kernels = select_kernels(device, torch.bfloat16, config)
    where = Placement(group, device.torch_device, torch.bfloat16, kernels)
    shape = read_model_config(Path(config.model_path))
    decoder = Decoder(shape, where, len(token_ids))
    load_weights(Path(config.model_path), decoder.shards(), ignore=["lm_head.weight"])
    kv_heads = shape.num_kv_heads // group.size
    heads = HeadShape(shape.num_heads // group.size, kv_heads, shape.head_dim, torch.bfloat16)
    backend = select_attention(config, device, kernels, heads)
    size, count = config.block_size, len(token_ids)
    pages = -(-count // size)
    positions = torch.arange(count)
    plan = backend.plan(
        AttentionMetadata(
            cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32),
            seq_lens_k=torch.tensor([count], dtype=torch.int32),
            block_table=torch.arange(1, pages + 1, dtype=torch.int32).unsqueeze(0),
            positions=positions,
            slot_mapping=positions + size,
            max_q=count,
            max_k=count,
            num_decode=0,
        )
    )
    memory = RankMemory(
        config,
        shape,
        device,
        group,
        torch.bfloat16,
        backend,
        plan_rank(config, shape, device_spec(device), 2, knows_words=False),
    )
    memory.fit_scales(decoder, shape.vocab_size)
    cache = memory.allocate(pages + 1)
    return decoder.compute_logits(decoder(token_ids, cache, plan)).float()


def compare(model: Path) -> None:
    vocabulary = read_model_config(model).vocab_size
    ids = torch.randint(4, vocabulary, (512,), generator=torch.Generator().manual_seed(0))
    want = logits(settings(model, "none"), ids)
    for kind in ROUNDED:
        _compare(f"{model.name}, {kind}", want, logits(settings(model, kind), ids))
    _compare(f"{model.name}, fp8 cache", want, logits(settings(model, "none", "fp8"), ids))


def _compare(name: str, want: Tensor, got: Tensor) -> None:
    error = ((got - want).square().mean() / want.var()).sqrt()
    kl = torch.nn.functional.kl_div(
        got.log_softmax(-1), want.log_softmax(-1), reduction="batchmean", log_target=True
    )
    same = (got.argmax(-1) == want.argmax(-1)).float().mean()
    apart = (want.amax(-1) - want.amin(-1)).mean()
    of_range = (got - want).square().mean(-1).sqrt().mean() / apart
    print(
        f"{name}: relative logit error {error:.4f} ({of_range:.2%} of the range), "
        f"KL {kl:.5f} nats, same first choice {same:.1%}"
    )


def accuracy(config: EngineConfig, count: int) -> float:
    """Share of right answers of the demo model."""
    worker = Worker(config, 0, TPGroup())
    worker.load()
    worker.init_kv_cache(worker.num_kv_blocks())
    facts = msgspec.convert(worker.facts, EngineFacts, from_attributes=True)
    core = engine_core(config, facts, InlineExecutor(worker))
    tokenizer = Tokenizer(DEMO)
    template, chooser = ChatTemplate(tokenizer), random.Random(0)
    expected, texts = {}, {}
    for number in range(count):
        word = chooser.choice(WORDS.split())
        letter = chooser.choice(word)
        question = f"How many {letter}'s are in the word '{word}'?"
        prompt = template.render([Message(role="user", content=question)])
        name = f"{number} {question}"
        expected[name], texts[name] = word.count(letter), list[int]()
        core.add(EngineRequest(name, prompt, SamplingParams(max_tokens=400, temperature=0.0)))
    while core.has_work:
        for output in core.step():
            texts[output.request_id] += output.new_token_ids
    answers = {name: tokenizer.decode(ids).split("</think>")[-1] for name, ids in texts.items()}
    found = {name: re.findall(r"\d+", answer) for name, answer in answers.items()}
    right = [bool(found[name]) and int(found[name][0]) == expected[name] for name in expected]
    return sum(right) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--words", type=int, default=200)
    asked = parser.parse_args()
    for model in [DEMO, *asked.model]:
        compare(model)
    kinds: tuple[Quantization, ...] = ("none", *ROUNDED)
    for kind in kinds:
        right = accuracy(settings(DEMO, kind), asked.words)
        print(f"demo answers right, {kind}: {right:.1%}")
    right = accuracy(settings(DEMO, "none", "fp8"), asked.words)
    print(f"demo answers right, fp8 cache: {right:.1%}")


if __name__ == "__main__":
    main()
