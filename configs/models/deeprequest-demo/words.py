"""WordSource: draws words to count, spell and echo.

Owns the mixture of real words, look-alikes and deliberately hard letter patterns. Never returns a
held-out word. Knows nothing of prompts.
"""

import random
import string

from wordlists import HELD_OUT, TRAINED_WORDS

MAX_LETTERS = 32


class WordSource:
    """Words from one seeded generator; `max_letters` may be raised while training goes on."""

    def __init__(self, rng: random.Random, max_letters: int = 24) -> None:
        self.rng = rng
        self.max_letters = max_letters
        self.followers: dict[str, list[str]] = {}
        for word in TRAINED_WORDS:
            padded = f"^^{word}$"
            for i in range(len(padded) - 2):
                self.followers.setdefault(padded[i : i + 2], []).append(padded[i + 2])

    def word(self) -> str:
        """One lower-case word of 1 to max_letters letters."""
        while True:
            word = self._draw()
            if 1 <= len(word) <= self.max_letters and word not in HELD_OUT:
                return word

    def _draw(self) -> str:
        kind = self.rng.random()
        if kind < 0.25:
            return self.rng.choice(TRAINED_WORDS)
        if kind < 0.60:
            return self._look_alike()
        if kind < 0.68:
            return self.rng.choice(TRAINED_WORDS) + self.rng.choice(TRAINED_WORDS)
        alphabet = string.ascii_lowercase
        if kind < 0.90:
            alphabet = "".join(self.rng.sample(alphabet, self.rng.randint(1, 7)))
        return "".join(self.rng.choice(alphabet) for _ in range(self._length()))

    def _length(self) -> int:
        if self.rng.random() < 0.6:
            return self.rng.randint(3, 12)
        if self.rng.random() < 0.9:
            return self.rng.randint(1, 24)
        return self.rng.randint(20, MAX_LETTERS)

    def _look_alike(self) -> str:
        """A second-order Markov chain over the trained words; some letters are doubled."""
        pair, letters = "^^", ""
        while True:
            follower = self.rng.choice(self.followers[pair])
            if follower == "$":
                if len(letters) > 4 or self.rng.random() < 0.5:
                    return letters
                pair, letters = "^^", ""
                continue
            letters += follower
            if self.rng.random() < 0.05:
                letters += follower
            pair = pair[1] + follower


def ask_for_letter(rng: random.Random, word: str) -> str:
    """The letter to count: usually one of the word, often its most frequent one."""
    draw = rng.random()
    if draw < 0.25:
        return max(sorted(set(word)), key=word.count)
    if draw < 0.72:
        return rng.choice(sorted(set(word)))
    return rng.choice(string.ascii_lowercase)
