"""Detokenizer: ids to text as they come, never half a character.

Owns the bytes of a character that is not complete yet. Refuses to know stop strings, think tags
and requests.
"""

import codecs
from collections.abc import Iterable

from cluster.text.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Text of a growing run of ids, each byte decoded once.

    The concatenated text does not depend on how the ids were cut into pushes. Bytes that can never
    become a character are replaced by U+FFFD as Python's own incremental decoder does.

    Attributes:
        mid_character: whether the last id left a character incomplete.
    """

    __slots__ = ("_decoder", "_shown_bytes", "_whole_texts", "mid_character")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._shown_bytes = tokenizer.shown_bytes
        self._whole_texts = tokenizer.whole_texts
        self._decoder = _Utf8Decoder(errors="replace")
        self.mid_character = False

    def push(self, token_ids: Iterable[int]) -> str:
        """The characters completed by these ids; special ids give none."""
        return "".join([self.push_one(token_id) for token_id in token_ids])

    def push_one(self, token_id: int) -> str:
        """The characters completed by this id: most ids are whole characters, found in a table."""
        if not self.mid_character:
            text = self._whole_texts.get(token_id)
            if text is not None:
                return text
        text = self._decoder.decode(self._shown_bytes((token_id,)))
        self.mid_character = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """Ends the text here: one U+FFFD for an incomplete character, else nothing.

        Afterwards the detokenizer starts afresh.
        """
        if not self.mid_character:
            return ""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self.mid_character = False
        return text
