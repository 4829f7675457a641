import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.openai.validation import field_name, from_validation_error, wrong_type

KNOWN = frozenset({"messages", "content", "metadata", "size"})


@pytest.mark.parametrize(
    ("loc", "name"),
    [
        (("messages", 1, "content"), "messages[1].content"),
        (("messages", 1, "content", "<array>", 0), "messages[1].content[0]"),
        (("metadata", "a client's own key", "[key]"), "metadata"),
        (("a client's own key",), "body"),
        ((), "body"),
    ],
)
def test_places_become_names_up_to_the_first_unknown(loc: tuple[int | str, ...], name: str) -> None:
    assert field_name(loc, KNOWN) == name


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "a boolean"),
        (1, "an integer"),
        (1.5, "a number"),
        ("secret", "a string"),
        (["secret"], "an array"),
        ({"secret": 1}, "an object"),
    ],
)
def test_types_are_named_in_the_words_of_json(value: object, words: str) -> None:
    error = wrong_type("size", "a thing", value)
    assert error.message == f"Invalid type for 'size': expected a thing, but got {words}."


def test_a_finding_without_wording_is_still_a_400_without_the_value() -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(strict=True)
        size: bytes

    with pytest.raises(ValidationError) as caught:
        Odd.model_validate({"size": "secret"})
    error = from_validation_error(caught.value, KNOWN)
    assert (error.status, error.param) == (400, "size")
    assert error.message == "Invalid value for 'size': is not valid."


@pytest.mark.parametrize(("bound", "words"), [(2, "2"), (2.0, "2"), (0.5, "0.5")])
def test_bounds_are_told_as_people_write_them(bound: float, words: str) -> None:
    class Sized(BaseModel):
        size: float = Field(le=bound)

    with pytest.raises(ValidationError) as caught:
        Sized(size=7)
    error = from_validation_error(caught.value, KNOWN)
    assert error.message == f"Invalid value for 'size': must be at most {words}."
