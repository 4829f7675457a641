"""Schemas whose values are short, so that a tiny model finishes them."""

from typing import Any


def record(**properties: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    return {**optional(**properties), "required": list(properties)}


def optional(**properties: Any) -> dict[str, Any]:
    """An object of some of these properties and no others."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def text(most: int = 6, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": most, **more}


def items(of: Any, most: int = 2, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": of, "maxItems": most, **more}


DIGIT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 9}

SCHEMAS: dict[str, dict[str, Any]] = {
    "enum": record(colour={"enum": ["red", "green", "blue"]}),
    "enum of kinds": {"enum": [1, 2.5, True, None, "one", [1], {"a": 1}]},
    "const": record(version={"const": "v1"}, ok={"const": True}),
    "reference": {
        "$defs": {"n": DIGIT},
        **record(a={"$ref": "#/$defs/n"}, b={"$ref": "#/$defs/n"}),
    },
    "old-style reference": {
        "definitions": {"w": text()},
        **record(word={"$ref": "#/definitions/w"}),
    },
    "recursive reference": {
        "$defs": {
            "node": record(
                value=DIGIT,
                next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]},
            ),
            "leaf": record(value=DIGIT, next={"type": "null"}),
        },
        "$ref": "#/$defs/node",
    },
    "nested arrays": record(rows=items(items(DIGIT, 3), 2)),
    "tuple": {
        "type": "array",
        "prefixItems": [text(3), DIGIT, {"type": "boolean"}],
        "items": False,
        "minItems": 3,
    },
    "array of objects": items(record(k={"enum": ["a", "b"]}, v=DIGIT), 2, minItems=1),
    "unicode values": {
        "enum": ["naïve", "日本語", "👩‍👩‍👧", "e\u0301", "Ω≈ç", 'quo"te', "back\\slash"]
    },
    "unicode names": record(**{"größe": DIGIT, "名前": text(2), "🙂": {"type": "boolean"}}),
    "numbers in bounds": record(
        i={"type": "integer", "minimum": -5, "maximum": 12},
        x={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    ),
    "multiples": record(m={"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}),
    "oneOf by type": {"oneOf": [{"type": "boolean"}, {"type": "null"}, text(4)]},
    "oneOf by const": {
        "oneOf": [
            record(kind={"const": "cat"}, lives=DIGIT),
            record(kind={"const": "dog"}, tricks=items(text(3))),
        ]
    },
    "oneOf by reference or null": {
        "$defs": {"leaf": record(value=DIGIT)},
        **record(leaf={"oneOf": [{"$ref": "#/$defs/leaf"}, {"type": "null"}]}),
    },
    "oneOf by what is required": {
        "type": "object",
        "properties": {"cash": DIGIT, "card": text(4)},
        "additionalProperties": False,
        "oneOf": [{"required": ["cash"]}, {"required": ["card"]}],
    },
    "oneOf by bounds": {"oneOf": [DIGIT, {"type": "integer", "minimum": 50, "maximum": 99}]},
    "anyOf": {"anyOf": [record(a=DIGIT), record(b={"type": "boolean"})]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]},
    "nullable by types": record(maybe={"type": ["boolean", "null"]}, sure={"type": "boolean"}),
    "optional properties": optional(a=DIGIT, b={"type": "boolean"}, c=text(2)),
    "length bounds": record(s={"type": "string", "minLength": 3, "maxLength": 5}),
    "pattern": record(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "formats": record(
        day={"type": "string", "format": "date"},
        at={"type": "string", "format": "date-time"},
        id={"type": "string", "format": "uuid"},
        size={"type": "integer", "format": "int32", "minimum": 0, "maximum": 9},
    ),
    "map": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": DIGIT},
        "additionalProperties": False,
        "maxProperties": 1,
    },
    "deep": record(a=record(b=record(c=record(d=record(e=record(f={"type": "boolean"})))))),
    "booleans and descriptions": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Verdict",
        "description": "What was decided.",
        **record(yes={"type": "boolean", "description": "Whether.", "default": True}),
    },
}
