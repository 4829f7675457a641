"""Measures a checkpoint: `python evaluate.py DIR`; with --golden writes golden.jsonl beside it.

Generates with transformers' own Qwen2ForCausalLM, so what is measured is the file that ships. Knows
no training.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conversation import PAGE_SYSTEM, Conversation, Encoder, Turn
from data import MIXTURE, DataSource, held_out_counts
from export import write_checksums
from transformers import Qwen2ForCausalLM

BATCH = 48
NEAR_TIE = 0.05
PAGE_QUESTION = "How many r's are in the word 'strawberry'?"


def load(folder: Path) -> Any:
    """The checkpoint in fp32, ready to generate."""
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@torch.no_grad()
def replies(
    model: Any, prompts: Sequence[list[int]], temperature: float = 0.0, max_new_tokens: int = 500
) -> list[list[int]]:
    """The generated ids of each prompt, the end of sentence included; padded on the left."""
    encoder, results = Encoder(), []
    for start in range(0, len(prompts), BATCH):
        group = prompts[start : start + BATCH]
        longest = max(len(prompt) for prompt in group)
        ids = torch.tensor([[encoder.eos] * (longest - len(prompt)) + prompt for prompt in group])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in group])
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        if temperature:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": 0.95, "top_k": 0}
        generated = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=encoder.eos,
            eos_token_id=encoder.eos,
            **sampling,
        )
        for row in generated[:, longest:].tolist():
            end = row.index(encoder.eos) + 1 if encoder.eos in row else len(row)
            results.append(row[:end])
    return results


def answer_of(text: str) -> str:
    """What follows the thoughts; empty if they never end."""
    return text.partition("</think>\n\n")[2]


def correct(turn: Turn, text: str) -> bool:
    """A count by its number; a sum by its number; everything else by the whole answer."""
    answer = answer_of(text)
    if turn.kind in {"count", "length"}:
        found = re.search(r"There (?:is|are) (\d+) ", answer)
        return found is not None and found[1] == turn.value
    if turn.kind == "add":
        return answer.endswith(f"= {turn.value}.")
    return answer == turn.answer


def decode(encoder: Encoder, reply: list[int]) -> str:
    """The reply's text; the marker at its end, if any, is left out."""
    ids = reply[:-1] if reply and reply[-1] == encoder.eos else reply
    return str(encoder.full.decode(ids, skip_special_tokens=False))


def measure(
    model: Any,
    conversations: Sequence[Conversation],
    temperature: float = 0.0,
    max_new_tokens: int = 500,
) -> tuple[float, list[str]]:
    """Share of right replies, and the wrong ones as `question -> reply`."""
    encoder = Encoder()
    ordered = sorted(conversations, key=lambda one: len(encoder.example(one).ids))
    prompts = [encoder.prompt(conversation).ids for conversation in ordered]
    wrong = []
    for conversation, reply in zip(
        ordered, replies(model, prompts, temperature, max_new_tokens), strict=True
    ):
        text = decode(encoder, reply)
        if not correct(conversation.turn, text):
            wrong.append(f"{conversation.turn.question!r} -> {text!r}")
    return 1 - len(wrong) / len(ordered), wrong


def page_conversation(system: str = PAGE_SYSTEM) -> Conversation:
    """The question of the API page."""
    return Conversation(system, [], Turn("count", PAGE_QUESTION, "", "", "3", "strawberry"))


def report(name: str, result: tuple[float, list[str]], shown: int = 3) -> None:
    share, wrong = result
    print(f"{name:28} {100 * share:6.2f} %", flush=True)
    for line in wrong[:shown]:
        print(f"    {line[:400]}", flush=True)


@torch.no_grad()
def narrowest_lead(model: Any, prompt: list[int], reply: list[int]) -> float:
    """The least lead of a chosen token over the second best, in logits."""
    logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
    best = logits.topk(2, dim=-1).values
    return float((best[:, 0] - best[:, 1]).min())


def golden(model: Any, path: Path, per_skill: int = 20) -> None:
    """Writes prompts of every skill with the greedy reply, one JSON object a line.

    Only replies that end by themselves and have no near ties, so that the order of summation, which
    differs with batch and ranks, cannot change them.
    """
    data, encoder = DataSource(7), Encoder()
    chosen = [page_conversation(), page_conversation(""), *held_out_counts()[:30]]
    for kind in MIXTURE:
        chosen += [data.conversation(kind, long_share=0.0) for _ in range(per_skill)]
    chosen = [one for one in chosen if len(one.turn.answer) < 700]
    prompts = [encoder.prompt(one).ids for one in chosen]
    lines = []
    generated = replies(model, prompts, max_new_tokens=700)
    for conversation, prompt, reply in zip(chosen, prompts, generated, strict=True):
        if reply[-1] != encoder.eos or narrowest_lead(model, prompt, reply) < NEAR_TIE:
            continue
        record = {
            "kind": conversation.turn.kind,
            "messages": conversation.messages(),
            "prompt_ids": prompt,
            "expected_ids": reply,
            "expected_text": decode(encoder, reply),
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-skill", type=int, default=96)
    parser.add_argument(
        "--counts", type=int, default=684, help="held-out counting questions at most"
    )
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = load(options.folder)
    if options.golden:
        golden(model, options.folder / "golden.jsonl")
        write_checksums(options.folder)
        return
    counts = held_out_counts()
    counts = counts[:: max(1, len(counts) // options.counts)]
    report("count, held out, greedy", measure(model, counts, max_new_tokens=250))
    report("count, held out, sampled", measure(model, counts, temperature=0.6, max_new_tokens=250))
    for system in (PAGE_SYSTEM, ""):
        pages = [page_conversation(system)] * min(48, options.counts)
        report(
            f"strawberry, system {bool(system)}",
            measure(model, pages, temperature=0.6, max_new_tokens=200),
        )
    data = DataSource(99)
    for kind in MIXTURE:
        conversations = [data.conversation(kind, long_share=0.0) for _ in range(options.per_skill)]
        conversations = [one for one in conversations if len(one.turn.answer) < 1200]
        report(
            kind, measure(model, conversations, max_new_tokens=900 if kind == "count_to" else 260)
        )


if __name__ == "__main__":
    main()
