"""The word skills: count letters, spell, reverse, upper-case, and recall an earlier turn's word.

Each function draws one Turn: a question in one of many phrasings and its one ideal reply, so that
the reply is a function of the question. Every letter gets a line of its own and each line has the
same number of tokens:

    Let me count the letter r.
    1: s 0
    2: t 0
    3: r 1
"""

import random

from conversation import Turn
from phrasings import (
    AFTER,
    BEFORE,
    COUNT_LETTER,
    COUNT_WITH_S,
    LENGTH,
    QUOTES,
    RECALL,
    REVERSE,
    SPELL,
    UPPER,
)
from words import WordSource, ask_for_letter


def phrase(rng: random.Random, templates: list[str], **slots: str) -> str:
    """A question with small accidents: lower case, no final mark, words before or after."""
    text = rng.choice(templates)
    if rng.random() < 0.08:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.06:
        text = text.rstrip(".?")
    for name, value in slots.items():
        text = text.replace(f"{{{name}}}", value)
    draw = rng.random()
    if draw < 0.06:
        before = rng.choice(BEFORE)
        text = before + (text if rng.random() < 0.5 else text[0].lower() + text[1:])
    elif draw < 0.16:
        text += rng.choice(AFTER)
    elif draw < 0.18:
        text += rng.choice([" ", "\n"])
    return text


def styled(rng: random.Random, word: str) -> str:
    """Sometimes Capitalised or in UPPER CASE, as people type."""
    draw = rng.random()
    return word.capitalize() if draw < 0.08 else word.upper() if draw < 0.14 else word


def quoted(rng: random.Random, word: str) -> str:
    return rng.choice(QUOTES).format(word)


def numbered(word: str) -> str:
    return "".join(f"\n{i}: {letter}" for i, letter in enumerate(word.lower(), 1))


def countdown(word: str) -> str:
    return "".join(f"\n{i}: {word[i - 1].lower()}" for i in range(len(word), 0, -1))


def count_turn(question: str, letter: str, word: str) -> Turn:
    """The ideal reply to a counting question; `word` as it was typed, `letter` in lower case."""
    thoughts, count = f"Let me count the letter {letter}.", 0
    for i, character in enumerate(word.lower(), 1):
        count += character == letter
        thoughts += f"\n{i}: {character} {count}"
    verb, plural = ("is", "") if count == 1 else ("are", "'s")
    answer = f"There {verb} {count} {letter}{plural} in the word '{word}'."
    return Turn("count", question, thoughts, answer, str(count), word)


def count_letter(rng: random.Random, source: WordSource) -> Turn:
    word = source.word()
    letter = ask_for_letter(rng, word)
    typed, asked = styled(rng, word), letter.upper() if rng.random() < 0.12 else letter
    if rng.random() < 0.5:
        question = phrase(rng, COUNT_WITH_S, L=asked, W=quoted(rng, typed))
    else:
        shown = rng.choice(["{}", "{}", "{}", "'{}'", '"{}"']).format(asked)
        question = phrase(rng, COUNT_LETTER, L=shown, W=quoted(rng, typed))
    return count_turn(question, letter, typed)


def length(rng: random.Random, source: WordSource) -> Turn:
    word = styled(rng, source.word())
    number = len(word)
    verb, plural = ("is", "") if number == 1 else ("are", "s")
    answer = f"There {verb} {number} letter{plural} in the word '{word}'."
    question = phrase(rng, LENGTH, W=quoted(rng, word))
    return Turn(
        "length", question, f"Let me count the letters.{numbered(word)}", answer, str(number), word
    )


def spell(rng: random.Random, source: WordSource) -> Turn:
    word = styled(rng, source.word())
    answer = "-".join(word.lower())
    return Turn(
        "spell",
        phrase(rng, SPELL, W=quoted(rng, word)),
        f"Let me spell it.{numbered(word)}",
        answer,
        answer,
        word,
    )


def reverse(rng: random.Random, source: WordSource) -> Turn:
    word = styled(rng, source.word())
    answer = word.lower()[::-1]
    thoughts = f"Let me reverse it.{numbered(word)}{countdown(word)}"
    return Turn(
        "reverse", phrase(rng, REVERSE, W=quoted(rng, word)), thoughts, answer, answer, word
    )


def upper(rng: random.Random, source: WordSource) -> Turn:
    word = source.word()
    answer = word.upper()
    thoughts = f"Let me spell it.{numbered(word)}"
    return Turn("upper", phrase(rng, UPPER, W=quoted(rng, word)), thoughts, answer, answer, word)


def recall(rng: random.Random, word: str) -> Turn:
    """The answer after earlier turns about `word`; no word yet gives an honest sentence."""
    answer = (
        f"You asked about the word '{word}'." if word else "You have not asked about a word yet."
    )
    return Turn("recall", phrase(rng, RECALL), "Let me look back.", answer, answer, word)
