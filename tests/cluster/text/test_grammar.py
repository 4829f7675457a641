"""Masks against a brute-force oracle: a finite language whose sentences are all written down."""

import itertools
import json
import random
from typing import Any

import pytest

from cluster.text.grammar import GrammarCompiler, GrammarError, Matcher, allows
from cluster.text.json_grammar import json_answer
from cluster.text.tokenizer import THINK_END, Tokenizer

WORDS = ["the", "there", "thing", "naïve", "日本", "👍🏽", 'a"b', "a\\b"]
FINITE = {
    "type": "object",
    "properties": {"w": {"enum": WORDS}, "n": {"enum": [1, 12, None, True]}},
    "required": ["w", "n"],
    "additionalProperties": False,
}
OPEN: list[dict[str, Any]] = [
    {"type": "object"},
    {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}]},
    {
        "type": "object",
        "properties": {
            "s": {"type": "string", "maxLength": 6},
            "l": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
        },
        "required": ["s", "l"],
    },
]


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


def sentences() -> set[bytes]:
    """All that FINITE's grammar accepts: blanks where JSON may have them, our layout's three."""
    blanks = [b"", b" "]
    texts = set()
    for word, number, places in itertools.product(
        WORDS, [1, 12, None, True], itertools.product(blanks, repeat=8)
    ):
        pieces = [
            b"{",
            b'"w"',
            b":",
            json.dumps(word, ensure_ascii=False).encode(),
            b",",
            b'"n"',
            b":",
            json.dumps(number).encode(),
            b"}",
        ]
        texts.add(b"".join(a + b for a, b in itertools.zip_longest(pieces, places, fillvalue=b"")))
    return texts


def ids_in(mask: bytes, tokenizer: Tokenizer) -> set[int]:
    return {token_id for token_id in range(tokenizer.size) if allows(mask, token_id)}


def draw(matcher: Matcher, tokenizer: Tokenizer, seed: int, most: int = 120) -> list[int]:
    """A random answer, to its end or `most` ids."""
    chance = random.Random(seed)
    answer: list[int] = []
    while not matcher.ended and len(answer) < most:
        answer.append(chance.choice(sorted(ids_in(matcher.mask(), tokenizer))))
        matcher.push(answer[-1])
    return answer


@pytest.fixture(scope="module")
def prefixes() -> dict[bytes, bool]:
    """Every beginning of a sentence, and whether it is one itself."""
    whole = sentences()
    beginnings = {text[:end] for text in whole for end in range(len(text) + 1)}
    return {beginning: beginning in whole for beginning in beginnings}


@pytest.mark.parametrize("seed", range(12))
def test_a_mask_allows_what_leads_to_a_sentence_and_nothing_else(
    compiler: GrammarCompiler, tokenizer: Tokenizer, prefixes: dict[bytes, bool], seed: int
) -> None:
    chance = random.Random(seed)
    source = json_answer(FINITE).replace(r"( |\\n {0,24})", " ").replace(r"/\n{0,2}/ ", "")
    matcher, said = compiler.matcher(source), b""
    ordinary = [i for i in range(tokenizer.size) if i not in tokenizer.added_ids]
    while not matcher.ended:
        viable = {
            token_id
            for token_id in ordinary
            if (data := tokenizer.token_bytes(token_id)) and said + data in prefixes
        }
        viable |= tokenizer.eos_token_ids if prefixes[said] else set()
        allowed = ids_in(matcher.mask(), tokenizer)
        assert allowed <= viable
        if allowed != viable:  # what follows is forced: it is written as the model writes it
            longer = {p[len(said)] for p in prefixes if p.startswith(said) and p != said}
            assert (len(allowed), len(longer)) == (1, 1)
        drawn = chance.choice(sorted(allowed))
        matcher.push(drawn)
        said += b"" if drawn in tokenizer.eos_token_ids else tokenizer.token_bytes(drawn)
    assert prefixes[said]


@pytest.mark.parametrize("schema", OPEN, ids=range(3))
@pytest.mark.parametrize("seed", range(8))
def test_masks_depend_on_the_ids_alone_not_on_how_they_came(
    compiler: GrammarCompiler, tokenizer: Tokenizer, schema: dict[str, Any], seed: int
) -> None:
    begun = compiler.matcher(json_answer(schema))
    answer = draw(begun.copy(), tokenizer, seed, 60)
    stepwise = begun.copy()
    for place, token_id in enumerate(answer):
        ahead = answer[place : place + 5]
        masks = stepwise.masks(ahead)
        assert stepwise.masks(ahead) == masks  # looking ahead leaves no trace
        replayed = begun.copy()
        for earlier in answer[:place]:
            replayed.push(earlier)
        assert replayed.mask() == masks[0]
        for offset, mask in enumerate(masks[1:], 1):
            replayed.push(ahead[offset - 1])
            assert replayed.mask() == mask
        stepwise.push(token_id)


def test_drafts_are_followed_up_to_the_first_that_may_not_stand(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = compiler.matcher(json_answer({"enum": ["the", "thing"]}))
    good = tokenizer.encode_content('"th')
    assert len(matcher.masks([*good, tokenizer.eos_id, *good])) == len(good) + 1
    assert len(matcher.masks([tokenizer.eos_id])) == 1
    for token_id in tokenizer.encode_content('"thing"'):
        matcher.push(token_id)
    assert len(matcher.masks([tokenizer.eos_id, tokenizer.eos_id])) == 1
    matcher.push(tokenizer.eos_id)
    assert matcher.ended
    assert matcher.masks([5]) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_that_ends_is_json_of_its_schema(
    compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int
) -> None:
    matcher = compiler.matcher(json_answer(FINITE))
    answer = draw(matcher, tokenizer, seed)
    assert matcher.ended
    value = json.loads(tokenizer.decode(answer[:-1]))
    assert (set(value), value["w"] in WORDS) == ({"w", "n"}, True)


def test_the_end_may_follow_only_a_complete_answer(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = compiler.matcher(json_answer({"type": "integer"}))
    assert not tokenizer.eos_token_ids & ids_in(matcher.mask(), tokenizer)
    matcher.push(*tokenizer.encode_content("1"))
    assert tokenizer.eos_token_ids < ids_in(matcher.mask(), tokenizer)
    with pytest.raises(GrammarError):
        matcher.push(*tokenizer.encode_content("x"))
    complete = compiler.matcher(json_answer({"const": "x"}))
    for token_id in tokenizer.encode_content('"x"'):
        complete.push(token_id)
    assert ids_in(complete.mask(), tokenizer) == tokenizer.eos_token_ids


def test_control_tokens_are_not_text_of_their_spelling(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = compiler.matcher(json_answer({"const": f"a{THINK_END}b"}))
    while not matcher.ended:
        allowed = ids_in(matcher.mask(), tokenizer)
        assert not allowed & (tokenizer.added_ids - tokenizer.eos_token_ids)
        matcher.push(min(allowed))


@pytest.mark.parametrize(
    "source",
    [
        "start: nothing\n",
        json_answer({"not": {"type": "string"}}),
        json_answer({"type": "string", "pattern": "((("}),
        json_answer({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    ],
)
def test_a_grammar_that_cannot_be_had_is_refused(compiler: GrammarCompiler, source: str) -> None:
    with pytest.raises(GrammarError, match=r"."):
        compiler.matcher(source)


def test_a_grammar_without_any_answer_is_noticed_when_nothing_may_follow(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = compiler.matcher(json_answer({"$ref": "#"}))
    for token_id in tokenizer.encode_content("\n\n"):
        matcher.push(token_id)
    with pytest.raises(GrammarError, match=r"."):
        matcher.mask()
