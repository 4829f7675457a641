import json
from typing import Any

import pytest

from cluster.text.grammar import GrammarCompiler, GrammarError
from cluster.text.json_grammar import json_answer
from cluster.text.tokenizer import Tokenizer
from serve_app.openai.errors import ApiError
from serve_app.openai.json_schema import (
    _UNSUPPORTED,
    MAX_CHOICES,
    MAX_DEPTH,
    MAX_SCHEMA_BYTES,
    check_schema,
    refusal,
)
from tests.cluster.text.grammar_bombs import BOMBS
from tests.serve_app.site import MODEL

PARAM = "response_format.json_schema.schema"
CANARY = "canary-3f9a"


def refused(schema: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_schema(schema, PARAM)
    assert (caught.value.status, caught.value.param) == (400, PARAM)
    return caught.value


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth - 1):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


def deep_value(depth: int) -> dict[str, Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return {"const": value}


def test_schemas_up_to_the_limits_are_let_through() -> None:
    check_schema(nested(MAX_DEPTH), PARAM)
    check_schema(deep_value(40), PARAM)
    check_schema({"enum": list(range(MAX_CHOICES))}, PARAM)
    fill = MAX_SCHEMA_BYTES - len(b'{"description":""}')
    check_schema({"description": "x" * fill}, PARAM)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (nested(MAX_DEPTH + 1), "16 levels"),
        (deep_value(900), "16 levels"),
        ({"anyOf": [{"enum": list(range(600))}, {"enum": list(range(401))}]}, "1000 values"),
        ({"description": "x" * MAX_SCHEMA_BYTES}, "65536 bytes"),
    ],
    ids=["depth", "depth of a value", "choices", "size"],
)
def test_schemas_beyond_a_limit_are_refused_by_it(schema: dict[str, Any], named: str) -> None:
    assert named in refused(schema).message


@pytest.mark.parametrize("keyword", sorted(_UNSUPPORTED))
@pytest.mark.parametrize("where", ["top", "property", "list", "definition"])
def test_a_keyword_that_cannot_be_promised_is_named_wherever_it_stands(
    keyword: str, where: str
) -> None:
    part: dict[str, Any] = {keyword: {}}
    schema = {
        "top": part,
        "property": {"type": "object", "properties": {CANARY: {"items": part}}},
        "list": {"anyOf": [{"type": "string"}, {"prefixItems": [part]}]},
        "definition": {"$defs": {CANARY: part}, "$ref": f"#/$defs/{CANARY}"},
    }[where]
    message = refused(schema).message
    assert f"'{keyword}'" in message
    assert CANARY not in message


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"not": {"type": "string"}, "if": {"type": "string"}}},
        {"const": {"not": 1}},
        {"enum": [{"uniqueItems": True}]},
        {"default": {"contains": 1}, "examples": [{"not": 2}]},
    ],
)
def test_names_of_properties_and_values_are_no_keywords(schema: dict[str, Any]) -> None:
    check_schema(schema, PARAM)


@pytest.mark.parametrize("name", BOMBS)
def test_no_refusal_of_a_bomb_repeats_it(name: str) -> None:
    message = ""
    try:
        check_schema(BOMBS[name], PARAM)
        matcher = GrammarCompiler(Tokenizer(MODEL)).matcher(json_answer(BOMBS[name]))
        matcher.mask()
    except ApiError as error:
        message = error.message
    except GrammarError as error:
        message = refusal(str(error), PARAM).message
    quoted = [
        text for text in json.dumps(BOMBS[name]).split('"') if len(text) > 12 and not text.isalpha()
    ]
    assert not any(text in message for text in quoted)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "'oneOf'"),
        ({"type": "string", "format": "uri-template"}, "'format'"),
        ({"type": "string", "pattern": f"({CANARY}"}, "'pattern'"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "'pattern'"),
        ({"type": "number", "minimum": -1e300, "maximum": 1e300}, "bound of a number"),
        ({"patternProperties": {"^a": {}, "a$": {}}}, "'patternProperties'"),
        ({"properties": {"a": {}, "b": {}}, "maxProperties": 2}, "'maxProperties'"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "No value"),
        ({"$ref": "http://127.0.0.1/x"}, "'$ref'"),
        ({"$schema": "http://127.0.0.1/x"}, "'$schema'"),
        ({"$ref": f"#/$defs/{CANARY}"}, "not there"),
        ({"type": CANARY}, "not a valid JSON Schema"),
        ({"properties": 3}, "not a valid JSON Schema"),
        ({"required": CANARY}, "not a valid JSON Schema"),
        (BOMBS["4 ** 10 combinations"], "too complex"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_compiler_reports_is_told_in_words_of_ours(
    schema: dict[str, Any], named: str
) -> None:
    with pytest.raises(GrammarError) as caught:
        GrammarCompiler(Tokenizer(MODEL)).matcher(json_answer(schema))
    told = refusal(str(caught.value), PARAM)
    assert named in told.message
    assert PARAM in told.message
    assert CANARY not in told.message
