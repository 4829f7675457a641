"""lm-eval, the evaluation harness: a task that generates by chats, and one that weighs answers by
the likelihood of prompts. Both tasks are local files; the tokenizer is the demo model's own."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.ecosystem.contract import API_KEY, BASE_URL, MODEL, QUESTION, tell, thoughts_in_text
from tests.ecosystem.demo_tokenizer import tokenizer_folder

BEGIN, USER, ASSISTANT = (
    f"<\uff5c{name}\uff5c>" for name in ("begin\u2581of\u2581sentence", "User", "Assistant")
)
WORDS = [
    "strawberry",
    "banana",
    "bookkeeper",
    "giraffe",
    "tomorrow",
    "lantern",
    "zigzag",
    "committee",
    "pepper",
    "balloon",
    "letter",
    "address",
    "coffee",
    "mammal",
    "success",
    "cinnamon",
    "umbrella",
    "possess",
    "tattoo",
    "assess",
]
LEAST_ACCURACY = 0.9
"""Far above chance and below what the demo model does: a wrong prompt or offset would show."""
RANDOM = random.Random(7)


def counted(word: str, letter: str) -> str:
    """The thoughts about a word up to its last letter, behind which the count follows."""
    lines = [f"{place}: {one} {word[:place].count(letter)}" for place, one in enumerate(word, 1)]
    return "\n".join([f"Let me count the letter {letter}.", *lines]).rsplit(" ", 1)[0]


def question(word: str, letter: str) -> str:
    return f"How many {letter}'s are in the word '{word}'?"


def letters(count: int) -> list[tuple[str, str]]:
    words = [RANDOM.choice(WORDS) for _ in range(count - 1)]
    return [("strawberry", "r"), *((word, RANDOM.choice(word)) for word in words)]


def sums(count: int) -> list[tuple[int, int]]:
    return [(RANDOM.randrange(10, 90), RANDOM.randrange(10, 90)) for _ in range(count)]


def task(name: str, docs: list[dict[str, Any]], **fields: Any) -> Path:
    """A task's file beside its data."""
    data, config = Path.home() / f"{name}.jsonl", Path.home() / f"{name}.yaml"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    config.write_text(json.dumps({"task": name, **source, "test_split": "test", **fields}))
    return config


def lm_eval(config: Path, model: str, path: str, *options: str, **settings: Any) -> list[Any]:
    """Run the harness to its end on a task; the samples, once the accuracy holds."""
    out = Path.home() / config.stem
    told = {"model": MODEL, "base_url": f"{BASE_URL}{path}", "num_concurrent": 8, **settings}
    command = [str(Path(sys.executable).with_name("lm_eval")), "run", "--model", model]
    command += ["--model_args", json.dumps(told), "--tasks", str(config)]
    command += ["--output_path", str(out), "--log_samples", *options]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": API_KEY}
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        raise AssertionError(f"exit code {done.returncode}: {done.stderr.splitlines()[-1]}")
    (results,) = out.rglob("results_*.json")
    (scores,) = json.loads(results.read_text())["results"].values()
    reached = max(
        value
        for name, value in scores.items()
        if name.startswith(("acc,", "exact_match,")) and isinstance(value, float)
    )
    print(f"{config.stem}: {reached:.3f}", file=sys.stderr)
    assert reached >= LEAST_ACCURACY, f"only {reached:.3f} of {config.stem} is right"
    (samples,) = out.rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def generate_until() -> str:
    """200 chats, judged by the last number in their answers."""
    docs = [{"question": question(*one), "answer": one[0].count(one[1])} for one in letters(150)]
    docs += [{"question": f"What is {a} + {b}?", "answer": a + b} for a, b in sums(50)]
    last_number = {"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1}
    config = task(
        "numbers",
        docs,
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n\n\n\n"], "max_gen_toks": 400, "temperature": 0},
        filter_list=[{"name": "last", "filter": [last_number, {"function": "take_first"}]}],
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    chat = ("local-chat-completions", "/chat/completions", "--apply_chat_template")
    samples = lm_eval(config, *chat)
    assert len(samples) == 200
    (first,) = (one for one in samples if one["doc"]["question"] == QUESTION and not one["doc_id"])
    return thoughts_in_text(first["resps"][0][0])


def loglikelihood() -> None:
    """200 times three ways to go on with thoughts, four prompts of token ids in a request."""
    docs = []
    for word, letter in letters(200):
        right = word.count(letter)
        start = f"{BEGIN}{USER}{question(word, letter)}{ASSISTANT}<think>\n"
        choices = [f" {right + off}" for off in (0, 1, 2)]
        RANDOM.shuffle(choices)
        said = {"said": start + counted(word, letter), "choices": choices}
        docs.append({**said, "right": choices.index(f" {right}")})
    config = task(
        "counts",
        docs,
        output_type="multiple_choice",
        doc_to_text="{{said}}",
        doc_to_choice="{{choices}}",
        doc_to_target="right",
        target_delimiter="",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    settings = {"tokenizer": str(tokenizer_folder()), "tokenizer_backend": "huggingface"}
    options = ("--batch_size", "4")
    samples = lm_eval(config, "local-completions", "/completions", *options, **settings)
    assert len(samples) == 200
    greedy = [
        answer[0][1] in (True, "True")
        for one in samples
        for at, answer in enumerate(one["resps"])
        if at == one["doc"]["right"]
    ]
    assert sum(greedy) >= LEAST_ACCURACY * len(samples), "the right answer is not the likeliest"


tell(
    "lm-eval",
    "lm_eval",
    [generate_until, loglikelihood],
    "`local-chat-completions` generates, `local-completions` weighs given answers",
)
