"""Prompts of about a wanted number of tokens for a server whose tokenizer is not at hand.

Owns the words, and how many of them make how many tokens: asked of the server itself, by the usage
of two short requests. Knows no HTTP.
"""

import random
from collections.abc import Awaitable, Callable

_TEXT = (
    "the and for are but not you all any can had her was one our out day get has him his how man "
    "new now old see two way who boy did its let put say she too use cat dog sun sea sky red big "
    "top run sit eat yes far low own ask car try job law war air age bad bit box cut end eye few"
)
"""Short and common: one token each in most vocabularies."""
_WORDS = _TEXT.split()
_PROBES = (8, 40)

CountTokens = Callable[[str], Awaitable[int]]
"""A prompt's length in tokens, chat template included, by the server's own count."""


class Prompts:
    """Draws prompts of random words, no two alike; the same seed draws the same."""

    def __init__(self, words: int, seed: int) -> None:
        self._words = max(1, words)
        self._random = random.Random(seed)

    def draw(self) -> str:
        return " " + " ".join(self._random.choices(_WORDS, k=self._words))


async def fitted(tokens: int, seed: int, count: CountTokens) -> Prompts:
    """Prompts of about `tokens` tokens, by the slope between two probes."""
    few, many = _PROBES
    short = await count(Prompts(few, seed).draw())
    long = await count(Prompts(many, seed).draw())
    slope = max((long - short) / (many - few), 0.1)
    return Prompts(round((tokens - short) / slope) + few, seed + 1)
