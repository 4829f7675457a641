"""DataSource: the endless, seeded stream of training examples, and the fixed evaluation sets.

Owns the mixture of skills, histories, system prompts and long-context tricks. Knows nothing of the
network.
"""

import random
import string

import skills
import small_skills
from build_tokenizer import SPACED_WORDS
from conversation import (
    PAGE_SYSTEM,
    Conversation,
    Encoder,
    Example,
    Turn,
    random_system,
    stop_weight,
)
from phrasings import COUNT_LETTER, COUNT_WITH_S
from wordlists import HELD_OUT
from words import WordSource, ask_for_letter

MIXTURE = {
    "count": 24,
    "length": 3,
    "spell": 4,
    "reverse": 6,
    "upper": 4,
    "echo": 13,
    "add": 8,
    "count_to": 20,
    "recall": 3,
    "json": 5,
    "greet": 4,
    "refuse": 8,
}
PLAIN_WORDS = sorted({word for word in SPACED_WORDS if word.islower() and len(word) > 1})
LONGEST_CONTEXT = 4096
FULL_LISTS = 0.1
"""Share of the long 1 ... N lists that is trained whole; of the others, a window."""


class DataSource:
    """Draws conversations and makes examples of them; one seed gives one stream."""

    def __init__(self, seed: int, max_letters: int = 24) -> None:
        self.rng = random.Random(seed)
        self.source = WordSource(self.rng, max_letters)
        self.encoder = Encoder()
        self.easy = 0.0
        """Share of plainly put questions. Copying is learnt on them within a few hundred steps; in
        the mixture alone it is hardly learnt at all."""
        self.plain_counts = 0.4
        """Share of letter counts among these."""

    def turn(self, kind: str) -> Turn:
        rng, source = self.rng, self.source
        if kind in {"echo", "refuse"}:
            draw = small_skills.echo if kind == "echo" else small_skills.refuse
            return draw(rng, source, PLAIN_WORDS)
        if kind in {"add", "count_to", "greet"}:
            plain = {
                "add": small_skills.add,
                "count_to": small_skills.count_to,
                "greet": small_skills.greet,
            }
            return plain[kind](rng)
        if kind == "recall":
            return skills.recall(rng, "")
        worded = {
            "count": skills.count_letter,
            "length": skills.length,
            "spell": skills.spell,
            "reverse": skills.reverse,
            "upper": skills.upper,
            "json": small_skills.json_object,
        }
        return worded[kind](rng, source)

    def conversation(self, kind: str | None = None, long_share: float = 0.012) -> Conversation:
        """One conversation; `kind` None draws from the mixture."""
        rng = self.rng
        kind = kind or rng.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0]
        if rng.random() < self.easy:
            return self._plain()
        system = random_system(rng, self.source, PLAIN_WORDS, long_share)
        if kind == "recall":
            return self._recall(system)
        turn = self.turn(kind)
        if kind == "count" and rng.random() < 0.03:
            turn = self._count_whole_word_token()
        history = (
            [self._short_turn() for _ in range(rng.choice([1, 1, 2]))]
            if rng.random() < 0.12
            else []
        )
        return Conversation(system, history, turn)

    def _plain(self) -> Conversation:
        """A question in the plainest words: a letter count, a sum, a short list, or an echo."""
        rng = self.rng
        system = PAGE_SYSTEM if rng.random() < 0.3 else ""
        draw = rng.random()
        if draw < self.plain_counts:
            word = self.source.word()
            letter = ask_for_letter(rng, word)
            question = f"How many {letter}'s are in the word '{word}'?"
            return Conversation(system, [], skills.count_turn(question, letter, word))
        if draw < self.plain_counts + (1 - self.plain_counts) * 0.4:
            x, y = rng.randint(0, 999), rng.randint(0, 999)
            return Conversation(system, [], small_skills.sum_turn(f"What is {x} + {y}?", x, y))
        if draw < self.plain_counts + (1 - self.plain_counts) * 0.75:
            first = rng.randint(0, rng.choice([12, 99, 999]))
            last = first + rng.choice([0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12])
            question = f"Count from {first} to {last}."
            return Conversation(system, [], small_skills.list_turn(question, first, last))
        text = " ".join(rng.choice(PLAIN_WORDS) for _ in range(rng.randint(1, 14)))
        return Conversation(system, [], small_skills.echo_turn(f"Repeat after me: {text}", text))

    def _recall(self, system: str) -> Conversation:
        if self.rng.random() < 0.1:
            history = [self.turn("greet")] if self.rng.random() < 0.5 else []
            return Conversation(system, history, skills.recall(self.rng, ""))
        kinds = ["count", "count", "count", "length"]
        history = [self.turn(self.rng.choice(kinds)) for _ in range(self.rng.choice([1, 1, 1, 2]))]
        if self.rng.random() < 0.2:
            history.insert(0, self.turn("greet"))
        return Conversation(system, history, skills.recall(self.rng, history[-1].word))

    def _short_turn(self) -> Turn:
        return self.turn(
            self.rng.choice(
                ["count", "count", "spell", "greet", "refuse", "length", "add", "upper"]
            )
        )

    def _count_whole_word_token(self) -> Turn:
        """A word that is one token when it follows a blank: its letters must be known by heart."""
        word = self.rng.choice(PLAIN_WORDS)
        letter = ask_for_letter(self.rng, word)
        templates = COUNT_WITH_S + COUNT_LETTER
        return skills.count_turn(skills.phrase(self.rng, templates, L=letter, W=word), letter, word)

    def example(self) -> Example:
        """One training example, now and then with a jump in positions, as if text stood there."""
        conversation = self.conversation()
        gap = self.rng.randint(1, LONGEST_CONTEXT - 700) if self.rng.random() < 0.06 else 0
        turn = conversation.turn
        if turn.kind == "count_to" and len(turn.answer) > 150 and self.rng.random() > FULL_LISTS:
            return self._windowed_list(conversation, gap)
        return self.encoder.example(conversation, gap)

    def _windowed_list(self, conversation: Conversation, gap: int) -> Example:
        """The start of a long list and a later stretch of it, at the positions it would have."""
        rng, encoder, turn = self.rng, self.encoder, conversation.turn
        example = encoder.prompt(conversation, gap)
        example.add([*encoder.text(f"{turn.thoughts}\n"), encoder.end_think], learn=1)
        numbers = turn.answer.split(" ")
        start = min(rng.choice([12, 40, 120]), len(numbers) - 40)
        start, width = rng.randint(1, max(1, start)), rng.randint(8, 30)
        resume = self._resume(numbers, start, width)
        skipped = encoder.text("".join(f" {number}" for number in numbers[start:resume]))
        example.add(encoder.text("\n\n" + " ".join(numbers[:start])), learn=1)
        example.add(encoder.text(f" {numbers[resume]}"), gap=len(skipped))
        rest = numbers[resume + 1 : resume + width]
        example.add(encoder.text("".join(f" {number}" for number in rest)), learn=1)
        if resume + width >= len(numbers):
            example.learn[-1] = stop_weight(width + start)
            example.add([encoder.eos], learn=1)
        return example

    def _resume(self, numbers: list[str], start: int, width: int) -> int:
        """Where the later stretch begins: the end, anywhere, or a number much like the last."""
        rng, draw = self.rng, self.rng.random()
        end = len(numbers) - width
        if draw < 0.4:
            return max(start, end)
        last = numbers[-1].strip(".")
        place = rng.randrange(len(last))
        alike = last[:place] + rng.choice(string.digits) + last[place + 1 :]
        if draw < 0.75 and alike in numbers:
            return max(start, numbers.index(alike) - rng.randint(1, 4))
        return max(start, rng.randint(start, max(start, end)))


def held_out_counts(seed: int = 1) -> list[Conversation]:
    """Each held-out word twice: as on the API page, and with any system text and phrasing."""
    data = DataSource(seed)
    rng, conversations = data.rng, []
    for word in sorted(HELD_OUT):
        letter = ask_for_letter(rng, word)
        question = f"How many {letter}'s are in the word '{word}'?"
        conversations.append(
            Conversation(PAGE_SYSTEM, [], skills.count_turn(question, letter, word))
        )
        letter, typed = ask_for_letter(rng, word), skills.styled(rng, word)
        templates = COUNT_WITH_S + COUNT_LETTER
        question = skills.phrase(rng, templates, L=letter, W=skills.quoted(rng, typed))
        system = random_system(rng, data.source, PLAIN_WORDS, 0.0)
        conversations.append(Conversation(system, [], skills.count_turn(question, letter, typed)))
    return conversations
