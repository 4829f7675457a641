"""Schemas made to hurt: sizes, nesting, regular expressions, products and circles."""

from typing import Any

STRING: dict[str, Any] = {"type": "string"}


def nested(keyword: str, depth: int) -> dict[str, Any]:
    """`keyword` with two branches, one of which is nested again."""
    schema = STRING
    for level in range(depth):
        schema = {keyword: [schema, {"const": level}]}
    return schema


def pattern(text: str) -> dict[str, Any]:
    return {"type": "string", "pattern": text}


def objects(count: int, *, required: bool) -> dict[str, Any]:
    properties = {f"k{number}": {"type": "integer"} for number in range(count)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | {"required": list(properties)} if required else schema


def tree(depth: int, width: int) -> dict[str, Any]:
    if not depth:
        return STRING
    branches = []
    for number in range(width):
        name = f"d{depth}_{number}"
        properties = {name: tree(depth - 1, width)}
        branches.append({"type": "object", "properties": properties, "required": [name]})
    return {"anyOf": branches}


def doubling(depth: int, keyword: str) -> dict[str, Any]:
    """References that unfold to 2 ** depth schemas."""
    definitions: dict[str, Any] = {f"d{depth}": STRING}
    for level in range(depth):
        both = [{"$ref": f"#/$defs/d{level + 1}"}] * 2
        definitions[f"d{level}"] = {keyword: both}
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


def product(count: int, width: int) -> dict[str, Any]:
    """width ** count combinations of properties."""
    factors = []
    for n in range(count):
        name = f"p{n}"
        branches = [{"properties": {name: {"const": m}}, "required": [name]} for m in range(width)]
        factors.append({"anyOf": branches})
    return {"type": "object", "allOf": factors}


def counted(depth: int, count: int) -> dict[str, Any]:
    schema = STRING
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": count, "maxItems": count}
    return schema


BOMBS: dict[str, dict[str, Any]] = {
    "oneOf nested 12 deep": nested("oneOf", 12),
    "anyOf nested 12 deep": nested("anyOf", 12),
    "allOf nested 12 deep": nested("allOf", 12),
    "anyOf nested 200 deep": nested("anyOf", 200),
    "a tree of 1,365 objects": tree(5, 4),
    "a reference to itself": {"$ref": "#"},
    "a circle of references": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "an object that holds itself": {
        "type": "object",
        "properties": {"again": {"$ref": "#"}},
        "required": ["again"],
    },
    "arrays that hold themselves": {"type": "array", "items": {"$ref": "#"}},
    "(a+)+": pattern("^(a+)+$"),
    "(a*)*b": pattern("^((a*)*)*b$"),
    "50 ** 3 repetitions": pattern("^((a{1,50}){1,50}){1,50}$"),
    "100,000 characters": pattern("^.{1,100000}$"),
    "10 ** 9 characters": pattern("^.{1,1000000000}$"),
    "20 searches in one": pattern("(.*a){20}.{20}"),
    "2 ** 300 states": pattern("^(a|b)*a(a|b){300}$"),
    "2,000 letters of any script": pattern("^(\\p{L}|\\p{N}){1,2000}$"),
    "3,000 alternatives": pattern("^(" + "|".join(f"w{n}x{n * 7}" for n in range(3000)) + ")+$"),
    "a look ahead": pattern("^(?=.*a)(?=.*b).*$"),
    "a back reference": pattern("^(a*)\\1$"),
    "no expression at all": pattern("(((("),
    "16 searches at once": {"allOf": [pattern(f"^.*{c}.*$") for c in "abcdefghijklmnop"]},
    "100,000 characters, no less": {"type": "string", "minLength": 99_999, "maxLength": 100_000},
    "100,000 items": counted(1, 100_000),
    "1,000 ** 3 items": counted(3, 1_000),
    "1,000 optional properties": objects(1_000, required=False),
    "1,500 required properties": objects(1_500, required=True),
    "1,000 choices": {"enum": [f"choice number {number} of many" for number in range(1_000)]},
    "5,000 choices": {"enum": list(range(5_000))},
    "multiples of a prime": {"type": "integer", "multipleOf": 99_991, "minimum": -(10**15)},
    "multiples of a millionth": {"type": "number", "multipleOf": 1e-6, "maximum": 1e9},
    "numbers up to 10 ** 300": {"type": "number", "minimum": -1e300, "maximum": 1e300},
    "2 ** 14 objects by reference": doubling(14, "prefixItems"),
    "2 ** 20 intersections by reference": doubling(20, "allOf"),
    "4 ** 10 combinations": product(10, 4),
    "200 patterns of names": {
        "type": "object",
        "patternProperties": {f"^k{number}.*": {"type": "integer"} for number in range(200)},
    },
}
