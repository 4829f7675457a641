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
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._shown_bytes = tokenizer.shown_bytes
        self._decoder = _Utf8Decoder(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """The characters completed by these ids; special ids give none."""
        return self._decoder.decode(self._shown_bytes(token_ids))

    def flush(self) -> str:
        """Ends the text here: one U+FFFD for an incomplete character, else nothing.

        Afterwards the detokenizer starts afresh.
        """
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
