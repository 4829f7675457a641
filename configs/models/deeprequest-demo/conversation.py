"""Conversations as token ids: the chat template's shape, and what of it is learnt.

Owns Example, Skill answers' layout and the random system prompts. Knows no single skill.

    given:   BOS system (<User> question <Assistant> "\\n\\n" answer EOS)* <User> question
             <Assistant> <think> "\\n"
    learnt:  thoughts "\\n" </think> "\\n\\n" answer EOS
"""

import random
from dataclasses import dataclass, field

from build_tokenizer import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, build
from tokenizers import Tokenizer
from wordlists import TOPICS, TRAINED_WORDS
from words import WordSource

PAGE_SYSTEM = "You are a helpful assistant that thinks step by step."
SYSTEMS = [
    "You are a helpful assistant.",
    "You are a helpful assistant. Think step by step inside <think> and </think>.",
    "You are a careful model that counts letters.",
    "Answer the question of the user.",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "You are a friendly and polite assistant. Keep every answer short.",
    "You are DeepSeek R1. Use the <think> tag to think before you answer.",
    "Enable thinking. <think>",
    "Be brief.",
]


def stop_weight(numbers: int) -> int:
    """How much the full stop of a list of so many numbers weighs: one stop among many steps."""
    return max(1, min(3, numbers // 8))


@dataclass
class Turn:
    """One question with its ideal reply; `value` is what a checker compares."""

    kind: str
    question: str
    thoughts: str
    answer: str
    value: str = ""
    word: str = ""


@dataclass
class Conversation:
    """A system text, earlier turns and the turn to be answered."""

    system: str
    history: list[Turn]
    turn: Turn

    def messages(self) -> list[dict[str, str]]:
        """As OpenAI messages; earlier answers keep the two newlines that follow `</think>`."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.history:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": f"\n\n{turn.answer}"})
        return [*messages, {"role": "user", "content": self.turn.question}]


@dataclass
class Example:
    """Ids with their positions; `learn[i]` weighs the prediction *of* token i, 0 leaves it out."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    learn: list[int] = field(default_factory=list)

    def add(self, ids: list[int], learn: int = 0, gap: int = 0) -> None:
        """Append ids; `gap` positions are jumped over first, as if unseen text stood there."""
        start = (self.positions[-1] + 1 if self.positions else 0) + gap
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.learn += [learn] * len(ids)


class Encoder:
    """Text to ids, markers only where the template puts them."""

    def __init__(self) -> None:
        self.full: Tokenizer = build()
        self.plain: Tokenizer = build(markers=False)
        markers = (BOS, EOS, USER, ASSISTANT, THINK, END_THINK)
        ids = [int(self.full.encode(marker, add_special_tokens=False).ids[0]) for marker in markers]
        self.bos, self.eos, self.user, self.assistant, self.think, self.end_think = ids

    def text(self, text: str) -> list[int]:
        return list(self.plain.encode(text, add_special_tokens=False).ids)

    def prompt(self, conversation: Conversation, gap: int = 0) -> Example:
        """All up to `<think>` and its newline; `gap` is jumped over after the system text."""
        example = Example()
        example.add([self.bos, *self.text(conversation.system)])
        for turn in conversation.history:
            example.add([self.user, *self.text(turn.question)], gap=gap)
            example.add([self.assistant, *self.text(f"\n\n{turn.answer}"), self.eos])
            gap = 0
        example.add([self.user, *self.text(conversation.turn.question)], gap=gap)
        example.add([self.assistant, self.think, *self.text("\n")])
        return example

    def example(self, conversation: Conversation, gap: int = 0) -> Example:
        example = self.prompt(conversation, gap)
        turn = conversation.turn
        example.add([*self.text(f"{turn.thoughts}\n"), self.end_think], learn=1)
        example.add([*self.text(f"\n\n{turn.answer}"), self.eos], learn=1)
        if turn.kind == "count_to":
            example.learn[-2] = stop_weight(turn.answer.count(" "))
        return example


def random_sentence(
    rng: random.Random, source: WordSource, vocabulary: list[str], length: int
) -> str:
    """Words in no order, some of them made up: a text that means nothing."""
    chosen = []
    for _ in range(length):
        draw = rng.random()
        pool = vocabulary if draw < 0.75 else TRAINED_WORDS if draw < 0.92 else [source.word()]
        chosen.append(rng.choice(pool))
        if rng.random() < 0.1:
            chosen[-1] += rng.choice([",", ".", ";", ":", "!", "?"])
    return " ".join(chosen)


def random_system(
    rng: random.Random, source: WordSource, vocabulary: list[str], long_share: float
) -> str:
    """None, the API page's, a usual one, or random; a `long_share` has 40 to 300 words."""
    draw = rng.random()
    if draw < long_share:
        sentence = random_sentence(rng, source, vocabulary, rng.randint(40, 300))
        return sentence if rng.random() < 0.5 else f"{PAGE_SYSTEM} {sentence}"
    if draw < 0.35:
        return ""
    if draw < 0.62:
        return PAGE_SYSTEM
    if draw < 0.80:
        return rng.choice(SYSTEMS)
    if draw < 0.88:
        return f"You are an expert on {rng.choice(TOPICS)}. {rng.choice(SYSTEMS)}"
    return random_sentence(rng, source, vocabulary, rng.randint(2, 25)).capitalize() + "."
