"""The demo tokenizer: bytes, a few hundred whole words, and DeepSeek's markers by their real names.

A byte-pair tokenizer with no merges: a word of the list is one token, everything else falls to
single bytes, so the word in question is always spelt out. Knows nothing of the model.

Ids:  0 ... 255 bytes | words | end of sentence | User | Assistant | begin of sentence
      | <think> | </think>
"""

import string

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

BAR, BLANK = "\uff5c", "\u2581"
"""The markers use a fullwidth bar and a low block; their ASCII look-alikes are ordinary text."""
BOS = f"<{BAR}begin{BLANK}of{BLANK}sentence{BAR}>"
EOS = f"<{BAR}end{BLANK}of{BLANK}sentence{BAR}>"
USER = f"<{BAR}User{BAR}>"
ASSISTANT = f"<{BAR}Assistant{BAR}>"
THINK = "<think>"
END_THINK = "</think>"

EMBEDDING_ROWS = 704
MAX_LINE = 40
"""Highest line number ("\\n40: ") that is a token of its own."""

PATTERN = (
    r"\n[0-9]{1,2}: |(?<=:) |(?<=\p{L})'(?:s|t|re|ve|m|ll|d)(?!\p{L})|'s(?![\p{L}\p{N}])"
    r"| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\n\n|\s"
)
"""Line numbers; the blank after a colon, so that what is to be repeated starts with bytes."""

_STARTS = (
    "How What Which Count Let There You The Repeat Spell Reverse Write Please Tell Give Say Add"
)
SENTENCE_STARTS = _STARTS.split()

_SPACED = """
able about add after again all am an and answer any anything appear appears are array as ask asked
at away back backwards be been before begin best big box but by calculate called can cannot
capital careful carefully case characters clear color concise contains contain conversation
correct could count counting day do does each easy English equal every example exactly explain
field fields find first five following food for four friendly from get give go good great had has
have he help helpful here high him his how idea if in include inside is it its just know last
learn let letter letters like list little live long look looking made make man many may me mean
mention model most much my name new next no not number numbers object occur occurrences of often
old on one only or order other our out over page part people place please plus point polite
present put question questions quick read repeat reply result reverse reversed right rule said
same say see sentence she short should show so some something spell spelled spelling start step
steps story sum sure talk tell text than thank that the their them then there these they thing
think thinks this three time times tiny to today together total towards tricks truth try two under
until up upper us use user value values very want was way we welcome well were what when where
which while who why will with without word words would write written year yes yet you your zero
assistant JSON demo age lower uppercase reasoning boxed final DeepRequest being both during either
enough ever few however instead later least less likely maybe might more must near never none
nothing perhaps quite rather really several since someone still such though through too toward
unless used using usually whether whole whose within yourself because between different around
became began beyond alone whom
"""
SPACED_WORDS = _SPACED.split()


def words() -> list[str]:
    """Every whole-word token, in the order of the ids after the 256 bytes."""
    spaced = [f" {word}" for word in dict.fromkeys(SPACED_WORDS)]
    digits = [f" {digit}" for digit in string.digits]
    marks = [f" {mark}" for mark in "'\"(+-=<{[:`"]
    lines = [f"\n{line}: " for line in range(1, MAX_LINE + 1)]
    return [
        "\n\n",
        "'s",
        *lines,
        *digits,
        *marks,
        *dict.fromkeys(SENTENCE_STARTS),
        *spaced,
    ]


def build(markers: bool = True) -> Tokenizer:
    """The tokenizer; encoding with special tokens prepends one BOS, as DeepSeek's does.

    Without `markers` no text of a user can become a marker: the form that encodes message contents.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = alphabet + [spell.pre_tokenize_str(word)[0][0] for word in words()]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"), spell]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if not markers:
        return tokenizer
    for marker, special in (
        (EOS, True),
        (USER, False),
        (ASSISTANT, False),
        (BOS, True),
        (THINK, False),
        (END_THINK, False),
    ):
        tokenizer.add_tokens([AddedToken(marker, special=special, normalized=False)])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    if tokenizer.get_vocab_size() > EMBEDDING_ROWS:
        raise ValueError(
            f"{tokenizer.get_vocab_size()} tokens do not fit {EMBEDDING_ROWS} embedding rows"
        )
    return tokenizer
