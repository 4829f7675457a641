"""Grammar: which ids may come next in an answer that must have a given form.

Owns the one door to llguidance: its view of a checkpoint's vocabulary, the limits under which it
works, and an answer's place in its grammar. Refuses to know logits, requests, HTTP and how a
grammar came about: that is `json_grammar`'s matter.

    source (Lark, JSON schemas inside)     GrammarCompiler.matcher(source) -> Matcher
    Matcher   mask -> ids that may follow | push(id) | mask | ... | end of sequence -> ended

A mask is a function of the source and of the ids pushed, in whatever portions they came: all ranks
find the same. The end of sequence may follow where the answer is complete; where nothing else may,
it must. Limits count work, never seconds, so that they too are the same everywhere.
"""

from collections.abc import Sequence

import llguidance

from cluster.text.tokenizer import Tokenizer

_SILENT = 0


class GrammarError(ValueError):
    """A grammar cannot be compiled, or an answer cannot be followed within the limits."""


class GrammarCompiler:
    """Compiles grammars over one checkpoint's vocabulary. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Builds the tree of all tokens' bytes: about 0.4 s for 150,000 of them."""
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        eos = sorted(tokenizer.eos_token_ids)
        self._tokenizer = llguidance.LLTokenizer(wrapper, eos_token=eos)
        self._eos = tokenizer.eos_token_ids
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=500_000,
            step_lexer_fuel=100_000,  # some milliseconds
            step_max_items=50_000,
            max_lexer_states=20_000,  # 1 to 2 KiB each, in every row
            max_grammar_size=200_000,
            verbose_errors=False,  # they quote the answer
        )

    def matcher(self, source: str) -> "Matcher":
        """A new answer's place in the grammar.

        Raises:
            GrammarError: the grammar is not valid, not supported or too large. The message is
                llguidance's own, and quotes the source.
        """
        made = llguidance.LLMatcher(self._tokenizer, source, log_level=_SILENT, limits=self._limits)
        if made.is_error():
            raise GrammarError(made.get_error())
        return Matcher(made, self._eos)


class Matcher:
    """One answer's place in its grammar."""

    __slots__ = ("_eos", "_matcher", "ended")

    def __init__(self, matcher: llguidance.LLMatcher, eos_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos = eos_token_ids
        self.ended = False
        """Whether the end of sequence was pushed; what follows it is nobody's concern."""

    def copy(self) -> "Matcher":
        """Another answer at the same place: cheap, nothing is compiled anew."""
        twin = Matcher(self._matcher.deep_copy(), self._eos)
        twin.ended = self.ended
        return twin

    def push(self, token_id: int) -> None:
        """The answer's next id.

        Raises:
            GrammarError: it may not follow here.
        """
        if self.ended:
            return
        if not self._matcher.consume_token(token_id):
            raise GrammarError(self._matcher.get_error())
        self.ended = token_id in self._eos

    def mask(self) -> bytes:
        """One bit per id that may follow: id i is bit i % 8 of byte i // 8.

        Raises:
            GrammarError: nothing may follow, or finding out takes too much work.
        """
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())
        return mask

    def masks(self, drafts: Sequence[int]) -> list[bytes]:
        """The mask here and behind each draft, up to the first that may not follow, or that ends
        the answer. Empty when the answer has ended.

        Raises:
            GrammarError: as `mask`; the matcher is of no use afterwards.
        """
        if self.ended:
            return []
        masks = [self.mask()]
        for draft in drafts:
            if draft in self._eos or not allows(masks[-1], draft):
                break
            self._matcher.consume_token(draft)
            masks.append(self.mask())
        if len(masks) > 1 and not self._matcher.rollback(len(masks) - 1):
            raise GrammarError(self._matcher.get_error())
        return masks


def allows(mask: bytes, token_id: int) -> bool:
    """Whether a mask has the id's bit."""
    return bool(mask[token_id >> 3] >> (token_id & 7) & 1)


class _Vocabulary:
    """A checkpoint's vocabulary in the words of llguidance.

    Added tokens are control tokens to it: text of the same spelling is never one of them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.size)]
        self.special_token_ids = sorted(tokenizer.added_ids)
        self._encode = tokenizer.encode_content

    def __call__(self, text: str) -> list[int]:
        """What forced text is encoded as: the ids in which the model writes it by itself."""
        return self._encode(text)
