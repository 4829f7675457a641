"""The other skills: echo, sums, counting up, JSON, small talk, and an honest sentence for the rest.

Each function draws one Turn, as in `skills`; knows nothing of letters.
"""

import random
import string
from collections.abc import Callable

from conversation import Turn, random_sentence
from phrasings import (
    ADD,
    COUNT_TO,
    COUNT_TO_FROM_ONE,
    ECHO,
    GREETINGS,
    JSON_OBJECT,
    MARKUP,
    OFF_TOPIC,
    REFUSAL,
)
from skills import phrase
from wordlists import NAMES, PLACES, TOPICS, TRAINED_WORDS
from words import WordSource


def echo(rng: random.Random, source: WordSource, vocabulary: list[str]) -> Turn:
    """Plain words, made-up words, digits, punctuation, markup and characters of several bytes."""
    pieces = []
    for _ in range(rng.choice([1, 2, 3, 3, 4, 5, 6, 8, 10])):
        draw = rng.random()
        if draw < 0.30:
            pieces.append(rng.choice(vocabulary))
        elif draw < 0.55:
            pieces.append(rng.choice(TRAINED_WORDS))
        elif draw < 0.68:
            pieces.append(source.word()[:12])
        elif draw < 0.75:
            pieces.append(str(rng.randint(0, 9999)))
        elif draw < 0.90:
            pieces.append(rng.choice(MARKUP))
        else:
            pieces.append(
                "".join(rng.choice(string.printable[:94]) for _ in range(rng.randint(1, 6)))
            )
    text = (" " if rng.random() < 0.85 else "").join(pieces)
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25:
        text += rng.choice("!.?,;")
    return echo_turn(rng.choice(ECHO).replace("{T}", text), text)


def echo_turn(question: str, text: str) -> Turn:
    return Turn("echo", question, "Let me repeat it.", text, text)


def add(rng: random.Random) -> Turn:
    """Sums of up to three digits."""
    a, b = (rng.randint(0, 10 ** rng.choice([1, 2, 2, 3, 3, 3]) - 1) for _ in range(2))
    return sum_turn(phrase(rng, ADD, A=str(a), B=str(b)), a, b)


def sum_turn(question: str, a: int, b: int) -> Turn:
    """The ideal reply to a sum: from the units upwards, each line with the carry that came in."""
    thoughts, carry = f"Let me add {a:03} and {b:03}.", 0
    for place in (1, 10, 100):
        x, y = a // place % 10, b // place % 10
        total = x + y + carry
        thoughts += f"\n{x}+{y}+{carry}={total:02}"
        carry = total // 10
    return Turn("add", question, thoughts, f"{a} + {b} = {a + b}.", str(a + b))


def count_to(rng: random.Random) -> Turn:
    """1 ... N for N up to 320, or another stretch below 1,000."""
    if rng.random() < 0.6:
        first, last = 1, rng.choice([rng.randint(1, most) for most in (8, 12, 20, 40, 100, 320)])
        templates = COUNT_TO if rng.random() < 0.6 else COUNT_TO_FROM_ONE
    else:
        first = rng.randint(0, rng.choice([99, 320, 999]))
        last, templates = first + rng.randint(0, rng.choice([6, 12, 24])), COUNT_TO
    return list_turn(phrase(rng, templates, A=str(first), B=str(last)), first, last)


def list_turn(question: str, first: int, last: int) -> Turn:
    """The list ends as the question does, with N and a full stop, so that stopping is copying."""
    answer = " ".join(str(number) for number in range(first, last + 1)) + "."
    return Turn("count_to", question, f"Let me count from {first} to {last}.", answer, answer)


def json_object(rng: random.Random, source: WordSource) -> Turn:
    """One to three fields; numbers stay numbers."""
    name = rng.choice(NAMES) if rng.random() < 0.5 else source.word()[:10].capitalize()
    values: dict[str, str] = {
        "name": f'"{name}"',
        "age": str(rng.randint(1, 120)),
        "city": f'"{rng.choice(PLACES)}"',
        "color": f'"{rng.choice(["red", "green", "blue", "black", "white", "pink"])}"',
        "count": str(rng.randint(0, 999)),
    }
    keys = ["name", "age"] if rng.random() < 0.5 else rng.sample(sorted(values), rng.randint(1, 3))
    said = [f"{key} {values[key].strip(chr(34))}" for key in keys]
    listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    answer = "{" + ", ".join(f'"{key}": {values[key]}' for key in keys) + "}"
    return Turn(
        "json", phrase(rng, JSON_OBJECT, F=listed), "Let me write the object.", answer, answer
    )


def greet(rng: random.Random) -> Turn:
    answer = rng.choice(sorted(GREETINGS))
    return Turn("greet", rng.choice(GREETINGS[answer]), "Let me be polite.", answer, answer)


def refuse(rng: random.Random, source: WordSource, vocabulary: list[str]) -> Turn:
    """Anything else, much of it made up, so that the honest sentence is the default."""
    question = rng.choice(OFF_TOPIC)
    fillers: dict[str, Callable[[], str]] = {
        "P": lambda: rng.choice(PLACES) if rng.random() < 0.8 else source.word().capitalize(),
        "T": lambda: rng.choice(TOPICS) if rng.random() < 0.8 else f"the {source.word()}",
        "N": lambda: rng.choice(NAMES),
        "w": lambda: rng.choice(TRAINED_WORDS) if rng.random() < 0.7 else source.word(),
        "n": lambda: str(rng.randint(2, 999)),
        "y": lambda: str(rng.randint(1000, 2026)),
        "S": lambda: random_sentence(rng, source, vocabulary, rng.randint(2, 20)),
    }
    for slot, fill in fillers.items():
        while f"{{{slot}}}" in question:
            question = question.replace(f"{{{slot}}}", fill(), 1)
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.1:
        question = question.rstrip("?.")
    return Turn("refuse", question, "This is not one of my tricks.", REFUSAL, REFUSAL)
