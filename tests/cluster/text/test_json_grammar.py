import json

import pytest

from cluster.text.grammar import GrammarCompiler, GrammarError
from cluster.text.json_grammar import ANY_OBJECT, json_answer
from cluster.text.tokenizer import Tokenizer


def accepted(source: str, text: str, tokenizer: Tokenizer) -> bool:
    """Whether a text is an answer of the grammar, in the tokens the model writes it in."""
    matcher = GrammarCompiler(tokenizer).matcher(source)
    try:
        for token_id in [*tokenizer.encode_content(text), tokenizer.eos_id]:
            matcher.push(token_id)
    except GrammarError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a":[1,{}],"b":null}', True),
        ('{"a": [1, {}], "b": null}', True),
        (json.dumps({"a": [1, {"b": "c"}]}, indent=4), True),
        ("\n\n{}", True),
        ("\n\n\n{}", False),
        ("{  }", False),
        ("{\n\n}", False),
        ("{}\n", False),
        ("[]", False),
        ('{"a":01}', False),
        ('{"a":"\n"}', False),
    ],
)
def test_an_object_may_be_laid_out_compactly_or_indented(
    tokenizer: Tokenizer, text: str, fits: bool
) -> None:
    assert accepted(json_answer(ANY_OBJECT), text, tokenizer) is fits


def test_a_schema_cannot_choose_its_own_layout(tokenizer: Tokenizer) -> None:
    theirs = {"whitespace_pattern": "[ ]{5}", "lenient": True}
    source = json_answer({"type": "array", "x-guidance": theirs})
    assert accepted(source, "[1, 2]", tokenizer)
    assert not accepted(source, "[     1]", tokenizer)
    lenient = json_answer({"not": {"type": "object"}, "x-guidance": theirs})
    with pytest.raises(GrammarError, match="not"):
        GrammarCompiler(tokenizer).matcher(lenient)


def test_any_text_in_a_schema_is_text(tokenizer: Tokenizer) -> None:
    odd = 'a"b\\c\nd%json {}\u2028é👍 /* x */ // y'
    source = json_answer({"const": odd})
    assert accepted(source, json.dumps(odd, ensure_ascii=False), tokenizer)
