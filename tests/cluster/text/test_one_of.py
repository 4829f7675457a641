"""Branches that are told apart: what satisfies them satisfies oneOf."""

import copy
import itertools
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.text.one_of import MAX_BRANCHES, exclusive

YES: dict[str, Any] = {"type": "boolean"}


def needs(*names: str, **more: Any) -> dict[str, Any]:
    return {"properties": dict.fromkeys(names, YES), "required": list(names), **more}


def is_valid(schema: dict[str, Any], value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ({"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, ["a", "c"]),
        ({"oneOf": [{"const": 1}, {"const": True}]}, [1, True]),
        (
            {"oneOf": [{"maximum": 3, "type": "integer"}, {"type": "number", "minimum": 3.5}]},
            [3, 4],
        ),
        (
            {"oneOf": [{"type": "string", "maxLength": 1}, {"minLength": 2}], "type": "string"},
            ["ab"],
        ),
        (
            {"oneOf": [{"type": "array", "maxItems": 1}, {"type": "array", "minItems": 2}]},
            [[], [1, 2]],
        ),
        (
            {"$defs": {"n": {"const": 7}}, "oneOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]},
            [7, None],
        ),
        ({"type": "object", "oneOf": [needs("a"), needs("b")]}, [{"a": True}, {"b": True, "c": 0}]),
        ({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}]),
        (
            {
                "type": "object",
                "oneOf": [
                    {"properties": {"t": {"enum": ["x", "y"]}}, "required": ["t"]},
                    {"properties": {"t": {"const": "z"}}, "required": ["t"]},
                ],
            },
            [{"t": "x"}, {"t": "z", "more": 1}],
        ),
        ({"items": {"oneOf": [{"type": "null"}, {"enum": [1, 2]}]}}, [[None, 1]]),
    ],
    ids=str,
)
def test_branches_that_exclude_each_other_become_choices(
    schema: dict[str, Any], values: list[Any]
) -> None:
    before = copy.deepcopy(schema)
    made = exclusive(schema)
    assert "oneOf" not in str(made)
    assert all(is_valid(made, value) for value in values)
    assert schema == before


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"oneOf": [{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}]},
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},  # a number satisfies both
        {"type": "object", "oneOf": [needs("a"), needs("a", "b")]},
        {"oneOf": [{"const": 1}, {"const": 1.0}]},
        {"oneOf": [{"$ref": "#/nowhere"}, {"type": "null"}]},
        {"oneOf": [True, {"type": "null"}]},
        {"oneOf": [{"const": place} for place in range(MAX_BRANCHES + 1)]},
        {"oneOf": 5},
    ],
    ids=lambda schema: str(schema)[:60],
)
def test_others_stay_as_they_are(schema: dict[str, Any]) -> None:
    assert exclusive(schema) == schema


def test_the_work_is_bounded() -> None:
    branch = {"oneOf": [{"const": place} for place in range(MAX_BRANCHES)]}
    made = exclusive({"prefixItems": [branch] * 20})
    assert "anyOf" in made["prefixItems"][0]
    assert made["prefixItems"][-1] == branch


SCALARS: list[Any] = [None, True, False, 0, 1, 1.0, 1.5, 2, "", "a", "ab"]
OBJECTS = [
    dict(zip(names, values, strict=True))
    for size in range(3)
    for names in itertools.combinations("abc", size)
    for values in itertools.product([True, 1, "a"], repeat=size)
]
VALUES: list[Any] = [*SCALARS, *OBJECTS, [], [1], [1, "a"], [None, True, 2]]

numbers = st.sampled_from([0, 1, 1.5, 2])
leaves = st.one_of(
    st.fixed_dictionaries({}, optional={"const": st.sampled_from(SCALARS)}),
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from(SCALARS), min_size=1, max_size=3)}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number", "string", "array", "boolean", "null"])},
        optional={
            "minimum": numbers,
            "exclusiveMinimum": numbers,
            "maximum": numbers,
            "exclusiveMaximum": numbers,
            "maxLength": st.integers(0, 2),
            "minLength": st.integers(0, 2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(0, 2),
        },
    ),
    st.just({"$ref": "#/$defs/one"}),
)
names = st.sampled_from("abc")
branches = leaves | st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("object"),
        "properties": st.dictionaries(names, leaves, max_size=2),
        "required": st.lists(names, unique=True, max_size=2),
        "additionalProperties": st.booleans(),
        "maxProperties": st.integers(0, 2),
    },
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(branches, min_size=2, max_size=3),
    branches,
    st.sampled_from([{}, {"type": "object"}, {"type": ["object", "string"]}]),
)
def test_what_satisfies_the_choices_satisfies_one_branch_and_no_other(
    listed: list[dict[str, Any]], one: dict[str, Any], around: dict[str, Any]
) -> None:
    if one == {"$ref": "#/$defs/one"}:
        one = {}
    schema = {**around, "$defs": {"one": one}, "oneOf": listed}
    made = exclusive(schema)
    for value in VALUES:
        assert is_valid(schema, value) or not is_valid(made, value), value
