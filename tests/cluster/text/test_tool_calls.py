import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.text.grammar import GrammarCompiler, GrammarError, allows
from cluster.text.tokenizer import Tokenizer
from cluster.text.tool_calls import (
    CALL_START,
    CallRule,
    Tool,
    answer_with_calls,
    introduction,
    written_call,
    written_results,
)
from cluster.text.tool_reader import AnswerPiece, ToolReader

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    Tool("weather", "What it will be like.", CITY),
    Tool("weather-map", "", {"type": "object", "maxProperties": 0}),
]
FREE, MUST = CallRule(required=False, parallel=True), CallRule(required=True, parallel=True)
ONE, MUST_ONE = CallRule(required=False, parallel=False), CallRule(required=True, parallel=False)
MAP = written_call("weather-map", "{}")
PARIS = written_call("weather", '{"city": "Paris"}')
QUOTES = written_call("weather", '{"city": "a\\"}b{"}')


def accepted(source: str, text: str, tokenizer: Tokenizer) -> bool:
    matcher = GrammarCompiler(tokenizer).matcher(source)
    try:
        for token_id in [*tokenizer.encode_content(text), tokenizer.eos_id]:
            matcher.push(token_id)
    except GrammarError:
        return False
    return True


def read(*texts: str) -> list[AnswerPiece]:
    """The pieces of an answer cut in this way, those of a kind joined."""
    reader = ToolReader()
    pieces = [piece for text in texts for piece in reader.push(text)] + reader.flush()
    joined: list[AnswerPiece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last is not None and piece.call == last.call and piece.name is None:
            joined[-1] = last._replace(
                text=last.text + piece.text, arguments=last.arguments + piece.arguments
            )
        else:
            joined.append(piece)
    return joined


@pytest.mark.parametrize(
    ("answer", "rules"),
    [
        ("", {FREE, ONE}),
        ("It is <b>warm</b>, I <tool", {FREE, ONE}),
        (PARIS, {FREE, ONE, MUST, MUST_ONE}),
        (f"\n\n{MAP}", {FREE, ONE, MUST, MUST_ONE}),
        (QUOTES, {FREE, ONE, MUST, MUST_ONE}),
        (f"I look.\n{PARIS}", {FREE, ONE}),
        (f"{PARIS}\n{MAP}", {FREE, MUST}),
        (PARIS * 16, {FREE, MUST}),
        (PARIS * 17, set()),
        (f"{PARIS} that is it", set()),
        (f"{CALL_START} is how calls begin", set()),
        (written_call("nothing", "{}"), set()),
        (written_call("weather", "{}"), set()),
        (written_call("weather", '{"city": "too long a name"}'), set()),
    ],
)
def test_an_answer_may_hold_what_the_rule_says(
    tokenizer: Tokenizer, answer: str, rules: set[CallRule]
) -> None:
    fits = {
        rule
        for rule in (FREE, ONE, MUST, MUST_ONE)
        if accepted(answer_with_calls(TOOLS, rule), answer, tokenizer)
    }
    assert fits == rules


@pytest.mark.parametrize(
    ("answer", "fits"), [('{"a": 1}', True), (PARIS, True), ("text", False), (f"x{PARIS}", False)]
)
def test_an_answer_without_calls_may_have_a_schema(
    tokenizer: Tokenizer, answer: str, fits: bool
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert accepted(answer_with_calls(TOOLS, FREE, schema), answer, tokenizer) is fits


@pytest.mark.parametrize("rule", [FREE, MUST, MUST_ONE], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_grammar_lets_through_is_read_as_calls_of_the_tools(
    tokenizer: Tokenizer, rule: CallRule, seed: int
) -> None:
    matcher = GrammarCompiler(tokenizer).matcher(answer_with_calls(TOOLS, rule))
    chance = random.Random(seed)
    said: list[int] = []
    begun = tokenizer.encode_content("Let me see. " + CALL_START) if rule is FREE else []
    while not matcher.ended and len(said) < 400:
        ids = [i for i in range(tokenizer.size) if allows(matcher.mask(), i)]
        ending = len(said) > 60 and tokenizer.eos_id in ids
        said.append(begun[len(said)] if len(said) < len(begun) else chance.choice(ids))
        said[-1] = tokenizer.eos_id if ending else said[-1]
        matcher.push(said[-1])
    assert matcher.ended
    answer = tokenizer.decode(said[:-1])
    chunks = [answer[place : place + 3] for place in range(0, len(answer), 3)]
    pieces = read(*chunks)
    assert pieces == read(answer)
    calls = [piece for piece in pieces if piece.call is not None]
    assert [piece.call for piece in calls] == list(range(len(calls)))
    assert calls
    parameters = {tool.name: tool.parameters for tool in TOOLS}
    for piece in calls:
        assert piece.name is not None
        jsonschema.validate(json.loads(piece.arguments), parameters[piece.name])
    texts = [piece.text for piece in pieces if piece.text]
    assert texts == (["Let me see."] if rule is FREE else [])


@given(st.data())
def test_the_pieces_do_not_depend_on_the_cuts(data: st.DataObject) -> None:
    odd = st.sampled_from(["a", " ", "\n", "<", "<tool_call", "</tool_call>", "{", '"', "é"])
    text = "".join(data.draw(st.lists(odd, max_size=6)))
    calls = data.draw(st.lists(st.sampled_from([PARIS, MAP, QUOTES]), max_size=3))
    answer = text + "\n".join(calls)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)), max_size=8)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(*pieces) == read(answer)


def test_text_in_front_of_a_call_ends_with_its_last_letter() -> None:
    assert read(f"I look.\n\n{PARIS}\n{MAP}") == [
        AnswerPiece("I look."),
        AnswerPiece(call=0, name="weather", arguments='{"city": "Paris"}'),
        AnswerPiece(call=1, name="weather-map", arguments="{}"),
    ]
    assert read("no call <tool \n") == [AnswerPiece("no call <tool \n")]


def test_half_a_call_is_told_as_far_as_it_goes() -> None:
    assert read('x<tool_call>{"name": "wea') == [AnswerPiece("x")]
    half = read('<tool_call>{"name": "weather", "arguments": {"city": "Pa')
    assert half == [AnswerPiece(call=0, name="weather", arguments='{"city": "Pa')]


def test_the_model_is_shown_every_tool_and_how_to_call_it() -> None:
    told = introduction(TOOLS, FREE)
    described: list[dict[str, Any]] = [
        json.loads(line) for line in told.splitlines() if line.startswith("{")
    ]
    assert [tool["name"] for tool in described] == ["weather", "weather-map"]
    assert described[0]["parameters"] == CITY
    assert written_call("NAME", "ARGUMENTS") in told
    assert "must" in introduction(TOOLS, MUST)
    assert "one" in introduction(TOOLS, ONE)
    assert written_results(["a", "b"]).count("<tool_response>") == 2


@pytest.mark.parametrize("nothing", ["", " \n"])
def test_a_call_of_the_past_without_arguments_is_still_json(nothing: str) -> None:
    assert written_call("now", nothing) == written_call("now", "{}")
